//! Kernels that Triton compiled, against values computed in f64. `triton/make.py` has their sources and makes the PTX.
//!
//! Bounds follow from the roundings of a kernel: `F32` and `BF16` are the relative error of one rounding.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_possible_wrap,
    clippy::cast_precision_loss,
    clippy::float_cmp,
    reason = "tests: sizes are small, results exact where compared"
)]

mod machine;

use half::{bf16, f16};
use halyard_sim_cuda_exec::TensorMap;
use machine::{Arg, Machine, halves, numbers, words};
use std::fs;
use std::path::PathBuf;

const F32: f64 = 1.0 / (1 << 24) as f64;
const BF16: f64 = 1.0 / (1 << 8) as f64;
/// Relative error of `ex2.approx`, `rsqrt.approx` and `div.full`: two units of the last place.
const APPROXIMATE: f64 = 4.0 * F32;

/// A kernel for one architecture, on a device of it.
struct Kernel {
    machine: Machine,
    table: toml::Table,
    threads: u32,
    shared_bytes: u32,
    /// Bytes of scratch memory for each block.
    scratch_bytes: usize,
    /// Rows, columns and swizzle mode of each tensor map's tile.
    maps: Vec<[u32; 3]>,
}

/// `name` for each architecture that `launch.toml` has.
fn kernels(name: &str) -> Vec<Kernel> {
    let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/triton"));
    let launch: toml::Table =
        fs::read_to_string(folder.join("launch.toml")).unwrap().parse().unwrap();
    let table = launch[name].as_table().unwrap();
    let devices = [("sm_80", "a100-80g"), ("sm_89", "l20"), ("sm_90", "h100")];
    let found: Vec<_> = devices
        .iter()
        .filter_map(|(arch, device)| {
            let needs = table.get(*arch)?;
            let file = folder.join(format!("{name}.{arch}.ptx"));
            let machine = Machine::load(&fs::read_to_string(&file).unwrap(), device, 1)
                .unwrap_or_else(|error| panic!("{}: {error}", file.display()));
            let number = |key: &str| needs[key].as_integer().unwrap() as u32;
            let (threads, shared_bytes) = (number("threads"), number("shared_bytes"));
            let scratch_bytes =
                needs.get("scratch_bytes").map_or(0, |bytes| bytes.as_integer().unwrap() as usize);
            let maps =
                needs.get("maps").map_or(Vec::new(), |maps| maps.clone().try_into().unwrap());
            let table = table.clone();
            Some(Kernel { machine, table, threads, shared_bytes, scratch_bytes, maps })
        })
        .collect();
    assert!(!found.is_empty(), "{name} is there for no architecture");
    found
}

impl Kernel {
    fn constant(&self, key: &str) -> usize {
        self.table[key].as_integer().unwrap() as usize
    }

    /// Launches it under each of three orders of blocks and warps, and calls `check` after each.
    fn run(&self, grid: [usize; 2], args: impl Fn() -> Vec<Arg>, check: impl Fn()) {
        let entry = self.table["entry"].as_str().unwrap();
        let grid = [grid[0] as u32, grid[1] as u32, 1];
        for seed in 1..4 {
            self.machine.seed.set(seed);
            let mut args = args();
            // Triton appends two addresses of scratch memory, the second for a profiler.
            let scratch = match self.scratch_bytes * (grid[0] * grid[1]) as usize {
                0 => 0,
                bytes => self.machine.space(bytes),
            };
            args.extend([scratch.into(), 0u64.into()]);
            let shape = (grid, [self.threads, 1, 1], self.shared_bytes);
            self.machine.launch(entry, shape, &args).unwrap_or_else(|fault| panic!("{fault}"));
            check();
        }
    }

    fn halves(&self, values: &[bf16]) -> u64 {
        self.machine.buffer(values, bf16::to_le_bytes)
    }

    fn i32s(&self, values: &[i32]) -> u64 {
        self.machine.buffer(values, i32::to_le_bytes)
    }
}

/// Each element is as near to its value as its bound says: `(value, bound)`.
fn assert_within(got: impl IntoIterator<Item = f64>, want: &[(f64, f64)]) {
    let mut count = 0;
    for (at, (got, (want, bound))) in got.into_iter().zip(want).enumerate() {
        let error = (got - want).abs();
        assert!(
            error <= *bound,
            "element {at}: {got} for {want}, {error:e} off, {bound:e} allowed"
        );
        count += 1;
    }
    assert_eq!(count, want.len());
}

