//! The vocabulary inside a GGUF, made into the same kind of tokenizer.

use halyard_weights::gguf::Metadata;
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::normalizers::{NormalizerWrapper, Prepend, Replace, Sequence};
use tokenizers::{AddedToken, ModelWrapper};

use super::decoding::Decoding;
use super::from_hf::around;
use super::pretokenizers::PreTokenizer;
use super::{SpecialTokens, Tokenizer, guarded};
use crate::error::TokenizerError;

const TOKENS: &str = "tokenizer.ggml.tokens";
/// Pieces longer than this can't be split into all their pairs in reasonable time, and no vocabulary has them.
const MAX_PIECE_BYTES: usize = 512;

/// `tokenizer.ggml.token_type`.
mod token_type {
    pub(super) const UNKNOWN: i64 = 2;
    pub(super) const CONTROL: i64 = 3;
    pub(super) const USER_DEFINED: i64 = 4;
}

impl Tokenizer {
    /// Builds the tokenizer that a GGUF's metadata describes: `gpt2` (byte-level BPE, cut by the named
    /// pre-tokenizer) or `llama` (SentencePiece with scores and byte fallback).
    ///
    /// # Errors
    /// The metadata has no vocabulary, or one that is inconsistent or of an unsupported kind.
    pub fn from_gguf(metadata: Metadata<'_>) -> Result<Self, TokenizerError> {
        let vocabulary = Vocabulary::read(metadata)?;
        match metadata.str("tokenizer.ggml.model") {
            Some("gpt2") => vocabulary.byte_level(),
            Some("llama") => vocabulary.sentence_piece(),
            other => Err(TokenizerError::unsupported(
                "tokenizer.ggml.model",
                other.unwrap_or("missing"),
                "gpt2, llama",
            )),
        }
    }
}

struct Vocabulary<'a> {
    metadata: Metadata<'a>,
    tokens: Vec<&'a str>,
    types: Vec<i64>,
}

impl<'a> Vocabulary<'a> {
    fn read(metadata: Metadata<'a>) -> Result<Self, TokenizerError> {
        let tokens = metadata
            .str_array(TOKENS)
            .ok_or_else(|| expected(metadata, TOKENS, "an array of UTF-8 strings"))?;
        let key = "tokenizer.ggml.token_type";
        let types = match metadata.contains(key) {
            true => {
                metadata.i64_array(key).filter(|types| types.len() == tokens.len()).ok_or_else(
                    || expected(metadata, key, &format!("{} whole numbers", tokens.len())),
                )?
            }
            false => Vec::new(),
        };
        Ok(Self { metadata, tokens, types })
    }

    fn byte_level(&self) -> Result<Tokenizer, TokenizerError> {
        let name = self.metadata.str("tokenizer.ggml.pre").unwrap_or("default");
        let pre_tokenizer = PreTokenizer::named(name)?;
        let key = "tokenizer.ggml.merges";
        let merges = self
            .metadata
            .str_array(key)
            .ok_or_else(|| expected(self.metadata, key, "an array of UTF-8 strings"))?;
        let merges = merges.into_iter().map(parse_merge).collect::<Result<Merges, _>>()?;
        let model = guarded("building the tokenizer", || {
            let builder = BPE::builder().vocab_and_merges(self.ids(), merges);
            builder.ignore_merges(pre_tokenizer.ignore_merges).build()
        })?;
        let mut inner = tokenizers::Tokenizer::new(ModelWrapper::BPE(model));
        inner.with_normalizer(pre_tokenizer.normalizer());
        inner.with_pre_tokenizer(Some(pre_tokenizer.build()?));
        self.finish(inner, Decoding::ByteLevel, pre_tokenizer.add_bos)
    }

    fn sentence_piece(&self) -> Result<Tokenizer, TokenizerError> {
        let key = "tokenizer.ggml.scores";
        let scores = self
            .metadata
            .f32_array(key)
            .filter(|scores| scores.len() == self.tokens.len())
            .ok_or_else(|| {
                expected(self.metadata, key, &format!("{} floats", self.tokens.len()))
            })?;
        let ids = self.ids();
        let merges = merges_from_scores(&self.tokens, &scores, &ids)?;
        let unknown = self.special("unknown").or_else(|| {
            let position = self.types.iter().position(|kind| *kind == token_type::UNKNOWN)?;
            Some(self.tokens[position].to_owned())
        });
        let model = guarded("building the tokenizer", || {
            let mut builder = BPE::builder().vocab_and_merges(ids, merges);
            builder = builder.byte_fallback(true).fuse_unk(true);
            if let Some(unknown) = unknown {
                builder = builder.unk_token(unknown);
            }
            builder.build()
        })?;
        let mut inner = tokenizers::Tokenizer::new(ModelWrapper::BPE(model));
        let space_prefix = self.metadata.bool("tokenizer.ggml.add_space_prefix").unwrap_or(true);
        inner.with_normalizer(Some(sentence_piece_normalizer(space_prefix)?));
        self.finish(inner, Decoding::sentence_piece(space_prefix), true)
    }

