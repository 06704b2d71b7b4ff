//! Scores, their softmax and the weighted sum, in f32.

use crate::gemm::dot;

/// One sequence: queries `[tokens, heads, width]`, keys `[kv_tokens, kv_heads, width]`, values
/// `[kv_tokens, kv_heads, value_width]`.
pub(super) struct Sequence<'a> {
    pub(super) q: &'a [f32],
    pub(super) k: &'a [f32],
    pub(super) v: &'a [f32],
    pub(super) tokens: usize,
    pub(super) kv_tokens: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) width: usize,
    pub(super) value_width: usize,
    pub(super) scale: f32,
    /// A logit of each head that is only added to the sum; none, or one a head.
    pub(super) sinks: &'a [f32],
}

/// Results `[tokens, heads, value_width]` and logarithms of the sums `[tokens, heads]`.
pub(super) struct Scored {
    pub(super) out: Vec<f32>,
    pub(super) lse: Vec<f32>,
}

impl Sequence<'_> {
    /// `bias(head, query, key)` is added to the scaled score; None hides it. A query that sees nothing gets zeros,
    /// and infinity as its logarithm.
    pub(super) fn attend(&self, bias: impl Fn(usize, usize, usize) -> Option<f32>) -> Scored {
        let mut out = vec![0.0; self.tokens * self.heads * self.value_width];
        let mut lse = vec![f32::INFINITY; self.tokens * self.heads];
        let mut scores = Vec::with_capacity(self.kv_tokens);
        for row in 0..self.tokens * self.heads {
            let (token, head) = (row / self.heads, row % self.heads);
            let kv_head = head / (self.heads / self.kv_heads);
            let q = &self.q[row * self.width..][..self.width];
            scores.clear();
            for key in 0..self.kv_tokens {
                let Some(bias) = bias(head, token, key) else { continue };
                let at = key * self.kv_heads + kv_head;
                let score = dot(q, &self.k[at * self.width..][..self.width]) * self.scale + bias;
                scores.push((at, score));
            }
            let max = scores.iter().fold(f32::NEG_INFINITY, |max, s| max.max(s.1));
            if max == f32::NEG_INFINITY {
                continue;
            }
            let sink = self.sinks.get(head);
            let max = sink.map_or(max, |sink| max.max(*sink));
            scores.iter_mut().for_each(|s| s.1 = (s.1 - max).exp());
            let sum =
                scores.iter().map(|s| s.1).sum::<f32>() + sink.map_or(0.0, |s| (s - max).exp());
            lse[row] = max + sum.ln();
            let result = &mut out[row * self.value_width..][..self.value_width];
            for &(at, weight) in &scores {
                let value = &self.v[at * self.value_width..][..self.value_width];
                result.iter_mut().zip(value).for_each(|(r, v)| *r += weight / sum * v);
            }
        }
        Scored { out, lse }
    }
}
