//! The operators' functions: each in two phases, its parameters as the facts on CANN list them.
//!
//! What an operator checks and computes is `halyard-sim-ascend-ops`'s; one that it lacks is in no library. Letters are types: `T`
//! `aclTensor*`, `L` `aclTensorList*`, `I` `aclIntArray*`, `S` `aclScalar*`, `C` `char*`, `D` `aclDataType`.

use super::stream::find;
use super::{In, Out};
use crate::code::{Failure, Outcome};
use crate::executor::{self, Executor, Given};
use crate::runtime::here;
use halyard_sim_ascend_ops::{Arg, Kind};
use std::ffi::c_char;
use std::sync::Arc;

/// A parameter's type in C.
trait Raw {
    const KIND: Kind;
    fn given(self) -> Outcome<Given>;
}

macro_rules! handles {
    ($($name:ident $kind:ident)*) => {
        $(
            #[doc = concat!("Handle of a ", stringify!($kind), ".")]
            #[repr(transparent)]
            pub(crate) struct $name(usize);

            impl Raw for $name {
                const KIND: Kind = Kind::$kind;
                fn given(self) -> Outcome<Given> {
                    Ok(Given::$kind(self.0))
                }
            }
        )*
    };
}

handles! { T Tensor L TensorList I IntArray S Scalar }

macro_rules! plain {
    ($($name:ty, $kind:ident, $value:ident => $arg:expr;)*) => {
        $(impl Raw for $name {
            const KIND: Kind = Kind::$kind;
            fn given(self) -> Outcome<Given> {
                let $value = self;
                Ok(Given::Plain($arg))
            }
        })*
    };
}

plain! {
    i8, I8, value => Arg::Int(i64::from(value));
    i32, I32, value => Arg::Int(i64::from(value));
    i64, I64, value => Arg::Int(value);
    f64, F64, value => Arg::Float(value);
    u8, Bool, value => Arg::Bool(value != 0);
    C, Text, value => Arg::Text(value.0.text("a text")?);
    D, DataType, value => Arg::DataType(value.0);
}

/// `char*`
#[repr(transparent)]
pub(crate) struct C(In<c_char>);

/// `aclDataType`
#[repr(transparent)]
pub(crate) struct D(i32);

/// The first phase.
fn plan(function: &str, given: Vec<Given>, size: &Out<u64>, out: &Out<usize>) -> Outcome {
    let place = here()?;
    for (argument, missing) in [("workspaceSize", size.is_null()), ("executor", out.is_null())] {
        if missing {
            return Err(Failure::null(argument));
        }
    }
    let executor = Executor::plan(place, executor::find(function)?, given)?;
    size.set("workspaceSize", executor.workspace())?;
    out.set("executor", place.0.handles.add(Arc::new(executor)))
}

/// The second phase, which ends an executor that is not repeatable however it goes.
fn launch(function: &'static str, workspace: (u64, u64), handle: usize, stream: usize) -> Outcome {
    let (runtime, device, stream) = find(stream)?;
    let executor: Arc<Executor> = runtime.handles.get("executor", handle)?;
    if !executor.is_repeatable() {
        runtime.handles.remove::<Executor>("executor", handle)?;
    }
    executor.launch(function, (runtime, device, &stream), workspace)
}

/// Defines the two functions of each operator, and the list of operators.
macro_rules! operators {
    ($set:ident: $($op:ident($($arg:ident: $ty:ty),*))*) => {
        /// Operators of this library, and their parameters' types.
        pub(crate) const $set: &[(&str, &[Kind])] =
            &[$((stringify!($op), &[$(<$ty as Raw>::KIND),*])),*];

        $(operator! { $op($($arg: $ty),*) })*
    };
}

macro_rules! operator {
    ($op:ident($($arg:ident: $ty:ty),*)) => {
        const _: () = {
            /// The first phase.
            ///
            /// # Safety
            /// Pointers are as the vendor's documentation asks.
            #[unsafe(export_name = concat!("halyard_sim_ascend_aclnn", stringify!($op), "GetWorkspaceSize"))]
            #[expect(clippy::allow_attributes, reason = "few operators have so many parameters")]
            #[allow(clippy::too_many_arguments, reason = "as many as the vendor's function has")]
            unsafe extern "C" fn plan_it($($arg: $ty,)* size: Out<u64>, executor: Out<usize>) -> i32 {
                let name = concat!("aclnn", stringify!($op), "GetWorkspaceSize");
                $crate::api::guard(name, $crate::code::Family::Aclnn, move || {
                    let given = vec![$($arg.given()?),*];
                    plan(concat!("aclnn", stringify!($op)), given, &size, &executor)
                })
            }

            /// The second phase.
            ///
            /// # Safety
            /// Pointers are as the vendor's documentation asks.
            #[unsafe(export_name = concat!("halyard_sim_ascend_aclnn", stringify!($op)))]
            unsafe extern "C" fn launch_it(workspace: u64, size: u64, executor: usize, stream: usize) -> i32 {
                let name = concat!("aclnn", stringify!($op));
                $crate::api::guard(name, $crate::code::Family::Aclnn, move || {
                    launch(name, (workspace, size), executor, stream)
                })
            }
        };
    };
}

