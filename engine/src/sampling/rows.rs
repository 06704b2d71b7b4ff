//! What the device needs to know to choose the tokens of a step: one row of parameters a sequence.

use std::ops::Range;

use crate::{
    batch::{Batch, Sample},
    sequence::Sequence,
};

/// Parameters of the rows whose tokens are chosen. The vectors keep their memory from step to step.
///
/// Rows are in an order of our own, so that those whose logits are changed and those whose
/// log-probabilities are wanted are each contiguous: changed only, both, wanted only, neither.
#[derive(Debug, Default)]
pub(crate) struct SampleRows {
    /// Which of `batch.samples` each row is.
    pub(crate) order: Vec<usize>,
    /// Which token of the batch each row's logits come from.
    pub(crate) tokens: Vec<i32>,
    /// Leading rows whose logits are changed before the choice.
    pub(crate) changed: usize,
    /// Rows that want log-probabilities.
    pub(crate) logprobs: Range<usize>,
    /// Every row takes the likeliest token.
    pub(crate) greedy: bool,
    pub(crate) temperature: Vec<f32>,
    pub(crate) top_k: Vec<i32>,
    pub(crate) top_p: Vec<f32>,
    pub(crate) min_p: Vec<f32>,
    pub(crate) seed: Vec<u64>,
    /// How many tokens the sequence has generated: makes its draws independent of everyone else's.
    pub(crate) offset: Vec<u64>,
    pub(crate) changes: Changes,
}

/// How the logits of the changed rows change. Lists are padded with -1 ids to one width.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// Allowed ids, a bit each, `[changed, ceil(vocab / 32)]`.
    pub(crate) mask: Vec<u32>,
    /// Columns of the next three.
    pub(crate) width: usize,
    /// Ids that occurred.
    pub(crate) ids: Vec<i32>,
    /// How often in prompt and output.
    pub(crate) count_all: Vec<i32>,
    /// How often in the output.
    pub(crate) count_out: Vec<i32>,
    /// Repetition, presence and frequency penalty, `[changed, 3]`.
    pub(crate) penalties: Vec<f32>,
    /// Columns of the next two.
    pub(crate) bias_width: usize,
    /// Ids whose logits get a bias.
    pub(crate) bias_ids: Vec<i32>,
    /// The bias.
    pub(crate) bias: Vec<f32>,
}

impl SampleRows {
    /// Rows in the step.
    pub(crate) fn len(&self) -> usize {
        self.order.len()
    }

    /// Lays out the rows of a batch.
    pub(crate) fn build(&mut self, batch: &Batch, seqs: &[Sequence]) {
        self.clear();
        let class = |sample: &Sample| {
            let seq = &seqs[sample.seq];
            (seq.changes_logits(), seq.params.logprobs.is_some())
        };
        let mut ends = [0; 4];
        for (place, wanted) in
            [(true, false), (true, true), (false, true), (false, false)].into_iter().enumerate()
        {
            let samples = batch.samples.iter().enumerate();
            let matching = samples.filter(|(_, sample)| class(sample) == wanted);
            self.order.extend(matching.map(|(at, _)| at));
            ends[place] = self.order.len();
        }
        self.changed = ends[1];
        self.logprobs = ends[0]..ends[2];
        for row in 0..self.order.len() {
            let sample = batch.samples[self.order[row]];
            self.push(sample, &seqs[sample.seq]);
        }
        self.greedy = self.temperature.iter().all(|&temperature| temperature == 0.0);
    }

    /// Columns that the widest lists of ids and of biases need.
    pub(crate) fn widths(&self, batch: &Batch, seqs: &[Sequence]) -> (usize, usize) {
        let changed = || self.order[..self.changed].iter().map(|&at| &seqs[batch.samples[at].seq]);
        let widest = |width: fn(&Sequence) -> usize| changed().map(width).max().unwrap_or(0).max(1);
        (widest(listed), widest(biased))
    }

    /// Lays out how the logits of some of the changed rows change.
    pub(crate) fn build_changes(
        &mut self,
        rows: Range<usize>,
        batch: &Batch,
        seqs: &[Sequence],
        vocab: usize,
    ) {
        let rows = self.order[rows].iter();
        self.changes.build(rows.map(|&at| &seqs[batch.samples[at].seq]), vocab);
    }

    fn clear(&mut self) {
        self.order.clear();
        self.tokens.clear();
        self.temperature.clear();
        self.top_k.clear();
        self.top_p.clear();
        self.min_p.clear();
        self.seed.clear();
        self.offset.clear();
    }

    fn push(&mut self, sample: Sample, seq: &Sequence) {
        let params = &seq.params;
        self.tokens.push(i32::try_from(sample.row).expect("a batch has at most i32::MAX tokens"));
        self.temperature.push(params.temperature);
        self.top_k.push(i32::try_from(params.top_k).unwrap_or(0));
        self.top_p.push(params.top_p);
        self.min_p.push(params.min_p);
        self.seed.push(seq.seed);
        self.offset.push(seq.generated() as u64);
    }
}

/// Distinct ids that a sequence's penalties are about.
fn listed(seq: &Sequence) -> usize {
    seq.counts.as_ref().map_or(0, |counts| counts.ids().len())
}

/// Ids whose logits a sequence biases, at most.
fn biased(seq: &Sequence) -> usize {
    seq.params.logit_bias.len() + seq.banned().len()
}

