//! Attention over contiguous or paged keys and values.

mod check;
mod layout;
mod run;
mod score;
mod update;

use crate::op::{Args, Op, Param, Since, Work, flag, float, int64, ints, list, tensor, text};
use crate::refusal::{Refusal, code, ensure};
use crate::view::View;

/// The parameters of the fused operator: what all versions have, with those of the third and of the fourth.
macro_rules! fused {
    ([$($third:expr),*], [$($fourth:expr),*], [$($mode:expr),*]) => {
        &[
            tensor("query"),
            list("key"),
            list("value"),
            tensor("pseShift").or_null(),
            tensor("attenMask").or_null(),
            ints("actualSeqLengths").or_null(),
            ints("actualSeqLengthsKv").or_null(),
            tensor("deqScale1").or_null(),
            tensor("quantScale1").or_null(),
            tensor("deqScale2").or_null(),
            tensor("quantScale2").or_null(),
            tensor("quantOffset2").or_null(),
            tensor("antiquantScale").or_null(),
            tensor("antiquantOffset").or_null(),
            tensor("blockTable").or_null(),
            tensor("queryPaddingSize").or_null(),
            tensor("kvPaddingSize").or_null(),
            tensor("keyAntiquantScale").or_null(),
            tensor("keyAntiquantOffset").or_null(),
            tensor("valueAntiquantScale").or_null(),
            tensor("valueAntiquantOffset").or_null(),
            tensor("keySharedPrefix").or_null(),
            tensor("valueSharedPrefix").or_null(),
            ints("actualSharedPrefixLen").or_null(),
            $($third,)*
            $($fourth,)*
            int64("numHeads"),
            float("scaleValue"),
            int64("preTokens"),
            int64("nextTokens"),
            text("inputLayout"),
            int64("numKeyValueHeads"),
            int64("sparseMode"),
            int64("innerPrecise"),
            int64("blockSize"),
            int64("antiquantMode"),
            flag("softmaxLseFlag"),
            int64("keyAntiquantMode"),
            int64("valueAntiquantMode"),
            $($mode,)*
            tensor("attentionOut").out(),
            tensor("softmaxLse").or_null().out(),
        ]
    };
}

const FUSED_V2: &[Param] = fused!([], [], []);
const FUSED_V3: &[Param] = fused!(
    [
        tensor("queryRope").or_null(),
        tensor("keyRope").or_null(),
        tensor("keyRopeAntiquantScale").or_null()
    ],
    [],
    []
);
const FUSED_V4: &[Param] = fused!(
    [
        tensor("queryRope").or_null(),
        tensor("keyRope").or_null(),
        tensor("keyRopeAntiquantScale").or_null()
    ],
    [tensor("dequantScaleQuery").or_null(), tensor("learnableSink").or_null()],
    [int64("queryQuantMode")]
);

/// Quantised queries, keys and values, padding on the left and shared prefixes.
const LEFT_OUT: &[&str] = &[
    "deqScale1",
    "quantScale1",
    "deqScale2",
    "quantScale2",
    "quantOffset2",
    "antiquantScale",
    "antiquantOffset",
    "queryPaddingSize",
    "kvPaddingSize",
    "keyAntiquantScale",
    "keyAntiquantOffset",
    "valueAntiquantScale",
    "valueAntiquantOffset",
    "keySharedPrefix",
    "valueSharedPrefix",
    "actualSharedPrefixLen",
    "keyRopeAntiquantScale",
    "dequantScaleQuery",
];
const WHY: &str = "in this stand-in, which has neither quantised caches nor padding and prefixes";

