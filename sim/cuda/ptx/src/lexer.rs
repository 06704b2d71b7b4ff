//! Words and punctuation, each with its line.

use crate::ParseError;

/// One token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Token<'a> {
    /// A maximal run of letters, digits, `_ $ % .` and `::`: a mnemonic, name, directive or number.
    Word(&'a str),
    /// A string without its quotes.
    Text(&'a str),
    /// Any other character.
    Punct(char),
}

/// A token and its line, from 1.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Located<'a> {
    pub(crate) token: Token<'a>,
    pub(crate) line: u32,
}

/// Takes `text` apart.
pub(crate) fn tokens(text: &str) -> Result<Vec<Located<'_>>, ParseError> {
    let mut lexer = Lexer { text, at: 0, line: 1 };
    let mut all = Vec::with_capacity(text.len() / 4);
    while let Some(token) = lexer.next()? {
        all.push(token);
    }
    Ok(all)
}

struct Lexer<'a> {
    text: &'a str,
    at: usize,
    line: u32,
}

impl<'a> Lexer<'a> {
    fn next(&mut self) -> Result<Option<Located<'a>>, ParseError> {
        self.skip_blank()?;
        let rest = self.rest();
        let Some(first) = rest.chars().next() else { return Ok(None) };
        let line = self.line;
        let token = if is_word(first) {
            let len = word_len(rest);
            self.at += len;
            Token::Word(&rest[..len])
        } else if first == '"' {
            let len = rest[1..].find(['"', '\n']).filter(|end| rest[1 + end..].starts_with('"'));
            let Some(len) = len else {
                return Err(self.error("a closing quote on the same line"));
            };
            self.at += len + 2;
            Token::Text(&rest[1..=len])
        } else {
            self.at += first.len_utf8();
            Token::Punct(first)
        };
        Ok(Some(Located { token, line }))
    }

    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    /// Skips white space and comments, counting lines.
    fn skip_blank(&mut self) -> Result<(), ParseError> {
        loop {
            let rest = self.rest();
            let blank = rest.len() - rest.trim_start().len();
            let skipped = if blank > 0 {
                blank
            } else if rest.starts_with("//") {
                rest.find('\n').unwrap_or(rest.len())
            } else if rest.starts_with("/*") {
                let Some(end) = rest.find("*/") else { return Err(self.error("the end of /*")) };
                end + 2
            } else {
                return Ok(());
            };
            let lines = rest[..skipped].bytes().filter(|byte| *byte == b'\n').count();
            self.line = self.line.saturating_add(u32::try_from(lines).unwrap_or(u32::MAX));
            self.at += skipped;
        }
    }

    fn error(&self, expected: &str) -> ParseError {
        let found = "the end of the line or text".to_owned();
        ParseError { line: self.line, expected: expected.to_owned(), found }
    }
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '$' | '%' | '.')
}

/// Length of the word that `text` begins with. `::` belongs to it (`.shared::cta`), a single `:` does not (a label).
fn word_len(text: &str) -> usize {
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        if is_word(char::from(bytes[at])) {
            at += 1;
        } else if bytes[at..].starts_with(b"::")
            && bytes.get(at + 2).is_some_and(|next| is_word(char::from(*next)))
        {
            at += 2;
        } else {
            break;
        }
    }
    at
}
