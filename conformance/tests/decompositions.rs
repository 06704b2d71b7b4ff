//! Ops built from others, against the oracle: wherever the host knows how, even if the backend has the op.

use halyard_conformance::{Options, Outcome, oracle, verify};
use halyard_core::{
    Backend, CommSpec, DType, Decompose, Device, Element, InfoKey, KvDesc, Launch, OpBuf, OpKind,
    Scheme, Stream, Support, Tensor, TensorSpec, Weight, WeightDesc, Workspace,
    attrs::{KvGather, LinearActMul, LinearAllReduce, QkvPost, RmsNorm, RmsNormQuant},
};

/// What has cases and can be built.
const BUILT: [OpKind; 5] = [
    OpKind::RMS_NORM,
    OpKind::ARGMAX,
    OpKind::MOE_EXPERTS,
    OpKind::PAGED_ATTENTION,
    OpKind::MLA_ATTENTION,
];

/// Every case of the ops passes, and each op has some.
///
/// But those of 8-bit caches: a gather rounds what it reads to the compute type, once more than attention may, so that the host builds
/// these in f32 only.
#[track_caller]
fn built(device: &Device, ops: &[OpKind]) {
    let declared = device.backend().info(InfoKey::PROFILES);
    let profiles = declared.split(',').filter(|p| *p != "kv8").map(str::to_owned).collect();
    let device = device.decomposing(Decompose::Always);
    let ops: Vec<String> = ops.iter().map(ToString::to_string).collect();
    let options = Options { ops: ops.clone(), profiles, ..Options::default() };
    let oracle = oracle().expect("the reference is linked in");
    let report = verify(&device, &oracle, &options, &mut |_| {}).expect("well-formed cases");
    assert!(report.passed(), "{}", report.table());
    for op in ops {
        let passed = report.cases.iter().any(|c| c.op == op && c.outcome == Outcome::Passed);
        assert!(passed, "no case of {op}");
    }
}

#[test]
fn on_the_reference() {
    built(&oracle().expect("it is linked in"), &BUILT);
}

#[test]
fn on_the_cpu() {
    let cpu = Backend::builtin(halyard_cpu::module()).open(0, &[]).expect("it always opens");
    built(&cpu, &BUILT);
}

#[test]
fn support_tells_what_an_op_is_built_from() {
    let rows = TensorSpec::new(DType::F32, &[-1, 64]);
    let gamma = TensorSpec::new(DType::F32, &[64]);
    let norm = |residual| OpBuf::new(&RmsNorm::default(), [rows, gamma, rows, residual], []);
    let native = Backend::builtin(halyard_cpu::module()).open(0, &[]).expect("it always opens");
    let always = native.decomposing(Decompose::Always);
    let missing = native.decomposing(Decompose::Missing);
    assert_eq!(always.support(&norm(rows)), Support::Slow("built from add, rms_norm".into()));
    assert_eq!(missing.support(&norm(rows)), native.support(&norm(rows)));
    assert_eq!(always.support(&norm(TensorSpec::NONE)), native.support(&norm(TensorSpec::NONE)));
}

/// The reference with every op built that can be.
struct Bench {
    device: Device,
    stream: Stream,
}

impl Bench {
    fn new() -> Self {
        let device = oracle().expect("it is linked in").decomposing(Decompose::Always);
        let stream = device.stream(0).expect("it has streams");
        Self { device, stream }
    }

    fn tensor<T: Element>(&self, dims: &[usize], data: &[T]) -> Tensor {
        self.device.tensor_from(&self.stream, dims, data).expect("they fit")
    }

    fn numbers(&self, dims: &[usize], of: impl Fn(usize) -> f32) -> (Tensor, Vec<f64>) {
        let data: Vec<f32> = (0..dims.iter().product()).map(of).collect();
        (self.tensor(dims, &data), data.iter().map(|&x| f64::from(x)).collect())
    }

