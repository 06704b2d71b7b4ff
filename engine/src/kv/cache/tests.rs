//! The cache against a model that keeps whole prefixes and searches them.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

const BLOCK: usize = 4;

/// What the blocks mean, kept the slow way.
struct Model {
    /// The prefix (salt, tokens) that a nameable block ends.
    names: HashMap<BlockId, (Option<u64>, Vec<u32>)>,
    /// Free blocks, next victim first.
    free: Vec<BlockId>,
    refs: HashMap<BlockId, usize>,
}

impl Model {
    fn new(num_blocks: usize, pool: &BlockPool) -> Self {
        let free = pool.free_order();
        assert_eq!(free.len(), num_blocks);
        Self { names: HashMap::new(), free, refs: HashMap::new() }
    }

    fn find(&self, salt: Option<u64>, prefix: &[u32]) -> Option<BlockId> {
        self.names.iter().find(|(_, (s, p))| *s == salt && p == prefix).map(|(&id, _)| id)
    }

    fn hit(&self, salt: Option<u64>, tokens: &[u32], max_cached: usize) -> Vec<BlockId> {
        (1..=max_cached.min(tokens.len()) / BLOCK)
            .map_while(|blocks| self.find(salt, &tokens[..blocks * BLOCK]))
            .collect()
    }

    fn acquire(&mut self, id: BlockId) {
        self.free.retain(|&free| free != id);
        *self.refs.entry(id).or_default() += 1;
    }

    fn allocate(&mut self) -> BlockId {
        let id = self.free.remove(0);
        self.names.remove(&id);
        self.refs.insert(id, 1);
        id
    }

    fn release(&mut self, id: BlockId) {
        let refs = self.refs.get_mut(&id).expect("held");
        *refs -= 1;
        if *refs == 0 {
            self.refs.remove(&id);
            if self.names.contains_key(&id) {
                self.free.push(id);
            } else {
                self.free.insert(0, id);
            }
        }
    }
}

/// A live sequence of the test.
struct Live {
    table: BlockTable,
    tokens: Vec<u32>,
    salt: Option<u64>,
    blocks: Vec<BlockId>,
    /// Each block is offered to the cache once, even if the cache forgets it.
    published: usize,
}

#[derive(Clone, Debug)]
enum Op {
    Admit { tokens: Vec<u32>, salt: Option<u64>, headroom: usize },
    Push { which: usize, tokens: Vec<u32> },
    Publish { which: usize, share: usize },
    Release { which: usize },
    Forget,
}

fn op() -> impl Strategy<Value = Op> {
    // Two token values and short sequences, so that prefixes are shared often.
    let tokens = |most| prop::collection::vec(0..2_u32, 1..most);
    prop_oneof![
        4 => (tokens(24), prop_oneof![3 => Just(None), 1 => Just(Some(7))], 0..3_usize)
            .prop_map(|(tokens, salt, headroom)| Op::Admit { tokens, salt, headroom }),
        3 => (0..8_usize, tokens(6)).prop_map(|(which, tokens)| Op::Push { which, tokens }),
        4 => (0..8_usize, 0..=100_usize).prop_map(|(which, share)| Op::Publish { which, share }),
        3 => (0..8_usize).prop_map(|which| Op::Release { which }),
        1 => Just(Op::Forget),
    ]
}

struct World {
    kv: KvCache,
    model: Model,
    live: Vec<Live>,
}

