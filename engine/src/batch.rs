//! The tokens of a step as one flat list, in the form the device takes them.

use crate::sequence::Sequence;

/// A step's tokens. The vectors keep their memory from step to step.
///
/// Sequences that compute a single token come first, as paged attention wants them.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    /// Token ids, `[T]`.
    pub(crate) ids: Vec<i32>,
    /// Position of each token in its sequence, `[T]`.
    pub(crate) positions: Vec<i32>,
    /// Where in the KV pool each token's keys and values go, `[T]`.
    pub(crate) slots: Vec<i64>,
    /// Blocks of each sequence, `[B, max_blocks]`, padded with 0.
    pub(crate) block_table: Vec<i32>,
    /// Columns of `block_table`.
    pub(crate) max_blocks: usize,
    /// First token of each sequence, and the end, `[B + 1]`.
    pub(crate) cu_q: Vec<i32>,
    /// Length of each sequence, the new tokens included, `[B]`.
    pub(crate) kv_len: Vec<i32>,
    /// Leading sequences that compute one token.
    pub(crate) num_single: usize,
    /// Most tokens that one sequence computes.
    pub(crate) max_q: usize,
    /// Longest `kv_len`.
    pub(crate) max_kv: usize,
    /// For whom a token is to be chosen.
    pub(crate) samples: Vec<Sample>,
    /// Whose prompt tokens want log-probabilities.
    pub(crate) prompts: Vec<PromptRows>,
    /// The number of sequences that it was filled up to, if it was: the last ones are padding, which writes nothing and is not looked at.
    pub(crate) bucket: Option<usize>,
    /// The sequences in the batch's order, as indices into the scheduler's running list.
    members: Vec<usize>,
}

/// A token is to be chosen from one row's logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sample {
    /// Index into the scheduler's running list.
    pub(crate) seq: usize,
    /// Token of the batch.
    pub(crate) row: usize,
}

/// Rows whose logits give log-probabilities of the prompt token that follows each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PromptRows {
    /// Index into the scheduler's running list.
    pub(crate) seq: usize,
    /// First token of the batch.
    pub(crate) row: usize,
    /// Its position in the prompt.
    pub(crate) position: usize,
    /// How many rows.
    pub(crate) count: usize,
}

impl Batch {
    /// A batch that never allocates within these bounds.
    pub(crate) fn with_capacity(max_tokens: usize, max_seqs: usize, max_blocks: usize) -> Self {
        Self {
            ids: Vec::with_capacity(max_tokens),
            positions: Vec::with_capacity(max_tokens),
            slots: Vec::with_capacity(max_tokens),
            block_table: Vec::with_capacity(max_seqs * max_blocks),
            max_blocks: 0,
            cu_q: Vec::with_capacity(max_seqs + 1),
            kv_len: Vec::with_capacity(max_seqs),
            num_single: 0,
            max_q: 0,
            max_kv: 0,
            samples: Vec::with_capacity(max_seqs),
            prompts: Vec::with_capacity(max_seqs),
            bucket: None,
            members: Vec::with_capacity(max_seqs),
        }
    }

    /// A batch of no tokens.
    pub(crate) fn empty() -> Self {
        Self { cu_q: vec![0], ..Self::default() }
    }

    /// A decode step of nothing but padding.
    pub(crate) fn padding(bucket: usize) -> Self {
        let mut batch = Self { max_q: 1, ..Self::empty() };
        batch.pad(bucket);
        batch
    }

    /// A decode step of one token, id 0, in the first block, filled up with padding: to be run while nobody uses the cache.
    pub(crate) fn trial(bucket: usize) -> Self {
        let one = || vec![0];
        let mut batch = Self {
            ids: one(),
            positions: one(),
            slots: vec![0],
            block_table: one(),
            max_blocks: 1,
            cu_q: vec![0, 1],
            kv_len: vec![1],
            max_q: 1,
            max_kv: 1,
            ..Self::default()
        };
        batch.pad(bucket);
        batch
    }

    /// Each sequence computes one token, and only what follows it is asked for.
    pub(crate) fn is_decode(&self) -> bool {
        self.max_q == 1 && self.prompts.is_empty()
    }