    fn read<T: Element + Default>(&self, tensor: &Tensor) -> Vec<T> {
        let mut data = vec![T::default(); tensor.dims().iter().product()];
        tensor.read(&self.stream, &mut data).expect("it has so many");
        data
    }

    /// A dense weight `[n, k]`.
    fn weight(&self, n: usize, k: usize, of: impl Fn(usize) -> f32) -> (Weight, Vec<f64>) {
        let data: Vec<f32> = (0..n * k).map(of).collect();
        let desc = WeightDesc::linear(Scheme::DENSE, DType::F32, n as u64, k as u64);
        let bytes: Vec<u8> = data.iter().flat_map(|v| v.to_le_bytes()).collect();
        let mut builder = self.device.weight(desc).expect("it is dense");
        builder.fill(&self.stream, 0, 0, n as u64, &[&bytes]).expect("all rows");
        let weight = builder.seal(&self.stream).expect("all rows");
        (weight, data.iter().map(|&x| f64::from(x)).collect())
    }

    /// Launches an op on scratch memory full of NaN.
    fn run(&self, op: OpBuf, tensors: &[Option<&Tensor>], weights: &[&Weight], host: &[&[i32]]) {
        let kernel = self.device.prepare(op).expect("it can be built");
        let mut launch = Launch::new(&kernel, tensors, weights).expect("they belong to the op");
        let longest = |h: &&[i32]| h.windows(2).map(|w| w[1] - w[0]).max().unwrap_or(0);
        for (at, lengths) in host.iter().enumerate() {
            let most = u64::try_from(longest(lengths)).expect("no length is negative");
            launch.set_scalar(at, most).expect("the op has it");
        }
        let workspace =
            Workspace::new(&self.device, launch.workspace_bytes()).expect("it is small");
        if let Some(scratch) = workspace.buffer() {
            let bytes = scratch.bytes() / 4 * 4;
            scratch.fill(&self.stream, 0, bytes, u32::MAX).expect("it is inside");
        }
        launch.run(&self.stream, &workspace, host).expect("it runs");
        self.stream.sync().expect("it ends");
    }
}

fn specs<const N: usize>(tensors: [Option<&Tensor>; N]) -> Vec<TensorSpec> {
    tensors.map(|t| t.map_or(TensorSpec::NONE, Tensor::spec)).to_vec()
}

#[track_caller]
fn close(got: &[f32], want: &[f64]) {
    assert_eq!(got.len(), want.len());
    for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
        let error = (f64::from(got) - want).abs();
        assert!(error <= 1e-5 * want.abs().max(1.0), "element {i} is {got}, expected {want}");
    }
}

/// `x rsqrt(mean x² + 1e-6) gamma`.
fn normed(x: &[f64], gamma: &[f64]) -> Vec<f64> {
    let mean = x.iter().map(|v| v * v).sum::<f64>() / x.len() as f64;
    x.iter().zip(gamma).map(|(v, g)| v / (mean + 1e-6).sqrt() * g).collect()
}

#[test]
fn a_gated_layer() {
    let bench = Bench::new();
    let (tokens, k, inner) = (3, 4, 2);
    let (x, xs) = bench.numbers(&[tokens, k], |i| (i as f32 * 0.7).sin());
    let (bias, bs) = bench.numbers(&[2 * inner], |i| i as f32 * 0.25);
    let (w, rows) = bench.weight(2 * inner, k, |i| (i as f32 * 1.3).cos());
    let (y, _) = bench.numbers(&[tokens, inner], |_| f32::NAN);
    let slots = [Some(&x), Some(&bias), Some(&y)];
    let op = OpBuf::new(&LinearActMul::default(), specs(slots), [*w.desc()]);
    bench.run(op, &slots, &[&w], &[]);

    let linear = |t: usize, n: usize| -> f64 {
        bs[n] + (0..k).map(|j| xs[t * k + j] * rows[n * k + j]).sum::<f64>()
    };
    let gated = |t, i| {
        let gate = linear(t, i);
        gate / (1.0 + (-gate).exp()) * linear(t, inner + i)
    };
    let want: Vec<f64> = (0..tokens)
        .flat_map(|t| (0..inner).map(move |i| (t, i)))
        .map(|(t, i)| gated(t, i))
        .collect();
    close(&bench.read(&y), &want);
}

