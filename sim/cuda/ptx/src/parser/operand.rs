//! Operands and numbers.

use super::{Parsed, Parser};
use crate::ast::{Address, Operand};

impl<'a> Parser<'_, 'a> {
    pub(super) fn operand(&mut self) -> Parsed<Operand<'a>> {
        let first = self.simple_operand()?;
        if !self.eat('|') {
            return Ok(first);
        }
        let second = self.simple_operand()?;
        Ok(Operand::Pair(Box::new(first), Box::new(second)))
    }

    fn simple_operand(&mut self) -> Parsed<Operand<'a>> {
        match self.peek_punct() {
            Some('{') => {
                self.at += 1;
                self.nested(|parser| parser.vector('}')).map(Operand::Vector)
            }
            // Results and arguments of a call.
            Some('(') => {
                self.at += 1;
                self.nested(|parser| parser.vector(')')).map(Operand::Vector)
            }
            Some('[') => {
                self.at += 1;
                self.nested(Self::address).map(Operand::Address)
            }
            Some('!') => {
                self.at += 1;
                self.name("a predicate").map(Operand::Not)
            }
            Some('-') => self.number(),
            _ => self.word_operand(),
        }
    }

    fn word_operand(&mut self) -> Parsed<Operand<'a>> {
        match self.peek_word() {
            Some("_") => {
                self.at += 1;
                Ok(Operand::Sink)
            }
            Some(word) if word.starts_with(|c: char| c.is_ascii_digit()) => self.number(),
            _ => self.name("an operand").map(Operand::Name),
        }
    }

    /// Elements up to and with `end`.
    fn vector(&mut self, end: char) -> Parsed<Vec<Operand<'a>>> {
        if end == ')' && self.eat(end) {
            return Ok(Vec::new());
        }
        let mut all = vec![self.simple_operand()?];
        while self.eat(',') {
            all.push(self.simple_operand()?);
        }
        self.expect(end)?;
        Ok(all)
    }

    /// What follows `[`, up to and with `]`.
    fn address(&mut self) -> Parsed<Address<'a>> {
        let mut address = Address { base: None, offset: 0, coordinates: Vec::new() };
        let absolute = self.peek_punct() == Some('-')
            || self.peek_word().is_some_and(|word| word.starts_with(|c: char| c.is_ascii_digit()));
        if absolute {
            address.offset = self.integer()?;
        } else {
            address.base = Some(self.name("a register, a variable or a number")?);
            if self.eat('+') || self.peek_punct() == Some('-') {
                address.offset = self.integer()?;
            }
        }
        if self.eat(',') {
            self.expect('{')?;
            address.coordinates = self.vector('}')?;
        }
        self.expect(']')?;
        Ok(address)
    }

    /// A whole number, as the two's complement of its 64 bits.
    pub(super) fn integer(&mut self) -> Parsed<i64> {
        let at = self.at;
        match self.number()? {
            Operand::Int(value) => Ok(value.cast_signed()),
            _ => Err(self.error_at(at, "a whole number")),
        }
    }

    /// The bits of a number of any kind.
    pub(super) fn number_bits(&mut self) -> Parsed<u64> {
        Ok(match self.number()? {
            Operand::F32(bits) => u64::from(bits),
            Operand::F64(bits) | Operand::Int(bits) => bits,
            _ => 0,
        })
    }

    fn number(&mut self) -> Parsed<Operand<'a>> {
        let negative = self.eat('-');
        let at = self.at;
        let word = self.word("a number")?;
        let number = literal(word).ok_or_else(|| self.error_at(at, "a number"))?;
        Ok(match number {
            Operand::Int(value) if negative => Operand::Int(value.wrapping_neg()),
            Operand::F32(bits) if negative => Operand::F32(bits ^ (1 << 31)),
            Operand::F64(bits) if negative => Operand::F64(bits ^ (1 << 63)),
            positive => positive,
        })
    }
}

/// `word` as a number: `0f` and `0d` bits, hexadecimal, octal, binary, decimal, or a decimal fraction.
fn literal(word: &str) -> Option<Operand<'static>> {
    let radix = |digits: &str, radix| u64::from_str_radix(digits, radix).ok();
    if let Some(digits) = word.strip_prefix("0f").or_else(|| word.strip_prefix("0F")) {
        return u32::from_str_radix(digits, 16).ok().map(Operand::F32);
    }
    if let Some(digits) = word.strip_prefix("0d").or_else(|| word.strip_prefix("0D")) {
        return radix(digits, 16).map(Operand::F64);
    }
    if word.contains('.') {
        return word.parse::<f64>().ok().map(|value| Operand::F64(value.to_bits()));
    }
    let word = word.strip_suffix('U').unwrap_or(word);
    let value = if let Some(digits) = word.strip_prefix("0x").or_else(|| word.strip_prefix("0X")) {
        radix(digits, 16)
    } else if let Some(digits) = word.strip_prefix("0b").or_else(|| word.strip_prefix("0B")) {
        radix(digits, 2)
    } else if word.len() > 1 && word.starts_with('0') {
        radix(&word[1..], 8)
    } else {
        radix(word, 10)
    };
    value.map(Operand::Int)
}
