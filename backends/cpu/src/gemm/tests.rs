//! The products against f64, on every instruction set, and their independence of everything around.

use super::*;
use crate::pack::Quant;
use crate::pack::ggml::tests::{dequantise, noise, pack, random_rows};
use std::ops::Range;

/// A packed matrix and its exact values.
struct Weight {
    layout: Layout,
    bytes: Vec<u8>,
    exact: Vec<f64>,
}

impl Weight {
    fn quant(quant: Quant, n: usize, k: usize) -> Self {
        let layout = QuantLayout::new(quant, n, k).unwrap();
        let rows = random_rows(quant, n, k, 11);
        let exact = dequantise(quant, &rows);
        Self { layout: Layout::Quant(layout), bytes: pack(&layout, &rows), exact }
    }

    fn dense(elem: Elem, n: usize, k: usize) -> Self {
        let layout = DenseLayout::new(elem, n, k).unwrap();
        let src = floats(elem, n * k, 5);
        let mut bytes = vec![0; layout.bytes()];
        for i in 0..n {
            // SAFETY: sizes as the layout says.
            unsafe { layout.pack_row(bytes.as_mut_ptr(), i, &src.rows(k), i) };
        }
        Self { layout: Layout::Dense(layout), bytes, exact: src.values() }
    }
}

/// Values of one element type in memory.
struct Floats {
    elem: Elem,
    bytes: Vec<u8>,
}

impl Floats {
    fn rows(&self, cols: usize) -> Rows {
        Rows {
            base: self.bytes.as_ptr(),
            elem: self.elem,
            row_stride: cols * self.elem.bytes(),
            col_stride: self.elem.bytes(),
        }
    }

    fn rows_mut(&mut self, cols: usize) -> RowsMut {
        RowsMut {
            base: self.bytes.as_mut_ptr(),
            elem: self.elem,
            row_stride: cols * self.elem.bytes(),
            col_stride: self.elem.bytes(),
        }
    }

    fn values(&self) -> Vec<f64> {
        // SAFETY: one element's bytes at a time.
        let read = |p: &[u8]| f64::from(unsafe { self.elem.read(p.as_ptr()) });
        self.bytes.chunks_exact(self.elem.bytes()).map(read).collect()
    }
}

/// Roughly normal values with a few large ones.
fn floats(elem: Elem, count: usize, seed: u64) -> Floats {
    let raw = noise(seed, count * 4);
    let mut bytes = vec![0; count * elem.bytes()];
    for ((i, p), r) in bytes.chunks_exact_mut(elem.bytes()).enumerate().zip(raw.chunks_exact(4)) {
        let sum: i32 = r.iter().map(|&b| i32::from(b.cast_signed())).sum();
        let big = if i % 97 == 3 { 50.0 } else { 1.0 };
        // SAFETY: one element's bytes.
        unsafe { elem.write(p.as_mut_ptr(), sum as f32 / 148.0 * big) };
    }
    Floats { elem, bytes }
}

fn run(isa: Isa, pool: &Pool, w: &Weight, x: &Floats, tokens: Range<usize>, y: Elem) -> Floats {
    let (n, k) = (w.layout.n(), w.layout.k());
    let path = Path::new(isa, &w.layout, x.elem);
    let mut scratch = vec![0u64; prep::bytes(isa, path, &w.layout, tokens.len()) / 8 + 1];
    let mut out = Floats { elem: y, bytes: vec![0xff; tokens.len() * n * y.bytes()] };
    let mut rows = x.rows(k);
    rows.base = rows.base.wrapping_add(tokens.start * rows.row_stride);
    let gemm = Gemm {
        isa,
        path,
        w: Matrix { layout: w.layout, base: w.bytes.as_ptr() },
        tokens: tokens.len(),
        x: rows,
        gather: None,
        out: Output { y: out.rows_mut(n), bias: None, accumulate: false },
        scratch: scratch.as_mut_ptr().cast(),
    };
    // SAFETY: all views span their rows; the buffers are this call's own.
    unsafe { gemm.run(pool) };
    out
}

/// Every error is below `limit` f32 rounding steps of the products' magnitudes, where activations that
/// share a factor (`block` of them) count as the largest of them.
fn check(w: &Weight, x: &Floats, y: &Floats, tokens: usize, limit: f64, what: &str) {
    let (n, k) = (w.layout.n(), w.layout.k());
    let block = if matches!(w.layout, Layout::Quant(_)) { 32 } else { 1 };
    let (xs, ys) = (x.values(), y.values());
    for t in 0..tokens {
        for r in 0..n {
            let (x, w) = (&xs[t * k..][..k], &w.exact[r * k..][..k]);
            let want: f64 = x.iter().zip(w).map(|(a, b)| a * b).sum();
            let magnitude = |(x, w): (&[f64], &[f64])| {
                let largest = x.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
                largest * w.iter().map(|w| w.abs()).sum::<f64>()
            };
            let size: f64 = x.chunks(block).zip(w.chunks(block)).map(magnitude).sum();
            let got = ys[t * n + r];
            let out = match y.elem {
                Elem::F32 => 0.0,
                Elem::F16 => want.abs() / 2048.0 + 1e-7,
                Elem::Bf16 => want.abs() / 256.0,
            };
            let error = (got - want).abs();
            assert!(
                error <= limit * size / f64::from(1 << 24) + out,
                "{what}: token {t} row {r}: {got} is not {want} (sum size {size})"
            );
        }
    }
}

