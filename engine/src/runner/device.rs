//! The runner that computes on a device.

use std::{
    io,
    ops::Range,
    time::{Duration, Instant},
};

use halyard_core::{Code, DeviceError};

use super::{Model, ModelRunner, OnLoss, Order, StepError, StepOutput, followers::Followers};
use crate::{
    batch::{Batch, PromptRows},
    buckets::Buckets,
    process::RankProcesses,
    program::{Executable, Section, Sizes, Tensor},
    request::TokenLogprobs,
    sampling::{SampleRows, SamplerTensors},
    sequence::Sequence,
};

/// A loaded model and its sampler.
#[derive(Debug)]
pub(crate) struct DeviceRunner {
    /// The other ranks, if there are any. They end first: rank 0's device may wait for theirs.
    followers: Option<Followers>,
    /// Rank 0's part of the model, and all of the sampler.
    model: Model,
    sampler: SamplerTensors,
    bounds: Bounds,
    /// What decode steps are filled up to.
    buckets: Buckets,
    rows: SampleRows,
    chosen: Vec<i32>,
    report: Report,
}

/// Fixed sizes of the runner.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) vocab: usize,
    /// Most tokens of a batch.
    pub(crate) max_tokens: usize,
    /// Most rows of logits at once.
    pub(crate) max_rows: usize,
    /// Columns of the block table's memory.
    pub(crate) table_width: usize,
    /// Most elements of a list of ids or biases, all rows together; at least the vocabulary.
    pub(crate) list_elements: usize,
    /// Columns of the alternatives' tensors.
    pub(crate) max_logprobs: usize,
}

/// Log-probabilities read back from the device.
#[derive(Debug, Default)]
struct Report {
    chosen: Vec<f32>,
    top_ids: Vec<i32>,
    top: Vec<f32>,
    targets: Vec<i32>,
    rows: Vec<i32>,
}

/// Which logits log-probabilities are taken of.
#[derive(Clone, Copy)]
enum Logits {
    Present,
    Kept,
}

impl DeviceRunner {
    /// `models` are the parts of this process' ranks, of which each but the first gets a thread; `processes` are the others.
    ///
    /// # Errors
    /// If a thread cannot be started.
    pub(crate) fn new(
        (models, processes): (Vec<Model>, Option<RankProcesses>),
        sampler: SamplerTensors,
        bounds: Bounds,
        buckets: Buckets,
        timeout: Duration,
    ) -> io::Result<Self> {
        let mut models = models.into_iter();
        let model = models.next().expect("there is a rank 0");
        let batch = || Batch::with_capacity(bounds.max_tokens, bounds.max_rows, bounds.table_width);
        let models = models.collect();
        Ok(Self {
            followers: Followers::start(&model, models, processes, &batch, timeout)?,
            model,
            sampler,
            bounds,
            buckets,
            rows: SampleRows::default(),
            chosen: Vec::with_capacity(bounds.max_rows),
            report: Report::default(),
        })
    }

    /// Captures the graphs of decode steps, and launches one to see that they run. `progress` is told how many sizes are done.
    ///
    /// # Errors
    /// As [`ModelRunner::run`].
    pub(crate) fn capture(
        &mut self,
        timeout: Duration,
        progress: &mut dyn FnMut(usize),
    ) -> Result<(), StepError> {
        self.capture_all(timeout, progress).map_err(|error| self.ended_by(error))
    }

    fn capture_all(
        &mut self,
        timeout: Duration,
        progress: &mut dyn FnMut(usize),
    ) -> Result<(), StepError> {
        let sizes = self.buckets.sizes().to_vec();
        if let [least, .., most] | [least @ most] = sizes[..] {
            // A capture must not see that communicators connect when they first exchange so much, nor that a vendor's operators want
            // more scratch memory than all before.
            self.trial_step(least, timeout)?;
            self.trial_step(most, timeout)?;
        }
        for (done, &bucket) in (1..).zip(&sizes) {
            let Self { model, followers, .. } = self;
            match followers {
                None => model.capture(bucket)?,
                Some(followers) => {
                    followers.together(Order::Capture { bucket }, || model.capture(bucket))?;
                }
            }
            progress(done);
        }
        sizes.first().map_or(Ok(()), |&least| self.trial_step(least, timeout))
    }

