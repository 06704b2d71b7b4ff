//! Who computes how many tokens in the next step.
//!
//! Continuous batching: a step mixes one token of every sequence that is generating with chunks of
//! prompts, under one budget of tokens. Sequences go in order of priority, then of arrival. When the
//! blocks run out, the last in that order gives up its blocks and computes them again later.

use std::collections::VecDeque;

use crate::{
    kv::KvCache,
    sequence::{Rank, Sequence},
};

/// Bounds of a step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SchedulerConfig {
    /// Tokens a step, at most.
    pub(crate) max_num_batched_tokens: usize,
    /// Sequences a step, at most.
    pub(crate) max_num_seqs: usize,
    /// Whether a prompt may be computed over several steps.
    pub(crate) chunked_prefill: bool,
}

/// What the scheduler decided for a step. The shares are in [`Sequence::scheduled`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct StepPlan {
    /// Tokens to compute.
    pub(crate) tokens: usize,
    /// Of these, tokens of prompts.
    pub(crate) prompt_tokens: usize,
    /// Sequences that lost their blocks.
    pub(crate) preemptions: usize,
    /// Prompt tokens looked up in the prefix cache.
    pub(crate) prefix_queries: usize,
    /// Of these, found.
    pub(crate) prefix_hits: usize,
}

/// All sequences, and the blocks they hold.
#[derive(Debug)]
pub(crate) struct Scheduler {
    config: SchedulerConfig,
    kv: KvCache,
    /// In order of rank; hold no blocks.
    waiting: VecDeque<Sequence>,
    /// In order of rank; hold the blocks of all their tokens.
    running: Vec<Sequence>,
    /// Too long for the whole pool; the owner of the scheduler takes them out.
    oversized: Vec<Sequence>,
    arrivals: u64,
}

impl Scheduler {
    pub(crate) fn new(config: SchedulerConfig, kv: KvCache) -> Self {
        Self {
            config,
            kv,
            waiting: VecDeque::new(),
            running: Vec::with_capacity(config.max_num_seqs),
            oversized: Vec::new(),
            arrivals: 0,
        }
    }

    /// Puts a new sequence into the queue.
    pub(crate) fn add(&mut self, mut seq: Sequence) {
        seq.arrival = self.arrivals;
        self.arrivals += 1;
        self.enqueue(seq);
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    pub(crate) fn running(&self) -> &[Sequence] {
        &self.running
    }

    pub(crate) fn running_mut(&mut self) -> &mut [Sequence] {
        &mut self.running
    }

    pub(crate) fn num_waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Share of the pool that sequences hold.
    pub(crate) fn kv_usage(&self) -> f64 {
        let used = self.kv.num_blocks() - self.kv.num_free();
        used as f64 / self.kv.num_blocks().max(1) as f64
    }

    /// Decides the next step. First one token for everyone who generates, then prompts under way,
    /// then newcomers, who wait for another step if blocks have just run out.
    pub(crate) fn schedule(&mut self) -> StepPlan {
        let mut plan = StepPlan::default();
        for seq in &mut self.running {
            seq.scheduled = 0;
        }
        self.schedule_decodes(&mut plan);
        self.schedule_prefills(&mut plan);
        if plan.preemptions == 0 {
            self.admit(&mut plan);
        }
        plan
    }

    /// Counts the scheduled tokens as computed, after the step has run.
    pub(crate) fn commit(&mut self) {
        for seq in &mut self.running {
            seq.computed += std::mem::take(&mut seq.scheduled);
        }
    }

    /// Takes out the sequences that can never have enough blocks.
    pub(crate) fn take_oversized(&mut self) -> impl Iterator<Item = Sequence> + '_ {
        self.oversized.drain(..)
    }

    /// Takes out the sequences that `ends` says are over; their blocks are free at once.
    pub(crate) fn retire(
        &mut self,
        mut ends: impl FnMut(&mut Sequence) -> bool,
        mut sink: impl FnMut(Sequence),
    ) {
        for mut seq in self.running.extract_if(.., |seq| ends(seq)) {
            self.kv.release(&mut seq.table);
            sink(seq);
        }
        let mut at = 0;
        while at < self.waiting.len() {
            if ends(&mut self.waiting[at]) {
                let seq = self.waiting.remove(at).expect("checked by the loop");
                sink(seq);
            } else {
                at += 1;
            }
        }
    }

