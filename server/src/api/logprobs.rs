//! Log-probabilities of the engine in the shapes of the API.

use std::{borrow::Cow, collections::BTreeMap};

use halyard_engine::TokenLogprobs;

use crate::{
    generation::Token,
    text::Text,
    wire::{
        ChatLogprob, ChatLogprobs, CompletionLogprobs, Ordered, PromptLogprob, PromptLogprobs,
        TopLogprob,
    },
};

/// JSON has no infinity: what can never be chosen is given this.
const LEAST: f32 = -9999.0;

fn finite(logprob: f32) -> f32 {
    // `max` also takes the other side of a NaN.
    logprob.max(LEAST)
}

/// How tokens are written.
#[derive(Clone, Copy, Debug)]
pub(super) struct TokenTexts<'a> {
    text: &'a dyn Text,
    as_ids: bool,
}

impl<'a> TokenTexts<'a> {
    /// `as_ids`: as `token_id:N`.
    pub(super) fn new(text: &'a dyn Text, as_ids: bool) -> Self {
        Self { text, as_ids }
    }

    pub(super) fn text(&self, id: u32) -> String {
        self.text_and_bytes(id).0
    }

    fn text_and_bytes(&self, id: u32) -> (String, Vec<u8>) {
        if self.as_ids {
            let text = format!("token_id:{id}");
            let bytes = text.clone().into_bytes();
            return (text, bytes);
        }
        let bytes = self.text.token_bytes(id);
        let text = match String::from_utf8_lossy(&bytes) {
            Cow::Borrowed(text) => text.to_owned(),
            Cow::Owned(text) => text,
        };
        (text, bytes)
    }
}

/// Chat: the entries of some tokens.
pub(super) fn chat<'t>(
    tokens: impl IntoIterator<Item = &'t Token>,
    texts: TokenTexts<'_>,
) -> ChatLogprobs {
    let entry = |token: &Token| {
        let logprobs = token.logprobs.as_ref()?;
        let (text, bytes) = texts.text_and_bytes(token.id);
        let top_logprobs = logprobs
            .top
            .iter()
            .map(|&(id, logprob)| {
                let (token, bytes) = texts.text_and_bytes(id);
                TopLogprob { token, logprob: finite(logprob), bytes }
            })
            .collect();
        Some(ChatLogprob { token: text, logprob: finite(logprobs.logprob), bytes, top_logprobs })
    };
    ChatLogprobs { content: tokens.into_iter().filter_map(entry).collect() }
}

/// Completions: the lists of some tokens, of which the first begins at `offset`, in code points.
/// Returns where the next one would begin.
pub(super) fn completion<'t>(
    into: &mut CompletionLogprobs,
    tokens: impl IntoIterator<Item = (u32, Option<&'t TokenLogprobs>)>,
    mut offset: usize,
    texts: TokenTexts<'_>,
) -> usize {
    for (id, logprobs) in tokens {
        let text = texts.text(id);
        into.text_offset.push(offset);
        offset += text.chars().count();
        into.token_logprobs.push(logprobs.map(|logprobs| finite(logprobs.logprob)));
        into.top_logprobs.push(logprobs.map(|logprobs| top(id, &text, logprobs, texts)));
        into.tokens.push(text);
    }
    offset
}

/// The alternatives by text, and the chosen token. Of several ids with one text the likeliest stays:
/// a JSON object has each name once.
fn top(id: u32, text: &str, logprobs: &TokenLogprobs, texts: TokenTexts<'_>) -> Ordered {
    let mut entries: Vec<(String, f32)> = Vec::with_capacity(logprobs.top.len() + 1);
    let alternatives = logprobs.top.iter().map(|&(id, logprob)| (texts.text(id), logprob));
    let is_listed = logprobs.top.iter().any(|&(other, _)| other == id);
    let chosen = (!is_listed).then(|| (text.to_owned(), logprobs.logprob));
    for (text, logprob) in alternatives.chain(chosen) {
        if !entries.iter().any(|(other, _)| *other == text) {
            entries.push((text, finite(logprob)));
        }
    }
    Ordered(entries)
}

/// The prompt's log-probabilities by id.
pub(super) fn prompt(
    ids: &[u32],
    logprobs: &[Option<TokenLogprobs>],
    texts: TokenTexts<'_>,
) -> PromptLogprobs {
    let entry = |(&id, logprobs): (&u32, &Option<TokenLogprobs>)| {
        let logprobs = logprobs.as_ref()?;
        let mut candidates = BTreeMap::new();
        let candidate = |id: u32, logprob: f32, rank: Option<usize>| PromptLogprob {
            logprob: finite(logprob),
            rank,
            decoded_token: texts.text(id),
        };
        candidates.insert(id, candidate(id, logprobs.logprob, None));
        for (i, &(id, logprob)) in logprobs.top.iter().enumerate() {
            candidates.insert(id, candidate(id, logprob, Some(i + 1)));
        }
        Some(candidates)
    };
    ids.iter().zip(logprobs).map(entry).collect()
}
