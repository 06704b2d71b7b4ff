//! Statements of a kernel.

use super::{Parsed, Parser};
use crate::ast::{Guard, Instruction, Linkage, RegDecl, ScalarType, Statement};
use crate::lexer::Token;

/// The most registers that one declaration may make.
const MAX_REGISTERS: u32 = 1 << 20;

impl<'a> Parser<'_, 'a> {
    /// Statements up to and with the closing brace.
    pub(super) fn statements(&mut self) -> Parsed<Vec<Statement<'a>>> {
        let mut all = Vec::new();
        while !self.eat('}') {
            self.statement(&mut all)?;
        }
        Ok(all)
    }

    fn statement(&mut self, into: &mut Vec<Statement<'a>>) -> Parsed<()> {
        if self.eat('{') {
            into.push(Statement::Block(self.nested(Self::statements)?));
            return Ok(());
        }
        if self.eat(';') {
            return Ok(());
        }
        let line = self.line();
        match self.peek_word() {
            Some(word) if word == ".reg" || word.starts_with(".reg.") => self.registers(into)?,
            Some(".loc" | ".file") => self.skip_line(line),
            Some(".pragma") => self.skip_past(';')?,
            Some(".shared" | ".local" | ".global" | ".const" | ".param") => {
                into.extend(self.variables(Linkage::Local)?.into_iter().map(Statement::Variable));
            }
            Some(word) if self.is_label() => {
                self.at += 2;
                match self.peek_word() {
                    Some(".branchtargets") => into.push(self.targets(word)?),
                    // Of a call through an address, which says where.
                    Some(".calltargets" | ".callprototype") => self.skip_past(';')?,
                    _ => into.push(Statement::Label(word, line)),
                }
            }
            _ => into.push(Statement::Instruction(self.instruction()?)),
        }
        Ok(())
    }

    fn is_label(&self) -> bool {
        self.tokens.get(self.at + 1).is_some_and(|next| next.token == Token::Punct(':'))
    }

    /// `.branchtargets a, b, …;`
    fn targets(&mut self, name: &'a str) -> Parsed<Statement<'a>> {
        self.at += 1;
        let mut labels = vec![self.name("a label")?];
        while self.eat(',') {
            labels.push(self.name("a label")?);
        }
        self.expect(';')?;
        Ok(Statement::Targets(name, labels))
    }

    fn registers(&mut self, into: &mut Vec<Statement<'a>>) -> Parsed<()> {
        let line = self.line();
        let ty = self.register_type()?;
        loop {
            let name = self.name("a register's name")?;
            let count = if self.eat('<') { Some(self.register_count()?) } else { None };
            into.push(Statement::Reg(RegDecl { name, count, ty, line }));
            if !self.eat(',') {
                return self.expect(';');
            }
        }
    }

    /// `.reg .b16`, which may be written together.
    fn register_type(&mut self) -> Parsed<ScalarType> {
        let joined = self.peek_word().and_then(|word| word.strip_prefix(".reg."));
        self.at += 1;
        match joined {
            Some(name) => ScalarType::parse(name)
                .ok_or_else(|| self.error_at(self.at - 1, "a type such as .b32")),
            None => self.scalar_type(),
        }
    }

    fn register_count(&mut self) -> Parsed<u32> {
        let at = self.at;
        let count = u32::try_from(self.integer()?).ok().filter(|count| *count <= MAX_REGISTERS);
        let count = count.ok_or_else(|| self.error_at(at, "at most 2^20 registers"))?;
        self.expect('>')?;
        Ok(count)
    }

    fn instruction(&mut self) -> Parsed<Instruction<'a>> {
        let line = self.line();
        let guard = self.guard()?;
        let mnemonic = self.name("an instruction, a directive or '}'")?;
        let mut operands = Vec::new();
        while !self.eat(';') {
            if !operands.is_empty() {
                self.expect(',')?;
            }
            operands.push(self.operand()?);
        }
        Ok(Instruction { line, guard, mnemonic, operands })
    }

    fn guard(&mut self) -> Parsed<Option<Guard<'a>>> {
        if !self.eat('@') {
            return Ok(None);
        }
        let negated = self.eat('!');
        let predicate = self.name("a predicate")?;
        Ok(Some(Guard { predicate, negated }))
    }
}
