//! Ops with weights.

use halyard_sdk::{
    Error, Result,
    abi::ops::attrs::{Embedding, Linear},
};

use super::Body;

/// `y[t] = scale W[id - start]`, zeros for an id outside the shard.
pub(super) fn embedding(attrs: Embedding) -> Body {
    Box::new(move |call| {
        let (ids, y) = (call.tensor(0), call.tensor(1));
        let (desc, w) = call.weights.get(call.args.weights[0])?;
        for t in 0..y.dim(0) {
            let row = ids.get_int(&[t]) - attrs.vocab_start;
            let row = usize::try_from(row).ok().filter(|&r| (r as u64) < desc.n);
            for h in 0..y.dim(1) {
                y.set(&[t, h], row.map_or(0.0, |r| attrs.scale * f64::from(w.row(r)[h])));
            }
        }
        Ok(())
    })
}

/// `y = x Wᵀ + bias (+ y)`.
pub(super) fn linear(attrs: Linear) -> Result<Body> {
    if attrs.act_quant != 0 {
        return Err(Error::unsupported("linear with quantised activations"));
    }
    Ok(Box::new(move |call| {
        let (x, bias, y) = (call.tensor(0), call.optional(1), call.tensor(2));
        let (_, w) = call.weights.get(call.args.weights[0])?;
        for t in 0..x.dim(0) {
            let row: Vec<f64> = x.row(&[t]).collect();
            for n in 0..y.dim(1) {
                let dot: f64 = row.iter().zip(w.row(n)).map(|(a, &b)| a * f64::from(b)).sum();
                let before = if attrs.accumulate { y.get(&[t, n]) } else { 0.0 };
                y.set(&[t, n], dot + bias.map_or(0.0, |b| b.get(&[n])) + before);
            }
        }
        Ok(())
    }))
}
