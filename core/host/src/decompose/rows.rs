//! Norms, a gated layer, the largest logit.

use halyard_abi::{
    AbiError, DType, OpBuf,
    ops::OpAttrs,
    ops::attrs::{
        ActMul, Add, Argmax, Copy, Linear, LinearActMul, LinearAllReduce, QuantAct, RmsNorm,
        RmsNormQuant, Topk,
    },
};

use super::recipe::{Arg, Builder, Recipe, Rows};

type Made<T = Recipe> = Result<T, AbiError>;

/// With a residual: `r += x`, then the norm of `r`. Without one it is basic.
pub(super) fn rms_norm(op: &OpBuf) -> Made<Option<Recipe>> {
    let [x, gamma, y, r] = [0, 1, 2, 3].map(Arg::Slot);
    let attrs = RmsNorm::from_desc(&op.desc())?;
    let mut recipe = Builder::new(op);
    if recipe.spec(3).is_none() {
        return Ok(None);
    }
    recipe.step(&Add::default(), &[r, x, r], &[]);
    recipe.step(&attrs, &[r, gamma, y], &[]);
    Ok(Some(recipe.finish()))
}

/// A norm of the compute type, then quantised.
pub(super) fn rms_norm_quant(op: &OpBuf) -> Made {
    let [x, gamma, q, scale, r] = [0, 1, 2, 3, 4].map(Arg::Slot);
    let RmsNormQuant { eps, plus_one, mode } = RmsNormQuant::from_desc(&op.desc())?;
    let mut recipe = Builder::new(op);
    let input = recipe.spec(0);
    let normed = recipe.temp(input.dtype, Rows::Each { slot: 0, times: 1 }, &[input.dims[1]]);
    recipe.step(&RmsNorm { eps, plus_one }, &[x, gamma, normed, r], &[]);
    recipe.step(&QuantAct { mode }, &[normed, q, scale], &[]);
    Ok(recipe.finish())
}

/// Gates and ups of the compute type, then their product.
pub(super) fn linear_act_mul(op: &OpBuf) -> Made {
    let [x, bias, y] = [0, 1, 2].map(Arg::Slot);
    let LinearActMul { act, limit, act_quant } = LinearActMul::from_desc(&op.desc())?;
    let mut recipe = Builder::new(op);
    let columns = columns(op, 0)?;
    let both = recipe.temp(recipe.spec(0).dtype, Rows::Each { slot: 0, times: 1 }, &[columns]);
    recipe.step(&Linear { accumulate: false, act_quant }, &[x, bias, both], &[0]);
    recipe.step(&ActMul { act, limit }, &[both, y], &[]);
    Ok(recipe.finish())
}

/// This rank's share in f32, summed over the ranks, then rounded once.
pub(super) fn linear_all_reduce(op: &OpBuf) -> Made {
    let [x, bias, y] = [0, 1, 2].map(Arg::Slot);
    let LinearAllReduce { comm, act_quant } = LinearAllReduce::from_desc(&op.desc())?;
    let mut recipe = Builder::new(op);
    let columns = columns(op, 0)?;
    let share = recipe.temp(DType::F32, Rows::Each { slot: 0, times: 1 }, &[columns]);
    recipe.step(&Linear { accumulate: false, act_quant }, &[x, bias, share], &[0]);
    recipe.all_reduce(share, comm);
    recipe.step(&Copy {}, &[share, y], &[]);
    Ok(recipe.finish())
}

/// The one largest logit.
pub(super) fn argmax(op: &OpBuf) -> Made {
    let Argmax {} = Argmax::from_desc(&op.desc())?;
    let mut recipe = Builder::new(op);
    let values = recipe.temp(DType::F32, Rows::Each { slot: 0, times: 1 }, &[1]);
    recipe.step(&Topk {}, &[Arg::Slot(0), values, Arg::Column(1)], &[]);
    Ok(recipe.finish())
}

/// Outputs of a weight.
pub(super) fn columns(op: &OpBuf, weight: usize) -> Made<i64> {
    let n = op.weights().get(weight).and_then(|w| i64::try_from(w.n).ok());
    n.ok_or_else(|| AbiError::invalid(format!("{}: no weight {weight}", op.kind())))
}
