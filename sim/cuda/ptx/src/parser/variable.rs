//! Variables and their initialisers.

use super::{Parsed, Parser};
use crate::ast::{Initial, Linkage, Variable};

/// The most elements that an initialiser or array may have: what a 32-bit device address could hold.
const MAX_ELEMENTS: usize = 1 << 32;

impl<'a> Parser<'_, 'a> {
    /// `.space .align n .ty name[count] = {…}, …;`
    pub(super) fn variables(&mut self, linkage: Linkage) -> Parsed<Vec<Variable<'a>>> {
        let line = self.line();
        let space = self.space().ok_or_else(|| self.error("a directive or a state space"))?;
        let mut align = None;
        let mut ty = None;
        while let Some(word) = self.peek_word().filter(|word| word.starts_with('.')) {
            match word {
                ".align" => align = Some(self.align()?),
                ".attribute" => {
                    self.at += 1;
                    self.skip_past(')')?;
                }
                _ => ty = Some(self.scalar_type()?),
            }
        }
        let ty = ty.ok_or_else(|| self.error("the variable's type"))?;
        let align = align.unwrap_or(ty.bytes());
        let mut all = Vec::new();
        loop {
            let name = self.name("the variable's name")?;
            let count = self.dimensions()?.unwrap_or(Some(1));
            let mut init = Vec::new();
            if self.eat('=') {
                self.initial(&mut init)?;
            }
            if count.is_some_and(|count| init.len() > count) {
                return Err(self.error("at most as many initial values as elements"));
            }
            let count = count.or((!init.is_empty()).then_some(init.len()));
            all.push(Variable { name, line, space, linkage, ty, count, align, init });
            if !self.eat(',') {
                break;
            }
        }
        self.expect(';')?;
        Ok(all)
    }

    /// `[4][2]` as `Some(Some(8))`, `[]` as `Some(None)`, nothing as `None`.
    pub(super) fn dimensions(&mut self) -> Parsed<Option<Option<usize>>> {
        let mut count = None;
        while self.eat('[') {
            if self.eat(']') {
                return Ok(Some(None));
            }
            let at = self.at;
            let extent = usize::try_from(self.integer()?).ok();
            let total = extent.and_then(|extent| count.unwrap_or(1usize).checked_mul(extent));
            let total = total.filter(|total| *total <= MAX_ELEMENTS);
            count =
                Some(total.ok_or_else(|| self.error_at(at, "an array of at most 2^32 elements"))?);
            self.expect(']')?;
        }
        Ok(count.map(Some))
    }

    fn initial(&mut self, into: &mut Vec<Initial<'a>>) -> Parsed<()> {
        if !self.eat('{') {
            into.push(self.initial_value()?);
            return Ok(());
        }
        self.nested(|parser| {
            loop {
                parser.initial(into)?;
                if !parser.eat(',') {
                    return parser.expect('}');
                }
            }
        })
    }

    fn initial_value(&mut self) -> Parsed<Initial<'a>> {
        if self.peek_word() == Some("generic") {
            self.at += 1;
            self.expect('(')?;
            let name = self.name("a variable's name")?;
            self.expect(')')?;
            return Ok(Initial::Symbol(name));
        }
        let number = self.peek_punct() == Some('-')
            || self.peek_word().is_some_and(|word| word.starts_with(|c: char| c.is_ascii_digit()));
        if number {
            return self.number_bits().map(Initial::Bits);
        }
        self.name("a number or a variable's name").map(Initial::Symbol)
    }
}
