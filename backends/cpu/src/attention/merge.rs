//! Two attentions over disjoint keys as one.

use std::ops::Range;

use super::{Lse, Out};
use crate::isa::Op;
use crate::kv::Heads;
use crate::simd::{LANES, Simd};

/// Both parts and the whole: `[tokens, heads, dim]` and `[tokens, heads]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MergeAttention {
    pub(crate) parts: [(Heads, Lse); 2],
    pub(crate) o: Out,
    pub(crate) lse: Lse,
    pub(crate) heads: usize,
    pub(crate) dim: usize,
}

// SAFETY: addresses with shapes; tasks write disjoint tokens.
unsafe impl Sync for MergeAttention {}

/// Some of the tokens.
pub(crate) struct MergeTokens<'a> {
    pub(crate) merge: &'a MergeAttention,
    /// Inside all tensors; nobody else touches them.
    pub(crate) tokens: Range<usize>,
}

impl Op for MergeTokens<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for token in self.tokens {
            for head in 0..self.merge.heads {
                // SAFETY: promised at the field.
                unsafe { self.merge.head(s, token, head) };
            }
        }
    }
}

impl MergeAttention {
    #[inline(always)]
    unsafe fn head<S: Simd>(&self, s: S, token: usize, head: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            let [a, b] = self.parts.map(|(_, lse)| f64::from(lse.get(token, head)));
            let lse = log_sum_exp(a, b);
            let share = |x: f64| if lse == f64::NEG_INFINITY { 0.0 } else { (x - lse).exp() };
            let (a, b) = (s.splat(share(a) as f32), s.splat(share(b) as f32));
            let [x, y] = self.parts.map(|(o, _)| o.head(head));
            let out = self.o.head(head);
            for d in (0..self.dim).step_by(LANES) {
                let x = s.mul(x.load_upto(s, token, d, self.dim), a);
                let sum = s.fma(y.load_upto(s, token, d, self.dim), b, x);
                out.store_upto(s, token, d, self.dim, sum);
            }
            self.lse.set(token, head, lse as f32);
        }
    }
}

/// `ln(e^a + e^b)`.
fn log_sum_exp(a: f64, b: f64) -> f64 {
    let max = a.max(b);
    if max == f64::NEG_INFINITY { max } else { max + ((a - max).exp() + (b - max).exp()).ln() }
}
