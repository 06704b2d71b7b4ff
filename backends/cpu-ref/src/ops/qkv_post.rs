//! Fusion: queries, keys and values side by side; q and k normed a head where they have a gamma, rotated; keys and values to the
//! cache. What lies between is not rounded.

use halyard_sdk::{
    OpDesc, Result,
    abi::ops::{
        attrs::{QkvPost, RmsNorm, Rope},
        check::Bindings,
    },
};

use super::{rms_norm::normed, rope};
use crate::{
    cache::{self, Cache},
    glue::Args,
    rows,
};

pub(super) fn check(_: &QkvPost, desc: &OpDesc<'_>, _: &Bindings) -> Result<()> {
    cache::check(desc, [7, 8], &[9, 10])
}

fn rotation(attrs: &QkvPost) -> Rope {
    Rope { interleaved: attrs.interleaved, offset: attrs.offset }
}

pub(super) fn run(attrs: &QkvPost, args: &Args) -> Result<()> {
    let (qkv, q) = (args.tensor(0)?, args.tensor(6)?);
    let gamma = |slot| Ok(args.optional(slot)?.map(|gamma| rows::read(&gamma, &[])));
    let (q_gamma, k_gamma) = (gamma(1)?, gamma(2)?);
    let (k_cache, v_cache) = (Cache::open(args, 7, Some(9))?, Cache::open(args, 8, Some(10))?);
    let (heads, kv_heads, dim) = (q.dim(1), k_cache.heads(), q.dim(2));
    let angles = rope::angles("qkv_post", &args.tensor(3)?, &args.tensor(4)?)?;
    let places = k_cache.places("qkv_post", &args.tensor(5)?)?;

    let norm = RmsNorm { eps: attrs.eps, plus_one: attrs.plus_one };
    for (t, place) in places.into_iter().enumerate() {
        let row = rows::read(&qkv, &[t]);
        let turned = |head: &[f64], gamma: Option<&Vec<f64>>| {
            let mut head = gamma.map_or_else(|| head.to_vec(), |gamma| normed(&norm, head, gamma));
            if let Some(angles) = &angles[t] {
                rope::rotate(&rotation(attrs), &mut head, angles);
            }
            head
        };
        let (queries, rest) = row.split_at(heads * dim);
        let (keys, values) = rest.split_at(kv_heads * dim);
        for (h, query) in queries.chunks(dim).enumerate() {
            q.set_row(&[t, h], turned(query, q_gamma.as_ref()));
        }
        let Some(place) = place else { continue };
        for (h, key) in keys.chunks(dim).enumerate() {
            k_cache.write(place, h, &turned(key, k_gamma.as_ref()));
        }
        for (h, value) in values.chunks(v_cache.dim()).enumerate() {
            v_cache.write(place, h, value);
        }
    }
    Ok(())
}