    /// Fills a decode step up to so many sequences: of a token each, without keys, that go nowhere.
    pub(crate) fn pad(&mut self, bucket: usize) {
        for end in self.num_seqs() + 1..=bucket {
            self.ids.push(0);
            self.positions.push(0);
            self.slots.push(-1);
            self.cu_q.push(small(end));
            self.kv_len.push(0);
        }
        self.block_table.resize(bucket * self.max_blocks, 0);
        self.num_single = bucket;
        self.bucket = Some(bucket);
    }

    /// Takes over everything that the model needs, but not what is to be done with its outputs. Allocates nothing within the bounds.
    pub(crate) fn copy_inputs(&mut self, other: &Self) {
        self.ids.clone_from(&other.ids);
        self.positions.clone_from(&other.positions);
        self.slots.clone_from(&other.slots);
        self.block_table.clone_from(&other.block_table);
        self.cu_q.clone_from(&other.cu_q);
        self.kv_len.clone_from(&other.kv_len);
        (self.num_single, self.max_q) = (other.num_single, other.max_q);
        (self.max_kv, self.max_blocks) = (other.max_kv, other.max_blocks);
        self.bucket = other.bucket;
    }

    /// Tokens in the batch.
    pub(crate) fn num_tokens(&self) -> usize {
        self.ids.len()
    }

    /// Sequences in the batch.
    pub(crate) fn num_seqs(&self) -> usize {
        self.kv_len.len()
    }

    /// Lays out what the scheduler granted.
    pub(crate) fn build(&mut self, seqs: &[Sequence], block_size: usize) {
        self.clear();
        let granted = |single: bool| {
            let fits = move |seq: &Sequence| seq.scheduled > 0 && (seq.scheduled == 1) == single;
            seqs.iter().enumerate().filter(move |(_, seq)| fits(seq)).map(|(at, _)| at)
        };
        self.members.extend(granted(true));
        self.num_single = self.members.len();
        self.members.extend(granted(false));

        let blocks = |seq: &Sequence| (seq.computed + seq.scheduled).div_ceil(block_size);
        self.max_blocks = self.members.iter().map(|&at| blocks(&seqs[at])).max().unwrap_or(0);
        for member in 0..self.members.len() {
            let at = self.members[member];
            self.push_tokens(&seqs[at], block_size);
            self.push_outputs(&seqs[at], at);
            self.push_blocks(&seqs[at], blocks(&seqs[at]));
        }
    }

    fn clear(&mut self) {
        self.ids.clear();
        self.positions.clear();
        self.slots.clear();
        self.block_table.clear();
        self.cu_q.clear();
        self.cu_q.push(0);
        self.kv_len.clear();
        self.samples.clear();
        self.prompts.clear();
        self.members.clear();
        (self.num_single, self.max_q, self.max_kv) = (0, 0, 0);
        self.bucket = None;
    }

    fn push_tokens(&mut self, seq: &Sequence, block_size: usize) {
        let end = seq.computed + seq.scheduled;
        for position in seq.computed..end {
            let block = seq.table.blocks()[position / block_size].index();
            self.ids.push(small(seq.tokens[position] as usize));
            self.positions.push(small(position));
            self.slots.push((block * block_size + position % block_size) as i64);
        }
        self.kv_len.push(small(end));
        self.max_q = self.max_q.max(seq.scheduled);
        self.max_kv = self.max_kv.max(end);
    }

    /// Reads `cu_q`'s last entry as the sequence's first row, and appends its end.
    fn push_outputs(&mut self, seq: &Sequence, at: usize) {
        let end = self.ids.len();
        let first = end - seq.scheduled;
        if seq.samples() {
            self.samples.push(Sample { seq: at, row: end - 1 });
        }
        let wanted = seq.prompt_logits();
        if !wanted.is_empty() {
            self.prompts.push(PromptRows {
                seq: at,
                row: first + wanted.start - seq.computed,
                position: wanted.start,
                count: wanted.len(),
            });
        }
        self.cu_q.push(small(end));
    }

