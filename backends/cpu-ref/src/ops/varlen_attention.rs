//! Attention over contiguous keys and values: sequence `b` has rows `cu_k[b]..cu_k[b + 1]`.
//!
//! Query `i` is at `p = kv_len - q_len + i`, which may be negative: it sees nothing then if CAUSAL. The rest is [`Attention`]'s.

use halyard_sdk::{
    OpDesc, Result,
    abi::ops::{attrs::VarlenAttention, check::Bindings},
};

use crate::{
    attention::{Attention, Kv, check_heads},
    glue::Args,
    rows,
};

pub(super) fn check(_: &VarlenAttention, _: &OpDesc<'_>, bindings: &Bindings) -> Result<()> {
    check_heads("varlen_attention", bindings)
}

pub(super) fn run(attrs: &VarlenAttention, args: &Args) -> Result<()> {
    let (q, k, v) = (args.tensor(0)?, args.tensor(1)?, args.tensor(2)?);
    let keys = rows::ranges("varlen_attention: cu_k", &args.tensor(4)?, k.dim(0))?;
    let attention = Attention {
        rule: attrs.into(),
        queries: rows::ranges("varlen_attention: cu_q", &args.tensor(3)?, q.dim(0))?,
        kv_len: keys.iter().map(|rows| rows.len() as i64).collect(),
        kv_heads: k.dim(1),
        sinks: args.optional(7)?,
        o: args.tensor(5)?,
        lse: args.optional(6)?,
    };
    let query = |t, h| rows::read(&q, &[t, h]);
    attention.run(query, |b, head| {
        let of = |x| keys[b].clone().map(|j| rows::read(x, &[j, head])).collect();
        Ok(Kv { keys: of(&k), values: of(&v) })
    })
}