impl Changes {
    fn build<'a>(&mut self, seqs: impl Iterator<Item = &'a Sequence> + Clone, vocab: usize) {
        self.mask.clear();
        self.ids.clear();
        self.count_all.clear();
        self.count_out.clear();
        self.penalties.clear();
        self.bias_ids.clear();
        self.bias.clear();
        // At least one column, so that no tensor is empty.
        self.width = seqs.clone().map(listed).max().unwrap_or(0).max(1);
        self.bias_width = seqs.clone().map(biased).max().unwrap_or(0).max(1);
        for (row, seq) in seqs.enumerate() {
            self.push_mask(seq, vocab);
            self.push_penalties(seq, (row + 1) * self.width);
            self.push_bias(seq, (row + 1) * self.bias_width);
        }
    }

    fn push_mask(&mut self, seq: &Sequence, vocab: usize) {
        let first = self.mask.len();
        let all = if seq.params.allowed_token_ids.is_some() { 0 } else { u32::MAX };
        self.mask.resize(first + vocab.div_ceil(32), all);
        for &id in seq.params.allowed_token_ids.iter().flatten() {
            self.mask[first + id as usize / 32] |= 1 << (id % 32);
        }
    }

    fn push_penalties(&mut self, seq: &Sequence, row_end: usize) {
        if let Some(counts) = &seq.counts {
            self.ids.extend(counts.ids());
            self.count_all.extend(counts.all());
            self.count_out.extend(counts.output());
        }
        self.ids.resize(row_end, -1);
        self.count_all.resize(row_end, 0);
        self.count_out.resize(row_end, 0);
        let params = &seq.params;
        let row = [params.repetition_penalty, params.presence_penalty, params.frequency_penalty];
        self.penalties.extend(row);
    }

    fn push_bias(&mut self, seq: &Sequence, row_end: usize) {
        let id = |id: u32| i32::try_from(id).expect("ids are below the vocabulary size");
        let banned = seq.banned();
        // An id may be listed once only, and a ban outweighs any bias.
        let free = seq.params.logit_bias.iter().filter(|(id, _)| banned.binary_search(id).is_err());
        for &(token, bias) in free {
            self.bias_ids.push(id(token));
            self.bias.push(bias);
        }
        self.bias_ids.extend(banned.iter().map(|&token| id(token)));
        self.bias.resize(self.bias_ids.len(), f32::NEG_INFINITY);
        self.bias_ids.resize(row_end, -1);
        self.bias.resize(row_end, 0.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        fake::{self, VOCAB},
        request::SamplingParams,
    };

    fn plain() -> SamplingParams {
        SamplingParams { seed: Some(3), ..SamplingParams::default() }
    }

    fn rows(params: &[SamplingParams]) -> (SampleRows, Vec<u32>) {
        let mut scheduler = fake::scheduler(64, 4, 16, 64);
        for params in params {
            scheduler.add(fake::sequence(&[1, 2, 1], params));
        }
        scheduler.schedule();
        let mut batch = Batch::default();
        batch.build(scheduler.running(), 4);
        let mut rows = SampleRows::default();
        rows.build(&batch, scheduler.running());
        let changed = 0..rows.changed;
        rows.build_changes(changed, &batch, scheduler.running(), VOCAB);
        let widths = (rows.changes.width, rows.changes.bias_width);
        assert_eq!(rows.widths(&batch, scheduler.running()), widths);
        let order = rows.order.iter().map(|&at| u32::try_from(at).expect("few")).collect();
        (rows, order)
    }

    #[test]
    fn rows_that_change_and_rows_that_report_are_contiguous() {
        let changed = SamplingParams { logit_bias: vec![(4, 1.0)], ..plain() };
        let wanted = SamplingParams { logprobs: Some(2), temperature: 0.0, ..plain() };
        let both = SamplingParams { logprobs: Some(0), ..changed.clone() };
        let (rows, order) = rows(&[plain(), wanted, both, changed, plain()]);
        assert_eq!(order, [3, 2, 1, 0, 4]);
        assert_eq!((rows.changed, rows.logprobs.clone(), rows.greedy), (2, 1..3, false));
        assert_eq!(rows.tokens, [11, 8, 5, 2, 14]);
        assert_eq!(rows.temperature, [1.0, 1.0, 0.0, 1.0, 1.0]);
        assert_eq!((rows.seed[0], rows.offset[0]), (3, 0));
    }

    #[test]
    fn each_list_is_padded_and_each_id_listed_once() {
        let bias = vec![(9, 2.0), (7, 5.0)];
        let banned =
            SamplingParams { min_tokens: 2, stop_token_ids: vec![5], logit_bias: bias, ..plain() };
        let penalised = SamplingParams { repetition_penalty: 2.0, ..plain() };
        let (rows, _) = rows(&[banned, penalised]);
        let changes = &rows.changes;
        assert_eq!((rows.changed, changes.width, changes.bias_width), (2, 2, 4));
        assert_eq!(changes.ids, [-1, -1, 1, 2]);
        assert_eq!(changes.count_all, [0, 0, 2, 1]);
        assert_eq!(changes.count_out, [0, 0, 0, 0]);
        assert_eq!(changes.penalties, [1.0, 0.0, 0.0, 2.0, 0.0, 0.0]);
        // 7 is the fake's end-of-sequence id: banned, whatever its bias.
        assert_eq!(changes.bias_ids, [9, 5, 7, -1, -1, -1, -1, -1]);
        let inf = f32::NEG_INFINITY;
        assert_eq!(changes.bias, [2.0, inf, inf, 0.0, 0.0, 0.0, 0.0, 0.0]);
        assert!(changes.mask.iter().all(|&word| word == u32::MAX));
    }

    #[test]
    fn only_allowed_ids_have_their_bit() {
        let allowed = SamplingParams { allowed_token_ids: Some(vec![0, 33, 999]), ..plain() };
        let (rows, _) = rows(&[allowed]);
        let set: Vec<usize> =
            (0..VOCAB).filter(|id| rows.changes.mask[id / 32] >> (id % 32) & 1 == 1).collect();
        assert_eq!(set, [0, 33, 999]);
    }
}
