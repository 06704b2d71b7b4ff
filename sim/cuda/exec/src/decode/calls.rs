//! Calls of device functions: the function's body is put in the place of each call of it.
//!
//! Parameters of a call are in the `.param` space, which here is a part of the thread's local memory: the function names the
//! places that its caller named otherwise. A function may be in several places, so its registers, variables and labels are new ones
//! each time, and `ret` is a branch to its end.

use super::scope::Place;
use super::{DecodeError, Decoded, Decoder};
use crate::program::{Class, Flow, Op};
use halyard_sim_cuda_ptx::{Function, Instruction, Operand, Param};

/// The most instructions that a kernel with all that it calls may have.
const LONGEST: usize = 1 << 20;

/// What the vendor's headers call where an assertion does not hold; drivers bring its body.
const ASSERTION: &str = "__assertfail";

/// The label behind a function, which no text can name.
const END: &str = "";

impl<'a> Decoder<'a, '_> {
    /// `call (results), function, (parameters);`, where what is empty may be left out.
    pub(super) fn call(&mut self, instruction: &Instruction<'a>) -> Result<(), DecodeError> {
        let line = instruction.line;
        let failed = |text: String| DecodeError { line, text: format!("`call`: {text}") };
        let (function, bound) = self.callee(instruction).map_err(failed)?;
        let guard = self.guard(instruction).map_err(failed)?;
        let Some(body) = &function.body else {
            if function.name == ASSERTION {
                let trap = self.push(Op::Flow(Flow::Trap), Class::Control);
                (trap.imm, trap.guard) = (1, guard);
                return Ok(());
            }
            let text = format!("unsupported: function '{}', which has no body here", function.name);
            return Err(failed(text));
        };
        if self.calls.contains(&function.name) {
            let text = format!("unsupported: function '{}', which calls itself", function.name);
            return Err(failed(text));
        }
        self.names.enter_function(bound);
        self.calls.push(function.name);
        if let Some((slot, holds)) = guard {
            self.branch_to(END);
            let at = self.code.len() - 1;
            self.code[at].guard = Some((slot, !holds));
        }
        self.body(body)?;
        if self.code.len() > LONGEST {
            return Err(failed("unsupported: more than 2^20 instructions with it".to_owned()));
        }
        self.names.label(END, self.code.len());
        self.calls.pop();
        self.resolve()
    }

    /// The function that is called, and where each of its parameters is.
    fn callee(
        &mut self,
        instruction: &Instruction<'a>,
    ) -> Decoded<(&'a Function<'a>, Vec<(&'a str, Place)>)> {
        let none = Vec::new();
        let (results, name, params) = match &instruction.operands[..] {
            [Operand::Name(name)] => (&none, *name, &none),
            [Operand::Name(name), Operand::Vector(params)] => (&none, *name, params),
            [Operand::Vector(results), Operand::Name(name)] => (results, *name, &none),
            [Operand::Vector(results), Operand::Name(name), Operand::Vector(params)] => {
                (results, *name, params)
            }
            _ => return Err("unsupported: a call that names no function".to_owned()),
        };
        if self.names.register(name)?.is_some() {
            return Err("unsupported: a call through an address".to_owned());
        }
        let named = |function: &&Function<'a>| function.name == name;
        let defined = |function: &&Function<'a>| named(function) && function.body.is_some();
        let functions = &self.module.functions;
        let function = functions.iter().find(defined).or_else(|| functions.iter().find(named));
        let function = function.ok_or_else(|| format!("'{name}' is no function"))?;
        let mut bound = Vec::new();
        for (formal, actual) in [(&function.results, results), (&function.params, params)] {
            if formal.len() != actual.len() {
                let (wants, has) = (formal.len(), actual.len());
                return Err(format!("'{name}' wants {wants} parameters or results, not {has}"));
            }
            for (formal, actual) in formal.iter().zip(actual) {
                bound.push((formal.name, self.argument(formal, actual)?));
            }
        }
        Ok((function, bound))
    }

    fn argument(&mut self, formal: &Param<'a>, actual: &Operand<'a>) -> Decoded<Place> {
        let Operand::Name(name) = actual else {
            return Err("unsupported: a parameter that is a constant".to_owned());
        };
        match self.names.find_variable(name)? {
            Some(Place::Argument(at, bytes)) if formal.bytes as u64 <= bytes => {
                Ok(Place::Argument(at, bytes))
            }
            Some(Place::Argument(..)) => {
                Err(format!("parameter '{name}' is smaller than '{}'", formal.name))
            }
            _ => Err(format!("unsupported: '{name}', a parameter outside the space .param")),
        }
    }

    /// The end of a function where it is called, or of the kernel.
    pub(super) fn leave_function(&mut self) {
        if self.calls.is_empty() {
            self.push(Op::Flow(Flow::Exit), Class::Control);
        } else {
            self.branch_to(END);
        }
    }

    pub(super) fn branch_to(&mut self, label: &'a str) {
        self.names.branch(self.code.len(), label, self.line);
        self.push(Op::Flow(Flow::Branch), Class::Control);
    }
}