    fn finish(
        &self,
        mut inner: tokenizers::Tokenizer,
        decoding: Decoding,
        add_bos: bool,
    ) -> Result<Tokenizer, TokenizerError> {
        let (mut special, mut user_defined) = (Vec::new(), Vec::new());
        for (token, kind) in self.tokens.iter().zip(&self.types) {
            let added = |special| AddedToken::from(*token, special).normalized(false);
            match *kind {
                _ if token.is_empty() => {}
                token_type::CONTROL | token_type::UNKNOWN => special.push(added(true)),
                token_type::USER_DEFINED => user_defined.push(added(false)),
                _ => {}
            }
        }
        guarded("adding the special tokens", || {
            inner.add_special_tokens(&special);
            inner.add_tokens(&user_defined);
            Ok(())
        })?;
        let tokens = SpecialTokens {
            bos_token: self.special("bos"),
            eos_token: self.special("eos"),
            unk_token: self.special("unknown"),
            pad_token: self.special("padding"),
        };
        let flag = |name: &str| self.metadata.bool(&format!("tokenizer.ggml.add_{name}_token"));
        let bos = tokens.bos_token.as_deref().filter(|_| flag("bos").unwrap_or(add_bos));
        let eos = tokens.eos_token.as_deref().filter(|_| flag("eos").unwrap_or(false));
        if bos.is_some() || eos.is_some() {
            let processor = around(&inner, bos, eos)?;
            inner.with_post_processor(Some(processor));
        }
        Tokenizer::new(inner, decoding, tokens)
    }

    /// The text of the token with a role.
    fn special(&self, role: &str) -> Option<String> {
        let id = self.metadata.u64(&format!("tokenizer.ggml.{role}_token_id"))?;
        Some((*self.tokens.get(usize::try_from(id).ok()?)?).to_owned())
    }

    /// Ids by text. Of tokens that are spelled alike the first one is meant.
    fn ids(&self) -> Vocab {
        let mut ids = Vocab::with_capacity(self.tokens.len());
        for (id, token) in (0_u32..).zip(&self.tokens) {
            ids.entry((*token).to_owned()).or_insert(id);
        }
        ids
    }
}

fn expected(metadata: Metadata<'_>, key: &str, expected: &str) -> TokenizerError {
    let value = metadata.value(key).unwrap_or_else(|| "missing".to_owned());
    TokenizerError::invalid(key, &value, expected)
}

fn parse_merge(merge: &str) -> Result<(String, String), TokenizerError> {
    // A token may itself begin with a space; the separator is the first one after its first character.
    let separator = merge.char_indices().skip(1).find(|(_, c)| *c == ' ').map(|(at, _)| at);
    match separator {
        Some(at) => Ok((merge[..at].to_owned(), merge[at + 1..].to_owned())),
        None => Err(TokenizerError::invalid(
            "tokenizer.ggml.merges entry",
            merge,
            "two tokens with a space between them",
        )),
    }
}

/// SentencePiece merges the pair whose union has the best score. The same order as a list of merges: all ways to cut
/// each piece into two pieces, best piece first.
fn merges_from_scores(
    tokens: &[&str],
    scores: &[f32],
    ids: &Vocab,
) -> Result<Merges, TokenizerError> {
    let mut merges = Vec::new();
    for (token, score) in tokens.iter().zip(scores) {
        if token.len() > MAX_PIECE_BYTES {
            return Err(TokenizerError::invalid(TOKENS, token, "pieces of at most 512 bytes"));
        }
        for (at, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(at);
            if let (Some(left_id), Some(right_id)) = (ids.get(left), ids.get(right)) {
                merges.push((*score, *left_id, *right_id, left, right));
            }
        }
    }
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    Ok(merges.into_iter().map(|(.., left, right)| (left.to_owned(), right.to_owned())).collect())
}

fn sentence_piece_normalizer(space_prefix: bool) -> Result<NormalizerWrapper, TokenizerError> {
    let replace = guarded("building the normalizer", || Replace::new(" ", "▁"))?;
    let mut steps = Vec::new();
    if space_prefix {
        steps.push(NormalizerWrapper::Prepend(Prepend::new("▁".to_owned())));
    }
    steps.push(NormalizerWrapper::Replace(replace));
    Ok(NormalizerWrapper::Sequence(Sequence::new(steps)))
}
