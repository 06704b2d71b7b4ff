//! Blocks for whole sequences, and the prefix cache.

use super::{
    hash::BlockHash,
    pool::{BlockId, BlockPool},
};

/// The blocks of one sequence, in the order of its tokens.
#[derive(Debug, Default)]
pub(crate) struct BlockTable {
    blocks: Vec<BlockId>,
    /// Names of the sequence's full blocks, as far as computed. Kept across preemption.
    hashes: Vec<BlockHash>,
    /// How many leading blocks are known to the prefix cache.
    published: usize,
}

impl BlockTable {
    /// A table that grows to `blocks` without allocating.
    pub(crate) fn with_capacity(blocks: usize) -> Self {
        Self {
            blocks: Vec::with_capacity(blocks),
            hashes: Vec::with_capacity(blocks),
            published: 0,
        }
    }

    pub(crate) fn blocks(&self) -> &[BlockId] {
        &self.blocks
    }
}

/// The block pool as sequences see it.
#[derive(Debug)]
pub(crate) struct KvCache {
    pool: BlockPool,
    block_size: usize,
    prefix_caching: bool,
}

impl KvCache {
    pub(crate) fn new(num_blocks: usize, block_size: usize, prefix_caching: bool) -> Self {
        Self { pool: BlockPool::new(num_blocks), block_size, prefix_caching }
    }

    pub(crate) fn num_blocks(&self) -> usize {
        self.pool.num_blocks()
    }

    /// Blocks that no sequence holds.
    pub(crate) fn num_free(&self) -> usize {
        self.pool.num_free()
    }

    pub(crate) fn prefix_caching(&self) -> bool {
        self.prefix_caching
    }

    pub(crate) fn blocks_for(&self, num_tokens: usize) -> usize {
        num_tokens.div_ceil(self.block_size)
    }

    /// Gives an empty table the blocks for all of `tokens`: found ones for as long a prefix of at most
    /// `max_cached` tokens as is cached, fresh ones for the rest. Leaves `headroom` blocks free.
    ///
    /// Returns how many tokens need no computing, or `None` (and takes nothing) if there are too few blocks.
    pub(crate) fn admit(
        &mut self,
        table: &mut BlockTable,
        tokens: &[u32],
        salt: Option<u64>,
        max_cached: usize,
        headroom: usize,
    ) -> Option<usize> {
        debug_assert!(table.blocks.is_empty(), "a sequence is admitted without blocks");
        let total = self.blocks_for(tokens.len());
        let found = self.find_prefix(table, tokens, salt, max_cached);
        // A found block that nobody holds is on the free list, and taking it shortens the list too.
        let idle = table.blocks.iter().filter(|&&id| self.pool.is_free(id)).count();
        if total - found + idle + headroom > self.pool.num_free() {
            table.blocks.clear();
            return None;
        }
        for &id in &table.blocks {
            self.pool.acquire(id);
        }
        table.published = found;
        self.extend(table, total);
        Some(found * self.block_size)
    }

    /// Makes room for `num_tokens` tokens. Takes nothing if there are too few blocks.
    pub(crate) fn grow(&mut self, table: &mut BlockTable, num_tokens: usize) -> bool {
        let total = self.blocks_for(num_tokens);
        let fits = total.saturating_sub(table.blocks.len()) <= self.pool.num_free();
        if fits {
            self.extend(table, total);
        }
        fits
    }

    /// Lets later sequences find the blocks filled by the first `computed` tokens.
    ///
    /// This may be called as soon as the step that computes them is certain to run: a step writes the
    /// keys and values of all its tokens before any of them attends.
    pub(crate) fn publish(
        &mut self,
        table: &mut BlockTable,
        tokens: &[u32],
        salt: Option<u64>,
        computed: usize,
    ) {
        if !self.prefix_caching {
            return;
        }
        let full = computed / self.block_size;
        self.hash_blocks(table, tokens, salt, full);
        while table.published < full {
            let at = table.published;
            self.pool.name(table.blocks[at], table.hashes[at]);
            table.published += 1;
        }
    }

    /// Takes all blocks from the table. Those at its end are reused before those at its beginning.
    pub(crate) fn release(&mut self, table: &mut BlockTable) {
        while let Some(id) = table.blocks.pop() {
            self.pool.release(id);
        }
    }

    /// Empties the prefix cache: after a failed step nobody knows what its blocks hold.
    pub(crate) fn forget_prefixes(&mut self) {
        self.pool.forget_names();
    }

    /// Puts the cached blocks of a prefix into the table, unacquired; returns how many.
    fn find_prefix(
        &self,
        table: &mut BlockTable,
        tokens: &[u32],
        salt: Option<u64>,
        max_cached: usize,
    ) -> usize {
        if !self.prefix_caching {
            return 0;
        }
        let most = max_cached.min(tokens.len()) / self.block_size;
        for at in 0..most {
            self.hash_blocks(table, tokens, salt, at + 1);
            let Some(id) = self.pool.find(table.hashes[at]) else { break };
            table.blocks.push(id);
        }
        table.blocks.len()
    }

    fn hash_blocks(
        &self,
        table: &mut BlockTable,
        tokens: &[u32],
        salt: Option<u64>,
        blocks: usize,
    ) {
        while table.hashes.len() < blocks {
            let start = table.hashes.len() * self.block_size;
            let parent = table.hashes.last().copied().unwrap_or_else(|| BlockHash::root(salt));
            table.hashes.push(parent.child(&tokens[start..start + self.block_size]));
        }
    }

    fn extend(&mut self, table: &mut BlockTable, total: usize) {
        while table.blocks.len() < total {
            let id = self.pool.allocate().expect("the caller counted the free blocks");
            table.blocks.push(id);
        }
    }
}

#[cfg(test)]
mod tests;