    /// A decode step of one token, to its end.
    fn trial_step(&mut self, bucket: usize, timeout: Duration) -> Result<(), StepError> {
        let batch = Batch::trial(bucket);
        self.forward(&batch)?;
        self.head(&vec![0; bucket], &batch)?;
        Ok(self.model.exec.wait(timeout)?)
    }

    /// How long all launches of a decode step take to be made, without any work in them: a step of no tokens. The median of some.
    ///
    /// # Errors
    /// As [`ModelRunner::run`].
    pub(crate) fn dispatch_time(&mut self) -> Result<Duration, StepError> {
        self.time_dispatch().map_err(|error| self.ended_by(error))
    }

    fn time_dispatch(&mut self) -> Result<Duration, StepError> {
        const STEPS: usize = 9;
        let nothing = Batch::empty();
        let mut times = [Duration::ZERO; STEPS];
        // The first one only sets the sizes.
        for step in 0..=STEPS {
            let begun = Instant::now();
            self.forward(&nothing)?;
            self.head(&[], &nothing)?;
            self.model.exec.run(Section::Argmax, &Sizes::default(), None)?;
            if let Some(time) = step.checked_sub(1) {
                times[time] = begun.elapsed();
            }
        }
        times.sort_unstable();
        Ok(times[STEPS / 2])
    }

    /// From token ids to the residual stream, on every rank.
    fn forward(&mut self, batch: &Batch) -> Result<(), StepError> {
        let Self { model, followers, .. } = self;
        match followers {
            None => Ok(model.forward(batch)?),
            Some(followers) => followers.together(Order::Forward(batch), || model.forward(batch)),
        }
    }

    /// Logits of some of the batch's tokens, on every rank.
    fn head(&mut self, rows: &[i32], batch: &Batch) -> Result<(), StepError> {
        let Self { model, followers, .. } = self;
        let (num_tokens, bucket) = (batch.num_tokens(), batch.bucket);
        let order = Order::Head { rows, num_tokens, bucket };
        match followers {
            None => Ok(model.head(rows, num_tokens, bucket)?),
            Some(followers) => followers.together(order, || model.head(rows, num_tokens, bucket)),
        }
    }

    /// Log-probabilities of prompt tokens, as many rows at once as there is room for.
    fn score_prompt(
        &mut self,
        prompt: &PromptRows,
        batch: &Batch,
        seq: &Sequence,
    ) -> Result<Vec<TokenLogprobs>, StepError> {
        let wanted = alternatives(seq.params.prompt_logprobs);
        let mut scores = Vec::with_capacity(prompt.count);
        while scores.len() < prompt.count {
            let done = scores.len();
            let count = (prompt.count - done).min(self.bounds.max_rows);
            let mut rows = std::mem::take(&mut self.report.rows);
            rows.clear();
            rows.extend((prompt.row + done..).take(count).map(small));
            self.head(&rows, batch)?;
            self.report.rows = rows;

            // The logits at a position are about the token after it.
            let targets = &seq.tokens[prompt.position + done + 1..][..count];
            self.report.targets.clear();
            self.report.targets.extend(targets.iter().map(|&token| small(token as usize)));
            self.model.exec.write(&self.sampler.chosen, &self.report.targets)?;
            self.report(Logits::Present, 0..count, wanted > 0)?;
            scores.extend((0..count).map(|row| self.report.row(row, wanted, &self.bounds)));
        }
        Ok(scores)
    }