#[test]
fn vector_add() {
    for kernel in kernels("vector_add") {
        let machine = &kernel.machine;
        for count in [1, 255, 256, 1000] {
            let (a, b) = (numbers(count, 1), numbers(count, 2));
            let (out, x, y) = (machine.space(4 * count), machine.f32s(&a), machine.f32s(&b));
            let grid = [count.div_ceil(kernel.constant("BLOCK")), 1];
            let args = || vec![out.into(), x.into(), y.into(), (count as u32).into()];
            let want: Vec<_> = a.iter().zip(&b).map(|(a, b)| a + b).collect();
            let check = || assert_eq!(machine.read(out, count, f32::from_le_bytes), want);
            kernel.run(grid, args, check);
        }
    }
}

#[test]
fn softmax() {
    for kernel in kernels("softmax") {
        let machine = &kernel.machine;
        for (rows, width) in [(3, 256), (2, 1), (5, 203)] {
            let x: Vec<_> = numbers(rows * width, 3).iter().map(|x| 4.0 * x).collect();
            let (out, place) = (machine.space(4 * x.len()), machine.f32s(&x));
            let want: Vec<_> = x
                .chunks_exact(width)
                .flat_map(|row| {
                    let highest = f64::from(row.iter().copied().fold(f32::MIN, f32::max));
                    let total: f64 = row.iter().map(|x| (f64::from(*x) - highest).exp()).sum();
                    // The difference, log2(e) and the product with it are rounded; the exponent turns these errors into
                    // relative ones, of the weight and of each term of the sum.
                    let weight = 3.0 * 8.0 * F32 + APPROXIMATE;
                    let relative = 2.0 * weight + width as f64 * F32 + APPROXIMATE;
                    row.iter().map(move |x| {
                        let value = (f64::from(*x) - highest).exp() / total;
                        (value, value * relative)
                    })
                })
                .collect();
            let args = || vec![out.into(), place.into(), (width as u32).into()];
            let check = || {
                let got = machine.read(out, x.len(), f32::from_le_bytes);
                assert_within(got.into_iter().map(f64::from), &want);
            };
            kernel.run([rows, 1], args, check);
        }
    }
}

#[test]
fn rms_norm() {
    for kernel in kernels("rms_norm") {
        let machine = &kernel.machine;
        for (rows, width) in [(3, 1024), (2, 1000), (4, 77)] {
            let (x, scale) = (halves(rows * width, 4), halves(width, 5));
            let out = machine.space(2 * x.len());
            let places = [out, kernel.halves(&x), kernel.halves(&scale)];
            let epsilon = 1e-5f32;
            let want: Vec<_> = x
                .chunks_exact(width)
                .flat_map(|row| {
                    let squares: f64 = row.iter().map(|x| x.to_f64().powi(2)).sum();
                    let factor = (squares / width as f64 + f64::from(epsilon)).sqrt().recip();
                    // The sum, two roundings of the mean (halved by the root), the root, two products.
                    let f32s =
                        (width as f64 + 2.0) / 2.0 * F32 + APPROXIMATE + 2.0 * F32 + APPROXIMATE;
                    let scales = scale.iter().map(|scale| scale.to_f64());
                    row.iter().zip(scales).map(move |(x, scale)| {
                        let value = x.to_f64() * factor * scale;
                        (value, value.abs() * (BF16 + 2.0 * f32s))
                    })
                })
                .collect();
            let args = || {
                let mut args: Vec<Arg> = places.map(Arg::from).into();
                args.extend([epsilon.into(), (width as u32).into()]);
                args
            };
            let check = || {
                let got = machine.read(out, x.len(), bf16::from_le_bytes);
                assert_within(got.into_iter().map(f64::from), &want);
            };
            kernel.run([rows, 1], args, check);
        }
    }
}

