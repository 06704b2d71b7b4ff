//! The scheduler with a fake model behind it, under random loads.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::{
    batch::Batch,
    fake::{self, FakeRunner},
    request::SamplingParams,
    runner::{ModelRunner, StepOutput},
};

#[derive(Clone, Debug)]
struct Load {
    num_blocks: usize,
    block_size: usize,
    config: (usize, usize, bool),
    /// Step of arrival, prompt, tokens to generate, priority.
    requests: Vec<(usize, Vec<u32>, u32, i32)>,
}

fn load() -> impl Strategy<Value = Load> {
    let prompt = prop_oneof![
        prop::collection::vec(1..3_u32, 1..40),
        // One long common beginning.
        (1..30_usize, 0..5_u32).prop_map(|(shared, own)| {
            let mut prompt = vec![9; shared];
            prompt.push(own + 20);
            prompt
        }),
    ];
    let request = (0..30_usize, prompt, 0..20_u32, prop_oneof![4 => Just(0), 1 => -1..2_i32]);
    (1..40_usize, 1..9_usize, (1..40_usize, 1..9_usize, any::<bool>()))
        .prop_flat_map(move |(num_blocks, block_size, config)| {
            (Just((num_blocks, block_size, config)), prop::collection::vec(request.clone(), 1..16))
        })
        .prop_map(|((num_blocks, block_size, config), requests)| Load {
            num_blocks,
            block_size,
            config,
            requests,
        })
}

struct World {
    scheduler: Scheduler,
    runner: FakeRunner,
    batch: Batch,
    load: Load,
    /// Ended sequences by arrival.
    ended: HashMap<u64, Sequence>,
}

impl World {
    fn new(load: Load) -> Self {
        let (max_num_batched_tokens, max_num_seqs, chunked_prefill) = load.config;
        let config = SchedulerConfig { max_num_batched_tokens, max_num_seqs, chunked_prefill };
        let kv = KvCache::new(load.num_blocks, load.block_size, true);
        Self {
            scheduler: Scheduler::new(config, kv),
            runner: FakeRunner::new(load.num_blocks, load.block_size),
            batch: Batch::default(),
            load,
            ended: HashMap::new(),
        }
    }

    fn step(&mut self) {
        let newest = self.scheduler.running.iter().map(Sequence::rank).collect::<Vec<_>>();
        let plan = self.scheduler.schedule();
        self.check_plan(&plan, &newest);
        for seq in self.scheduler.oversized.drain(..) {
            assert!(seq.tokens.len().div_ceil(self.load.block_size) > self.load.num_blocks);
            self.ended.insert(seq.arrival, seq);
        }
        assert!(plan.tokens > 0 || self.scheduler.is_idle(), "a step without progress");
        self.batch.build(&self.scheduler.running, self.load.block_size);
        let mut out = StepOutput::default();
        self.runner.run(&mut self.batch, &self.scheduler.running, &mut out).expect("never fails");
        self.scheduler.commit();
        for (sample, &token) in self.batch.samples.iter().zip(&out.tokens) {
            self.scheduler.running[sample.seq].push(token, &[]);
        }
        let ended = &mut self.ended;
        self.scheduler.retire(
            |seq| seq.is_over(),
            |seq| {
                ended.insert(seq.arrival, seq);
            },
        );
    }

