//! Paged attention in plain loops, for bugs that no change of its arguments makes.

use std::ops::Range;

use halyard_sdk::{Result, abi::AttrKey};

use crate::call::Call;

/// Where a query stands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Query {
    /// Among the new tokens of its sequence.
    pub(crate) i: i64,
    /// In its sequence.
    pub(crate) p: i64,
    /// Length of the sequence.
    pub(crate) kv_len: i64,
    /// Left reach; negative for all.
    pub(crate) window: i64,
    pub(crate) causal: bool,
    pub(crate) block: i64,
}

impl Query {
    /// The keys that it sees.
    pub(crate) fn sees(&self) -> Range<i64> {
        if !self.causal {
            return 0..self.kv_len;
        }
        let first = if self.window < 0 { 0 } else { (self.p - self.window).max(0) };
        first..self.p + 1
    }
}

/// Logits to weights and `lse`; the sink, if any, comes last.
pub(crate) type Weigh = fn(&[f64], Option<f64>) -> (Vec<f64>, f64);

/// The right one.
pub(crate) fn softmax(z: &[f64], sink: Option<f64>) -> (Vec<f64>, f64) {
    let most = z.iter().copied().chain(sink).fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = z.iter().copied().chain(sink).map(|v| (v - most).exp()).sum();
    let lse = most + sum.ln();
    (z.iter().map(|v| (v - lse).exp()).collect(), lse)
}

/// Attention with another mask or another softmax.
pub(crate) fn attention(c: &Call<'_>, sees: fn(Query) -> Range<i64>, weigh: Weigh) -> Result<()> {
    c.run()?;
    let cache = Cache::of(c);
    let (q, dims) = (c.floats("q"), c.dims("q"));
    let (cu_q, kv_len) = (c.ints("cu_q"), c.ints("kv_len"));
    let (heads, dim_k, dim_v) = (dims[1], dims[2], c.width("o"));
    let sinks = if c.has("sinks") { c.floats("sinks") } else { Vec::new() };
    let (mut o, mut sums) = (c.floats("o"), Vec::new());
    if c.has("lse") {
        sums = c.floats("lse");
    }
    for (b, &kv_len) in kv_len.iter().enumerate() {
        for t in cu_q[b]..cu_q[b + 1] {
            let i = t - cu_q[b];
            let query = Query {
                i,
                p: kv_len - (cu_q[b + 1] - cu_q[b]) + i,
                kv_len,
                window: c.int(AttrKey::WINDOW),
                causal: c.int(AttrKey::CAUSAL) != 0,
                block: cache.block as i64,
            };
            let seen = sees(query);
            for head in 0..heads {
                let row = t as usize * heads + head;
                let q = &q[row * dim_k..][..dim_k];
                let keys: Vec<Place> =
                    seen.clone().map(|j| cache.place(b, j, head, heads)).collect();
                if keys.is_empty() {
                    continue;
                }
                let z: Vec<f64> = keys.iter().map(|&at| logit(c, q, cache.key(at))).collect();
                let (weights, sum) = weigh(&z, sinks.get(head).copied());
                let out = &mut o[row * dim_v..][..dim_v];
                out.fill(0.0);
                for (&at, w) in keys.iter().zip(weights) {
                    out.iter_mut().zip(cache.value(at)).for_each(|(o, v)| *o += w * v);
                }
                if let Some(lse) = sums.get_mut(row) {
                    *lse = sum;
                }
            }
        }
    }
    c.write("o", &o);
    if c.has("lse") {
        c.write("lse", &sums);
    }
    Ok(())
}

fn logit(c: &Call<'_>, q: &[f64], k: &[f64]) -> f64 {
    let z = c.float(AttrKey::SCALE) * q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>();
    let cap = c.float(AttrKey::SOFTCAP);
    if cap > 0.0 { cap * (z / cap).tanh() } else { z }
}

/// Row number in a cache.
type Place = usize;

struct Cache {
    keys: Vec<f64>,
    values: Vec<f64>,
    table: Vec<i64>,
    columns: usize,
    blocks: usize,
    block: usize,
    heads: usize,
    dim_k: usize,
    dim_v: usize,
}

impl Cache {
    fn of(c: &Call<'_>) -> Self {
        let dims = c.dims("k_cache");
        Self {
            keys: c.floats("k_cache"),
            values: c.floats("v_cache"),
            table: c.ints("block_table"),
            columns: c.width("block_table"),
            blocks: dims[0],
            block: dims[1],
            heads: dims[2],
            dim_k: dims[3],
            dim_v: c.width("v_cache"),
        }
    }

    /// A position beyond what the table names is in block 0, as garbage may be.
    fn place(&self, b: usize, j: i64, head: usize, heads: usize) -> Place {
        let j = j.max(0) as usize;
        let id = self.table.get(b * self.columns + j / self.block).copied().unwrap_or(0);
        let id = usize::try_from(id).ok().filter(|&id| id < self.blocks).unwrap_or(0);
        (id * self.block + j % self.block) * self.heads + head / (heads / self.heads)
    }

    fn key(&self, at: Place) -> &[f64] {
        &self.keys[at * self.dim_k..][..self.dim_k]
    }

    fn value(&self, at: Place) -> &[f64] {
        &self.values[at * self.dim_v..][..self.dim_v]
    }
}
