//! The block pool: reference counts, the free list, and the blocks that can be found by name.

use std::collections::{HashMap, hash_map::Entry};

use super::hash::BlockHash;

/// A block of the KV pool.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct BlockId(u32);

impl BlockId {
    /// The block's place in the pool.
    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }

    /// The same as block tables on the device spell it.
    pub(crate) fn to_i32(self) -> i32 {
        i32::try_from(self.0).expect("the pool has at most i32::MAX blocks")
    }
}

/// No neighbour in the free list.
const NONE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
struct Block {
    refs: u32,
    /// Present while the block can be found by this name.
    hash: Option<BlockHash>,
    prev: u32,
    next: u32,
}

/// All blocks. Those with no references are in one doubly linked free list, next victim first:
/// blank blocks, then nameable ones by last use.
#[derive(Debug)]
pub(super) struct BlockPool {
    blocks: Vec<Block>,
    named: HashMap<BlockHash, BlockId>,
    head: u32,
    tail: u32,
    num_free: usize,
}

impl BlockPool {
    pub(super) fn new(num_blocks: usize) -> Self {
        let blank = Block { refs: 0, hash: None, prev: NONE, next: NONE };
        let mut pool = Self {
            blocks: vec![blank; num_blocks],
            named: HashMap::with_capacity(num_blocks),
            head: NONE,
            tail: NONE,
            num_free: 0,
        };
        let count = i32::try_from(num_blocks).expect("a pool has at most i32::MAX blocks");
        for id in 0..count.unsigned_abs() {
            pool.push_back(BlockId(id));
        }
        pool
    }

    pub(super) fn num_blocks(&self) -> usize {
        self.blocks.len()
    }

    /// Blocks that nobody holds, nameable ones included.
    pub(super) fn num_free(&self) -> usize {
        self.num_free
    }

    pub(super) fn is_free(&self, id: BlockId) -> bool {
        self.blocks[id.index()].refs == 0
    }

    /// Takes the free block that was of use least recently; it loses its name.
    pub(super) fn allocate(&mut self) -> Option<BlockId> {
        if self.head == NONE {
            return None;
        }
        let id = BlockId(self.head);
        self.unlink(id);
        let block = &mut self.blocks[id.index()];
        block.refs = 1;
        if let Some(hash) = block.hash.take() {
            self.named.remove(&hash);
        }
        Some(id)
    }

    /// The block with this name, held or free.
    pub(super) fn find(&self, hash: BlockHash) -> Option<BlockId> {
        self.named.get(&hash).copied()
    }

    /// Adds a reference to a block got from [`find`](Self::find).
    pub(super) fn acquire(&mut self, id: BlockId) {
        if self.is_free(id) {
            self.unlink(id);
        }
        self.blocks[id.index()].refs += 1;
    }

    /// Gives a reference back. The last one puts the block on the free list.
    pub(super) fn release(&mut self, id: BlockId) {
        let block = &mut self.blocks[id.index()];
        debug_assert!(block.refs > 0, "{id:?} was released more often than acquired");
        block.refs -= 1;
        if block.refs == 0 {
            match block.hash {
                Some(_) => self.push_back(id),
                None => self.push_front(id),
            }
        }
    }

    /// Gives a held block its name, unless another block has it already.
    pub(super) fn name(&mut self, id: BlockId, hash: BlockHash) {
        let block = &mut self.blocks[id.index()];
        debug_assert!(block.hash.is_none(), "{id:?} is named twice");
        if let Entry::Vacant(name) = self.named.entry(hash) {
            block.hash = Some(hash);
            name.insert(id);
        }
    }

    /// Makes every name unknown.
    pub(super) fn forget_names(&mut self) {
        self.named.clear();
        for block in &mut self.blocks {
            block.hash = None;
        }
    }

    fn push_back(&mut self, id: BlockId) {
        let tail = self.tail;
        let block = &mut self.blocks[id.index()];
        (block.prev, block.next) = (tail, NONE);
        match tail {
            NONE => self.head = id.0,
            tail => self.blocks[tail as usize].next = id.0,
        }
        self.tail = id.0;
        self.num_free += 1;
    }

    fn push_front(&mut self, id: BlockId) {
        let head = self.head;
        let block = &mut self.blocks[id.index()];
        (block.prev, block.next) = (NONE, head);
        match head {
            NONE => self.tail = id.0,
            head => self.blocks[head as usize].prev = id.0,
        }
        self.head = id.0;
        self.num_free += 1;
    }

    fn unlink(&mut self, id: BlockId) {
        let Block { prev, next, .. } = self.blocks[id.index()];
        match prev {
            NONE => self.head = next,
            prev => self.blocks[prev as usize].next = next,
        }
        match next {
            NONE => self.tail = prev,
            next => self.blocks[next as usize].prev = prev,
        }
        self.num_free -= 1;
    }

    /// The free list, next victim first.
    #[cfg(test)]
    pub(super) fn free_order(&self) -> Vec<BlockId> {
        let mut order = Vec::new();
        let mut at = self.head;
        while at != NONE {
            order.push(BlockId(at));
            at = self.blocks[at as usize].next;
        }
        order
    }
}
