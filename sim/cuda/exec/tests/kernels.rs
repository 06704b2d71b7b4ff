//! Kernels that clang compiled, against references in f64. Their sources are in `sim/cuda/kernels`.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_possible_wrap,
    clippy::float_cmp,
    reason = "tests: sizes are small, results exact where compared"
)]

mod machine;

use half::bf16;
use halyard_sim_cuda_exec::{Class, Counters};
use machine::{Machine, halves, numbers};

/// Each source as PTX for both architectures.
macro_rules! kernels {
    ($name:literal) => {
        [
            include_str!(concat!("../../kernels/ptx/", $name, ".sm_80.ptx")),
            include_str!(concat!("../../kernels/ptx/", $name, ".sm_90.ptx")),
        ]
    };
}

fn place(machine: &Machine, values: &[bf16]) -> u64 {
    machine.buffer(values, bf16::to_le_bytes)
}

/// One unit of bf16's last place, relative: the result is rounded once, sums are f32.
fn assert_close(got: &[bf16], want: &[f64]) {
    for (at, (got, want)) in got.iter().zip(want).enumerate() {
        let error = (got.to_f64() - want).abs();
        assert!(error <= want.abs().max(0.05) * 2f64.powi(-8), "element {at}: {got} for {want}");
    }
}

#[test]
fn vector_add() {
    for ptx in kernels!("vector_add") {
        let machine = Machine::new(ptx);
        for count in [1, 31, 256, 1000] {
            let (a, b) = (numbers(count, 1), numbers(count, 2));
            let (out, da, db) = (machine.space(4 * count), machine.f32s(&a), machine.f32s(&b));
            let blocks = count.div_ceil(128) as u32;
            let args = [out.into(), da.into(), db.into(), (count as u32).into()];
            machine.launch("vector_add_f32", ([blocks, 1, 1], [128, 1, 1], 0), &args).unwrap();
            let want: Vec<_> = a.iter().zip(&b).map(|(a, b)| a + b).collect();
            assert_eq!(machine.read(out, count, f32::from_le_bytes), want);
        }
    }
}

#[test]
fn rms_norm() {
    for ptx in kernels!("rms_norm") {
        let machine = Machine::new(ptx);
        let (rows, width) = (5, 1032);
        let (x, weight) = (halves(rows * width, 3), halves(width, 4));
        let out = machine.space(2 * rows * width);
        let args = [
            out.into(),
            place(&machine, &x).into(),
            place(&machine, &weight).into(),
            1e-5f32.into(),
            (width as u32).into(),
        ];
        machine.launch("rms_norm_bf16", ([rows as u32, 1, 1], [256, 1, 1], 0), &args).unwrap();
        let want: Vec<_> = x
            .chunks_exact(width)
            .flat_map(|row| {
                let mean = row.iter().map(|x| x.to_f64().powi(2)).sum::<f64>() / width as f64;
                let scale = 1.0 / (mean + 1e-5).sqrt();
                row.iter().zip(&weight).map(move |(x, w)| x.to_f64() * scale * w.to_f64())
            })
            .collect();
        assert_close(&machine.read(out, rows * width, bf16::from_le_bytes), &want);
    }
}

fn gemm(machine: &Machine, (m, n, k): (usize, usize, usize)) -> Counters {
    let (a, b) = (halves(m * k, 5), halves(n * k, 6));
    let out = machine.space(2 * m * n);
    let [dm, dn, dk] = [m, n, k].map(|extent| extent as u32);
    let args = [
        out.into(),
        place(machine, &a).into(),
        place(machine, &b).into(),
        dm.into(),
        dn.into(),
        dk.into(),
    ];
    let grid = [dn.div_ceil(64), dm.div_ceil(64), 1];
    let counters =
        machine.launch("gemm_bf16_nt", (grid, [128, 1, 1], 3 * 2 * 64 * 32 * 2), &args).unwrap();
    let want: Vec<_> = (0..m * n)
        .map(|at| {
            let (row, column) = (at / n, at % n);
            (0..k).map(|i| a[row * k + i].to_f64() * b[column * k + i].to_f64()).sum::<f64>()
        })
        .collect();
    assert_close(&machine.read(out, m * n, bf16::from_le_bytes), &want);
    counters
}

