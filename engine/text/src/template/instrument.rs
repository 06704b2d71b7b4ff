//! Checks woven into a compiled template.
//!
//! minijinja bounds the number of instructions, not what one of them does: `x ~ x` doubles a text, `[x, x]` a tree,
//! and thirty of either fill any memory. So after each instruction that makes a new value a call of [`CHECK`] is
//! inserted, which looks at the value on top of the stack and leaves it there, and jumps are moved accordingly.

use std::collections::BTreeMap;

use minijinja::Environment;
use minijinja::machinery::{Instruction, Instructions, get_compiled_template};

/// The check's name: no template can spell it.
pub(super) const CHECK: &str = "\0check";
/// `a ~ b` within the limits.
pub(super) const CONCAT: &str = "\0concat";
/// The check of a value that becomes an attribute of a namespace.
pub(super) const CHECK_ATTRIBUTE: &str = "\0check_attribute";

/// A template's instructions with checks.
pub(super) struct Instrumented<'env> {
    pub(super) root: Instructions<'env>,
    pub(super) blocks: BTreeMap<&'env str, Instructions<'env>>,
}

impl<'env> Instrumented<'env> {
    pub(super) fn new(env: &'env Environment<'env>, name: &str) -> Result<Self, minijinja::Error> {
        let template = env.get_template(name)?;
        let compiled = get_compiled_template(&template);
        let blocks = compiled.blocks.iter().map(|(name, block)| (*name, instrument(block)));
        Ok(Self { root: instrument(&compiled.instructions), blocks: blocks.collect() })
    }
}

fn instrument<'env>(original: &Instructions<'env>) -> Instructions<'env> {
    let instructions: Vec<&Instruction<'env>> =
        (0..).map_while(|index| original.get(index)).collect();
    // Where each instruction comes to stand, and the end.
    let mut positions = Vec::with_capacity(instructions.len() + 1);
    let mut position: u32 = 0;
    for instruction in &instructions {
        positions.push(position);
        position = position.saturating_add(length(instruction));
    }
    positions.push(position);
    let moved = |target: u32| {
        let index = usize::try_from(target).unwrap_or(usize::MAX);
        positions.get(index).copied().unwrap_or(position)
    };

    let mut result = Instructions::new(original.name(), original.source());
    for (index, instruction) in (0_u32..).zip(instructions) {
        let mut add = |instruction| match (original.get_span(index), original.get_line(index)) {
            (Some(span), _) => result.add_with_span(instruction, span),
            (None, Some(line)) => {
                result.add_with_line(instruction, u16::try_from(line).unwrap_or(u16::MAX))
            }
            (None, None) => result.add(instruction),
        };
        if matches!(instruction, Instruction::SetAttr(_)) {
            // The namespace is on top, the value below it.
            add(Instruction::Swap);
            add(Instruction::CallFunction(CHECK_ATTRIBUTE, Some(1)));
            add(Instruction::Swap);
        }
        add(rewritten(instruction, moved));
        if makes_a_value(instruction) {
            add(Instruction::CallFunction(CHECK, Some(1)));
        }
    }
    result
}

/// How many instructions an instruction becomes.
fn length(instruction: &Instruction<'_>) -> u32 {
    match instruction {
        Instruction::SetAttr(_) => 4,
        other if makes_a_value(other) => 2,
        _ => 1,
    }
}

fn makes_a_value(instruction: &Instruction<'_>) -> bool {
    matches!(
        instruction,
        Instruction::LoadConst(_)
            | Instruction::Slice
            | Instruction::BuildMap(_)
            | Instruction::BuildList(_)
            | Instruction::Add
            | Instruction::Mul
            | Instruction::StringConcat
            | Instruction::EndCapture
            | Instruction::ApplyFilter(..)
            | Instruction::CallFunction(..)
            | Instruction::CallMethod(..)
            | Instruction::CallObject(_)
            // These make only true or false, but may take long: the check looks at the clock, too.
            | Instruction::PerformTest(..)
            | Instruction::Eq
            | Instruction::Ne
            | Instruction::Lt
            | Instruction::Lte
            | Instruction::Gt
            | Instruction::Gte
            | Instruction::In
            | Instruction::CompareAndPreserve(_)
    )
}

/// An instruction with its jump moved, and with `~` done by us.
fn rewritten<'env>(
    instruction: &Instruction<'env>,
    moved: impl Fn(u32) -> u32,
) -> Instruction<'env> {
    match instruction {
        Instruction::StringConcat => Instruction::CallFunction(CONCAT, Some(2)),
        Instruction::Iterate(target) => Instruction::Iterate(moved(*target)),
        Instruction::Jump(target) => Instruction::Jump(moved(*target)),
        Instruction::JumpIfFalse(target) => Instruction::JumpIfFalse(moved(*target)),
        Instruction::JumpIfFalseOrPop(target) => Instruction::JumpIfFalseOrPop(moved(*target)),
        Instruction::JumpIfTrueOrPop(target) => Instruction::JumpIfTrueOrPop(moved(*target)),
        Instruction::BuildMacro(name, target, flags) => {
            Instruction::BuildMacro(name, moved(*target), *flags)
        }
        other => other.clone(),
    }
}