/// A product of `bf16`, with the parameters that `operands` makes of the places of out, a and b.
fn multiply(name: &str, operands: impl Fn(&Kernel, [u64; 3], [usize; 3]) -> Vec<Arg>) {
    for kernel in kernels(name) {
        let machine = &kernel.machine;
        // n and k are multiples of 16, as the kernel was told.
        for [m, n, k] in [[64, 64, 32], [64, 128, 256], [100, 80, 144], [1, 16, 16]] {
            let (a, b) = (halves(m * k, 6), halves(k * n, 7));
            let out = machine.space(2 * m * n);
            let places = [out, kernel.halves(&a), kernel.halves(&b)];
            let want: Vec<_> = (0..m * n)
                .map(|at| {
                    let (row, column) = (at / n, at % n);
                    let product = |i: usize| a[row * k + i].to_f64() * b[i * n + column].to_f64();
                    let value: f64 = (0..k).map(product).sum();
                    let size: f64 = (0..k).map(|i| product(i).abs()).sum();
                    // Products are exact; a sum of tensor cores may truncate, which is two roundings a term.
                    let sum = 2.0 * k as f64 * F32 * size;
                    (value, sum + (value.abs() + sum) * BF16)
                })
                .collect();
            let grid = [n.div_ceil(kernel.constant("N")), m.div_ceil(kernel.constant("M"))];
            let args = || {
                let mut args = operands(&kernel, places, [m, n, k]);
                args.extend([m, n, k].map(|extent| Arg::from(extent as u32)));
                args
            };
            let check = || {
                let got = machine.read(out, m * n, bf16::from_le_bytes);
                assert_within(got.into_iter().map(f64::from), &want);
            };
            kernel.run(grid, args, check);
        }
    }
}

#[test]
fn matmul() {
    for name in ["matmul", "matmul_wide", "matmul_of_descriptors"] {
        multiply(name, |_, places, _| places.map(Arg::from).into());
    }
}

/// A tensor map is a parameter, and so are the extents and strides of its tensor.
#[test]
fn matmul_of_maps() {
    multiply("matmul_of_maps", |kernel, places, [m, n, k]| {
        let shapes = [[m, n], [m, k], [k, n]];
        let mut args = Vec::new();
        for ((place, [rows, columns]), [tile_rows, tile_columns, swizzle]) in
            places.into_iter().zip(shapes).zip(&kernel.maps)
        {
            let map = TensorMap {
                address: place,
                rank: 2,
                element: 10,
                extents: [columns as u32, rows as u32, 0, 0, 0],
                strides: [2 * columns as u64, 0, 0, 0],
                tile: [*tile_columns, *tile_rows, 0, 0, 0],
                steps: [1; 5],
                interleave: 0,
                swizzle: *swizzle as u8,
                fill: 0,
            };
            args.push(Arg::from(map.encode()));
            args.extend([Arg::from(rows as u32), Arg::from(columns as u32)]);
            args.extend([Arg::from(columns as u64), Arg::from(1u64)]);
        }
        args
    });
}

/// Numbers as a matrix's bytes and as values.
type Numbers = (Vec<u8>, Vec<f64>);

fn encode<const N: usize>(count: usize, seed: u64, one: impl Fn(u32) -> ([u8; N], f64)) -> Numbers {
    let (bytes, values): (Vec<_>, Vec<_>) = words(count, seed).map(one).unzip();
    (bytes.concat(), values)
}

/// `linear_{name}` on `numbers(count, seed)`; a term of the sum is wrong by no more than `rounding`, relative to all terms.
fn linear(
    name: &str,
    numbers: impl Fn(usize, u64) -> Numbers,
    result: impl Fn([u8; 4]) -> f64,
    rounding: f64,
) {
    let all = ["linear", "linear_wide"].map(|family| kernels(&format!("{family}_{name}")));
    for kernel in all.into_iter().flatten() {
        let machine = &kernel.machine;
        for [m, n, k] in [[32, 32, 64], [40, 33, 128], [1, 70, 320]] {
            let ((left, a), (right, b)) = (numbers(m * k, 8), numbers(n * k, 9));
            let out = machine.space(4 * m * n);
            let places = [
                out,
                machine.buffer(&left, u8::to_le_bytes),
                machine.buffer(&right, u8::to_le_bytes),
            ];
            let want: Vec<_> = (0..m * n)
                .map(|at| {
                    let (row, column) = (&a[at / n * k..][..k], &b[at % n * k..][..k]);
                    let terms = row.iter().zip(column).map(|(a, b)| a * b);
                    let size: f64 = terms.clone().map(f64::abs).sum();
                    (terms.sum(), k as f64 * rounding * size)
                })
                .collect();
            let grid = [n.div_ceil(kernel.constant("N")), m.div_ceil(kernel.constant("M"))];
            let args = || {
                let mut args: Vec<Arg> = places.map(Arg::from).into();
                args.extend([m, n, k].map(|extent| Arg::from(extent as u32)));
                args
            };
            kernel.run(grid, args, || assert_within(machine.read(out, m * n, &result), &want));
        }
    }
}

