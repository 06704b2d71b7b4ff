//! KV_WRITE, PAGED_ATTENTION, KV_COPY_BLOCKS on float caches.

use halyard_sdk::{
    DType,
    abi::ops::attrs::{KvCopyBlocks, KvWrite, PagedAttention},
};

use crate::harness::{Tensor, absent, close, f32s, i32s, output, refused, run, tensor};

#[test]
fn writes_go_to_their_slots_and_negative_ones_nowhere() {
    let k = f32s(&[3, 1, 2], &[1., 2., 3., 4., 5., 6.]);
    let v = f32s(&[3, 1, 1], &[10., 20., 30.]);
    let slots = tensor(DType::I64, &[3], &[3., -1., 0.]);
    let (k_cache, v_cache) = (f32s(&[2, 2, 1, 2], &[-9.; 8]), f32s(&[2, 2, 1, 1], &[-9.; 4]));
    let mut t = [k.clone(), v.clone(), slots, k_cache.clone(), v_cache.clone()];
    run(&KvWrite {}, &mut t, &[]);
    close(&t[3].memory(), &[5., 6., -9., -9., -9., -9., 1., 2.]);
    close(&t[4].memory(), &[30., -9., -9., 10.]);
    let mut t = [k, v, tensor(DType::I64, &[3], &[3., 4., 0.]), k_cache, v_cache];
    assert!(refused(&KvWrite {}, &mut t, &[]).contains("slot is 4, there are 4"));
    close(&t[3].memory(), &[-9.; 8]);
}

#[test]
fn writes_round_to_the_cache_type() {
    let mut t = [
        f32s(&[1, 1, 1], &[257.0]),
        f32s(&[1, 1, 1], &[259.0]),
        tensor(DType::I64, &[1], &[0.]),
        tensor(DType::BF16, &[1, 1, 1, 1], &[0.]),
        tensor(DType::BF16, &[1, 1, 1, 1], &[0.]),
    ];
    run(&KvWrite {}, &mut t, &[]);
    close(&[t[3].memory(), t[4].memory()].concat(), &[256.0, 260.0]);
}

#[test]
fn blocks_are_copied_whole() {
    let cache = |values: &[f64]| f32s(&[3, 2, 1, 1], values);
    let mut t = [
        cache(&[1., 2., 3., 4., 5., 6.]),
        cache(&[10., 20., 30., 40., 50., 60.]),
        i32s(&[3, 2], &[0, 2, -1, 1, 1, -1]),
    ];
    run(&KvCopyBlocks::default(), &mut t, &[]);
    close(&t[0].memory(), &[1., 2., 3., 4., 1., 2.]);
    close(&t[1].memory(), &[10., 20., 30., 40., 10., 20.]);
}

/// Sequences over one KV head of one dimension with blocks of 2. Keys are `ln` of small numbers, so that with q = 1 the softmax
/// weights are these numbers over their sum; unused cache is NaN.
struct Case {
    attrs: PagedAttention,
    q: Vec<f64>,
    heads: i64,
    cu_q: Vec<i64>,
    kv_len: Vec<i64>,
    sinks: Option<Vec<f64>>,
}

impl Default for Case {
    fn default() -> Self {
        Self {
            attrs: PagedAttention::default(),
            q: vec![1.0],
            heads: 1,
            cu_q: vec![0, 1],
            kv_len: vec![3],
            sinks: None,
        }
    }
}

impl Case {
    /// Physical blocks: 1 then 3 for sequence 0; 0 for sequence 1. Keys ln 1, ln 2, ln 3; values 10, 20, 30.
    fn tensors(&self) -> Vec<Tensor> {
        let nan = f64::NAN;
        let ln = |x: f64| x.ln();
        let keys = [0., ln(4.), ln(1.), ln(2.), nan, nan, ln(3.), nan];
        let values = [1., 2., 10., 20., nan, nan, 30., nan];
        let tokens = self.q.len() as i64 / self.heads;
        let table: Vec<i64> = [1, 3, 0, 999].into_iter().take(self.kv_len.len() * 2).collect();
        vec![
            f32s(&[tokens, self.heads, 1], &self.q),
            f32s(&[4, 2, 1, 1], &keys),
            f32s(&[4, 2, 1, 1], &values),
            i32s(&[self.kv_len.len() as i64, 2], &table),
            i32s(&[self.cu_q.len() as i64], &self.cu_q),
            i32s(&[self.kv_len.len() as i64], &self.kv_len),
            output(DType::F32, &[tokens, self.heads, 1]),
            output(DType::F32, &[tokens, self.heads]),
            absent(),
            absent(),
            self.sinks.as_ref().map_or_else(absent, |s| f32s(&[self.heads], s)),
        ]
    }

    #[track_caller]
    fn gives(&self, o: &[f64], lse: &[f64]) {
        let mut t = self.tensors();
        run(&self.attrs, &mut t, &[]);
        close(&t[6].memory(), o);
        close(&t[7].memory(), lse);
    }
}

#[test]
fn decode_sees_the_whole_sequence_across_blocks() {
    // (1·10 + 2·20 + 3·30) / 6.
    Case::default().gives(&[140.0 / 6.0], &[6f64.ln()]);
}