#[test]
fn a_norm_whose_result_is_quantised() {
    let bench = Bench::new();
    let (x, xs) = bench.numbers(&[2, 4], |i| i as f32 - 2.5);
    let (r, rs) = bench.numbers(&[2, 4], |i| (i as f32).sqrt());
    let (gamma, gs) = bench.numbers(&[4], |i| 1.0 + i as f32);
    let q = bench.tensor(&[2, 4], &[0i8; 8]);
    let scale = bench.tensor(&[2, 1], &[f32::NAN; 2]);
    let slots = [Some(&x), Some(&gamma), Some(&q), Some(&scale), Some(&r)];
    bench.run(OpBuf::new(&RmsNormQuant::default(), specs(slots), []), &slots, &[], &[]);

    let sums: Vec<f64> = xs.iter().zip(&rs).map(|(x, r)| x + r).collect();
    close(&bench.read(&r), &sums);
    let (q, scale) = (bench.read::<i8>(&q), bench.read::<f32>(&scale));
    for row in 0..2 {
        let want = normed(&sums[row * 4..][..4], &gs);
        let largest = want.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
        close(&scale[row..=row], &[largest / 127.0]);
        for (got, want) in q[row * 4..][..4].iter().zip(want) {
            let error = f64::from(*got) - want / (largest / 127.0);
            assert!(error.abs() <= 0.5 + 1e-4, "{got}, expected {want} / {}", largest / 127.0);
        }
    }
}

#[test]
fn what_follows_a_projection() {
    let bench = Bench::new();
    let (tokens, hq, hk, dim) = (3usize, 2, 1, 4);
    let width = (hq + 2 * hk) * dim;
    let (qkv, rows) = bench.numbers(&[tokens, width], |i| (i as f32 * 0.9).sin());
    let (q_gamma, q_gammas) = bench.numbers(&[dim], |i| 1.0 + i as f32 * 0.5);
    let pos = bench.tensor(&[tokens], &[2, 0, 1]);
    // Half the dims turn: cosines of two angles, then their sines.
    let (table, turns) = bench.numbers(&[3, dim], |i| {
        let angle = (i / dim) as f32 * [1.0, 0.1][i % 2];
        if i % dim < 2 { angle.cos() } else { angle.sin() }
    });
    let slots_of = bench.tensor(&[tokens], &[0i64, 1, 2]);
    let (q, _) = bench.numbers(&[tokens, hq, dim], |_| f32::NAN);
    let kv = KvDesc {
        kind: 1,
        dtype: DType::F32,
        heads: 1,
        dim_k: 4,
        dim_v: 4,
        block_size: 4,
        attrs: WeightDesc::linear(Scheme::DENSE, DType::F32, 1, 1).attrs,
    };
    let cache = bench.device.kv_cache(&kv, 1).expect("it is plain");
    let caches = (Some(&cache.k), cache.v.as_ref());
    let slots = [
        Some(&qkv),
        Some(&q_gamma),
        None,
        Some(&pos),
        Some(&table),
        Some(&slots_of),
        Some(&q),
        caches.0,
        caches.1,
    ];
    bench.run(OpBuf::new(&QkvPost::default(), specs(slots), []), &slots, &[], &[]);

    let turned = |x: &[f64], token: usize| -> Vec<f64> {
        let turn = &turns[[2, 0, 1][token] * dim..][..dim];
        let pair = |i: usize| (x[i % 2], x[i % 2 + 2], turn[i % 2], turn[i % 2 + 2]);
        let element = |i| match (i < 2, pair(i)) {
            (true, (a, b, cos, sin)) => a * cos - b * sin,
            (false, (a, b, cos, sin)) => b * cos + a * sin,
        };
        (0..dim).map(element).collect()
    };
    let part = |token: usize, head: usize| &rows[token * width + head * dim..][..dim];
    let pairs = |heads| (0..tokens).flat_map(move |t| (0..heads).map(move |h| (t, h)));
    let want = pairs(hq).flat_map(|(t, h)| turned(&normed(part(t, h), &q_gammas), t));
    close(&bench.read(&q), &want.collect::<Vec<_>>());

    let (block_table, cu) = (bench.tensor(&[1, 1], &[0]), bench.tensor(&[2], &[0, 3]));
    let (k, _) = bench.numbers(&[tokens, hk, dim], |_| f32::NAN);
    let (v, _) = bench.numbers(&[tokens, hk, dim], |_| f32::NAN);
    let slots = [caches.0, caches.1, Some(&block_table), Some(&cu), Some(&k), Some(&v)];
    bench.run(OpBuf::new(&KvGather::default(), specs(slots), []), &slots, &[], &[&[0, 3]]);
    let want = pairs(hk).flat_map(|(t, h)| turned(part(t, hq + h), t));
    close(&bench.read(&k), &want.collect::<Vec<_>>());
    let want = pairs(hk).flat_map(|(t, h)| part(t, hq + hk + h).to_vec());
    close(&bench.read(&v), &want.collect::<Vec<_>>());
}

