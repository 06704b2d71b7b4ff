//! What the attentions share: which keys a query sees, the softmax over them, and the walk over a batch.

use std::ops::Range;

use halyard_sdk::{
    Error, HostTensor, Result,
    abi::ops::{
        Sym,
        attrs::{MlaAttention, PagedAttention, VarlenAttention},
        check::Bindings,
    },
};

use crate::{
    order::log_sum_exp,
    rows::{self, length},
};

/// The attributes of an attention.
pub(crate) struct Rule {
    scale: f64,
    causal: bool,
    window: i64,
    softcap: f64,
}

macro_rules! rule_of {
    ($($attrs:ident)*) => {$(
        impl From<&$attrs> for Rule {
            fn from(a: &$attrs) -> Self {
                Self { scale: a.scale, causal: a.causal, window: a.window, softcap: a.softcap }
            }
        }
    )*};
}

rule_of!(PagedAttention VarlenAttention MlaAttention);

/// Refuses query heads that KV heads cannot be shared by.
pub(crate) fn check_heads(op: &str, bindings: &Bindings) -> Result<()> {
    match (bindings.get(Sym::Hq), bindings.get(Sym::Hk)) {
        (Some(hq), Some(hk)) if hq > 0 && hk > 0 && hq % hk == 0 => Ok(()),
        (hq, hk) => Err(Error::invalid(format!(
            "{op}: {hq:?} query heads on {hk:?} KV heads, expected fixed numbers and a multiple"
        ))),
    }
}

/// Keys and values that one KV head of a sequence has, in order of position.
pub(crate) struct Kv {
    pub(crate) keys: Vec<Vec<f64>>,
    pub(crate) values: Vec<Vec<f64>>,
}

/// An attention over a batch.
pub(crate) struct Attention {
    pub(crate) rule: Rule,
    /// The rows of each sequence's queries.
    pub(crate) queries: Vec<Range<usize>>,
    /// Each sequence's keys.
    pub(crate) kv_len: Vec<i64>,
    pub(crate) kv_heads: usize,
    pub(crate) sinks: Option<HostTensor>,
    pub(crate) o: HostTensor,
    pub(crate) lse: Option<HostTensor>,
}

impl Attention {
    /// Computes `o` and `lse` of every row; `query` gives that of a row and head, `kv` what a sequence has in a KV head.
    pub(crate) fn run(
        &self,
        query: impl Fn(usize, usize) -> Vec<f64>,
        kv: impl Fn(usize, usize) -> Result<Kv>,
    ) -> Result<()> {
        let group = self.o.dim(1) / self.kv_heads;
        for (b, (rows, &kv_len)) in self.queries.iter().zip(&self.kv_len).enumerate() {
            for kv_head in 0..self.kv_heads {
                let kv = kv(b, kv_head)?;
                for (i, t) in rows.clone().enumerate() {
                    let p = kv_len - rows.len() as i64 + i as i64;
                    let seen = self.rule.visible(p, kv_len);
                    for h in kv_head * group..(kv_head + 1) * group {
                        let sink = self.sinks.map(|s| s.get(&[h]));
                        self.store(t, h, self.rule.attend(&query(t, h), &kv, seen.clone(), sink));
                    }
                }
            }
        }
        for t in rows::end(&self.queries)..self.o.dim(0) {
            for h in 0..self.o.dim(1) {
                self.store(t, h, None);
            }
        }
        Ok(())
    }

    /// A head's output and `lse`; nothing seen is 0 and -inf.
    fn store(&self, t: usize, h: usize, result: Option<(Vec<f64>, f64)>) {
        let nothing = || (vec![0.0; self.o.dim(2)], f64::NEG_INFINITY);
        let (o, lse) = result.unwrap_or_else(nothing);
        self.o.set_row(&[t, h], o);
        if let Some(to) = &self.lse {
            to.set(&[t, h], lse);
        }
    }
}

impl Rule {
    /// The positions that a query at `p` sees: `max(0, p - WINDOW) ..= p`; not CAUSAL: all.
    fn visible(&self, p: i64, kv_len: i64) -> Range<usize> {
        if !self.causal {
            return 0..length(kv_len);
        }
        let first = if self.window < 0 { 0 } else { p.saturating_sub(self.window).max(0) };
        let end = p + 1;
        if end <= first { 0..0 } else { length(first)..length(end) }
    }

    /// `z_j = SCALE q·k_j`, soft-capped to `c tanh(z / c)`; `a = softmax(z)` with a sink's logit in the denominator; `o = Σ a_j v_j`
    /// and `lse = ln Σ e^z`. `None` if nothing is seen.
    fn attend(
        &self,
        q: &[f64],
        kv: &Kv,
        seen: Range<usize>,
        sink: Option<f64>,
    ) -> Option<(Vec<f64>, f64)> {
        let (keys, values) = (&kv.keys[seen.clone()], &kv.values[seen]);
        let logit = |k: &Vec<f64>| {
            let z = self.scale * rows::dot(q, k);
            if self.softcap > 0.0 { self.softcap * (z / self.softcap).tanh() } else { z }
        };
        let z: Vec<f64> = keys.iter().map(logit).collect();
        let lse = log_sum_exp(&z.iter().copied().chain(sink).collect::<Vec<_>>());
        let mut o = vec![0.0; values.first()?.len()];
        for (z_j, v_j) in z.iter().zip(values) {
            let a = (z_j - lse).exp();
            for (o, v) in o.iter_mut().zip(v_j) {
                *o += a * v;
            }
        }
        Some((o, lse))
    }
}