/// Operators of this family.
pub(crate) const OPS: &[Op] = &[
    Op { name: "FusedInferAttentionScoreV2", since: Since::V8_1, params: FUSED_V2, plan: fused },
    Op { name: "FusedInferAttentionScoreV3", since: Since::V8_1, params: FUSED_V3, plan: fused },
    Op { name: "FusedInferAttentionScoreV4", since: Since::V8_5, params: FUSED_V4, plan: fused },
    Op {
        name: "PromptFlashAttentionV3",
        since: Since::V8_1,
        params: &[
            tensor("query"),
            tensor("key"),
            tensor("value"),
            tensor("pseShift").or_null(),
            tensor("attenMask").or_null(),
            ints("actualSeqLengths").or_null(),
            ints("actualSeqLengthsKv").or_null(),
            tensor("deqScale1").or_null(),
            tensor("quantScale1").or_null(),
            tensor("deqScale2").or_null(),
            tensor("quantScale2").or_null(),
            tensor("quantOffset2").or_null(),
            int64("numHeads"),
            float("scaleValue"),
            int64("preTokens"),
            int64("nextTokens"),
            text("inputLayout"),
            int64("numKeyValueHeads"),
            int64("sparseMode"),
            int64("innerPrecise"),
            tensor("attentionOut").out(),
        ],
        plan: prompt,
    },
    Op {
        name: "IncreFlashAttentionV4",
        since: Since::V8_1,
        params: &[
            tensor("query"),
            list("key"),
            list("value"),
            tensor("pseShift").or_null(),
            tensor("attenMask").or_null(),
            ints("actualSeqLengths").or_null(),
            tensor("dequantScale1").or_null(),
            tensor("quantScale1").or_null(),
            tensor("dequantScale2").or_null(),
            tensor("quantScale2").or_null(),
            tensor("quantOffset2").or_null(),
            tensor("antiquantScale").or_null(),
            tensor("antiquantOffset").or_null(),
            tensor("blocktable").or_null(),
            tensor("kvPaddingSize").or_null(),
            int64("numHeads"),
            float("scaleValue"),
            text("inputLayout"),
            int64("numKeyValueHeads"),
            int64("blockSize"),
            int64("innerPrecise"),
            tensor("attentionOut").out(),
        ],
        plan: incremental,
    },
    update::OP,
];

/// A call of any of the operators.
struct Request {
    q: View,
    k: View,
    v: View,
    q_rope: Option<View>,
    k_rope: Option<View>,
    pse: Option<View>,
    sinks: Option<View>,
    mask: Option<View>,
    q_lens: Option<Vec<i64>>,
    kv_lens: Option<Vec<i64>>,
    table: Option<View>,
    heads: usize,
    kv_heads: usize,
    scale: f32,
    /// Tokens before and behind a query's own place that it sees.
    band: [i64; 2],
    layout: layout::Layout,
    sparse: i64,
    inner: i64,
    block: i64,
    out: View,
    lse: Option<View>,
}

fn host(a: &Args<'_>, name: &str) -> Result<Option<Vec<i64>>, Refusal> {
    // An empty array is what frameworks pass for none.
    Ok(a.ints(name)?.filter(|lens| !lens.is_empty()).map(<[i64]>::to_vec))
}

/// The one tensor of a list of keys or values.
fn only(a: &Args<'_>, name: &str) -> Result<View, Refusal> {
    let views = a.list(name)?;
    ensure!(views.len() == 1, "{name}: {} tensors, expected one here", views.len());
    ensure!(!views[0].nz, "{name}: format FRACTAL_NZ, expected ND");
    Ok(views[0].clone())
}

fn head_counts(a: &Args<'_>) -> Result<[usize; 2], Refusal> {
    let (heads, kv) = (a.int("numHeads")?, a.int("numKeyValueHeads")?);
    ensure!((1..=256).contains(&heads), "numHeads: {heads}, expected 1 to 256");
    let kv = if kv == 0 { heads } else { kv };
    ensure!(
        kv > 0 && heads % kv == 0,
        "numKeyValueHeads: {kv}, expected a divisor of numHeads {heads}, or 0 for as many"
    );
    Ok([heads as usize, kv as usize])
}

