//! Fused experts as rows sorted by expert.

use halyard_abi::{
    AbiError, DType, OpBuf,
    ops::OpAttrs,
    ops::attrs::{ActMul, GroupedLinear, MoeExperts, MoePermute, MoeUnpermute},
};

use super::{
    recipe::{Arg, Builder, Recipe, Rows},
    rows::columns,
};

/// Sorts the rows, runs both layers on them, and sums each token's. What lies between is of the compute type; the last layer's rows
/// are f32, so that the sum is rounded once.
pub(super) fn moe_experts(op: &OpBuf) -> Result<Recipe, AbiError> {
    let [x, ids, weight, y, add] = [0, 1, 2, 3, 4].map(Arg::Slot);
    let attrs = MoeExperts::from_desc(&op.desc())?;
    let MoeExperts { expert_start, act, limit, act_quant, weight_on_input } = attrs;
    if weight_on_input {
        let message =
            "moe_experts with weight_on_input cannot be built: moe_permute has no weights";
        return Err(AbiError::unsupported(message));
    }
    let mut recipe = Builder::new(op);
    let (both, hidden) = (columns(op, 0)?, columns(op, 1)?);
    let (dtype, top) = (recipe.spec(0).dtype, recipe.spec(1).dims[1]);
    let (each, pairs) = (Rows::Each { slot: 0, times: 1 }, Rows::Each { slot: 0, times: top });

    let sorted = recipe.temp(dtype, pairs, &[hidden]);
    let offsets = recipe.temp(DType::I32, Rows::Fixed(i64::from(op.weights()[0].groups) + 1), &[]);
    let inverse = recipe.temp(DType::I32, each, &[top]);
    let gated = recipe.temp(dtype, pairs, &[both]);
    let inner = recipe.temp(dtype, pairs, &[both / 2]);
    let outer = recipe.temp(DType::F32, pairs, &[hidden]);

    recipe.step(&MoePermute { expert_start }, &[x, ids, sorted, offsets, inverse], &[]);
    recipe.step(&GroupedLinear { act_quant }, &[sorted, offsets, gated], &[0]);
    recipe.step(&ActMul { act, limit }, &[gated, inner], &[]);
    recipe.step(&GroupedLinear { act_quant }, &[inner, offsets, outer], &[1]);
    recipe.step(&MoeUnpermute {}, &[outer, inverse, weight, y, add], &[]);
    Ok(recipe.finish())
}
