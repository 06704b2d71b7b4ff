//! What follows the projection of queries, keys and values.

use halyard_abi::{
    AbiError, OpBuf,
    ops::OpAttrs,
    ops::attrs::{Copy, KvWrite, QkvPost, RmsNorm, Rope},
};

use super::recipe::{Arg, Builder, Recipe, Rows};

/// Norms (or copies) of the queries to their place and of the keys to a temporary one, rotates both, writes keys and values.
pub(super) fn qkv_post(op: &OpBuf) -> Result<Recipe, AbiError> {
    let [qkv, q, k_cache] = [0, 6, 7];
    let attrs = QkvPost::from_desc(&op.desc())?;
    let mut recipe = Builder::new(op);
    let (query, keys) = (recipe.spec(q), recipe.spec(k_cache));
    let (hq, hk, dk) = (query.dims[1], keys.dims[2], keys.dims[3]);
    let before_values = (hq + hk) * dk;
    let dv = (recipe.spec(qkv).dims[1] - before_values) / hk.max(1);
    let heads = |first, heads, dim| Arg::Heads { slot: qkv, first, heads, dim };

    let rotated = recipe.temp(query.dtype, Rows::Each { slot: qkv, times: 1 }, &[hk, dk]);
    let parts = [(heads(0, hq, dk), 1, Arg::Slot(q)), (heads(hq * dk, hk, dk), 2, rotated)];
    for (part, gamma, to) in parts {
        if recipe.spec(gamma).is_none() {
            recipe.step(&Copy {}, &[part, to], &[]);
        } else {
            let QkvPost { eps, plus_one, .. } = attrs;
            recipe.step(&RmsNorm { eps, plus_one }, &[part, Arg::Slot(gamma), to], &[]);
        }
    }
    let QkvPost { interleaved, offset, .. } = attrs;
    let [pos, table, slots] = [3, 4, 5].map(Arg::Slot);
    recipe.step(&Rope { interleaved, offset }, &[Arg::Slot(q), rotated, pos, table], &[]);
    let [k_cache, v_cache, k_scale, v_scale] = [k_cache, 8, 9, 10].map(Arg::Slot);
    let values = heads(before_values, hk, dv);
    let written = [rotated, values, slots, k_cache, v_cache, k_scale, v_scale];
    recipe.step(&KvWrite {}, &written, &[]);
    Ok(recipe.finish())
}