#[test]
fn gemm_on_tensor_cores() {
    for ptx in kernels!("gemm") {
        let machine = Machine::new(ptx);
        for shape in [(64, 64, 32), (64, 64, 128), (100, 72, 136), (1, 130, 64), (65, 66, 8)] {
            for seed in 1..4 {
                machine.seed.set(seed);
                gemm(&machine, shape);
            }
        }
    }
}

#[test]
fn gemm_is_counted() {
    let machine = Machine::new(kernels!("gemm")[0]);
    let counters = gemm(&machine, (128, 128, 256));
    assert_eq!(counters.tensor_ops, 2 * 128 * 128 * 256);
    assert_eq!(counters.of(Class::Tensor), 128 * 128 * 256 / (16 * 8 * 16));
    // Every element of a and b is needed, and c is written once: 32 bytes a sector.
    assert_eq!(counters.unique_read_sectors, 2 * 128 * 256 * 2 / 32);
    assert_eq!(counters.unique_written_sectors, 128 * 128 * 2 / 32);
    assert_eq!(counters.worst_bank_conflict, 1, "the tiles are swizzled");
    // Each tile is read by two blocks.
    assert_eq!(counters.read_sectors, 2 * counters.unique_read_sectors);
}

#[test]
fn paged_decode_with_online_softmax() {
    for ptx in kernels!("paged_decode") {
        let machine = Machine::new(ptx);
        let (heads, kv_heads, pages, page, max_pages) = (8, 2, 60, 16, 20);
        let lens = [1i32, 0, 17, 300, 5];
        let seqs = lens.len();
        let query = halves(seqs * heads * 128, 7);
        let (keys, values) =
            (halves(pages * page * kv_heads * 128, 8), halves(pages * page * kv_heads * 128, 9));
        let table: Vec<i32> =
            (0..seqs * max_pages).map(|at| (at * 7 + 3) as i32 % pages as i32).collect();
        let scale = 0.125f32;
        let out = machine.space(2 * seqs * heads * 128);
        let mut shape = machine::Arg::from(heads as u32);
        shape.extend([kv_heads, max_pages, page].map(|extent| extent as u32));
        let args = [
            out.into(),
            place(&machine, &query).into(),
            place(&machine, &keys).into(),
            place(&machine, &values).into(),
            machine.buffer(&table, i32::to_le_bytes).into(),
            machine.buffer(&lens, i32::to_le_bytes).into(),
            scale.into(),
            shape,
        ];
        machine
            .launch("paged_decode_bf16", ([seqs as u32, heads as u32, 1], [128, 1, 1], 0), &args)
            .unwrap();
        let at = |seq: usize, t: usize, head: usize| {
            let slot = table[seq * max_pages + t / page] as usize * page + t % page;
            (slot * kv_heads + head / (heads / kv_heads)) * 128
        };
        let mut want = vec![0f64; seqs * heads * 128];
        for row in 0..seqs * heads {
            let (seq, head) = (row / heads, row % heads);
            let score = |t: usize| {
                let key = at(seq, t, head);
                let dot: f64 =
                    (0..128).map(|d| query[row * 128 + d].to_f64() * keys[key + d].to_f64()).sum();
                dot * f64::from(scale)
            };
            let weights: Vec<_> = (0..lens[seq] as usize).map(|t| score(t).exp()).collect();
            let total: f64 = weights.iter().sum();
            for (t, weight) in weights.iter().enumerate() {
                for d in 0..128 {
                    want[row * 128 + d] += weight / total * values[at(seq, t, head) + d].to_f64();
                }
            }
        }
        assert_close(&machine.read(out, want.len(), bf16::from_le_bytes), &want);
    }
}