    /// A token for each of the batch's samples.
    fn choose(
        &mut self,
        batch: &Batch,
        seqs: &[Sequence],
        out: &mut StepOutput,
    ) -> Result<(), StepError> {
        self.rows.build(batch, seqs);
        let count = self.rows.len();
        if count == 0 {
            return Ok(());
        }
        let mut tokens = std::mem::take(&mut self.rows.tokens);
        if let Some(bucket) = batch.bucket {
            tokens.resize(bucket, 0);
        }
        self.head(&tokens, batch)?;
        self.rows.tokens = tokens;

        let reported = self.rows.logprobs.clone();
        let keeps = !reported.is_empty() && reported.start < self.rows.changed;
        if keeps {
            self.model.exec.run(Section::Keep, &of_rows(reported.clone()), None)?;
        }
        self.change_logits(batch, seqs)?;
        self.draw(count)?;
        self.chosen.resize(count, 0);
        self.model.exec.read(&self.sampler.chosen, 0, &mut self.chosen)?;

        out.tokens.resize(count, 0);
        out.logprobs.resize(count, None);
        for (row, &id) in self.chosen.iter().enumerate() {
            // A backend that answers nonsense must not take the process down with it.
            let id = u32::try_from(id).ok().filter(|&id| (id as usize) < self.bounds.vocab);
            out.tokens[self.rows.order[row]] = id.unwrap_or(0);
        }
        Ok(self.report_chosen(reported, keeps, batch, seqs, out)?)
    }

    /// Applies bias, penalties and masks, as many rows at once as the lists have room for.
    fn change_logits(&mut self, batch: &Batch, seqs: &[Sequence]) -> Result<(), DeviceError> {
        let Self { model: Model { exec, .. }, rows, sampler, bounds, .. } = self;
        let (width, bias_width) = rows.widths(batch, seqs);
        let most = bounds.list_elements / width.max(bias_width);
        let group = most.clamp(1, bounds.max_rows);
        let mut first = 0;
        while first < rows.changed {
            let end = (first + group).min(rows.changed);
            rows.build_changes(first..end, batch, seqs, bounds.vocab);
            let changes = &rows.changes;
            exec.write(&sampler.mask, &changes.mask)?;
            exec.write(&sampler.ids, &changes.ids)?;
            exec.write(&sampler.count_all, &changes.count_all)?;
            exec.write(&sampler.count_out, &changes.count_out)?;
            exec.write(&sampler.penalties, &changes.penalties)?;
            exec.write(&sampler.bias_ids, &changes.bias_ids)?;
            exec.write(&sampler.bias, &changes.bias)?;
            let sizes = Sizes {
                list_width: changes.width,
                bias_width: changes.bias_width,
                ..of_rows(first..end)
            };
            exec.run(Section::Process, &sizes, None)?;
            first = end;
        }
        Ok(())
    }

    fn draw(&mut self, count: usize) -> Result<(), DeviceError> {
        let Self { model: Model { exec, .. }, rows, sampler, .. } = self;
        if rows.greedy {
            return exec.run(Section::Argmax, &of_rows(0..count), None);
        }
        exec.write(&sampler.temperature, &rows.temperature)?;
        exec.write(&sampler.top_k, &rows.top_k)?;
        exec.write(&sampler.top_p, &rows.top_p)?;
        exec.write(&sampler.min_p, &rows.min_p)?;
        exec.write(&sampler.seed, &rows.seed)?;
        exec.write(&sampler.offset, &rows.offset)?;
        exec.run(Section::Sample, &of_rows(0..count), None)
    }

    fn report_chosen(
        &mut self,
        rows: Range<usize>,
        kept: bool,
        batch: &Batch,
        seqs: &[Sequence],
        out: &mut StepOutput,
    ) -> Result<(), DeviceError> {
        if rows.is_empty() {
            return Ok(());
        }
        let order = &self.rows.order[rows.clone()];
        let wanted = |at: usize| alternatives(seqs[batch.samples[at].seq].params.logprobs);
        let any = order.iter().any(|&at| wanted(at) > 0);
        self.report(if kept { Logits::Kept } else { Logits::Present }, rows.clone(), any)?;
        for (row, &at) in self.rows.order[rows].iter().enumerate() {
            out.logprobs[at] = Some(self.report.row(row, wanted(at), &self.bounds));
        }
        Ok(())
    }

