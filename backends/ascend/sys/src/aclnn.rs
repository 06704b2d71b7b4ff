//! Operators. Each is two functions: `aclnnXGetWorkspaceSize` checks the arguments and gives an executor, `aclnnX` enqueues it.

use std::ffi::{c_char, c_void};

use crate::{Libraries, types::*};

/// The second function of every operator.
pub type Run = unsafe extern "C" fn(
    workspace: *mut c_void,
    workspaceSize: u64,
    executor: *mut aclOpExecutor,
    stream: aclrtStream,
) -> aclnnStatus;

/// An operator whose first function is an `F`.
#[derive(Clone, Copy, Debug)]
pub struct Operator<F> {
    pub name: &'static str,
    pub size: F,
    pub run: Run,
}

/// A tensor that is read, and one that is written.
pub type T = *const aclTensor;
/// Tensors that are read.
pub type TL = *const aclTensorList;
pub type IA = *const aclIntArray;
pub type Sc = *const aclScalar;
pub type Str = *const c_char;

macro_rules! operators {
    ($($name:ident($($arg:ident: $ty:ty),* $(,)?);)*) => {
        /// The operators, each if the installed release has it.
        #[derive(Debug)]
        pub struct Aclnn {
            $(pub $name: Option<Operator<unsafe extern "C" fn(
                $($arg: $ty,)*
                workspaceSize: *mut u64,
                executor: *mut *mut aclOpExecutor,
            ) -> aclnnStatus>>,)*
        }

        impl Aclnn {
            /// Looks each operator up.
            #[must_use]
            pub fn load(libraries: &Libraries) -> Self {
                Self { $($name: operator(libraries, stringify!($name), concat!("aclnn", stringify!($name))),)* }
            }

            /// Operators that are not there, without `aclnn`.
            pub fn missing(&self) -> impl Iterator<Item = &'static str> {
                let all = [$((stringify!($name), self.$name.is_none()),)*];
                all.into_iter().filter(|(_, missing)| *missing).map(|(name, _)| name)
            }
        }
    };
}

fn operator<F: Copy>(
    libraries: &Libraries,
    name: &'static str,
    symbol: &str,
) -> Option<Operator<F>> {
    // SAFETY: the lists below have the types of the vendor's headers.
    let size = unsafe { libraries.symbol::<F>(&format!("{symbol}GetWorkspaceSize")) }?;
    // SAFETY: every operator's second function has this type.
    let run = unsafe { libraries.symbol::<Run>(symbol) }?;
    Some(Operator { name, size, run })
}