operators! { MATH:
    TransMatmulWeight(mmWeightRef: T)
    NpuFormatCast(srcTensor: T, dstTensor: T)
    Sort(own: T, stable: u8, dim: i64, descending: u8, valuesOut: T, indicesOut: T)
    ArgMax(own: T, dim: i64, keepdim: u8, out: T)
    MaxDim(own: T, dim: i64, keepdim: u8, out: T, indices: T)
    Multinomial(own: T, numsamples: i64, replacement: u8, seed: i64, offset: i64, out: T)
    Cast(own: T, dtype: D, out: T)
    Add(own: T, other: T, alpha: S, out: T)
    Sub(own: T, other: T, alpha: S, out: T)
    Adds(own: T, other: S, alpha: S, out: T)
    Mul(own: T, other: T, out: T)
    Div(own: T, other: T, out: T)
    Muls(own: T, other: S, out: T)
    InplaceAdd(selfRef: T, other: T, alpha: S)
    InplaceMul(selfRef: T, other: T)
    InplaceMuls(selfRef: T, other: S)
    InplaceCopy(selfRef: T, src: T)
    InplaceZero(selfRef: T)
    InplaceFillScalar(selfRef: T, value: S)
    Permute(own: T, dims: I, out: T)
    Cat(tensors: L, dim: i64, out: T)
    Slice(own: T, dim: i64, start: i64, end_: i64, step: i64, out: T)
    Expand(own: T, size: I, out: T)
    Repeat(own: T, repeats: I, out: T)
    Arange(start: S, end_: S, step: S, out: T)
    Cumsum(own: T, dim: i64, dtype: D, out: T)
    SWhere(condition: T, own: T, other: T, out: T)
    InplaceMaskedFillScalar(selfRef: T, mask: T, value: S)
    Triu(own: T, diagonal: i64, out: T)
    Exp(own: T, out: T)
    Log(own: T, out: T)
    LtTensor(own: T, other: T, out: T)
    LeTensor(own: T, other: T, out: T)
    EqTensor(own: T, other: T, out: T)
    BitwiseAndTensor(own: T, other: T, out: T)
    BitwiseXorTensor(own: T, other: T, out: T)
    Tanh(own: T, out: T)
    Cos(own: T, out: T)
    Sin(own: T, out: T)
    Rsqrt(own: T, out: T)
    Neg(own: T, out: T)
    ReduceSum(own: T, dims: I, keepDims: u8, dtype: D, out: T)
    Mean(own: T, dim: I, keepDim: u8, dtype: D, out: T)
}