    fn check_plan(&self, plan: &StepPlan, before: &[Rank]) {
        let (budget, max_num_seqs, _) = self.load.config;
        let running = &self.scheduler.running;
        assert!(plan.tokens <= budget);
        assert_eq!(plan.tokens, running.iter().map(|seq| seq.scheduled).sum::<usize>());
        assert!(running.len() <= max_num_seqs);
        assert!(running.is_sorted_by_key(Sequence::rank));
        for seq in running {
            assert!(seq.scheduled <= seq.pending());
            assert!(seq.table.blocks().len() * self.load.block_size >= seq.tokens.len());
        }
        // Nobody overtakes: whoever came in now ranks before all who still wait.
        let admitted = running.iter().map(Sequence::rank).filter(|rank| !before.contains(rank));
        let admitted: Vec<Rank> = admitted.collect();
        assert!(plan.preemptions == 0 || admitted.is_empty(), "blocks had just run out");
        let first_waiting = self.scheduler.waiting.front().map(Sequence::rank);
        if let (Some(last), Some(first)) = (admitted.into_iter().max(), first_waiting) {
            assert!(last < first);
        }
        let blocks = self.scheduler.waiting.iter().map(|seq| seq.table.blocks().len());
        assert_eq!(blocks.sum::<usize>(), 0, "who waits holds no blocks");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn everyone_ends_with_exactly_its_own_tokens(load in load()) {
        let mut world = World::new(load.clone());
        let mut todo = load.requests.clone();
        todo.sort_by_key(|request| request.0);
        for now in 0.. {
            prop_assert!(now < 20_000, "some sequence starves");
            for (_, prompt, max_tokens, priority) in todo.iter().filter(|request| request.0 == now) {
                let params = SamplingParams { max_tokens: *max_tokens, ..Default::default() };
                let mut seq = fake::sequence(prompt, &params);
                seq.priority = *priority;
                world.scheduler.add(seq);
            }
            if !world.scheduler.is_idle() {
                world.step();
            } else if now > 30 {
                break;
            }
        }
        prop_assert_eq!(world.ended.len(), todo.len());
        let capacity = load.num_blocks * load.block_size;
        for (arrival, (_, prompt, max_tokens, _)) in todo.iter().enumerate() {
            let seq = &world.ended[&(arrival as u64)];
            let room = (capacity + 1).saturating_sub(prompt.len());
            let room = if prompt.len() > capacity { 0 } else { room };
            let count = (*max_tokens as usize).min(room);
            prop_assert_eq!(&seq.tokens[prompt.len()..], fake::continuation(prompt, count));
        }
        prop_assert_eq!(world.scheduler.kv.num_free(), load.num_blocks);
    }
}

#[test]
fn a_step_mixes_decodes_with_a_chunk_of_a_prompt() {
    let mut scheduler = fake::scheduler(32, 4, 4, 6);
    scheduler.add(fake::sequence(&[1, 2], &SamplingParams::default()));
    scheduler.schedule();
    scheduler.commit();
    scheduler.running[0].push(3, &[]);
    scheduler.add(fake::sequence(&[5; 20], &SamplingParams::default()));
    let shares = |scheduler: &Scheduler| {
        scheduler.running.iter().map(|seq| seq.scheduled).collect::<Vec<_>>()
    };
    let plan = scheduler.schedule();
    assert_eq!((plan.tokens, plan.prompt_tokens), (6, 5));
    assert_eq!(shares(&scheduler), [1, 5]);
}

#[test]
fn the_latest_of_the_least_urgent_gives_way() {
    // Two blocks a sequence; the pool is full when all three have filled their first.
    let mut scheduler = fake::scheduler(4, 4, 4, 64);
    for (at, priority) in [(0, 0), (1, 1), (2, 0)] {
        let mut seq = fake::sequence(&[1, 2, 3, at], &SamplingParams::default());
        seq.priority = priority;
        scheduler.add(seq);
    }
    assert_eq!(scheduler.schedule().tokens, 12);
    scheduler.commit();
    for seq in &mut scheduler.running {
        seq.push(5, &[]);
    }
    let plan = scheduler.schedule();
    assert_eq!(plan.preemptions, 1);
    let waiting = &scheduler.waiting[0];
    assert_eq!((waiting.priority, waiting.preemptions, waiting.computed), (1, 1, 0));
    assert_eq!(scheduler.running.iter().map(|seq| seq.arrival).collect::<Vec<_>>(), [0, 2]);
}

#[test]
fn equal_prompts_share_blocks_within_one_step() {
    let mut scheduler = fake::scheduler(32, 4, 4, 64);
    for _ in 0..2 {
        scheduler.add(fake::sequence(&[1, 2, 3, 4, 5, 6, 7, 8, 9], &SamplingParams::default()));
    }
    let plan = scheduler.schedule();
    assert_eq!((plan.tokens, plan.prefix_queries, plan.prefix_hits), (9 + 1, 18, 8));
    let blocks = |at: usize| scheduler.running[at].table.blocks();
    assert_eq!(blocks(0)[..2], blocks(1)[..2]);
    assert_ne!(blocks(0)[2], blocks(1)[2]);
}

#[test]
fn without_chunks_a_prompt_waits_for_a_step_of_its_own() {
    let config =
        SchedulerConfig { max_num_batched_tokens: 8, max_num_seqs: 4, chunked_prefill: false };
    let mut scheduler = Scheduler::new(config, KvCache::new(32, 4, false));
    scheduler.add(fake::sequence(&[1; 5], &SamplingParams::default()));
    scheduler.add(fake::sequence(&[2; 5], &SamplingParams::default()));
    assert_eq!(scheduler.schedule().tokens, 5);
    scheduler.commit();
    scheduler.running[0].push(3, &[]);
    assert_eq!(scheduler.schedule().tokens, 1 + 5);
}