#[test]
fn each_prefilled_token_sees_up_to_itself() {
    let prefill = Case { q: vec![1.0; 3], cu_q: vec![0, 3], ..Default::default() };
    prefill.gives(&[10.0, 50.0 / 3.0, 140.0 / 6.0], &[0.0, 3f64.ln(), 6f64.ln()]);
    let all = PagedAttention { causal: false, ..Default::default() };
    Case { attrs: all, ..prefill }.gives(&[140.0 / 6.0; 3], &[6f64.ln(); 3]);
    // A chunk: the last two tokens of three.
    let chunk = Case { q: vec![1.0; 2], cu_q: vec![0, 2], ..Default::default() };
    chunk.gives(&[50.0 / 3.0, 140.0 / 6.0], &[3f64.ln(), 6f64.ln()]);
}

#[test]
fn a_window_reaches_left_by_its_size() {
    let attrs = PagedAttention { window: 1, ..Default::default() };
    let prefill = Case { attrs, q: vec![1.0; 3], cu_q: vec![0, 3], ..Default::default() };
    // The last sees keys 1 and 2: (2·20 + 3·30) / 5.
    prefill.gives(&[10.0, 50.0 / 3.0, 26.0], &[0.0, 3f64.ln(), 5f64.ln()]);
    let attrs = PagedAttention { window: 0, ..Default::default() };
    Case { attrs, ..prefill }.gives(&[10.0, 20.0, 30.0], &[0.0, 2f64.ln(), 3f64.ln()]);
}

#[test]
fn a_mixed_batch_with_padding() {
    // A decode of sequence 0, nothing of sequence 1, and two padding tokens.
    let case =
        Case { q: vec![1.0; 3], cu_q: vec![0, 1, 1], kv_len: vec![3, 0], ..Default::default() };
    let inf = f64::NEG_INFINITY;
    case.gives(&[140.0 / 6.0, 0.0, 0.0], &[6f64.ln(), inf, inf]);
    // Sequence 1 is a padded decode: one query, no keys.
    let case =
        Case { q: vec![1.0; 2], cu_q: vec![0, 1, 2], kv_len: vec![3, 0], ..Default::default() };
    case.gives(&[140.0 / 6.0, 0.0], &[6f64.ln(), inf]);
    // Prefill of two tokens and a decode: sequence 1's keys 1 and 4, values 1 and 2.
    let case =
        Case { q: vec![1.0; 3], cu_q: vec![0, 2, 3], kv_len: vec![2, 2], ..Default::default() };
    case.gives(&[10.0, 50.0 / 3.0, 9.0 / 5.0], &[0.0, 3f64.ln(), 5f64.ln()]);
}

#[test]
fn scale_and_softcap() {
    let scaled = PagedAttention { scale: 2.0, ..Default::default() };
    // Weights 1, 4, 9.
    Case { attrs: scaled, ..Default::default() }.gives(&[360.0 / 14.0], &[14f64.ln()]);
    let capped = PagedAttention { softcap: 0.5, ..Default::default() };
    let e = [1f64, 2., 3.].map(|w| (0.5 * (w.ln() / 0.5).tanh()).exp());
    let sum: f64 = e.iter().sum();
    let o = (10. * e[0] + 20. * e[1] + 30. * e[2]) / sum;
    Case { attrs: capped, ..Default::default() }.gives(&[o], &[sum.ln()]);
}

#[test]
fn sinks_join_the_denominator() {
    // Two heads share the KV head; the second's sink weighs as much as all keys.
    let case = Case {
        q: vec![1.0, 1.0],
        heads: 2,
        sinks: Some(vec![f64::NEG_INFINITY, 6f64.ln()]),
        ..Default::default()
    };
    case.gives(&[140.0 / 6.0, 140.0 / 12.0], &[6f64.ln(), 12f64.ln()]);
}

#[test]
fn neighbouring_query_heads_share_a_kv_head() {
    // Two KV heads of one key each: head h of four reads KV head h / 2.
    let mut t = vec![
        f32s(&[1, 4, 1], &[1.; 4]),
        f32s(&[1, 1, 2, 1], &[0., 0.]),
        f32s(&[1, 1, 2, 1], &[5., 7.]),
        i32s(&[1, 1], &[0]),
        i32s(&[2], &[0, 1]),
        i32s(&[1], &[1]),
        output(DType::F32, &[1, 4, 1]),
    ];
    run(&PagedAttention::default(), &mut t, &[]);
    close(&t[6].memory(), &[5., 5., 7., 7.]);
}

#[test]
fn large_logits_do_not_overflow() {
    let attrs = PagedAttention { scale: 1e4, ..Default::default() };
    Case { attrs, ..Default::default() }.gives(&[30.0], &[1e4 * f64::from(3f32.ln())]);
}

#[test]
fn lengths_that_contradict_the_batch_are_refused() {
    let refuse = |cu_q: &[i64], kv_len: &[i64]| {
        let case = Case { cu_q: cu_q.to_vec(), kv_len: kv_len.to_vec(), ..Default::default() };
        refused(&case.attrs, &mut case.tensors(), &[])
    };
    assert!(refuse(&[0, 2], &[3]).contains("for 1 rows"));
    assert!(refuse(&[0, 1, 0], &[3, 1]).contains("expected to rise"));
    assert!(refuse(&[0, 1], &[5]).contains("block is 2, there are 2"));
    assert!(refuse(&[0, 0, 1], &[0, 3]).contains("block id is 999, there are 4"));
}
