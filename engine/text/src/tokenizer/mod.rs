//! A tokenizer, whichever file it came from.

mod decoding;
mod from_gguf;
mod from_hf;
mod pretokenizers;

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};

pub(crate) use decoding::{Decoding, Piece};
pub(crate) use from_hf::TokenizerConfig;

use crate::detok::StreamDecoder;
use crate::error::TokenizerError;

/// Text to token ids and back.
///
/// Special tokens that stand in a text (`<|im_end|>` …) become their ids, as with Hugging Face's tokenizers: rendered
/// chat templates rely on it. A client can therefore write special tokens into a message; whoever must not allow
/// that has to take them out of the message before it is rendered.
///
/// All methods may be called from many threads at once.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    decoding: Decoding,
    special_ids: HashSet<u32>,
    special: SpecialTokens,
    vocab_size: usize,
}

/// The special tokens that have a role, as text. Chat templates see them under these names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    /// Beginning of sequence.
    pub bos_token: Option<String>,
    /// End of sequence, or of a turn.
    pub eos_token: Option<String>,
    /// Unknown.
    pub unk_token: Option<String>,
    /// Padding.
    pub pad_token: Option<String>,
}

impl Tokenizer {
    fn new(
        mut inner: tokenizers::Tokenizer,
        decoding: Decoding,
        special: SpecialTokens,
    ) -> Result<Self, TokenizerError> {
        // A tokenizer.json may ask for a fixed length; a server must see all of a prompt.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|error| library("setting up the tokenizer", &error))?;
        let added = inner.get_added_tokens_decoder();
        let special_ids =
            added.iter().filter(|(_, token)| token.special).map(|(id, _)| *id).collect();
        let last = inner.get_vocab(true).into_values().max();
        let vocab_size = last.map_or(0, |id| id as usize + 1);
        let tokenizer = Self { inner, decoding, special_ids, special, vocab_size };
        // What a post-processor adds it names by id, and nothing ties that id to the vocabulary.
        let added = tokenizer.encode("", true)?;
        match added.into_iter().find(|id| tokenizer.id_to_token(*id).is_none()) {
            Some(id) => Err(TokenizerError::invalid(
                "tokenizer.json post_processor token id",
                &id.to_string(),
                "an id of the vocabulary",
            )),
            None => Ok(tokenizer),
        }
    }

    /// The ids of a text. With `add_special` the tokenizer adds what the model expects around a text, such as its
    /// beginning-of-sequence token; a rendered chat template already holds it.
    ///
    /// # Errors
    /// The tokenizer library fails, for instance because a pattern gives up on a text of millions of spaces.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, TokenizerError> {
        let encoding = guarded("encoding", || self.inner.encode_fast(text, add_special))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of ids.
    ///
    /// Equal to Hugging Face's decoder, but for one case: where byte tokens spell whole characters followed by
    /// bytes that are not UTF-8, those characters are kept. Nothing is cleaned up afterwards
    /// (`clean_up_tokenization_spaces`), so the text of a stream is the text of the whole.
    ///
    /// # Errors
    /// An id is not in the vocabulary.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, TokenizerError> {
        let mut decoder = StreamDecoder::new(skip_special);
        let mut text = String::new();
        for &id in ids {
            if self.inner.id_to_token(id).is_none() {
                let last = u32::try_from(self.vocab_size).unwrap_or(u32::MAX).saturating_sub(1);
                return Err(TokenizerError::UnknownToken { id, last });
            }
            text.extend(decoder.push(self, id));
        }
        text.extend(decoder.finish(self));
        Ok(text)
    }

    /// The id of a token as the vocabulary spells it.
    #[must_use]
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// A token as the vocabulary spells it, e.g. `Ġthe` or `▁the`.
    #[must_use]
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The bytes that a token stands for: perhaps a part of a character. Empty for an unknown id.
    #[must_use]
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        match self.piece(id) {
            Some(Piece::Bytes(bytes)) => bytes,
            Some(Piece::Byte(byte)) => vec![byte],
            Some(Piece::Text(text)) => text.into_bytes(),
            None => Vec::new(),
        }
    }

    /// One more than the largest id. A model's head may have more rows.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Beginning of sequence.
    #[must_use]
    pub fn bos_id(&self) -> Option<u32> {
        self.token_to_id(self.special.bos_token.as_deref()?)
    }

    /// End of sequence, as the tokenizer's configuration names it. A model may have further ones.
    #[must_use]
    pub fn eos_id(&self) -> Option<u32> {
        self.token_to_id(self.special.eos_token.as_deref()?)
    }

    /// Whether a token is marked as special, so that `skip_special` leaves it out.
    #[must_use]
    pub fn is_special(&self, id: u32) -> bool {
        self.special_ids.contains(&id)
    }

    /// The special tokens with a role.
    #[must_use]
    pub fn special_tokens(&self) -> &SpecialTokens {
        &self.special
    }

    pub(crate) fn decoding(&self) -> &Decoding {
        &self.decoding
    }

    pub(crate) fn piece(&self, id: u32) -> Option<Piece> {
        Some(self.decoding.piece(self.inner.id_to_token(id)?))
    }
}

/// Runs the tokenizer library. It panics where its regular expressions give up and on some malformed files; neither
/// may take the server down. The library's state is only caches, so going on after a panic is sound.
fn guarded<T>(
    action: &'static str,
    run: impl FnOnce() -> tokenizers::Result<T>,
) -> Result<T, TokenizerError> {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(result) => result.map_err(|error| library(action, &error)),
        Err(panic) => {
            let message = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("the tokenizer library panicked");
            Err(TokenizerError::Library { action, message: crate::error::shorten(message) })
        }
    }
}

fn library(action: &'static str, error: &tokenizers::Error) -> TokenizerError {
    TokenizerError::Library { action, message: crate::error::shorten(&error.to_string()) }
}
