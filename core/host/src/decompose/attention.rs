//! Attention over a paged cache: gather the keys and values of all sequences, then attend to what is contiguous.
//!
//! The gathered rows may be as many as block tables can name, and the workspace is as large.

use halyard_abi::{
    AbiError, DType, OpBuf,
    ops::{
        OpAttrs,
        attrs::{Copy, KvGather, MlaAttention, PagedAttention, VarlenAttention},
    },
};

use super::recipe::{Arg, Builder, Mirror, Recipe, Rows};

/// Scalars of both ops.
const MAX_Q: usize = 0;
const MAX_KV: usize = 1;
/// Their host arrays.
const CU_Q: Mirror = Mirror::Own(0);
const KV_LEN: usize = 1;

pub(super) fn paged(op: &OpBuf) -> Result<Recipe, AbiError> {
    let [q, k_cache, v_cache, table, cu_q] = [0, 1, 2, 3, 4].map(Arg::Slot);
    let [o, lse, k_scale, v_scale, sinks] = [6, 7, 8, 9, 10].map(Arg::Slot);
    let attrs = PagedAttention::from_desc(&op.desc())?;
    let mut recipe = Builder::new(op);
    let (dtype, cache, out) = (recipe.spec(0).dtype, recipe.spec(1), recipe.spec(6));
    let [_, block, heads, dim, ..] = cache.dims;
    if cache.dtype.bits() == Some(8) && dtype != DType::F32 {
        // Code times scale fits an f32 only: gathered in a short type it would be rounded once more than the op says.
        let message = format!("a cache of {} cannot be gathered as {dtype}", cache.dtype);
        return Err(AbiError::unsupported(message));
    }

    let starts = recipe.starts((5, KV_LEN), 3, block);
    let keys = recipe.temp(dtype, Rows::Keys, &[heads, dim]);
    let values = recipe.temp(dtype, Rows::Keys, &[heads, out.dims[2]]);
    let gathered = [k_cache, v_cache, table, starts, keys, values, k_scale, v_scale];
    recipe.sequences(&KvGather { latent: false }, &gathered, &[MAX_KV], &[Mirror::Starts]);
    let PagedAttention { scale, causal, window, softcap } = attrs;
    let attrs = VarlenAttention { scale, causal, window, softcap };
    let attended = [q, keys, values, cu_q, starts, o, lse, sinks];
    recipe.sequences(&attrs, &attended, &[MAX_Q, MAX_KV], &[CU_Q, Mirror::Starts]);
    Ok(recipe.finish())
}

/// Latents and rotated parts side by side are keys of a single head, of which the latents are the values.
pub(super) fn latent(op: &OpBuf) -> Result<Recipe, AbiError> {
    let [latent_q, rotated_q, table, cu_q, o, lse] = [0, 1, 4, 5, 7, 8].map(Arg::Slot);
    let attrs = MlaAttention::from_desc(&op.desc())?;
    let mut recipe = Builder::new(op);
    let (query, block) = (recipe.spec(0), recipe.spec(2).dims[1]);
    let (heads, latent, rotated) = (query.dims[1], query.dims[2], recipe.spec(1).dims[2]);

    let starts = recipe.starts((6, KV_LEN), 4, block);
    let keys = recipe.temp(query.dtype, Rows::Keys, &[1, latent + rotated]);
    let each = Rows::Each { slot: 0, times: 1 };
    let queries = recipe.temp(query.dtype, each, &[heads, latent + rotated]);
    let [key_latents, key_rotated] = halves(keys, latent, rotated);
    let [query_latents, query_rotated] = halves(queries, latent, rotated);
    let (caches, to) = ([Arg::OneHead(2), Arg::OneHead(3)], [key_latents, key_rotated]);
    let gathered = [caches[0], caches[1], table, starts, to[0], to[1]];
    recipe.sequences(&KvGather { latent: true }, &gathered, &[MAX_KV], &[Mirror::Starts]);
    recipe.step(&Copy {}, &[latent_q, query_latents], &[]);
    recipe.step(&Copy {}, &[rotated_q, query_rotated], &[]);
    let MlaAttention { scale, causal, window, softcap } = attrs;
    let attrs = VarlenAttention { scale, causal, window, softcap };
    let attended = [queries, keys, key_latents, cu_q, starts, o, lse];
    recipe.sequences(&attrs, &attended, &[MAX_Q, MAX_KV], &[CU_Q, Mirror::Starts]);
    Ok(recipe.finish())
}

/// The first columns of a temporary tensor, and the rest.
fn halves(arg: Arg, first: i64, second: i64) -> [Arg; 2] {
    let Arg::Temp(temp) = arg else { unreachable!("only temporary tensors are divided") };
    let columns = |from, dim| Arg::Columns { temp, first: from, dim };
    [columns(0, first), columns(first, second)]
}
