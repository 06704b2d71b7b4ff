//! Incremental detokenisation.

use crate::tokenizer::{Decoding, Piece, Tokenizer};

const REPLACEMENT: &str = "\u{FFFD}";

/// Turns ids into text as they come: whole characters only, and in sum the same as [`Tokenizer::decode`].
///
/// Bytes that don't form a character yet are held back; bytes that never will become U+FFFD, by the rules of the
/// tokenizer's own decoder. Ids outside the vocabulary give no text: a model's head may have more rows than its
/// tokenizer has tokens.
#[derive(Debug, Clone)]
pub struct StreamDecoder {
    skip_special: bool,
    /// Bytes of a character that is not complete: at most four.
    pending: Vec<u8>,
    /// In a run of byte tokens that has turned out not to be UTF-8.
    bad_run: bool,
    /// How many leading spaces may still be stripped; `None` before the first token.
    strip_left: Option<usize>,
}

impl StreamDecoder {
    /// A decoder at the start of a text. Tokenizers that put a space before the first word strip it again.
    #[must_use]
    pub fn new(skip_special: bool) -> Self {
        Self { skip_special, pending: Vec::new(), bad_run: false, strip_left: None }
    }

    /// A decoder that goes on after a prompt: a leading space of the first token is part of the text.
    #[must_use]
    pub fn after_prompt(skip_special: bool) -> Self {
        Self { strip_left: Some(0), ..Self::new(skip_special) }
    }

    /// Takes the next id; gives the text that is now certain, if there is any.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> Option<String> {
        if self.skip_special && tokenizer.is_special(id) {
            return None;
        }
        let mut text = String::new();
        match tokenizer.piece(id)? {
            Piece::Bytes(bytes) => {
                self.pending.extend_from_slice(&bytes);
                take_valid(&mut self.pending, &mut text);
            }
            Piece::Byte(byte) => self.push_byte_token(byte, &mut text),
            Piece::Text(piece) => {
                self.end_byte_run(&mut text);
                text.push_str(&piece);
            }
        }
        self.strip(tokenizer.decoding(), &mut text);
        (!text.is_empty()).then_some(text)
    }

    /// What is left when no more ids come.
    pub fn finish(&mut self, tokenizer: &Tokenizer) -> Option<String> {
        let mut text = String::new();
        if matches!(tokenizer.decoding(), Decoding::ByteLevel) {
            if !self.pending.is_empty() {
                text.push_str(REPLACEMENT);
                self.pending.clear();
            }
        } else {
            self.end_byte_run(&mut text);
        }
        (!text.is_empty()).then_some(text)
    }

    /// A run of byte tokens is UTF-8 or, from the first wrong byte on, one U+FFFD a byte.
    fn push_byte_token(&mut self, byte: u8, text: &mut String) {
        if self.bad_run {
            text.push_str(REPLACEMENT);
            return;
        }
        self.pending.push(byte);
        match std::str::from_utf8(&self.pending) {
            Ok(valid) => {
                text.push_str(valid);
                self.pending.clear();
            }
            Err(error) if error.error_len().is_none() => {}
            Err(_) => {
                text.push_str(&REPLACEMENT.repeat(self.pending.len()));
                self.pending.clear();
                self.bad_run = true;
            }
        }
    }

    fn end_byte_run(&mut self, text: &mut String) {
        text.push_str(&REPLACEMENT.repeat(self.pending.len()));
        self.pending.clear();
        self.bad_run = false;
    }

    /// Strips leading characters from the beginning of the whole text.
    fn strip(&mut self, decoding: &Decoding, text: &mut String) {
        let Decoding::Pieces { strip: Some(strip), .. } = decoding else { return };
        let mut left = self.strip_left.unwrap_or(strip.count);
        while left > 0 && !text.is_empty() {
            if text.starts_with(strip.content) {
                text.remove(0);
                left -= 1;
            } else {
                left = 0;
            }
        }
        self.strip_left = Some(left);
    }
}

/// Moves all that is decided from `pending` to `text`, invalid sequences as U+FFFD, as `from_utf8_lossy` does.
fn take_valid(pending: &mut Vec<u8>, text: &mut String) {
    let mut taken = 0;
    for chunk in pending.utf8_chunks() {
        text.push_str(chunk.valid());
        taken += chunk.valid().len();
        let invalid = chunk.invalid();
        if invalid.is_empty() {
            continue;
        }
        let open = taken + invalid.len() == pending.len()
            && std::str::from_utf8(invalid).is_err_and(|error| error.error_len().is_none());
        if !open {
            text.push_str(REPLACEMENT);
            taken += invalid.len();
        }
    }
    pending.drain(..taken);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn pieces_of_bytes_equal_the_lossy_whole(
            pieces in prop::collection::vec(prop::collection::vec(prop_oneof![
                any::<u8>(),
                prop::sample::select("aé你😀".as_bytes().to_vec()),
            ], 0..4), 0..20),
        ) {
            let whole = String::from_utf8_lossy(&pieces.concat()).into_owned();
            let (mut pending, mut text) = (Vec::new(), String::new());
            for piece in &pieces {
                pending.extend_from_slice(piece);
                take_valid(&mut pending, &mut text);
                prop_assert!(pending.len() < 4);
            }
            if !pending.is_empty() {
                text.push_str(REPLACEMENT);
            }
            prop_assert_eq!(text, whole);
        }
    }
}