    /// Reads the log-probabilities of the chosen tokens of some rows, and those of the likeliest.
    fn report(
        &mut self,
        logits: Logits,
        rows: Range<usize>,
        alternatives: bool,
    ) -> Result<(), DeviceError> {
        let Self { model: Model { exec, .. }, sampler, report, bounds, .. } = self;
        let sizes = of_rows(rows.clone());
        let (chosen, top) = match logits {
            Logits::Present => (Section::Chosen, Section::Top),
            Logits::Kept => (Section::KeptChosen, Section::KeptTop),
        };
        exec.run(chosen, &sizes, None)?;
        read_rows(exec, &sampler.chosen_logprobs, &rows, 1, &mut report.chosen)?;
        if alternatives {
            exec.run(top, &sizes, None)?;
            let columns = bounds.max_logprobs;
            read_rows(exec, &sampler.top_ids, &rows, columns, &mut report.top_ids)?;
            read_rows(exec, &sampler.top_logprobs, &rows, columns, &mut report.top)?;
        }
        Ok(())
    }

    /// What a failure comes to for all ranks.
    fn ended_by(&self, error: StepError) -> StepError {
        match &self.followers {
            Some(followers) => followers.ended_by(error),
            None => error,
        }
    }

    fn step(
        &mut self,
        batch: &Batch,
        seqs: &[Sequence],
        out: &mut StepOutput,
    ) -> Result<(), StepError> {
        self.forward(batch)?;
        for prompt in &batch.prompts {
            out.prompts.push(self.score_prompt(prompt, batch, &seqs[prompt.seq])?);
        }
        self.choose(batch, seqs, out)
    }
}

impl ModelRunner for DeviceRunner {
    fn run(
        &mut self,
        batch: &mut Batch,
        seqs: &[Sequence],
        out: &mut StepOutput,
    ) -> Result<(), StepError> {
        if let Some(bucket) = self.buckets.of(batch.num_seqs()).filter(|_| batch.is_decode()) {
            batch.pad(bucket);
        }
        let before = self.model.exec.replays();
        let result = self.step(batch, seqs, out);
        out.graphs = usize::try_from(self.model.exec.replays() - before).unwrap_or(usize::MAX);
        result.map_err(|error| self.ended_by(error))
    }

    fn set_on_loss(&mut self, on_loss: OnLoss) {
        if let Some(followers) = &self.followers {
            followers.set_on_loss(on_loss);
        }
    }
}

impl From<DeviceError> for StepError {
    fn from(error: DeviceError) -> Self {
        // A communicator that has ended does not come back.
        let alone = matches!(error.code, Code::COMM_ERROR | Code::COMM_ABORTED);
        Self { sticky: error.is_sticky() || alone, message: error.to_string() }
    }
}

impl Report {
    /// One row's answer with the `wanted` likeliest.
    fn row(&self, row: usize, wanted: usize, bounds: &Bounds) -> TokenLogprobs {
        let first = row * bounds.max_logprobs;
        let top = (first..first + wanted).map(|at| (self.top_ids[at].unsigned_abs(), self.top[at]));
        TokenLogprobs { logprob: self.chosen[row], top: top.collect() }
    }
}

fn read_rows<T: halyard_core::Element + Default>(
    exec: &Executable,
    tensor: &Tensor,
    rows: &Range<usize>,
    columns: usize,
    into: &mut Vec<T>,
) -> Result<(), DeviceError> {
    into.resize(rows.len() * columns, T::default());
    exec.read(tensor, rows.start * columns, into)
}

fn of_rows(rows: Range<usize>) -> Sizes {
    Sizes { rows: rows.len(), first_row: rows.start, ..Sizes::default() }
}

fn alternatives(asked: Option<u32>) -> usize {
    asked.map_or(0, |asked| asked as usize)
}

fn small(value: usize) -> i32 {
    i32::try_from(value).expect("bounded by the vocabulary and the batch")
}

#[cfg(test)]
mod tests;
