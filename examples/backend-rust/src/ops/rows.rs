//! Element-wise ops, norms, rotary embedding, gated activation.

use halyard_sdk::{
    HostTensor,
    abi::ops::{
        Act,
        attrs::{ActMul, Add, Copy, GatherRows, Mul, RmsNorm, Rope},
    },
};

use super::{Body, index};

/// Calls `f` with every index of a tensor.
fn each(t: &HostTensor, mut f: impl FnMut(&[usize])) {
    let dims: Vec<usize> = (0..t.rank()).map(|axis| t.dim(axis)).collect();
    if dims.contains(&0) {
        return;
    }
    let mut at = vec![0; dims.len()];
    loop {
        f(&at);
        // Counts up like an odometer, the last axis fastest.
        let Some(axis) = (0..dims.len()).rev().find(|&axis| at[axis] + 1 < dims[axis]) else {
            return;
        };
        at[axis] += 1;
        at[axis + 1..].fill(0);
    }
}

pub(super) fn copy(_: Copy) -> Body {
    Box::new(|call| {
        let (x, y) = (call.tensor(0), call.tensor(1));
        each(&x, |at| x.copy_to(at, &y));
        Ok(())
    })
}

fn elementwise(f: impl Fn(f64, f64) -> f64 + Send + Sync + 'static) -> Body {
    Box::new(move |call| {
        let (a, b, y) = (call.tensor(0), call.tensor(1), call.tensor(2));
        // `b` may lack leading dims: it is the same for all of them.
        let missing = a.rank() - b.rank();
        each(&a, |at| y.set(at, f(a.get(at), b.get(&at[missing..]))));
        Ok(())
    })
}

pub(super) fn add(attrs: Add) -> Body {
    elementwise(move |a, b| a + attrs.alpha * b)
}

pub(super) fn mul(_: Mul) -> Body {
    elementwise(|a, b| a * b)
}

pub(super) fn gather(_: GatherRows) -> Body {
    Box::new(|call| {
        let (x, idx, y) = (call.tensor(0), call.tensor(1), call.tensor(2));
        for b in 0..y.dim(0) {
            let row = index(idx.get_int(&[b]), x.dim(0), "row")?;
            for h in 0..y.dim(1) {
                y.set(&[b, h], row.map_or(0.0, |r| x.get(&[r, h])));
            }
        }
        Ok(())
    })
}

/// `s = x` or, with a residual, `r := s = round(x + r)`; `y = s rsqrt(mean(s²) + eps) gamma`.
pub(super) fn rms_norm(attrs: RmsNorm) -> Body {
    Box::new(move |call| {
        let (x, gamma, y) = (call.tensor(0), call.tensor(1), call.tensor(2));
        let residual = call.optional(3);
        let last = x.rank() - 1;
        let width = x.dim(last);
        let mut row = vec![0.0; width];
        each(&x, |at| {
            let mut at = at.to_vec();
            let h = at[last];
            row[h] = x.get(&at);
            if let Some(r) = residual {
                row[h] = r.rounded(row[h] + r.get(&at));
                r.set(&at, row[h]);
            }
            if h + 1 < width {
                return;
            }
            // The row is complete.
            let mean = row.iter().map(|v| v * v).sum::<f64>() / width as f64;
            let factor = 1.0 / (mean + attrs.eps).sqrt();
            for (h, v) in row.iter().enumerate() {
                at[last] = h;
                let g = gamma.get(&[h]) + f64::from(u8::from(attrs.plus_one));
                y.set(&at, v * factor * g);
            }
        });
        Ok(())
    })
}

/// `(a, b) -> (a cos - b sin, b cos + a sin)` for each pair of rotated dims.
pub(super) fn rope(attrs: Rope) -> Body {
    Box::new(move |call| {
        let (pos, table) = (call.tensor(2), call.tensor(3));
        let half = table.dim(1) / 2;
        let offset = usize::try_from(attrs.offset).unwrap_or(0);
        for x in [call.optional(0), call.optional(1)].into_iter().flatten() {
            for t in 0..x.dim(0) {
                let Some(p) = index(pos.get_int(&[t]), table.dim(0), "position")? else { continue };
                for (head, i) in (0..x.dim(1)).flat_map(|h| (0..half).map(move |i| (h, i))) {
                    let (first, second) =
                        if attrs.interleaved { (2 * i, 2 * i + 1) } else { (i, i + half) };
                    let (ia, ib) = ([t, head, offset + first], [t, head, offset + second]);
                    let (a, b) = (x.get(&ia), x.get(&ib));
                    let (cos, sin) = (table.get(&[p, i]), table.get(&[p, half + i]));
                    x.set(&ia, a * cos - b * sin);
                    x.set(&ib, b * cos + a * sin);
                }
            }
        }
        Ok(())
    })
}

pub(super) fn act_mul(attrs: ActMul) -> Body {
    Box::new(move |call| {
        let (gu, y) = (call.tensor(0), call.tensor(1));
        let inner = y.dim(1);
        for t in 0..y.dim(0) {
            for i in 0..inner {
                let (mut g, mut u) = (gu.get(&[t, i]), gu.get(&[t, inner + i]));
                if attrs.limit > 0.0 {
                    g = g.min(attrs.limit);
                    u = u.clamp(-attrs.limit, attrs.limit);
                }
                y.set(&[t, i], act(attrs.act, g) * u);
            }
        }
        Ok(())
    })
}

fn act(which: Act, g: f64) -> f64 {
    match which {
        Act::Silu => g / (1.0 + (-g).exp()),
        Act::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (g + 0.044_715 * g.powi(3));
            0.5 * g * (1.0 + inner.tanh())
        }
        Act::GeluErf => 0.5 * g * (1.0 + erf(g / std::f64::consts::SQRT_2)),
    }
}

/// The error function: its series near 0, the complement's continued fraction beyond.
fn erf(x: f64) -> f64 {
    let z = x.abs();
    let magnitude = if z < 3.0 {
        let (mut term, mut sum) = (z, z);
        for n in 1..100 {
            term *= -z * z / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        sum * 2.0 / std::f64::consts::PI.sqrt()
    } else {
        let fraction = (1..60).rev().fold(z, |f, n| z + f64::from(n) / 2.0 / f);
        1.0 - (-z * z).exp() / (fraction * std::f64::consts::PI.sqrt())
    };
    magnitude.copysign(x)
}