    fn push_blocks(&mut self, seq: &Sequence, used: usize) {
        let row_end = self.block_table.len() + self.max_blocks;
        self.block_table.extend(seq.table.blocks()[..used].iter().map(|id| id.to_i32()));
        self.block_table.resize(row_end, 0);
    }
}

/// Tokens, positions and lengths are below `i32::MAX`: the vocabulary and the context are.
fn small(value: usize) -> i32 {
    i32::try_from(value).expect("bounded by the vocabulary and the context length")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        fake::{scheduler, sequence},
        request::SamplingParams,
    };

    #[test]
    fn singles_come_first_and_prompts_say_which_logits_they_want() {
        let mut scheduler = scheduler(8, 4, 8, 12);
        let params = SamplingParams { prompt_logprobs: Some(1), ..SamplingParams::default() };
        scheduler.add(sequence(&[10, 11, 12, 13, 14, 15], &params));
        scheduler.add(sequence(&[20], &SamplingParams::default()));
        scheduler.schedule();
        let mut batch = Batch::default();
        batch.build(scheduler.running(), 4);

        assert_eq!(batch.ids, [20, 10, 11, 12, 13, 14, 15]);
        assert_eq!(batch.positions, [0, 0, 1, 2, 3, 4, 5]);
        assert_eq!(batch.slots, [8, 0, 1, 2, 3, 4, 5]);
        assert_eq!(batch.cu_q, [0, 1, 7]);
        assert_eq!(batch.kv_len, [1, 6]);
        assert_eq!((batch.num_single, batch.max_q, batch.max_kv), (1, 6, 6));
        assert_eq!((batch.max_blocks, &batch.block_table[..]), (2, &[2, 0, 0, 1][..]));
        assert_eq!(batch.samples, [Sample { seq: 1, row: 0 }, Sample { seq: 0, row: 6 }]);
        assert_eq!(batch.prompts, [PromptRows { seq: 0, row: 1, position: 0, count: 5 }]);
    }

    #[test]
    fn a_decode_step_is_filled_up_with_tokens_that_go_nowhere() {
        let mut scheduler = scheduler(8, 4, 8, 12);
        for token in [10, 20, 30] {
            scheduler.add(sequence(&[token], &SamplingParams::default()));
        }
        scheduler.schedule();
        let mut batch = Batch::with_capacity(12, 8, 8);
        batch.build(scheduler.running(), 4);
        assert!(batch.is_decode() && batch.bucket.is_none());
        batch.pad(4);
        assert_eq!(batch.ids, [10, 20, 30, 0]);
        assert_eq!(batch.slots, [0, 4, 8, -1]);
        assert_eq!((&batch.cu_q[..], &batch.kv_len[..]), (&[0, 1, 2, 3, 4][..], &[1, 1, 1, 0][..]));
        assert_eq!((batch.num_seqs(), batch.num_tokens(), batch.num_single), (4, 4, 4));
        assert_eq!((batch.samples.len(), batch.block_table.len()), (3, 4 * batch.max_blocks));
        batch.build(scheduler.running(), 4);
        assert_eq!((batch.num_seqs(), batch.bucket), (3, None));
        let nothing = Batch::padding(2);
        assert_eq!((&nothing.cu_q[..], nothing.max_q), (&[0, 1, 2][..], 1));
    }

    #[test]
    fn a_prompt_scored_in_part_goes_on_where_it_stopped() {
        let params = SamplingParams { prompt_logprobs: Some(0), ..SamplingParams::default() };
        let mut scheduler = scheduler(8, 4, 8, 12);
        scheduler.add(sequence(&[1, 2, 3, 4, 5, 6, 7, 8], &params));
        scheduler.schedule();
        // As after a preemption: the logits of five positions are known, the first block was cached.
        let seq = &mut scheduler.running_mut()[0];
        seq.prompt_logprobs = vec![crate::fake::prompt_logprob(&[]); 5];
        (seq.computed, seq.scheduled) = (4, 4);
        let mut batch = Batch::default();
        batch.build(scheduler.running(), 4);
        assert_eq!(batch.prompts, [PromptRows { seq: 0, row: 1, position: 5, count: 2 }]);
    }
}