    /// Empties the prefix cache: a step failed, and its blocks may hold anything.
    pub(crate) fn forget_prefixes(&mut self) {
        self.kv.forget_prefixes();
    }

    fn budget(&self, plan: &StepPlan) -> usize {
        self.config.max_num_batched_tokens - plan.tokens
    }

    fn schedule_decodes(&mut self, plan: &mut StepPlan) {
        let mut at = 0;
        while at < self.running.len() && self.budget(plan) > 0 {
            if self.running[at].pending() == 1 {
                if !self.make_room(at, plan) {
                    return;
                }
                self.grant(at, 1, plan);
            }
            at += 1;
        }
    }

    /// Finds a block for the next token of a sequence by taking blocks from those behind it. If it
    /// is itself the last, it waits for those before it; alone, it has reached the end of the pool.
    fn make_room(&mut self, at: usize, plan: &mut StepPlan) -> bool {
        while at < self.running.len() {
            let seq = &mut self.running[at];
            if self.kv.grow(&mut seq.table, seq.tokens.len()) {
                return true;
            }
            let alone = self.running.len() == 1;
            let mut victim = self.running.pop().expect("at least the one in need of a block");
            self.kv.release(&mut victim.table);
            if alone {
                self.oversized.push(victim);
                return false;
            }
            (victim.computed, victim.scheduled) = (0, 0);
            victim.preemptions += 1;
            plan.preemptions += 1;
            self.enqueue(victim);
        }
        false
    }

    fn schedule_prefills(&mut self, plan: &mut StepPlan) {
        for at in 0..self.running.len() {
            let share = self.running[at].pending().min(self.budget(plan));
            if self.running[at].scheduled == 0 && share > 0 {
                self.grant(at, share, plan);
            }
        }
    }

    fn admit(&mut self, plan: &mut StepPlan) {
        while self.running.len() < self.config.max_num_seqs && self.budget(plan) > 0 {
            let headroom = if self.running.is_empty() { 0 } else { self.kv.num_blocks() / 100 };
            let Some(seq) = self.waiting.front_mut() else { return };
            if self.kv.blocks_for(seq.tokens.len()) > self.kv.num_blocks() {
                self.oversized.extend(self.waiting.pop_front());
                continue;
            }
            let max_cached = seq.max_cached();
            let Some(cached) =
                self.kv.admit(&mut seq.table, &seq.tokens, seq.salt, max_cached, headroom)
            else {
                return;
            };
            let budget = self.config.max_num_batched_tokens - plan.tokens;
            let pending = seq.tokens.len() - cached;
            // A prompt above the whole budget is chunked even so: it could never run otherwise.
            if pending > budget && !self.config.chunked_prefill && plan.tokens > 0 {
                self.kv.release(&mut seq.table);
                return;
            }
            let mut seq = self.waiting.pop_front().expect("it is at the front");
            seq.computed = cached;
            if seq.cached.is_none() {
                seq.cached = Some(cached);
                if self.kv.prefix_caching() {
                    plan.prefix_queries += seq.prompt_len;
                    plan.prefix_hits += cached;
                }
            }
            seq.client.admitted();
            let at = position(self.running.iter(), seq.rank());
            self.running.insert(at, seq);
            self.grant(at, pending.min(budget), plan);
        }
    }

    /// Gives a sequence its share of the step, and shows others the blocks this will fill.
    fn grant(&mut self, at: usize, tokens: usize, plan: &mut StepPlan) {
        let seq = &mut self.running[at];
        seq.scheduled = tokens;
        plan.tokens += tokens;
        plan.prompt_tokens += tokens.min(seq.prompt_len.saturating_sub(seq.computed));
        self.kv.publish(&mut seq.table, &seq.tokens, seq.salt, seq.computed + tokens);
    }

    fn enqueue(&mut self, seq: Sequence) {
        let at = position(self.waiting.iter(), seq.rank());
        self.waiting.insert(at, seq);
    }
}

/// Where a sequence of this rank goes. Most belong at the end, so look from there.
fn position<'a>(
    seqs: impl DoubleEndedIterator<Item = &'a Sequence> + ExactSizeIterator,
    rank: Rank,
) -> usize {
    let total = seqs.len();
    total - seqs.rev().take_while(|seq| seq.rank() > rank).count()
}

#[cfg(test)]
mod tests;