fn fused(a: &Args<'_>) -> Result<Work, Refusal> {
    let names: Vec<&str> = LEFT_OUT.iter().copied().filter(|name| a.has(name)).collect();
    a.expect_null(&names, WHY)?;
    let newer = |name: &str| if a.has(name) { a.optional(name) } else { Ok(None) };
    let [heads, kv_heads] = head_counts(a)?;
    let lse = if a.flag("softmaxLseFlag")? { Some(a.tensor("softmaxLse")?) } else { None };
    let request = Request {
        q: a.tensor("query")?,
        k: only(a, "key")?,
        v: only(a, "value")?,
        q_rope: newer("queryRope")?,
        k_rope: newer("keyRope")?,
        pse: a.optional("pseShift")?,
        sinks: newer("learnableSink")?,
        mask: a.optional("attenMask")?,
        q_lens: host(a, "actualSeqLengths")?,
        kv_lens: host(a, "actualSeqLengthsKv")?,
        table: a.optional("blockTable")?,
        heads,
        kv_heads,
        scale: a.float("scaleValue")? as f32,
        band: [a.int("preTokens")?, a.int("nextTokens")?],
        layout: layout::Layout::parse(a.text("inputLayout")?)?,
        sparse: a.choice("sparseMode", &[0, 1, 2, 3, 4])?,
        inner: a.choice("innerPrecise", &[0, 1, 2, 3])?,
        block: a.int("blockSize")?,
        out: a.tensor("attentionOut")?,
        lse,
    };
    planned(a, &request)
}

fn prompt(a: &Args<'_>) -> Result<Work, Refusal> {
    a.expect_null(&["deqScale1", "quantScale1", "deqScale2", "quantScale2", "quantOffset2"], WHY)?;
    let layout = a.text("inputLayout")?;
    let layouts = ["BSH", "BSND", "BNSD", "BNSD_BSND"];
    ensure!(layouts.contains(&layout), "inputLayout: {layout:?}, expected one of {layouts:?}");
    let [heads, kv_heads] = head_counts(a)?;
    let request = Request {
        q: a.tensor("query")?,
        k: a.tensor("key")?,
        v: a.tensor("value")?,
        q_rope: None,
        k_rope: None,
        pse: a.optional("pseShift")?,
        sinks: None,
        mask: a.optional("attenMask")?,
        q_lens: host(a, "actualSeqLengths")?,
        kv_lens: host(a, "actualSeqLengthsKv")?,
        table: None,
        heads,
        kv_heads,
        scale: a.float("scaleValue")? as f32,
        band: [a.int("preTokens")?, a.int("nextTokens")?],
        layout: layout::Layout::parse(layout)?,
        sparse: a.choice("sparseMode", &[0, 1, 2, 3, 4])?,
        inner: a.choice("innerPrecise", &[0, 1, 2, 3])?,
        block: 0,
        out: a.tensor("attentionOut")?,
        lse: None,
    };
    planned(a, &request)
}

fn incremental(a: &Args<'_>) -> Result<Work, Refusal> {
    let quant = ["dequantScale1", "quantScale1", "dequantScale2", "quantScale2", "quantOffset2"];
    a.expect_null(&quant, WHY)?;
    a.expect_null(&["antiquantScale", "antiquantOffset", "kvPaddingSize"], WHY)?;
    let layout = a.text("inputLayout")?;
    let layouts = ["BSH", "BSND", "BNSD"];
    ensure!(layouts.contains(&layout), "inputLayout: {layout:?}, expected one of {layouts:?}");
    let [heads, kv_heads] = head_counts(a)?;
    let request = Request {
        q: a.tensor("query")?,
        k: only(a, "key")?,
        v: only(a, "value")?,
        q_rope: None,
        k_rope: None,
        pse: a.optional("pseShift")?,
        sinks: None,
        mask: a.optional("attenMask")?,
        q_lens: None,
        kv_lens: host(a, "actualSeqLengths")?,
        table: a.optional("blocktable")?,
        heads,
        kv_heads,
        scale: a.float("scaleValue")? as f32,
        band: [i64::from(i32::MAX); 2],
        layout: layout::Layout::parse(layout)?,
        sparse: 0,
        inner: a.choice("innerPrecise", &[0, 1])?,
        block: a.int("blockSize")?,
        out: a.tensor("attentionOut")?,
        lse: None,
    };
    let tokens = request.layout.of_query(&request.q, heads)?.dims[1];
    ensure!(tokens == 1, "query: {tokens} tokens a batch, expected 1");
    planned(a, &request)
}

fn planned(a: &Args<'_>, request: &Request) -> Result<Work, Refusal> {
    let workspace = u64::from(a.soc.cube_cores) * 4096 + request.out.len() as u64 * 4;
    let attention = check::checked(request)?;
    Ok(Work::new(move |launch| attention.run(launch)).with_workspace(workspace))
}

/// Arguments that are fine each, but not together.
fn combination<T>(text: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::new(code::TILING, text))
}