#[test]
fn quantised_products_are_within_float_rounding() {
    let pool = Pool::new(2).unwrap();
    for isa in Isa::all_available() {
        for quant in Quant::ALL {
            let w = Weight::quant(quant, 37, 512);
            for (elem, tokens) in [(Elem::F32, 1), (Elem::F32, 13), (Elem::F16, 3), (Elem::Bf16, 2)]
            {
                let x = floats(elem, tokens * 512, 3);
                let y = run(isa, &pool, &w, &x, 0..tokens, Elem::F32);
                check(&w, &x, &y, tokens, 1.0, &format!("{isa:?} {quant:?} {elem:?}"));
            }
        }
    }
}

#[test]
fn dense_products_are_within_float_rounding() {
    let pool = Pool::new(2).unwrap();
    for isa in Isa::all_available() {
        for w_elem in [Elem::F32, Elem::F16, Elem::Bf16] {
            for x_elem in [Elem::F32, Elem::F16, Elem::Bf16] {
                for (n, k, tokens) in [(37, 515, 1), (70, 64, 2), (16, 1, 13), (130, 300, 29)] {
                    let w = Weight::dense(w_elem, n, k);
                    let x = floats(x_elem, tokens * k, 3);
                    for y_elem in [Elem::F32, x_elem] {
                        let y = run(isa, &pool, &w, &x, 0..tokens, y_elem);
                        check(&w, &x, &y, tokens, 16.0, &format!("{isa:?} {w_elem:?} {x_elem:?}"));
                    }
                }
            }
        }
    }
}

#[test]
fn an_element_does_not_depend_on_what_is_around_it() {
    let pools = [Pool::new(1).unwrap(), Pool::new(2).unwrap(), Pool::new(3).unwrap()];
    for isa in Isa::all_available() {
        let mut weights: Vec<_> =
            Quant::ALL.map(|quant| (Weight::quant(quant, 100, 256), Elem::F32)).into();
        for elem in [Elem::F32, Elem::F16, Elem::Bf16] {
            weights.push((Weight::dense(elem, 100, 256), Elem::F32));
            weights.push((Weight::dense(elem, 100, 256), elem));
        }
        for (w, elem) in &weights {
            let x = floats(*elem, 37 * 256, 9);
            let whole = run(isa, &pools[1], w, &x, 0..37, Elem::F32).bytes;
            for (pool, size) in [(&pools[0], 37), (&pools[2], 16), (&pools[1], 5), (&pools[0], 1)] {
                let mut parts = Vec::new();
                for start in (0..37).step_by(size) {
                    let range = start..(start + size).min(37);
                    parts.extend(run(isa, pool, w, &x, range, Elem::F32).bytes);
                }
                assert!(whole == parts, "{isa:?} {:?} {elem:?} in parts of {size}", w.layout);
            }
        }
    }
}

#[test]
fn quantised_products_are_the_same_bits_on_every_fused_instruction_set() {
    let pool = Pool::new(1).unwrap();
    let fused: Vec<_> =
        Isa::all_available().into_iter().filter(|isa| isa.name() != "portable").collect();
    for quant in Quant::ALL {
        let w = Weight::quant(quant, 48, 512);
        let x = floats(Elem::F32, 7 * 512, 21);
        let all: Vec<_> =
            fused.iter().map(|&isa| run(isa, &pool, &w, &x, 0..7, Elem::F32).bytes).collect();
        assert!(all.windows(2).all(|w| w[0] == w[1]), "{quant:?}");
    }
}

#[test]
fn hostile_activations_stay_in_their_token() {
    let pool = Pool::new(1).unwrap();
    for isa in Isa::all_available() {
        let w = Weight::quant(Quant::Q4_0, 16, 64);
        let mut x = floats(Elem::F32, 4 * 64, 2);
        let mut set = |i: usize, v: f32| x.bytes[4 * i..][..4].copy_from_slice(&v.to_le_bytes());
        set(64, f32::NAN);
        set(2 * 64 + 5, f32::INFINITY);
        (0..64).for_each(|i| set(3 * 64 + i, 1e-42));
        let y = run(isa, &pool, &w, &x, 0..4, Elem::F32).values();
        assert!(y[..16].iter().all(|v| v.is_finite()));
        assert!(y[16..32].iter().all(|v| v.is_nan()));
        assert!(y[32..48].iter().all(|v| !v.is_finite()));
        assert!(y[48..].iter().all(|v| v.abs() < 1e-37));
        let mut x = floats(Elem::F32, 64, 2);
        for p in x.bytes.chunks_exact_mut(4) {
            let v = f32::from_le_bytes([p[0], p[1], p[2], p[3]]);
            p.copy_from_slice(&(v * 2e36).to_le_bytes());
        }
        let y = run(isa, &pool, &w, &x, 0..1, Elem::F32);
        check(&w, &x, &y, 1, 1.0, "near the largest float");
    }
}