operators! {
    Mm(this: T, mat2: T, out: T, cubeMathType: i8);
    RmsNorm(x: T, gamma: T, epsilon: f64, yOut: T, rstdOut: T);
    AddRmsNorm(x1: T, x2: T, gamma: T, epsilon: f64, yOut: T, rstdOut: T, xOut: T);
    RotaryPositionEmbedding(x: T, cos: T, sin: T, mode: i64, out: T);
    SwiGlu(x: T, dim: i64, out: T);
    GeluV2(x: T, approximate: i64, y: T);
    IndexSelect(this: T, dim: i64, index: T, out: T);
    ScatterNdUpdate(varRef: T, indices: T, updates: T);
    ArgMax(this: T, dim: i64, keepdim: bool, out: T);
    Cast(this: T, dtype: i32, out: T);
    Add(this: T, other: T, alpha: Sc, out: T);
    Sub(this: T, other: T, alpha: Sc, out: T);
    Tanh(this: T, out: T);
    Adds(this: T, other: Sc, alpha: Sc, out: T);
    Mul(this: T, other: T, out: T);
    Muls(this: T, other: Sc, out: T);
    InplaceAdd(selfRef: T, other: T, alpha: Sc);
    InplaceCopy(selfRef: T, src: T);
    InplaceZero(selfRef: T);
    InplaceFillScalar(selfRef: T, value: Sc);
    SWhere(condition: T, this: T, other: T, out: T);
    InplaceMaskedFillScalar(selfRef: T, mask: T, value: Sc);
    BatchMatMul(this: T, mat2: T, out: T, cubeMathType: i8);
    Exp(this: T, out: T);
    Log(this: T, out: T);
    Sigmoid(this: T, out: T);
    Div(this: T, other: T, out: T);
    LtTensor(this: T, other: T, out: T);
    LeTensor(this: T, other: T, out: T);
    EqTensor(this: T, other: T, out: T);
    BitwiseAndTensor(this: T, other: T, out: T);
    BitwiseXorTensor(this: T, other: T, out: T);
    Arange(start: Sc, end: Sc, step: Sc, out: T);
    Softmax(this: T, dim: i64, out: T);
    LogSoftmax(this: T, dim: i64, out: T);
    Sort(this: T, stable: bool, dim: i64, descending: bool, valuesOut: T, indicesOut: T);
    Gather(this: T, dim: i64, index: T, out: T);
    ReduceSum(this: T, dims: IA, keepDims: bool, dtype: i32, out: T);
    Cumsum(this: T, dim: i64, dtype: i32, out: T);
    MaxDim(this: T, dim: i64, keepdim: bool, out: T, indices: T);
    Triu(this: T, diagonal: i64, out: T);
    DynamicQuant(x: T, smoothScales: T, yOut: T, scaleOut: T);
    QuantMatmulV4(
        x1: T, x2: T, scale: T, offset: T, pertokenScale: T, bias: T, transposeX1: bool, transposeX2: bool, out: T,
    );
    QuantMatmulV5(
        x1: T, x2: T, x1Scale: T, x2Scale: T, yScale: T, x1Offset: T, x2Offset: T, yOffset: T, bias: T,
        transposeX1: bool, transposeX2: bool, groupSize: i64, out: T,
    );
    QuantMatmulWeightNz(
        x1: T, x2: T, x1Scale: T, x2Scale: T, yScale: T, x1Offset: T, x2Offset: T, yOffset: T, bias: T,
        transposeX1: bool, transposeX2: bool, groupSize: i64, out: T,
    );
    WeightQuantBatchMatmulV2(
        x: T, weight: T, antiquantScale: T, antiquantOffset: T, quantScale: T, quantOffset: T, bias: T,
        antiquantGroupSize: i32, y: T,
    );
    MoeGatingTopK(
        x: T, bias: T, k: i64, kGroup: i64, groupCount: i64, groupSelectMode: i64, renorm: i64, normType: i64,
        outFlag: bool, routedScalingFactor: f64, eps: f64, yOut: T, expertIdxOut: T, outOut: T,
    );
    MoeGatingTopKSoftmaxV2(
        x: T, finished: T, k: i64, renorm: i64, outputSoftmaxResultFlag: bool, yOut: T, expertIdxOut: T, softmaxResultOut: T,
    );
    MoeInitRoutingV2(
        x: T, expertIdx: T, activeNum: i64, expertCapacity: i64, expertNum: i64, dropPadMode: i64,
        expertTokensCountOrCumsumFlag: i64, expertTokensBeforeCapacityFlag: bool,
        expandedXOut: T, expandedRowIdxOut: T, expertTokensCountOrCumsumOut: T, expertTokensBeforeCapacityOut: T,
    );
    GroupedMatmulV4(
        x: TL, weight: TL, bias: TL, scale: TL, offset: TL, antiquantScale: TL, antiquantOffset: TL, perTokenScale: TL,
        groupList: T, activationInput: TL, activationQuantScale: TL, activationQuantOffset: TL,
        splitItem: i64, groupType: i64, groupListType: i64, actType: i64,
        out: TL, activationFeatureOut: TL, dynQuantScaleOut: TL,
    );
    GroupedMatmulV5(
        x: TL, weight: TL, bias: TL, scale: TL, offset: TL, antiquantScale: TL, antiquantOffset: TL, perTokenScale: TL,
        groupList: T, activationInput: TL, activationQuantScale: TL, activationQuantOffset: TL,
        splitItem: i64, groupType: i64, groupListType: i64, actType: i64, tuningConfig: IA,
        out: TL, activationFeatureOut: TL, dynQuantScaleOut: TL,
    );
    FusedInferAttentionScoreV3(
        query: T, key: TL, value: TL, pseShift: T, attenMask: T,
        actualSeqLengths: IA, actualSeqLengthsKv: IA,
        deqScale1: T, quantScale1: T, deqScale2: T, quantScale2: T, quantOffset2: T,
        antiquantScale: T, antiquantOffset: T,
        blockTable: T, queryPaddingSize: T, kvPaddingSize: T,
        keyAntiquantScale: T, keyAntiquantOffset: T, valueAntiquantScale: T, valueAntiquantOffset: T,
        keySharedPrefix: T, valueSharedPrefix: T, actualSharedPrefixLen: IA,
        queryRope: T, keyRope: T, keyRopeAntiquantScale: T,
        numHeads: i64, scaleValue: f64, preTokens: i64, nextTokens: i64, inputLayout: Str, numKeyValueHeads: i64,
        sparseMode: i64, innerPrecise: i64, blockSize: i64, antiquantMode: i64, softmaxLseFlag: bool,
        keyAntiquantMode: i64, valueAntiquantMode: i64,
        attentionOut: T, softmaxLse: T,
    );
    FusedInferAttentionScoreV4(
        query: T, key: TL, value: TL, pseShift: T, attenMask: T,
        actualSeqLengths: IA, actualSeqLengthsKv: IA,
        deqScale1: T, quantScale1: T, deqScale2: T, quantScale2: T, quantOffset2: T,
        antiquantScale: T, antiquantOffset: T,
        blockTable: T, queryPaddingSize: T, kvPaddingSize: T,
        keyAntiquantScale: T, keyAntiquantOffset: T, valueAntiquantScale: T, valueAntiquantOffset: T,
        keySharedPrefix: T, valueSharedPrefix: T, actualSharedPrefixLen: IA,
        queryRope: T, keyRope: T, keyRopeAntiquantScale: T,
        dequantScaleQuery: T, learnableSink: T,
        numHeads: i64, scaleValue: f64, preTokens: i64, nextTokens: i64, inputLayout: Str, numKeyValueHeads: i64,
        sparseMode: i64, innerPrecise: i64, blockSize: i64, antiquantMode: i64, softmaxLseFlag: bool,
        keyAntiquantMode: i64, valueAntiquantMode: i64, queryQuantMode: i64,
        attentionOut: T, softmaxLse: T,
    );
}
