//! Which experts tokens go to.

use halyard_core::{
    OpBuf, OpKind,
    attrs::{MoeExperts, MoePermute},
};

use super::Routing;
use crate::{opbuf::attrs_of, rng::Rng};

/// Experts by token and choice.
pub(super) fn route(
    op: &OpBuf,
    routing: Routing,
    dims: &[usize],
    experts: usize,
    rng: &mut Rng,
) -> Vec<i64> {
    let start = match op.kind() {
        OpKind::MOE_PERMUTE => attrs_of::<MoePermute>(op).expert_start,
        _ => attrs_of::<MoeExperts>(op).expert_start,
    };
    let (tokens, top) = (dims[0], dims[1]);
    let mut pool = rng.distinct(experts, experts);
    if routing == Routing::Few {
        let last = pool.iter().position(|&e| e + 1 == experts).unwrap_or(0);
        pool.swap(0, last);
        pool.truncate(top + 1);
    }
    let mut ids = Vec::with_capacity(tokens * top);
    for _ in 0..tokens {
        let chosen: Vec<usize> = rng.distinct(top, pool.len()).iter().map(|&i| pool[i]).collect();
        for j in 0..top {
            let expert = chosen.get(j).map_or(-1, |&e| e as i64 + start);
            let outside = [-1, start - 1, start + experts as i64, i64::from(i32::MAX)];
            ids.push(match routing {
                Routing::Random | Routing::Few => expert,
                Routing::AllToOne if j == 0 => start + experts as i64 - 1,
                Routing::AllToOne | Routing::None => -1,
                Routing::Outside if rng.below(2) == 0 => outside[rng.below(outside.len())],
                Routing::Outside => expert,
            });
        }
    }
    ids
}

/// First sorted row of each expert, and their number at the end.
pub(super) fn offsets(routing: Routing, experts: usize, rows: usize, rng: &mut Rng) -> Vec<i64> {
    let last = experts.saturating_sub(1);
    let mut counts = vec![0usize; experts];
    for row in 0..rows {
        match routing {
            Routing::AllToOne => counts[last] += 1,
            Routing::None => {}
            // The rows left over belong to nobody.
            Routing::Outside if row % 3 == 0 => {}
            Routing::Few => counts[[0, last][rng.below(2)]] += 1,
            // The second has none.
            Routing::Random | Routing::Outside => {
                let e = rng.below(experts);
                counts[if e == 1 { last } else { e }] += 1;
            }
        }
    }
    let mut offsets = vec![0i64];
    for count in counts {
        offsets.push(offsets[offsets.len() - 1] + count as i64);
    }
    offsets
}

/// A sorted row for each choice of a token; one in eight has none.
pub(super) fn inverse(choices: usize, rows: usize, rng: &mut Rng) -> Vec<i64> {
    let order = rng.distinct(choices, rows);
    let place = |i: usize, rng: &mut Rng| match order.get(i) {
        Some(&row) if rng.below(8) > 0 => row as i64,
        _ => -1,
    };
    (0..choices).map(|i| place(i, rng)).collect()
}