fn single(bytes: [u8; 4]) -> f64 {
    f32::from_le_bytes(bytes).into()
}

#[test]
fn linear_of_integers() {
    let numbers =
        |count, seed| encode(count, seed, |word| ([word as u8], f64::from(word as u8 as i8)));
    linear("int8", numbers, |bytes| i32::from_le_bytes(bytes).into(), 0.0);
}

/// Products are exact in f32; a sum of tensor cores may truncate, which is two roundings a term.
#[test]
fn linear_of_halves() {
    let half = |word: u32| f16::from_f64(f64::from(word) / 2f64.powi(31) - 1.0);
    let numbers =
        |count, seed| encode(count, seed, |word| (half(word).to_le_bytes(), half(word).to_f64()));
    linear("float16", numbers, single, 2.0 * F32);
    // The same numbers, which are exact in tf32, too.
    let numbers = |count, seed| {
        encode(count, seed, |word| (half(word).to_f32().to_le_bytes(), half(word).to_f64()))
    };
    linear("tf32", numbers, single, 2.0 * F32);
}

/// Finite numbers of eight bits, of which `fraction` are the fraction's.
fn eighths(count: usize, seed: u64, fraction: u32) -> Numbers {
    encode(count, seed, |word| {
        let highest = 0x7f >> fraction;
        let exponent = (word >> 8) % highest;
        let part = word % (1 << fraction);
        let sign = word >> 31;
        let bits = sign << 7 | exponent << fraction | part;
        let bias = highest as i32 / 2;
        let fraction = f64::from(part) / f64::from(1 << fraction);
        let size = match exponent {
            0 => fraction * 2f64.powi(1 - bias),
            _ => (1.0 + fraction) * 2f64.powi(exponent as i32 - bias),
        };
        ([bits as u8], if sign == 1 { -size } else { size })
    })
}

#[test]
fn linear_of_eight_bit_floats() {
    linear("e4m3", |count, seed| eighths(count, seed, 3), single, 2.0 * F32);
    linear("e5m2", |count, seed| eighths(count, seed, 2), single, 2.0 * F32);
}

/// The values of causal attention of one head, `[tokens, dim]` each, and the bound of each.
fn attend([q, k, v]: [&[bf16]; 3], dim: usize, scale: f64) -> Vec<(f64, f64)> {
    let row = |of: &[bf16], at: usize| -> Vec<f64> {
        of[at * dim..][..dim].iter().map(|x| x.to_f64()).collect()
    };
    let mut want = Vec::new();
    for token in 0..q.len() / dim {
        let query = row(q, token);
        let products = |key: usize| -> Vec<f64> {
            query.iter().zip(row(k, key)).map(|(q, k)| q * k * scale).collect()
        };
        let scores: Vec<f64> = (0..=token).map(|key| products(key).iter().sum()).collect();
        let sizes = (0..=token).map(|key| products(key).iter().map(|x| x.abs()).sum::<f64>());
        let largest = sizes.fold(0.0, f64::max);
        let weights: Vec<_> = scores.iter().map(|score| score.exp()).collect();
        let total: f64 = weights.iter().sum();
        // A score's sum may truncate; it is scaled (three roundings) and the highest, itself such a score, is subtracted
        // (one). A weight is `ex2` of that, and shrinks once a block of keys, by a factor with the same errors.
        let score = largest * (2.0 * dim as f64 + 4.0) * F32;
        let keys = (token + 1) as f64;
        let weight = 2.0 * score + keys * (APPROXIMATE + F32);
        // In the numerator and in the sum, where each addition may truncate; the division.
        let f32s = 2.0 * weight + 2.0 * 2.0 * keys * F32 + APPROXIMATE;
        for d in 0..dim {
            let terms = (0..=token).map(|key| weights[key] / total * v[key * dim + d].to_f64());
            let value: f64 = terms.clone().sum();
            let size: f64 = terms.map(f64::abs).sum();
            // Weights are bf16 in the product with v, and the result is.
            let bound = size * (BF16 + f32s);
            want.push((value, bound + (value.abs() + bound) * BF16));
        }
    }
    want
}

