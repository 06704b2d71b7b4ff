//! Attention of each new token over its sequence's cached keys and values.
//!
//! Query `i` of sequence `b` is at `p = kv_len[b] - q_len[b] + i`; what it sees and gives is [`Attention`]'s.

use halyard_sdk::{
    OpDesc, Result,
    abi::ops::{attrs::PagedAttention, check::Bindings},
};

use crate::{
    attention::{Attention, Kv, check_heads},
    cache::{self, Cache},
    glue::Args,
    rows::{self, length},
};

const OP: &str = "paged_attention";

pub(super) fn check(_: &PagedAttention, desc: &OpDesc<'_>, bindings: &Bindings) -> Result<()> {
    cache::check(desc, [1, 2], &[8, 9])?;
    check_heads(OP, bindings)
}

pub(super) fn run(attrs: &PagedAttention, args: &Args) -> Result<()> {
    let (q, block_table) = (args.tensor(0)?, args.tensor(3)?);
    let (k, v) = (Cache::open(args, 1, Some(8))?, Cache::open(args, 2, Some(9))?);
    let kv_len = rows::ints(&args.tensor(5)?);
    let attention = Attention {
        rule: attrs.into(),
        queries: rows::ranges("paged_attention: cu_q", &args.tensor(4)?, q.dim(0))?,
        kv_len: kv_len.clone(),
        kv_heads: k.heads(),
        sinks: args.optional(10)?,
        o: args.tensor(6)?,
        lse: args.optional(7)?,
    };
    let query = |t, h| rows::read(&q, &[t, h]);
    attention.run(query, |b, head| {
        let read = |cache: &Cache| cache.read(OP, &block_table, length(kv_len[b]), [b, head]);
        Ok(Kv { keys: read(&k)?, values: read(&v)? })
    })
}
