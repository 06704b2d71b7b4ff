use crate::device::{
    BF16, Device, F16, F32, I8, I32, I64, args, int, ints, list, near, numbers, plan, refused, t,
    text,
};
use halyard_sim_ascend_ops::{Arg, Tensor};

const V3: &str = "FusedInferAttentionScoreV3";

type Given = Vec<(&'static str, Arg)>;

/// One sequence in f64: `q [tokens, heads, width]`, `k [kv, kv_heads, width]`, `v [kv, kv_heads, value_width]`.
struct Naive<'a> {
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    heads: [usize; 2],
    widths: [usize; 2],
    scale: f64,
}

impl Naive<'_> {
    fn run(&self, sees: impl Fn(usize, usize) -> bool) -> (Vec<f32>, Vec<f32>) {
        let ([n, g], [d, w]) = (self.heads, self.widths);
        let (tokens, keys) = (self.q.len() / n / d, self.k.len() / g / d);
        let (mut out, mut lse) = (Vec::new(), Vec::new());
        for (token, head) in (0..tokens * n).map(|i| (i / n, i % n)) {
            let row = head * g / n;
            let score = |key: usize| -> f64 {
                let pair = |i| {
                    f64::from(self.q[(token * n + head) * d + i] * self.k[(key * g + row) * d + i])
                };
                (0..d).map(pair).sum::<f64>() * self.scale
            };
            let weights: Vec<f64> = (0..keys)
                .map(|key| if sees(token, key) { score(key).exp() } else { 0.0 })
                .collect();
            let sum: f64 = weights.iter().sum();
            lse.push(sum.ln() as f32);
            out.extend((0..w).map(|i| {
                let all =
                    (0..keys).map(|key| weights[key] * f64::from(self.v[(key * g + row) * w + i]));
                if sum > 0.0 { (all.sum::<f64>() / sum) as f32 } else { 0.0 }
            }));
        }
        (out, lse)
    }
}

fn small(count: usize, seed: u32) -> Vec<f32> {
    numbers(count, seed).iter().map(|v| v / 2.0).collect()
}

/// Ones above the diagonal of the fixed mask.
fn fixed_mask(d: &Device) -> Tensor {
    let bytes: Vec<u8> = (0..2048 * 2048).map(|i| u8::from(i % 2048 > i / 2048)).collect();
    d.bytes(I8, &[2048, 2048], &bytes)
}

/// Pages of 16 tokens in a cache of which the rest is not written; the table's unused entries are out of range.
struct Paged {
    k: Tensor,
    v: Tensor,
    table: Tensor,
}

fn paged(d: &Device, dtype: i32, row: usize, lens: &[usize], [k, v]: [&[f32]; 2]) -> Paged {
    let dims = [8, 16, row as i64];
    let (cache_k, cache_v) = (d.empty(dtype, &dims), d.empty(dtype, &dims));
    let (mut table, mut free, mut token) = (vec![-5; lens.len() * 4], 7, 0);
    for (batch, &len) in lens.iter().enumerate() {
        for position in 0..len {
            if position % 16 == 0 {
                table[batch * 4 + position / 16] = free;
                free -= 1;
            }
            let slot = (free + 1) * 16 + (position % 16) as i64;
            for (cache, rows) in [(&cache_k, k), (&cache_v, v)] {
                let mut place = cache.clone();
                (place.view_dims, place.strides) = (vec![row as i64], vec![1]);
                place.offset = slot * row as i64;
                let values = d.floats(F32, &[row as i64], &rows[token * row..][..row]);
                d.once("InplaceCopy", &[t(&place), t(&values)]);
            }
            token += 1;
        }
    }
    Paged { k: cache_k, v: cache_v, table: d.ints(I32, &[lens.len() as i64, 4], &table) }
}

fn paged_call(p: &Paged, q: &Tensor, out: &Tensor, q_ends: &[i64], kv: &[i64]) -> Given {
    vec![
        ("query", t(q)),
        ("key", list(&[&p.k])),
        ("value", list(&[&p.v])),
        ("actualSeqLengths", ints(q_ends)),
        ("actualSeqLengthsKv", ints(kv)),
        ("blockTable", t(&p.table)),
        ("numHeads", int(4)),
        ("numKeyValueHeads", int(2)),
        ("scaleValue", Arg::Float(0.25)),
        ("inputLayout", text("TND")),
        ("blockSize", int(16)),
        ("preTokens", int(i64::from(i32::MAX))),
        ("nextTokens", int(i64::from(i32::MAX))),
        ("attentionOut", t(out)),
    ]
}