impl World {
    fn new(num_blocks: usize) -> Self {
        let kv = KvCache::new(num_blocks, BLOCK, true);
        let model = Model::new(num_blocks, &kv.pool);
        Self { kv, model, live: Vec::new() }
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Admit { tokens, salt, headroom } => self.admit(tokens, salt, headroom),
            Op::Push { which, tokens } => self.push(which, &tokens),
            Op::Publish { which, share } => self.publish(which, share),
            Op::Release { which } => self.release(which),
            Op::Forget => {
                self.kv.forget_prefixes();
                self.model.names.clear();
            }
        }
        self.check();
    }

    fn admit(&mut self, tokens: Vec<u32>, salt: Option<u64>, headroom: usize) {
        let max_cached = tokens.len() - 1;
        let mut table = BlockTable::default();
        let found = self.kv.admit(&mut table, &tokens, salt, max_cached, headroom);
        let hit = self.model.hit(salt, &tokens, max_cached);
        let total = tokens.len().div_ceil(BLOCK);
        let idle = hit.iter().filter(|id| self.model.free.contains(id)).count();
        if total - hit.len() + idle + headroom > self.model.free.len() {
            assert_eq!(found, None);
            assert!(table.blocks().is_empty());
            return;
        }
        assert_eq!(found, Some(hit.len() * BLOCK));
        for &id in &hit {
            self.model.acquire(id);
        }
        let published = hit.len();
        let mut blocks = hit;
        while blocks.len() < total {
            blocks.push(self.model.allocate());
        }
        self.live.push(Live { table, tokens, salt, blocks, published });
    }

    fn push(&mut self, which: usize, tokens: &[u32]) {
        let Some(live) = self.live.get_mut(which) else { return };
        let mut grown = live.tokens.clone();
        grown.extend(tokens);
        let need = grown.len().div_ceil(BLOCK) - live.blocks.len();
        let fits = need <= self.model.free.len();
        assert_eq!(self.kv.grow(&mut live.table, grown.len()), fits);
        if fits {
            live.tokens = grown;
            for _ in 0..need {
                live.blocks.push(self.model.allocate());
            }
        }
    }

    fn publish(&mut self, which: usize, share: usize) {
        let Some(live) = self.live.get_mut(which) else { return };
        let computed = live.tokens.len() * share / 100;
        self.kv.publish(&mut live.table, &live.tokens, live.salt, computed);
        while live.published < computed / BLOCK {
            let prefix = &live.tokens[..(live.published + 1) * BLOCK];
            if self.model.find(live.salt, prefix).is_none() {
                let id = live.blocks[live.published];
                self.model.names.insert(id, (live.salt, prefix.to_vec()));
            }
            live.published += 1;
        }
    }

    fn release(&mut self, which: usize) {
        if which < self.live.len() {
            let mut live = self.live.remove(which);
            self.kv.release(&mut live.table);
            for &id in live.blocks.iter().rev() {
                self.model.release(id);
            }
        }
    }

    fn check(&self) {
        for live in &self.live {
            assert_eq!(live.table.blocks(), live.blocks);
        }
        assert_eq!(self.kv.num_free(), self.model.free.len());
        assert_eq!(self.kv.pool.free_order(), self.model.free);
    }
}

proptest! {
    #[test]
    fn behaves_as_the_model(num_blocks in 1..20_usize, ops in prop::collection::vec(op(), 1..80)) {
        let mut world = World::new(num_blocks);
        for op in ops {
            world.apply(op);
        }
        while !world.live.is_empty() {
            world.release(0);
        }
        world.check();
        assert_eq!(world.kv.num_free(), num_blocks);
    }
}

#[test]
fn a_prefix_outlives_its_sequence() {
    let mut kv = KvCache::new(8, BLOCK, true);
    let tokens: Vec<u32> = (0..10).collect();
    let mut first = BlockTable::default();
    assert_eq!(kv.admit(&mut first, &tokens, None, 9, 0), Some(0));
    kv.publish(&mut first, &tokens, None, 10);
    let blocks = first.blocks().to_vec();
    kv.release(&mut first);
    assert_eq!(kv.num_free(), 8);

    let mut second = BlockTable::default();
    assert_eq!(kv.admit(&mut second, &tokens, None, 9, 0), Some(8));
    assert_eq!(second.blocks()[..2], blocks[..2]);
}

#[test]
fn the_last_token_is_never_cached() {
    let mut kv = KvCache::new(8, BLOCK, true);
    let tokens: Vec<u32> = (0..8).collect();
    let mut first = BlockTable::default();
    kv.admit(&mut first, &tokens, None, 7, 0).expect("fits");
    kv.publish(&mut first, &tokens, None, 8);
    let mut second = BlockTable::default();
    assert_eq!(kv.admit(&mut second, &tokens, None, 7, 0), Some(4));
}

#[test]
fn salts_and_switch_keep_sequences_apart() {
    let tokens: Vec<u32> = (0..9).collect();
    for (caching, salt, found) in [(true, None, 8), (true, Some(1), 0), (false, None, 0)] {
        let mut kv = KvCache::new(8, BLOCK, caching);
        let mut first = BlockTable::default();
        kv.admit(&mut first, &tokens, None, 8, 0).expect("fits");
        kv.publish(&mut first, &tokens, None, 9);
        let mut second = BlockTable::default();
        assert_eq!(kv.admit(&mut second, &tokens, salt, 8, 0), Some(found));
    }
}
