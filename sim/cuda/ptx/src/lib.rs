//! A parser of PTX, the virtual instruction set of CUDA devices.
//!
//! - [`parse`]: text to a [`Module`]; total: any text gives a module or a [`ParseError`], never a panic
//! - `ast`: what a module consists of; `lexer`: words and punctuation; `parser`: the grammar
//!
//! Declarations are typed here; an instruction is its mnemonic taken apart at the dots and its operands. Which
//! mnemonics exist and what they mean is for whoever executes them. Source: the PTX ISA manual, chapters 4 and 5.

mod ast;
mod lexer;
mod parser;

pub use ast::{
    Address, Function, Guard, Initial, Instruction, Kernel, Limits, Linkage, Module, Operand,
    Param, RegDecl, ScalarType, Space, Statement, Variable,
};
pub use parser::parse;

/// Why a text is not PTX that this crate reads.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("PTX line {line}: expected {expected}, found {found}")]
pub struct ParseError {
    /// Line of the text, from 1.
    pub line: u32,
    /// What the grammar wants there.
    pub expected: String,
    /// What is there.
    pub found: String,
}