fn with(mut given: Given, more: &[(&'static str, Arg)]) -> Given {
    given.extend_from_slice(more);
    given
}

#[test]
fn paged_prefill_and_decode_in_one_call() {
    for (name, dtype) in
        [("FusedInferAttentionScoreV2", F16), (V3, BF16), ("FusedInferAttentionScoreV4", F16)]
    {
        let d = Device::default();
        let (q_lens, kv_lens) = ([3usize, 1, 5], [3usize, 20, 33]);
        let (q, k, v) = (small(9 * 4 * 16, 1), small(56 * 32, 2), small(56 * 32, 3));
        let pages = paged(&d, dtype, 32, &kv_lens, [&k, &v]);
        let query = d.floats(dtype, &[9, 4, 16], &q);
        let (out, lse) = (d.empty(dtype, &[9, 4, 16]), d.empty(F32, &[9, 4, 1]));
        let given = paged_call(&pages, &query, &out, &[3, 4, 9], &[3, 20, 33]);
        let mask = fixed_mask(&d);
        let causal = [
            ("sparseMode", int(3)),
            ("attenMask", t(&mask)),
            ("softmaxLseFlag", Arg::Bool(true)),
            ("softmaxLse", t(&lse)),
        ];
        d.call(name, &args(name, &with(given.clone(), &causal)));
        let band = [
            ("sparseMode", int(4)),
            ("attenMask", t(&mask)),
            ("preTokens", int(6)),
            ("nextTokens", int(0)),
        ];
        let (mut expected, mut logs, mut window) = (Vec::new(), Vec::new(), Vec::new());
        let (mut from_q, mut from_k) = (0, 0);
        for (tokens, keys) in q_lens.into_iter().zip(kv_lens) {
            let naive = Naive {
                q: &q[from_q * 64..][..tokens * 64],
                k: &k[from_k * 32..][..keys * 32],
                v: &v[from_k * 32..][..keys * 32],
                heads: [4, 2],
                widths: [16, 16],
                scale: 0.25,
            };
            let (part, log) = naive.run(|i, j| j + tokens <= i + keys);
            expected.extend(part);
            logs.extend(log);
            // The token's own place and six before it.
            window.extend(naive.run(|i, j| j + tokens <= i + keys && j + tokens + 6 >= i + keys).0);
            (from_q, from_k) = (from_q + tokens, from_k + keys);
        }
        let tolerance = if dtype == F16 { 1e-3 } else { 8e-3 };
        near(&d.read_floats(&out), &expected, tolerance);
        near(&d.read_floats(&lse), &logs, 1e-5);
        d.call(name, &args(name, &with(given, &band)));
        near(&d.read_floats(&out), &window, tolerance);
    }
}

#[test]
fn layouts_of_a_batch_agree() {
    let d = Device::default();
    let (b, s, n, g, w) = (2usize, 3usize, 4usize, 2usize, 16usize);
    let (q, k, v) = (small(b * s * n * w, 4), small(b * 5 * g * w, 5), small(b * 5 * g * w, 6));
    let lens = [5usize, 2];
    let mut expected = Vec::new();
    for batch in 0..b {
        let keys = lens[batch];
        let at = batch * 5 * g * w;
        let naive = Naive {
            q: &q[batch * s * n * w..][..s * n * w],
            k: &k[at..][..keys * g * w],
            v: &v[at..][..keys * g * w],
            heads: [n, g],
            widths: [w, w],
            scale: 0.5,
        };
        expected.extend(naive.run(|_, _| true).0);
    }
    let turn = |x: &[f32], tokens: usize, heads: usize| -> Vec<f32> {
        let count = x.len();
        (0..count)
            .map(|i| {
                let (batch, rest) = (i / (tokens * heads * w), i % (tokens * heads * w));
                let (head, token) = (rest / (tokens * w), rest / w % tokens);
                x[((batch * tokens + token) * heads + head) * w + i % w]
            })
            .collect()
    };
    for (layout, out_dims) in [
        ("BSND", vec![2, 3, 4, 16]),
        ("BSH", vec![2, 3, 64]),
        ("BNSD", vec![2, 4, 3, 16]),
        ("BNSD_BSND", vec![2, 3, 4, 16]),
        ("BSND_NBSD", vec![4, 2, 3, 16]),
    ] {
        let [query, key, value] = match layout {
            "BSH" => [
                d.floats(F16, &[2, 3, 64], &q),
                d.floats(F16, &[2, 5, 32], &k),
                d.floats(F16, &[2, 5, 32], &v),
            ],
            "BSND" | "BSND_NBSD" => [
                d.floats(F16, &[2, 3, 4, 16], &q),
                d.floats(F16, &[2, 5, 2, 16], &k),
                d.floats(F16, &[2, 5, 2, 16], &v),
            ],
            _ => [
                d.floats(F16, &[2, 4, 3, 16], &turn(&q, 3, 4)),
                d.floats(F16, &[2, 2, 5, 16], &turn(&k, 5, 2)),
                d.floats(F16, &[2, 2, 5, 16], &turn(&v, 5, 2)),
            ],
        };
        let out = d.empty(F16, &out_dims);
        let given = [
            ("query", t(&query)),
            ("key", list(&[&key])),
            ("value", list(&[&value])),
            ("actualSeqLengthsKv", ints(&[5, 2])),
            ("numHeads", int(4)),
            ("numKeyValueHeads", int(2)),
            ("scaleValue", Arg::Float(0.5)),
            ("inputLayout", text(layout)),
            ("attentionOut", t(&out)),
        ];
        d.call(V3, &args(V3, &given));
        let found = d.read_floats(&out);
        let wanted = match layout {
            "BNSD" => turn(&expected, 3, 4),
            "BSND_NBSD" => {
                let at = |i: usize| {
                    let (head, batch, token) = (i / (b * s * w), i / (s * w) % b, i / w % s);
                    expected[((batch * s + token) * n + head) * w + i % w]
                };
                (0..expected.len()).map(at).collect()
            }
            _ => expected.clone(),
        };
        near(&found, &wanted, 1e-3);
    }
}

#[test]
fn one_query_a_batch_reads_pages() {
    let d = Device::default();
    let (q, k, v) = (small(2 * 64, 1), small(23 * 32, 2), small(23 * 32, 3));
    let lens = [18usize, 5];
    let pages = paged(&d, F16, 32, &lens, [&k, &v]);
    let mut expected = Vec::new();
    for (batch, (from, keys)) in [(0usize, 18usize), (18, 5)].into_iter().enumerate() {
        let naive = Naive {
            q: &q[batch * 64..][..64],
            k: &k[from * 32..][..keys * 32],
            v: &v[from * 32..][..keys * 32],
            heads: [4, 2],
            widths: [16, 16],
            scale: 0.25,
        };
        expected.extend(naive.run(|_, _| true).0);
    }
    for (layout, dims) in [("BSND", [2, 1, 4, 16]), ("BNSD", [2, 4, 1, 16])] {
        let (query, out) = (d.floats(F16, &dims, &q), d.empty(F16, &dims));
        let given =
            with(paged_call(&pages, &query, &out, &[], &[18, 5]), &[("inputLayout", text(layout))]);
        d.call(V3, &args(V3, &given));
        near(&d.read_floats(&out), &expected, 1e-3);
        let longer = if layout == "BNSD" { [2, 4, 2, 16] } else { [2, 2, 4, 16] };
        let more = [("query", t(&d.empty(F16, &longer)))];
        refused(
            V3,
            &args(V3, &with(given, &more)),
            161_002,
            "blockSize: 16, expected a multiple of 128 up to 512",
        );
    }
    // Blocks with the heads outside, which this layout takes too.
    let turned = |cache: &Tensor| {
        let heads = Tensor {
            view_dims: vec![8, 2, 16, 16],
            strides: vec![512, 16, 32, 1],
            ..cache.clone()
        };
        let copy = d.floats(F16, &[8, 2, 16, 16], &[0.0; 4096]);
        for block in [7, 6, 5] {
            let of = |tensor: &Tensor| Tensor {
                view_dims: vec![2, 16, 16],
                strides: tensor.strides[1..].to_vec(),
                offset: block * 512,
                ..tensor.clone()
            };
            let rows = if block == 7 {
                16
            } else if block == 6 {
                2
            } else {
                5
            };
            let cut = |tensor: &Tensor| Tensor { view_dims: vec![2, rows, 16], ..of(tensor) };
            d.once("InplaceCopy", &[t(&cut(&copy)), t(&cut(&heads))]);
        }
        copy
    };
    let (query, out) = (d.floats(F16, &[2, 4, 1, 16], &q), d.empty(F16, &[2, 4, 1, 16]));
    let given = with(
        paged_call(&pages, &query, &out, &[], &[18, 5]),
        &[
            ("inputLayout", text("BNSD")),
            ("key", list(&[&turned(&pages.k)])),
            ("value", list(&[&turned(&pages.v)])),
        ],
    );
    d.call(V3, &args(V3, &given));
    near(&d.read_floats(&out), &expected, 1e-3);
}

#[test]
fn masks_and_shifts_of_ones_own() {
    let d = Device::default();
    let (q, k, v) = (small(2 * 16, 7), small(3 * 16, 8), small(3 * 16, 9));
    let [query, key, value] =
        [(&q, 2), (&k, 3), (&v, 3)].map(|(x, s)| d.floats(F16, &[1, s, 1, 16], x));
    let mask = d.ints(crate::device::BOOL, &[2, 3], &[0, 1, 0, 1, 1, 1]);
    let out = d.empty(F16, &[1, 2, 1, 16]);
    let given = vec![
        ("query", t(&query)),
        ("key", list(&[&key])),
        ("value", list(&[&value])),
        ("numHeads", int(1)),
        ("scaleValue", Arg::Float(1.0)),
        ("inputLayout", text("BSND")),
        ("preTokens", int(i64::from(i32::MAX))),
        ("nextTokens", int(i64::from(i32::MAX))),
        ("attentionOut", t(&out)),
    ];
    d.call(V3, &args(V3, &with(given.clone(), &[("attenMask", t(&mask))])));
    let naive = Naive { q: &q, k: &k, v: &v, heads: [1, 1], widths: [16, 16], scale: 1.0 };
    // The second row sees nothing and gets zeros.
    near(&d.read_floats(&out), &naive.run(|i, j| i == 0 && j != 1).0, 1e-3);
    let pse = d.floats(F16, &[1, 1, 2, 3], &[0.0, -65_504.0, 0.0, -65_504.0, -65_504.0, 0.0]);
    d.call(V3, &args(V3, &with(given, &[("pseShift", t(&pse))])));
    near(&d.read_floats(&out), &naive.run(|i, j| if i == 0 { j != 1 } else { j == 2 }).0, 1e-3);
}

#[test]
fn latent_decode_reads_one_cache_twice() {
    let d = Device::default();
    let (tokens, keys) = (2usize, 18usize);
    let (q, qr) = (small(tokens * 32 * 512, 1), small(tokens * 32 * 64, 2));
    let (c, cr) = (small(keys * 512, 3), small(keys * 64, 4));
    let (latent, rope) =
        (paged(&d, BF16, 512, &[keys], [&c, &c]), paged(&d, BF16, 64, &[keys], [&cr, &cr]));
    let query = d.floats(BF16, &[2, 32, 512], &q);
    let q_rope = d.floats(BF16, &[2, 32, 64], &qr);
    let out = d.empty(BF16, &[2, 32, 512]);
    let mut given = paged_call(&latent, &query, &out, &[2], &[18]);
    given.extend([
        ("value", list(&[&latent.k])),
        ("queryRope", t(&q_rope)),
        ("keyRope", t(&rope.k)),
        ("numHeads", int(32)),
        ("numKeyValueHeads", int(1)),
        ("scaleValue", Arg::Float(0.05)),
        ("sparseMode", int(3)),
        ("attenMask", t(&fixed_mask(&d))),
    ]);
    d.call(V3, &args(V3, &given));
    let join = |a: &[f32], b: &[f32]| -> Vec<f32> {
        a.chunks(512).zip(b.chunks(64)).flat_map(|(a, b)| [a, b].concat()).collect()
    };
    let (q, k) = (join(&q, &qr), join(&c, &cr));
    let naive = Naive { q: &q, k: &k, v: &c, heads: [32, 1], widths: [576, 512], scale: 0.05 };
    near(&d.read_floats(&out), &naive.run(|i, j| j <= i + keys - tokens).0, 8e-3);
    let no_mask = with(given.clone(), &[("sparseMode", int(0)), ("attenMask", Arg::Tensor(None))]);
    refused(V3, &args(V3, &no_mask), 561_002, "sparseMode: 0 without attenMask for 2 tokens");
    let no_key = with(given.clone(), &[("keyRope", Arg::Tensor(None))]);
    refused(V3, &args(V3, &no_key), 161_001, "keyRope: null with queryRope");
    let few = [
        ("numHeads", int(16)),
        ("query", t(&d.empty(BF16, &[2, 16, 512]))),
        ("queryRope", t(&d.empty(BF16, &[2, 16, 64]))),
    ];
    refused(
        V3,
        &args(V3, &with(given, &few)),
        161_002,
        "numHeads: 16, expected a power of two from 32",
    );
}

#[test]
fn latent_prefill_is_not_paged() {
    let d = Device::default();
    let (q, k, v) = (small(3 * 2 * 128, 1), small(3 * 2 * 128, 2), small(3 * 2 * 128, 3));
    let (qr, kr) = (small(3 * 2 * 64, 4), small(3 * 2 * 64, 5));
    let of = |x: &[f32], w| d.floats(F16, &[3, 2, w], x);
    let (query, key, value, q_rope, k_rope) =
        (of(&q, 128), of(&k, 128), of(&v, 128), of(&qr, 64), of(&kr, 64));
    let out = d.empty(F16, &[3, 2, 128]);
    let given = [
        ("query", t(&query)),
        ("key", list(&[&key])),
        ("value", list(&[&value])),
        ("queryRope", t(&q_rope)),
        ("keyRope", t(&k_rope)),
        ("actualSeqLengths", ints(&[1, 3])),
        ("actualSeqLengthsKv", ints(&[1, 3])),
        ("numHeads", int(2)),
        ("scaleValue", Arg::Float(0.05)),
        ("inputLayout", text("TND")),
        ("sparseMode", int(3)),
        ("attenMask", t(&fixed_mask(&d))),
        ("attentionOut", t(&out)),
    ];
    d.call(V3, &args(V3, &given));
    let join = |a: &[f32], b: &[f32]| -> Vec<f32> {
        a.chunks(128).zip(b.chunks(64)).flat_map(|(a, b)| [a, b].concat()).collect()
    };
    let (q, k) = (join(&q, &qr), join(&k, &kr));
    let part = |from: usize, to: usize| {
        let naive = Naive {
            q: &q[from * 384..to * 384],
            k: &k[from * 384..to * 384],
            v: &v[from * 256..to * 256],
            heads: [2, 2],
            widths: [192, 128],
            scale: 0.05,
        };
        naive.run(|i, j| j <= i).0
    };
    near(&d.read_floats(&out), &[part(0, 1), part(1, 3)].concat(), 1e-3);
}

#[test]
fn parts_are_merged_by_their_logarithms() {
    let d = Device::default();
    let (l1, l2) =
        (d.floats(F32, &[2], &[0.0, f32::INFINITY]), d.floats(F32, &[2], &[3f32.ln(), 1.0]));
    let (a, b) = (d.floats(F16, &[2, 1], &[4.0, 100.0]), d.floats(F16, &[2, 1], &[8.0, 2.0]));
    let (out, lse) = (d.empty(F16, &[2, 1]), d.empty(F32, &[2]));
    let given = [list(&[&l1, &l2]), list(&[&a, &b]), int(1), t(&out), t(&lse)];
    d.call("AttentionUpdate", &given);
    near(&d.read_floats(&out), &[7.0, 2.0], 1e-6);
    near(&d.read_floats(&lse), &[4f32.ln(), 1.0], 1e-6);
    let one = [list(&[&l1]), list(&[&a, &b]), int(0), t(&out), Arg::Tensor(None)];
    refused("AttentionUpdate", &one, 161_002, "localOut: 2 tensors, expected 1");
}

#[test]
fn older_operators() {
    let d = Device::default();
    let (q, k, v) = (small(32, 7), small(48, 8), small(48, 9));
    let [query, key, value] =
        [(&q[..], 2), (&k[..], 3), (&v[..], 3)].map(|(x, s)| d.floats(F16, &[1, s, 1, 16], x));
    let out = d.empty(F16, &[1, 2, 1, 16]);
    let given = [
        ("query", t(&query)),
        ("key", t(&key)),
        ("value", t(&value)),
        ("numHeads", int(1)),
        ("scaleValue", Arg::Float(1.0)),
        ("inputLayout", text("BSND")),
        ("sparseMode", int(2)),
        ("attenMask", t(&fixed_mask(&d))),
        ("attentionOut", t(&out)),
    ];
    let name = "PromptFlashAttentionV3";
    d.call(name, &args(name, &given));
    let naive = Naive { q: &q, k: &k, v: &v, heads: [1, 1], widths: [16, 16], scale: 1.0 };
    near(&d.read_floats(&out), &naive.run(|i, j| j <= i).0, 1e-3);
    let one = d.floats(F16, &[1, 1, 1, 16], &q[..16]);
    let small_out = d.empty(F16, &[1, 1, 1, 16]);
    let name = "IncreFlashAttentionV4";
    let given = [
        ("query", t(&one)),
        ("key", list(&[&key])),
        ("value", list(&[&value])),
        ("actualSeqLengths", ints(&[2])),
        ("numHeads", int(1)),
        ("scaleValue", Arg::Float(1.0)),
        ("inputLayout", text("BSND")),
        ("attentionOut", t(&small_out)),
    ];
    d.call(name, &args(name, &given));
    let naive = Naive { q: &q[..16], k: &k[..32], v: &v[..32], ..naive };
    near(&d.read_floats(&small_out), &naive.run(|_, _| true).0, 1e-3);
    let two = with(given.to_vec(), &[("query", t(&query))]);
    refused(name, &args(name, &two), 161_002, "query: 2 tokens a batch, expected 1");
}

#[test]
fn sinks_take_a_share() {
    let d = Device::default();
    let name = "FusedInferAttentionScoreV4";
    // Two heads over one key: scores of 0, sinks of ln 3 and of nothing much.
    let [query, key] = [2, 1].map(|n| d.floats(F16, &[1, n, 64], &vec![0.0; n as usize * 64]));
    let value = d.floats(F16, &[1, 1, 64], &[4.0; 64]);
    let sinks = d.floats(F16, &[2], &[3f32.ln(), -20.0]);
    let (out, lse) = (d.empty(F16, &[1, 2, 64]), d.empty(F32, &[1, 2, 1]));
    let given = vec![
        ("query", t(&query)),
        ("key", list(&[&key])),
        ("value", list(&[&value])),
        ("actualSeqLengths", ints(&[1])),
        ("actualSeqLengthsKv", ints(&[1])),
        ("learnableSink", t(&sinks)),
        ("numHeads", int(2)),
        ("numKeyValueHeads", int(1)),
        ("scaleValue", Arg::Float(1.0)),
        ("inputLayout", text("TND")),
        ("softmaxLseFlag", Arg::Bool(true)),
        ("attentionOut", t(&out)),
        ("softmaxLse", t(&lse)),
    ];
    d.call(name, &args(name, &given));
    near(&d.read_floats(&out)[..1], &[1.0], 1e-3);
    near(&d.read_floats(&out)[64..65], &[4.0], 1e-3);
    near(&d.read_floats(&lse), &[4f32.ln(), 0.0], 1e-3);
    let three = [("learnableSink", t(&d.empty(F16, &[3])))];
    refused(
        name,
        &args(name, &with(given, &three)),
        161_002,
        "learnableSink: shape [3], expected [2]",
    );
}

#[test]
fn bad_calls_are_refused() {
    let d = Device::default();
    let (k, v) = (small(4 * 32, 2), small(4 * 32, 3));
    let pages = paged(&d, F16, 32, &[4], [&k, &v]);
    let query = d.floats(F16, &[3, 4, 16], &small(192, 1));
    let out = d.empty(F16, &[3, 4, 16]);
    let mask = fixed_mask(&d);
    let base = with(
        paged_call(&pages, &query, &out, &[3], &[4]),
        &[("sparseMode", int(3)), ("attenMask", t(&mask))],
    );
    d.call(V3, &args(V3, &base));
    let of = |dtype, dims: &[i64]| t(&d.empty(dtype, dims));
    let one = |dtype, dims: &[i64]| list(&[&d.empty(dtype, dims)]);
    let cases: Vec<(&'static str, Arg, i32, &str)> = vec![
        ("query", Arg::Tensor(None), 161_001, "query: null"),
        ("query", of(F32, &[3, 4, 16]), 161_002, "query: dtype FLOAT"),
        ("query", of(F16, &[3, 3, 16]), 161_002, "query: 3 heads, expected 4"),
        ("query", of(F16, &[3, 4, 24]), 161_002, "query: heads of 24"),
        ("numHeads", int(300), 161_002, "numHeads: 300"),
        ("numKeyValueHeads", int(3), 161_002, "numKeyValueHeads: 3"),
        ("inputLayout", text("SBH"), 161_002, "inputLayout: \"SBH\""),
        ("sparseMode", int(2), 161_002, "sparseMode: 2, expected 0, 3 or 4 with layout TND"),
        ("sparseMode", int(0), 161_002, "attenMask: given"),
        ("attenMask", Arg::Tensor(None), 161_002, "attenMask: null"),
        ("attenMask", of(I8, &[3, 4]), 161_002, "attenMask: shape [3, 4], expected 2048 by 2048"),
        ("attenMask", of(F16, &[2048, 2048]), 161_002, "attenMask: dtype FLOAT16"),
        ("innerPrecise", int(1), 161_002, "innerPrecise: 1, expected 0"),
        ("actualSeqLengths", Arg::IntArray(None), 161_002, "actualSeqLengths: null"),
        ("actualSeqLengths", ints(&[2]), 161_002, "cumulative lengths end in 2, expected 3"),
        ("actualSeqLengths", ints(&[2, 1, 3]), 161_002, "falls"),
        ("actualSeqLengthsKv", Arg::IntArray(None), 161_002, "actualSeqLengthsKv: null"),
        (
            "actualSeqLengthsKv",
            ints(&[65]),
            161_002,
            "actualSeqLengthsKv: [65], expected lengths of 0 to 64",
        ),
        ("actualSeqLengthsKv", ints(&[4, 4]), 161_002, "actualSeqLengthsKv: 2 entries, expected 1"),
        ("blockTable", of(I64, &[1, 4]), 161_002, "blockTable: dtype INT64"),
        ("blockTable", of(I32, &[2, 4]), 161_002, "blockTable: 2 rows, expected 1"),
        ("blockSize", int(32), 161_002, "blockSize: 32, key[0] has blocks of 16"),
        ("key", one(F16, &[8, 16, 2, 16]), 161_002, "key[0]: 4 dims of a paged cache"),
        ("key", one(BF16, &[8, 16, 32]), 161_002, "key[0]: dtype BFLOAT16"),
        ("key", list(&[]), 161_002, "key: 0 tensors"),
        ("value", one(F16, &[7, 16, 32]), 161_002, "value: shape [7, 16, 32]"),
        ("keyAntiquantScale", of(F32, &[2]), 161_002, "keyAntiquantScale: given"),
        ("attentionOut", of(F16, &[3, 4, 32]), 161_002, "attentionOut: shape"),
        ("attentionOut", of(BF16, &[3, 4, 16]), 161_002, "attentionOut: dtype BFLOAT16"),
        ("softmaxLseFlag", Arg::Bool(true), 161_001, "softmaxLse: null"),
    ];
    for (param, arg, code, words) in cases {
        refused(V3, &args(V3, &with(base.clone(), &[(param, arg)])), code, words);
    }
    let wide = [
        ("key", one(F16, &[8, 256, 32])),
        ("value", one(F16, &[8, 256, 32])),
        ("blockSize", int(256)),
    ];
    refused(
        V3,
        &args(V3, &with(base.clone(), &wide)),
        161_002,
        "blockSize: 256, expected a multiple of 16 up to 128",
    );
    let zeros = d.bytes(I8, &[2048, 2048], &vec![0; 2048 * 2048]);
    let plan = plan(V3, &args(V3, &with(base, &[("attenMask", t(&zeros))]))).unwrap();
    assert!(plan.workspace > 0);
    assert!(d.run(&plan).unwrap_err().message.contains("attenMask: 0 in row 0, column 1"));
}