operators! { NN:
    Matmul(own: T, mat2: T, out: T, cubeMathType: i8)
    Mm(own: T, mat2: T, out: T, cubeMathType: i8)
    BatchMatMul(own: T, mat2: T, out: T, cubeMathType: i8)
    MatmulWeightNz(own: T, mat2: T, out: T, cubeMathType: i8)
    TransposeBatchMatMul(x1: T, x2: T, bias: T, scale: T, permX1: I, permX2: I, permY: I, cubeMathType: i8, batchSplitFactor: i32, out: T)
    WeightQuantBatchMatmulV2(x: T, weight: T, antiquantScale: T, antiquantOffset: T, quantScale: T, quantOffset: T, bias: T, antiquantGroupSize: i32, y: T)
    WeightQuantBatchMatmulV3(x: T, weight: T, antiquantScale: T, antiquantOffset: T, quantScale: T, quantOffset: T, bias: T, antiquantGroupSize: i32, innerPrecise: i32, y: T)
    ConvertWeightToINT4Pack(weight: T, weightInt4Pack: T)
    QuantMatmulV4(x1: T, x2: T, scale: T, offset: T, pertokenScale: T, bias: T, transposeX1: u8, transposeX2: u8, out: T)
    QuantMatmulV5(x1: T, x2: T, x1Scale: T, x2Scale: T, yScale: T, x1Offset: T, x2Offset: T, yOffset: T, bias: T, transposeX1: u8, transposeX2: u8, groupSize: i64, out: T)
    QuantMatmulWeightNz(x1: T, x2: T, x1Scale: T, x2Scale: T, yScale: T, x1Offset: T, x2Offset: T, yOffset: T, bias: T, transposeX1: u8, transposeX2: u8, groupSize: i64, out: T)
    TransQuantParamV2(scale: T, offset: T, out: T)
    DynamicQuant(x: T, smoothScales: T, yOut: T, scaleOut: T)
    DynamicQuantV2(x: T, smoothScales: T, groupIndex: T, dstType: i64, yOut: T, scaleOut: T, offsetOut: T)
    RmsNorm(x: T, gamma: T, epsilon: f64, yOut: T, rstdOut: T)
    AddRmsNorm(x1: T, x2: T, gamma: T, epsilon: f64, yOut: T, rstdOut: T, xOut: T)
    AddRmsNormQuant(x1: T, x2: T, gamma: T, scales1: T, scales2: T, zeroPoints1: T, zeroPoints2: T, axis: i64, epsilon: f64, divMode: u8, y1Out: T, y2Out: T, xOut: T)
    AddRmsNormDynamicQuant(x1: T, x2: T, gamma: T, smoothScale1: T, smoothScale2: T, epsilon: f64, y1Out: T, y2Out: T, xOut: T, scale1Out: T, scale2Out: T)
    LayerNorm(own: T, normalizedShape: I, weight: T, bias: T, eps: f64, out: T, meanOut: T, rstdOut: T)
    SwiGlu(x: T, dim: i64, out: T)
    DequantSwigluQuant(x: T, weightScale: T, activationScale: T, bias: T, quantScale: T, quantOffset: T, groupIndex: T, activateLeft: u8, quantMode: C, yOut: T, scaleOut: T)
    Silu(own: T, out: T)
    GeluV2(x: T, approximate: i64, y: T)
    Embedding(weight: T, indices: T, out: T)
    IndexSelect(own: T, dim: i64, index: T, out: T)
    GatherV2(own: T, dim: i64, index: T, out: T)
    Gather(own: T, dim: i64, index: T, out: T)
    ScatterNdUpdate(varRef: T, indices: T, updates: T)
    InplaceScatterUpdate(data: T, indices: T, updates: T, axis: i64)
    InplaceIndexCopy(selfRef: T, dim: i64, index: T, source: T)
    Softmax(own: T, dim: i64, out: T)
    LogSoftmax(own: T, dim: i64, out: T)
    Topk(own: T, k: i64, dim: i64, largest: u8, sorted: u8, valuesOut: T, indicesOut: T)
    ApplyTopKTopP(logits: T, p: T, k: T, out: T)
    Sigmoid(own: T, out: T)
}

