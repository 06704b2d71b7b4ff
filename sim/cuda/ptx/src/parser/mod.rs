//! The grammar: a module's directives here, bodies in `body`, operands in `operand`.

mod body;
mod operand;
mod variable;

use crate::ast::{Function, Kernel, Limits, Linkage, Module, Param, ScalarType};
use crate::lexer::{Located, Token, tokens};
use crate::{ParseError, Space};

/// How deep scopes and initialisers may nest; deeper text is refused, so that no text overflows the stack.
const MAX_DEPTH: usize = 64;

/// Parses a PTX text.
///
/// # Errors
/// The first place where the text departs from the grammar.
pub fn parse(text: &str) -> Result<Module<'_>, ParseError> {
    let tokens = tokens(text)?;
    Parser { tokens: &tokens, at: 0, depth: 0 }.module()
}

pub(crate) struct Parser<'t, 'a> {
    tokens: &'t [Located<'a>],
    at: usize,
    depth: usize,
}

type Parsed<T> = Result<T, ParseError>;

impl<'a> Parser<'_, 'a> {
    fn module(mut self) -> Parsed<Module<'a>> {
        let mut module = Module::default();
        while let Some(Located { token, line }) = self.peek() {
            let Token::Word(word) = token else { return Err(self.error("a directive")) };
            match word {
                ".version" => module.version = self.version()?,
                ".target" => {
                    self.at += 1;
                    module.target = self.word("a target such as sm_80")?;
                    self.skip_line(line);
                }
                ".address_size" => self.address_size()?,
                ".file" | ".loc" => self.skip_line(line),
                ".pragma" => self.skip_past(';')?,
                ".section" => self.skip_braces()?,
                _ => self.declaration(&mut module)?,
            }
        }
        Ok(module)
    }

    fn version(&mut self) -> Parsed<(u32, u32)> {
        self.at += 1;
        let at = self.at;
        let word = self.word("a version such as 7.8")?;
        let parts =
            word.split_once('.').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
        parts.ok_or_else(|| self.error_at(at, "a version such as 7.8"))
    }

    fn address_size(&mut self) -> Parsed<()> {
        self.at += 1;
        let at = self.at;
        match self.word("64")? {
            "64" => Ok(()),
            _ => Err(self.error_at(at, "an address size of 64")),
        }
    }

    fn declaration(&mut self, module: &mut Module<'a>) -> Parsed<()> {
        let mut linkage = Linkage::Local;
        loop {
            linkage = match self.peek_word() {
                Some(".visible") => Linkage::Visible,
                Some(".extern") => Linkage::Extern,
                Some(".weak" | ".common") => Linkage::Weak,
                _ => break,
            };
            self.at += 1;
        }
        match self.peek_word() {
            Some(".entry") => {
                let kernel = self.kernel()?;
                module.kernels.push(kernel);
            }
            Some(".func") => module.functions.push(self.function()?),
            Some(".alias") => self.skip_past(';')?,
            _ => {
                let variables = self.variables(linkage)?;
                module.variables.extend(variables);
            }
        }
        Ok(())
    }

    fn kernel(&mut self) -> Parsed<Kernel<'a>> {
        let line = self.line();
        self.at += 1;
        let name = self.name("the kernel's name")?;
        let params = if self.eat('(') { self.params()? } else { Vec::new() };
        let limits = self.limits()?;
        self.expect('{')?;
        let body = self.statements()?;
        Ok(Kernel { name, line, params, limits, body })
    }

    fn params(&mut self) -> Parsed<Vec<Param<'a>>> {
        let mut params = Vec::new();
        while !self.eat(')') {
            if !params.is_empty() {
                self.expect(',')?;
            }
            params.push(self.param()?);
        }
        Ok(params)
    }

    /// `.param .align 8 .b8 name[16]` or `.param .u64 .ptr .global .align 1 name`.
    fn param(&mut self) -> Parsed<Param<'a>> {
        self.expect_word(".param")?;
        let mut align = None;
        let mut ty = None;
        loop {
            match self.peek_word() {
                // The alignment after `.ptr` is that of the memory behind the pointer.
                Some(".align") => {
                    let given = self.align()?;
                    if ty.is_none() {
                        align = Some(given);
                    }
                }
                Some(".ptr" | ".global" | ".shared" | ".const" | ".local") => self.at += 1,
                Some(word) if word.starts_with('.') => ty = Some(self.scalar_type()?),
                _ => break,
            }
        }
        let ty: ScalarType = ty.ok_or_else(|| self.error("the parameter's type"))?;
        let name = self.name("the parameter's name")?;
        let count = self.dimensions()?.map_or(Some(1), |count| count);
        let count = count.ok_or_else(|| self.error("the parameter's size"))?;
        let bytes = count.checked_mul(ty.bytes()).filter(|bytes| *bytes <= 32_764);
        let bytes = bytes.ok_or_else(|| self.error("a parameter of at most 32764 bytes"))?;
        Ok(Param { name, bytes, align: align.unwrap_or(ty.bytes()) })
    }

    fn limits(&mut self) -> Parsed<Limits> {
        let mut limits = Limits::default();
        while let Some(word) = self.peek_word() {
            self.at += 1;
            match word {
                ".maxntid" => limits.max_threads = Some(self.extents()?),
                ".reqntid" => limits.required_threads = Some(self.extents()?),
                ".minnctapersm" => limits.min_blocks = Some(self.extent()?),
                ".maxnreg" => limits.max_registers = Some(self.extent()?),
                ".maxclusterrank" => _ = self.extent()?,
                ".noreturn" | ".blocksareclusters" | ".explicitcluster" => {}
                ".reqnctapercluster" => limits.required_cluster = Some(self.extents()?),
                ".pragma" => self.skip_past(';')?,
                _ => return Err(self.error_at(self.at - 1, "a performance directive or '{'")),
            }
        }
        Ok(limits)
    }

    fn extent(&mut self) -> Parsed<u32> {
        let at = self.at;
        let value = self.integer()?;
        u32::try_from(value).map_err(|_| self.error_at(at, "a number below 2^32"))
    }

    fn extents(&mut self) -> Parsed<[u32; 3]> {
        let mut all = [self.extent()?, 1, 1];
        for extent in &mut all[1..] {
            if !self.eat(',') {
                break;
            }
            *extent = self.extent()?;
        }
        Ok(all)
    }

    /// `.func (results) name (params) { … }`, or without a body.
    fn function(&mut self) -> Parsed<Function<'a>> {
        let line = self.line();
        self.at += 1;
        let results = if self.eat('(') { self.params()? } else { Vec::new() };
        let name = self.name("the function's name")?;
        let params = if self.eat('(') { self.params()? } else { Vec::new() };
        let body = loop {
            if self.eat(';') {
                break None;
            }
            if self.eat('{') {
                break Some(self.statements()?);
            }
            self.advance("the function's body or ';'")?;
        };
        Ok(Function { name, line, results, params, body })
    }

    fn skip_line(&mut self, line: u32) {
        while self.peek().is_some_and(|token| token.line == line) {
            self.at += 1;
        }
    }

    fn skip_past(&mut self, end: char) -> Parsed<()> {
        while !self.eat(end) {
            self.advance(&format!("'{end}'"))?;
        }
        Ok(())
    }

    /// Skips to the end of the next `{ … }`.
    fn skip_braces(&mut self) -> Parsed<()> {
        let mut depth = 0usize;
        loop {
            match self.peek_punct() {
                Some('{') => depth += 1,
                Some('}') => depth = depth.saturating_sub(1),
                _ => {}
            }
            let closed = self.peek_punct() == Some('}') && depth == 0;
            self.advance("'}'")?;
            if closed {
                return Ok(());
            }
        }
    }

    fn space(&mut self) -> Option<Space> {
        let space = match self.peek_word()? {
            ".global" => Space::Global,
            ".shared" | ".shared::cta" => Space::Shared,
            ".local" => Space::Local,
            ".const" => Space::Const,
            ".param" => Space::Param,
            _ => return None,
        };
        self.at += 1;
        Some(space)
    }

    fn align(&mut self) -> Parsed<usize> {
        self.expect_word(".align")?;
        let at = self.at;
        let value = usize::try_from(self.integer()?).ok();
        value
            .filter(|align| align.is_power_of_two() && *align <= 4096)
            .ok_or_else(|| self.error_at(at, "a power of two up to 4096"))
    }

    fn scalar_type(&mut self) -> Parsed<ScalarType> {
        let at = self.at;
        let word = self.word("a type such as .b32")?;
        word.strip_prefix('.')
            .and_then(ScalarType::parse)
            .ok_or_else(|| self.error_at(at, "a type such as .b32"))
    }

    /// Runs `parse` one level deeper.
    fn nested<T>(&mut self, parse: impl FnOnce(&mut Self) -> Parsed<T>) -> Parsed<T> {
        if self.depth == MAX_DEPTH {
            return Err(self.error("at most 64 nested braces"));
        }
        self.depth += 1;
        let parsed = parse(self);
        self.depth -= 1;
        parsed
    }

    fn peek(&self) -> Option<Located<'a>> {
        self.tokens.get(self.at).copied()
    }

    fn peek_word(&self) -> Option<&'a str> {
        match self.peek()?.token {
            Token::Word(word) => Some(word),
            _ => None,
        }
    }

    fn peek_punct(&self) -> Option<char> {
        match self.peek()?.token {
            Token::Punct(punct) => Some(punct),
            _ => None,
        }
    }

    fn line(&self) -> u32 {
        self.peek().or_else(|| self.tokens.last().copied()).map_or(1, |token| token.line)
    }

    fn advance(&mut self, expected: &str) -> Parsed<()> {
        if self.peek().is_none() {
            return Err(self.error(expected));
        }
        self.at += 1;
        Ok(())
    }

    fn word(&mut self, expected: &str) -> Parsed<&'a str> {
        let word = self.peek_word().ok_or_else(|| self.error(expected))?;
        self.at += 1;
        Ok(word)
    }

    /// A word that names something.
    fn name(&mut self, expected: &str) -> Parsed<&'a str> {
        let named = |word: &&str| !word.starts_with(|c: char| c == '.' || c.is_ascii_digit());
        let word = self.peek_word().filter(named).ok_or_else(|| self.error(expected))?;
        self.at += 1;
        Ok(word)
    }

    fn expect_word(&mut self, wanted: &str) -> Parsed<()> {
        if self.peek_word() != Some(wanted) {
            return Err(self.error(wanted));
        }
        self.at += 1;
        Ok(())
    }

    fn eat(&mut self, punct: char) -> bool {
        let there = self.peek_punct() == Some(punct);
        self.at += usize::from(there);
        there
    }

    fn expect(&mut self, punct: char) -> Parsed<()> {
        if self.eat(punct) { Ok(()) } else { Err(self.error(&format!("'{punct}'"))) }
    }

    fn error(&self, expected: &str) -> ParseError {
        self.error_at(self.at, expected)
    }

    fn error_at(&self, at: usize, expected: &str) -> ParseError {
        let found = match self.tokens.get(at).map(|located| located.token) {
            Some(Token::Word(word)) => format!("'{}'", shortened(word)),
            Some(Token::Text(text)) => format!("\"{}\"", shortened(text)),
            Some(Token::Punct(punct)) => format!("'{punct}'"),
            None => "the end of the text".to_owned(),
        };
        let line = self.tokens.get(at).map_or_else(|| self.line(), |located| located.line);
        ParseError { line, expected: expected.to_owned(), found }
    }
}

/// `text`, or its beginning where it is long.
fn shortened(text: &str) -> &str {
    text.char_indices().nth(60).map_or(text, |(end, _)| &text[..end])
}
