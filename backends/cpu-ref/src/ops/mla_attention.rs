//! Absorbed latent attention: all query heads share one key `(c_j, r_j)` and one value `c_j`.
//!
//! `z_j = SCALE (qc·c_j + qr·r_j)`, `o = Σ a_j c_j`; the rest is [`Attention`]'s.

use halyard_sdk::{
    OpDesc, Result,
    abi::ops::{attrs::MlaAttention, check::Bindings},
};

use crate::{
    attention::{Attention, Kv},
    cache::{self, Cache},
    glue::Args,
    rows::{self, length},
};

const OP: &str = "mla_attention";

pub(super) fn check(_: &MlaAttention, desc: &OpDesc<'_>, _: &Bindings) -> Result<()> {
    cache::check(desc, [2, 3], &[])
}

pub(super) fn run(attrs: &MlaAttention, args: &Args) -> Result<()> {
    let (qc, qr, block_table) = (args.tensor(0)?, args.tensor(1)?, args.tensor(4)?);
    let (c_cache, r_cache) = (Cache::open(args, 2, None)?, Cache::open(args, 3, None)?);
    let kv_len = rows::ints(&args.tensor(6)?);
    let attention = Attention {
        rule: attrs.into(),
        queries: rows::ranges("mla_attention: cu_q", &args.tensor(5)?, qc.dim(0))?,
        kv_len: kv_len.clone(),
        kv_heads: 1,
        sinks: None,
        o: args.tensor(7)?,
        lse: args.optional(8)?,
    };
    let query = |t, h| [rows::read(&qc, &[t, h]), rows::read(&qr, &[t, h])].concat();
    attention.run(query, |b, head| {
        let read = |cache: &Cache| cache.read(OP, &block_table, length(kv_len[b]), [b, head]);
        let (c, r) = (read(&c_cache)?, read(&r_cache)?);
        let keys = c.iter().zip(&r).map(|(c, r)| [c.as_slice(), r].concat()).collect();
        Ok(Kv { keys, values: c })
    })
}