operators! { TRANSFORMER:
    RotaryPositionEmbedding(x: T, cos: T, sin: T, mode: i64, out: T)
    ApplyRotaryPosEmb(queryRef: T, keyRef: T, cos: T, sin: T, layout: i64)
    ApplyRotaryPosEmbV2(queryRef: T, keyRef: T, cos: T, sin: T, layout: i64, rotaryMode: C)
    InterleaveRope(x: T, cos: T, sin: T, out: T)
    RopeWithSinCosCache(positions: T, queryIn: T, keyIn: T, cosSinCache: T, mropeSection: I, headSize: i64, isNeoxStyle: u8, queryOut: T, keyOut: T)
    ScatterPaKvCache(key: T, keyCacheRef: T, slotMapping: T, value: T, valueCacheRef: T, compressLens: T, compressSeqOffset: T, seqLens: T, cacheMode: C, scatterMode: C, strides: I, offsets: I)
    GatherPaKvCache(keyCache: T, valueCache: T, blockTables: T, seqLens: T, keyRef: T, valueRef: T, seqOffset: T, cacheMode: C, isSeqLensCumsum: u8)
    KvRmsNormRopeCache(kv: T, gamma: T, cos: T, sin: T, index: T, kCacheRef: T, ckvCacheRef: T, kRopeScale: T, cKvScale: T, kRopeOffset: T, cKvOffset: T, epsilon: f64, cacheMode: C, isOutputKv: u8, kRopeOut: T, cKvOut: T)
    PromptFlashAttentionV3(query: T, key: T, value: T, pseShift: T, attenMask: T, actualSeqLengths: I, actualSeqLengthsKv: I, deqScale1: T, quantScale1: T, deqScale2: T, quantScale2: T, quantOffset2: T, numHeads: i64, scaleValue: f64, preTokens: i64, nextTokens: i64, inputLayout: C, numKeyValueHeads: i64, sparseMode: i64, innerPrecise: i64, attentionOut: T)
    IncreFlashAttentionV4(query: T, key: L, value: L, pseShift: T, attenMask: T, actualSeqLengths: I, dequantScale1: T, quantScale1: T, dequantScale2: T, quantScale2: T, quantOffset2: T, antiquantScale: T, antiquantOffset: T, blocktable: T, kvPaddingSize: T, numHeads: i64, scaleValue: f64, inputLayout: C, numKeyValueHeads: i64, blockSize: i64, innerPrecise: i64, attentionOut: T)
    AttentionUpdate(lse: L, localOut: L, updateType: i64, out: T, lseOut: T)
    MlaPrologV2WeightNz(tokenX: T, weightDq: T, weightUqQr: T, weightUk: T, weightDkvKr: T, rmsnormGammaCq: T, rmsnormGammaCkv: T, ropeSin: T, ropeCos: T, cacheIndex: T, kvCacheRef: T, krCacheRef: T, dequantScaleX: T, dequantScaleWDq: T, dequantScaleWUqQr: T, dequantScaleWDkvKr: T, quantScaleCkv: T, quantScaleCkr: T, smoothScalesCq: T, rmsnormEpsilonCq: f64, rmsnormEpsilonCkv: f64, cacheMode: C, queryOut: T, queryRopeOut: T, dequantScaleQNopeOut: T)
    MoeGatingTopK(x: T, bias: T, k: i64, kGroup: i64, groupCount: i64, groupSelectMode: i64, renorm: i64, normType: i64, outFlag: u8, routedScalingFactor: f64, eps: f64, yOut: T, expertIdxOut: T, outOut: T)
    MoeGatingTopKSoftmax(x: T, finished: T, k: i64, yOut: T, expertIdxOut: T, rowIdxOut: T)
    MoeGatingTopKSoftmaxV2(x: T, finished: T, k: i64, renorm: i64, outputSoftmaxResultFlag: u8, yOut: T, expertIdxOut: T, softmaxResultOut: T)
    MoeInitRoutingV2(x: T, expertIdx: T, activeNum: i64, expertCapacity: i64, expertNum: i64, dropPadMode: i64, expertTokensCountOrCumsumFlag: i64, expertTokensBeforeCapacityFlag: u8, expandedXOut: T, expandedRowIdxOut: T, expertTokensCountOrCumsumOut: T, expertTokensBeforeCapacityOut: T)
    MoeInitRoutingV3(x: T, expertIdx: T, scale: T, offset: T, activeNum: i64, expertCapacity: i64, expertNum: i64, dropPadMode: i64, expertTokensNumType: i64, expertTokensNumFlag: u8, quantMode: i64, activeExpertRange: I, rowIdxType: i64, expandedXOut: T, expandedRowIdxOut: T, expertTokensCountOrCumsumOut: T, expandedScaleOut: T)
    MoeComputeExpertTokens(sortedExperts: T, numExperts: i64, out: T)
    MoeTokenPermute(tokens: T, indices: T, numOutTokens: i64, paddedMode: u8, permuteTokensOut: T, sortedIndicesOut: T)
    MoeTokenUnpermute(permutedTokens: T, sortedIndices: T, probs: T, paddedMode: u8, restoreShape: I, out: T)
    MoeFinalizeRoutingV2(expandedX: T, expandedRowIdx: T, x1: T, x2: T, bias: T, scales: T, expertIdx: T, dropPadMode: i64, out: T)
    GroupedMatmulV2(x: L, weight: L, bias: L, scale: L, offset: L, antiquantScale: L, antiquantOffset: L, groupList: I, splitItem: i64, groupType: i64, y: L)
    GroupedMatmulV3(x: L, weight: L, bias: L, scale: L, offset: L, antiquantScale: L, antiquantOffset: L, groupList: T, splitItem: i64, groupType: i64, y: L)
    GroupedMatmulV4(x: L, weight: L, bias: L, scale: L, offset: L, antiquantScale: L, antiquantOffset: L, perTokenScale: L, groupList: T, activationInput: L, activationQuantScale: L, activationQuantOffset: L, splitItem: i64, groupType: i64, groupListType: i64, actType: i64, out: L, activationFeatureOut: L, dynQuantScaleOut: L)
    GroupedMatmulV5(x: L, weight: L, bias: L, scale: L, offset: L, antiquantScale: L, antiquantOffset: L, perTokenScale: L, groupList: T, activationInput: L, activationQuantScale: L, activationQuantOffset: L, splitItem: i64, groupType: i64, groupListType: i64, actType: i64, tuningConfig: I, out: L, activationFeatureOut: L, dynQuantScaleOut: L)
    GroupedMatmulWeightNz(x: L, weight: L, bias: L, scale: L, offset: L, antiquantScale: L, antiquantOffset: L, perTokenScale: L, groupList: T, activationInput: L, activationQuantScale: L, activationQuantOffset: L, splitItem: i64, groupType: i64, groupListType: i64, actType: i64, tuningConfig: I, quantGroupSize: i64, out: L, activationFeatureOut: L, dynQuantScaleOut: L)
    GroupedMatmulSwigluQuant(x: T, weight: T, bias: T, offset: T, weightScale: T, xScale: T, groupList: T, output: T, outputScale: T, outputOffset: T)
    FusedInferAttentionScoreV2(query: T, key: L, value: L, pseShift: T, attenMask: T, actualSeqLengths: I, actualSeqLengthsKv: I, deqScale1: T, quantScale1: T, deqScale2: T, quantScale2: T, quantOffset2: T, antiquantScale: T, antiquantOffset: T, blockTable: T, queryPaddingSize: T, kvPaddingSize: T, keyAntiquantScale: T, keyAntiquantOffset: T, valueAntiquantScale: T, valueAntiquantOffset: T, keySharedPrefix: T, valueSharedPrefix: T, actualSharedPrefixLen: I, numHeads: i64, scaleValue: f64, preTokens: i64, nextTokens: i64, inputLayout: C, numKeyValueHeads: i64, sparseMode: i64, innerPrecise: i64, blockSize: i64, antiquantMode: i64, softmaxLseFlag: u8, keyAntiquantMode: i64, valueAntiquantMode: i64, attentionOut: T, softmaxLse: T)
    FusedInferAttentionScoreV3(query: T, key: L, value: L, pseShift: T, attenMask: T, actualSeqLengths: I, actualSeqLengthsKv: I, deqScale1: T, quantScale1: T, deqScale2: T, quantScale2: T, quantOffset2: T, antiquantScale: T, antiquantOffset: T, blockTable: T, queryPaddingSize: T, kvPaddingSize: T, keyAntiquantScale: T, keyAntiquantOffset: T, valueAntiquantScale: T, valueAntiquantOffset: T, keySharedPrefix: T, valueSharedPrefix: T, actualSharedPrefixLen: I, queryRope: T, keyRope: T, keyRopeAntiquantScale: T, numHeads: i64, scaleValue: f64, preTokens: i64, nextTokens: i64, inputLayout: C, numKeyValueHeads: i64, sparseMode: i64, innerPrecise: i64, blockSize: i64, antiquantMode: i64, softmaxLseFlag: u8, keyAntiquantMode: i64, valueAntiquantMode: i64, attentionOut: T, softmaxLse: T)
    FusedInferAttentionScoreV4(query: T, key: L, value: L, pseShift: T, attenMask: T, actualSeqLengths: I, actualSeqLengthsKv: I, deqScale1: T, quantScale1: T, deqScale2: T, quantScale2: T, quantOffset2: T, antiquantScale: T, antiquantOffset: T, blockTable: T, queryPaddingSize: T, kvPaddingSize: T, keyAntiquantScale: T, keyAntiquantOffset: T, valueAntiquantScale: T, valueAntiquantOffset: T, keySharedPrefix: T, valueSharedPrefix: T, actualSharedPrefixLen: I, queryRope: T, keyRope: T, keyRopeAntiquantScale: T, dequantScaleQuery: T, learnableSink: T, numHeads: i64, scaleValue: f64, preTokens: i64, nextTokens: i64, inputLayout: C, numKeyValueHeads: i64, sparseMode: i64, innerPrecise: i64, blockSize: i64, antiquantMode: i64, softmaxLseFlag: u8, keyAntiquantMode: i64, valueAntiquantMode: i64, queryQuantMode: i64, attentionOut: T, softmaxLse: T)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_and_operators_have_the_same_parameters() {
        let declared: Vec<_> = [MATH, NN, TRANSFORMER].concat();
        for op in halyard_sim_ascend_ops::ops() {
            let (_, kinds) =
                declared.iter().find(|(name, _)| *name == op.name).unwrap_or_else(|| {
                    panic!("aclnn{} has no function", op.name);
                });
            let wanted: Vec<_> = op.params.iter().map(|param| param.kind).collect();
            assert_eq!(*kinds, wanted, "aclnn{}", op.name);
        }
    }
}