#[test]
fn a_layer_summed_over_ranks() {
    const WORLD: u32 = 2;
    const NUMBER: i64 = 7;
    let (tokens, n, k) = (3, 5, 4);
    let x_of = |rank: u32| move |i: usize| (i as f32 * 0.7 + rank as f32).sin();
    let w_of = |rank: u32| move |i: usize| (i as f32 * 1.3 - rank as f32).cos();
    let id = Bench::new().device.comm_id().expect("it has collectives");
    let play = |rank: u32| {
        let bench = Bench::new();
        let (x, _) = bench.numbers(&[tokens, k], x_of(rank));
        let (w, _) = bench.weight(n, k, w_of(rank));
        let (y, _) = bench.numbers(&[tokens, n], |_| f32::NAN);
        let slots = [Some(&x), None, Some(&y)];
        let attrs = LinearAllReduce { comm: NUMBER, act_quant: 0 };
        let op = OpBuf::new(&attrs, specs(slots), [*w.desc()]);
        let alone = bench.device.support(&op);
        assert!(matches!(&alone, Support::No(why) if why.contains("number 7")), "{alone:?}");
        let spec = CommSpec {
            id: &id,
            rank,
            world: WORLD,
            timeout: std::time::Duration::from_secs(30),
            name: "layers",
            number: Some(NUMBER),
        };
        let comm = bench.device.join(&spec).expect("all come");
        let together = Support::Slow("built from linear, all_reduce, copy".into());
        assert_eq!(bench.device.support(&op), together);
        bench.run(op, &slots, &[&w], &[]);
        drop(comm);
        bench.read::<f32>(&y)
    };
    let results = std::thread::scope(|scope| {
        let play = &play;
        let threads = [0, 1].map(|rank| scope.spawn(move || play(rank)));
        threads.map(|t| t.join().expect("no rank panics"))
    });
    let element = |t: usize, n: usize| -> f64 {
        let product = |rank, j| f64::from(x_of(rank)(t * k + j)) * f64::from(w_of(rank)(n * k + j));
        (0..WORLD).flat_map(|rank| (0..k).map(move |j| (rank, j))).map(|(r, j)| product(r, j)).sum()
    };
    let want: Vec<f64> =
        (0..tokens).flat_map(|t| (0..n).map(move |n| (t, n))).map(|(t, n)| element(t, n)).collect();
    for got in results {
        close(&got, &want);
    }
}
