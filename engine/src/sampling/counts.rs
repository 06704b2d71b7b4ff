//! How often each token occurs in a sequence, for the penalties.

use std::collections::HashMap;

use crate::request::SamplingParams;

/// The distinct tokens of a sequence with their counts, in the form the device takes them.
#[derive(Debug, Default)]
pub(crate) struct TokenCounts {
    ids: Vec<i32>,
    all: Vec<i32>,
    output: Vec<i32>,
    place: HashMap<u32, usize>,
}

impl TokenCounts {
    /// Counts a prompt, if the parameters have a penalty that needs it.
    pub(crate) fn if_needed(params: &SamplingParams, prompt: &[u32]) -> Option<Self> {
        if !params.has_penalties() {
            return None;
        }
        let mut counts = Self::default();
        for &token in prompt {
            counts.add(token);
        }
        Some(counts)
    }

    /// Counts a generated token.
    pub(crate) fn add_output(&mut self, token: u32) {
        let at = self.add(token);
        self.output[at] += 1;
    }

    /// Distinct tokens.
    pub(crate) fn ids(&self) -> &[i32] {
        &self.ids
    }

    /// Occurrences of each in prompt and output.
    pub(crate) fn all(&self) -> &[i32] {
        &self.all
    }

    /// Occurrences of each in the output.
    pub(crate) fn output(&self) -> &[i32] {
        &self.output
    }

    fn add(&mut self, token: u32) -> usize {
        let at = *self.place.entry(token).or_insert(self.ids.len());
        if at == self.ids.len() {
            self.ids.push(i32::try_from(token).expect("ids are below the vocabulary size"));
            self.all.push(0);
            self.output.push(0);
        }
        self.all[at] += 1;
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_prompt_and_output_apart() {
        let params = SamplingParams { presence_penalty: 0.5, ..SamplingParams::default() };
        let mut counts = TokenCounts::if_needed(&params, &[5, 3, 5]).expect("a penalty is set");
        counts.add_output(3);
        counts.add_output(9);
        assert_eq!(counts.ids(), [5, 3, 9]);
        assert_eq!(counts.all(), [2, 2, 1]);
        assert_eq!(counts.output(), [0, 1, 1]);
        assert!(TokenCounts::if_needed(&SamplingParams::default(), &[1]).is_none());
    }
}