#[test]
fn attention() {
    for kernel in kernels("attention") {
        let machine = &kernel.machine;
        let dim = kernel.constant("D");
        for (heads, tokens) in [(2, 64), (1, 1), (2, 150)] {
            let count = heads * tokens * dim;
            let [q, k, v] = [10, 11, 12].map(|seed| halves(count, seed));
            let scale = 0.125f32;
            let out = machine.space(2 * count);
            let places = [out, kernel.halves(&q), kernel.halves(&k), kernel.halves(&v)];
            let want: Vec<_> = (0..heads)
                .flat_map(|head| {
                    let part = |of: &'_ [bf16]| of[head * tokens * dim..][..tokens * dim].to_vec();
                    attend([&part(&q), &part(&k), &part(&v)], dim, scale.into())
                })
                .collect();
            let args = || {
                let mut args: Vec<Arg> = places.map(Arg::from).into();
                args.extend([(tokens as u32).into(), scale.into()]);
                args
            };
            let check = || {
                let got = machine.read(out, count, bf16::from_le_bytes);
                assert_within(got.into_iter().map(f64::from), &want);
            };
            kernel.run([tokens.div_ceil(kernel.constant("M")), heads], args, check);
        }
    }
}

#[test]
fn histogram() {
    for kernel in kernels("histogram") {
        let machine = &kernel.machine;
        let bins = kernel.constant("BINS");
        for count in [1, 512, 1300] {
            // Fewer of the high ones.
            let values: Vec<_> = words(count, 13)
                .map(|word| (word as usize % bins * (word as usize >> 8) % bins) as i32)
                .collect();
            let place = kernel.i32s(&values);
            let mut want = vec![0i32; bins];
            values.iter().for_each(|value| want[*value as usize] += 1);
            let grid = [count.div_ceil(kernel.constant("BLOCK")), 1];
            let counts = std::cell::Cell::new(0);
            let args = || {
                counts.set(kernel.i32s(&vec![0; bins]));
                vec![counts.get().into(), place.into(), (count as u32).into()]
            };
            let check = || assert_eq!(machine.read(counts.get(), bins, i32::from_le_bytes), want);
            kernel.run(grid, args, check);
        }
    }
}

#[test]
fn argmax() {
    for kernel in kernels("argmax") {
        let machine = &kernel.machine;
        for (rows, width) in [(7, 256), (3, 1), (9, 130)] {
            // Sixteen values only: the highest is there several times, and its first place counts.
            let x: Vec<_> = words(rows * width, 14).map(|word| (word % 16) as f32 - 20.0).collect();
            let (places, highest) = (machine.space(4 * rows), machine.space(4 * rows));
            let place = machine.f32s(&x);
            let args =
                || vec![places.into(), highest.into(), place.into(), Arg::from(width as u32)];
            let (want, values): (Vec<_>, Vec<_>) = x
                .chunks_exact(width)
                .map(|row| {
                    let value = row.iter().copied().fold(f32::MIN, f32::max);
                    (row.iter().position(|x| *x == value).unwrap() as i32, value)
                })
                .unzip();
            let check = || {
                assert_eq!(machine.read(places, rows, i32::from_le_bytes), want);
                assert_eq!(machine.read(highest, rows, f32::from_le_bytes), values);
            };
            kernel.run([rows, 1], args, check);
        }
    }
}

#[test]
fn sort_and_sum() {
    for kernel in kernels("sort_and_sum") {
        let machine = &kernel.machine;
        let (rows, width) = (5, kernel.constant("BLOCK"));
        let x: Vec<_> = words(rows * width, 15).map(|word| word as i32 >> 12).collect();
        let (sorted, sums) = (machine.space(4 * x.len()), machine.space(4 * x.len()));
        let place = kernel.i32s(&x);
        let (mut want_sorted, mut want_sums) = (x.clone(), x.clone());
        want_sorted.chunks_exact_mut(width).for_each(<[i32]>::sort_unstable);
        for row in want_sums.chunks_exact_mut(width) {
            (1..width).for_each(|at| row[at] += row[at - 1]);
        }
        let args = || vec![sorted.into(), sums.into(), place.into()];
        let check = || {
            assert_eq!(machine.read(sorted, x.len(), i32::from_le_bytes), want_sorted);
            assert_eq!(machine.read(sums, x.len(), i32::from_le_bytes), want_sums);
        };
        kernel.run([rows, 1], args, check);
    }
}
