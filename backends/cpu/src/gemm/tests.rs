//! The products against f64, on every instruction set, and their independence of everything around.

use super::*;
use crate::fp8;
use crate::noise::noise;
use crate::pack::Quant;
use crate::pack::ggml::tests::{dequantise, pack, random_rows};
use crate::pack::grouped::{self, GroupedRow};
use std::ops::Range;

/// A packed matrix and its exact values.
struct Weight {
    layout: Layout,
    bytes: Vec<u8>,
    exact: Vec<f64>,
    /// The activation that each column multiplies.
    order: Vec<usize>,
}

impl Weight {
    fn quant(quant: Quant, n: usize, k: usize) -> Self {
        let layout = QuantLayout::new(quant, n, k).unwrap();
        let rows = random_rows(quant, n, k, 11);
        let exact = dequantise(quant, &rows);
        let order = (0..k).collect();
        Self { layout: Layout::Quant(layout), bytes: pack(&layout, &rows), exact, order }
    }

    fn dense(elem: Elem, n: usize, k: usize) -> Self {
        let layout = DenseLayout::new(Store::Float(elem), n, k).unwrap();
        let src = floats(elem, n * k, 5);
        let mut bytes = vec![0; layout.bytes()];
        for (i, row) in src.bytes.chunks_exact(k * elem.bytes()).enumerate() {
            // SAFETY: sizes as the layout says.
            unsafe { layout.pack_row(bytes.as_mut_ptr(), i, row.as_ptr()) };
        }
        let order = (0..k).collect();
        Self { layout: Layout::Dense(layout), bytes, exact: src.values(), order }
    }

    /// 8-bit floats with a scale for every 128 columns, or one a row.
    fn fp8(n: usize, k: usize, blocks: bool) -> Self {
        let layout = DenseLayout::new(Store::E4m3 { blocks }, n, k).unwrap();
        let groups = if blocks { k.div_ceil(128) } else { 1 };
        // No NaN among the codes.
        let codes: Vec<u8> =
            noise(7, n * k).iter().map(|c| if c & 0x7f == 0x7f { 0 } else { *c }).collect();
        let scales = floats(Elem::F32, n * groups, 8);
        let mut bytes = vec![0; layout.bytes()];
        let mut exact = Vec::new();
        for i in 0..n {
            let (row, scale) =
                (&codes[i * k..][..k], &scales.bytes[4 * i * groups..][..4 * groups]);
            // SAFETY: sizes as the layout says.
            unsafe {
                layout.pack_row(bytes.as_mut_ptr(), i, row.as_ptr());
                layout.pack_scales(bytes.as_mut_ptr(), i, scale);
            }
            let values = &scales.values()[i * groups..][..groups];
            exact.extend(row.iter().enumerate().map(|(j, &c)| {
                let scale = values[if blocks { j / 128 } else { 0 }];
                f64::from(fp8::E4M3[usize::from(c)]) * scale
            }));
        }
        Self { layout: Layout::Dense(layout), bytes, exact, order: (0..k).collect() }
    }

    /// Codes of 4 or 8 bits with a scale for every `group` columns; those of 4 bits with what zero points and order come along.
    fn grouped(quant: Quant, (n, k, group): (usize, usize, usize), form: Grouped) -> Self {
        let layout = QuantLayout::grouped(quant, n, k, group, form.ordered).unwrap();
        let (groups, row_bytes) = (k / group, layout.file_row_bytes());
        let codes = noise(3, n * row_bytes);
        let zeros: Vec<u8> = noise(5, n * groups).iter().map(|z| z % 17).collect();
        let scales = floats(form.scale, n * groups, 6);
        let mut bytes = vec![0; layout.bytes()];
        let order: Vec<usize> =
            if form.ordered { (0..k).map(|j| (j * 7 + 5) % k).collect() } else { (0..k).collect() };
        if form.ordered {
            let order: Vec<u32> = order.iter().map(|&c| c as u32).collect();
            // SAFETY: the matrix has room for an order.
            assert!(unsafe { grouped::put_order(&layout, bytes.as_mut_ptr(), &order) });
        }
        let mut exact = Vec::new();
        for i in 0..n {
            let scale_bytes = groups * form.scale.bytes();
            let row = GroupedRow {
                codes: &codes[i * row_bytes..][..row_bytes],
                scales: &scales.bytes[i * scale_bytes..][..scale_bytes],
                scale: form.scale,
                zeros: form.zeros.then(|| &zeros[i * groups..][..groups]),
            };
            // SAFETY: sizes as the layout says.
            unsafe { grouped::pack_row(&layout, bytes.as_mut_ptr(), i, &row) };
            let scales = &scales.values()[i * groups..][..groups];
            exact.extend((0..k).map(|j| {
                let code = match quant {
                    Quant::INT8 => i32::from(row.codes[j].cast_signed()),
                    _ => {
                        let zero = row.zeros.map_or(8, |z| z[j / group]);
                        i32::from((row.codes[j / 2] >> (4 * (j % 2))) & 15) - i32::from(zero)
                    }
                };
                f64::from(code) * scales[j / group]
            }));
        }
        Self { layout: Layout::Quant(layout), bytes, exact, order }
    }

    /// Every scheme of checkpoints that is not of GGUF.
    fn all_of_checkpoints(n: usize) -> Vec<Self> {
        let plain = Grouped { scale: Elem::F16, zeros: false, ordered: false };
        let zeros = Grouped { zeros: true, scale: Elem::Bf16, ..plain };
        let ordered = Grouped { ordered: true, scale: Elem::F32, ..zeros };
        vec![
            Self::grouped(Quant::INT4, (n, 256, 128), zeros),
            Self::grouped(Quant::INT4, (n, 192, 32), plain),
            Self::grouped(Quant::INT4, (n, 256, 64), ordered),
            Self::grouped(Quant::INT4, (n, 96, 48), zeros),
            Self::grouped(Quant::INT4, (n, 66, 66), ordered),
            Self::grouped(Quant::INT8, (n, 256, 256), Grouped { scale: Elem::F32, ..plain }),
            Self::grouped(Quant::INT8, (n, 33, 33), Grouped { scale: Elem::F32, ..plain }),
            Self::fp8(n, 300, true),
            Self::fp8(n, 129, false),
        ]
    }
}

/// What a grouped weight comes with.
#[derive(Clone, Copy)]
struct Grouped {
    scale: Elem,
    zeros: bool,
    ordered: bool,
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
    let blocks: Vec<_> = match &w.layout {
        Layout::Quant(q) => (0..q.blocks()).map(|b| q.columns(b)).collect(),
        Layout::Dense(_) => (0..k).map(|column| column..column + 1).collect(),
    };
    let (xs, ys) = (x.values(), y.values());
    for t in 0..tokens {
        let x: Vec<f64> = w.order.iter().map(|&column| xs[t * k + column]).collect();
        for r in 0..n {
            let w = &w.exact[r * k..][..k];
            let want: f64 = x.iter().zip(w).map(|(a, b)| a * b).sum();
            let magnitude = |(x, w): (&[f64], &[f64])| {
                let largest = x.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
                largest * w.iter().map(|w| w.abs()).sum::<f64>()
            };
            let size: f64 = blocks.iter().map(|b| magnitude((&x[b.clone()], &w[b.clone()]))).sum();
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
        for quant in Quant::GGUF {
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
fn checkpoints_products_are_within_float_rounding() {
    let pool = Pool::new(2).unwrap();
    for isa in Isa::all_available() {
        for w in Weight::all_of_checkpoints(37) {
            let k = w.layout.k();
            for (elem, tokens) in [(Elem::F32, 1), (Elem::F32, 13), (Elem::F16, 3), (Elem::Bf16, 2)]
            {
                let x = floats(elem, tokens * k, 3);
                let y = run(isa, &pool, &w, &x, 0..tokens, Elem::F32);
                // Rows of one or two blocks show every rounding of a block: of the integer sum, of the scale times the power of
                // two, of their product (where that is not fused) and of the total.
                let limit = if matches!(w.layout, Layout::Quant(_)) { 4.0 } else { 16.0 };
                check(&w, &x, &y, tokens, limit, &format!("{isa:?} {:?} {elem:?}", w.layout));
            }
        }
    }
}

#[test]
fn checkpoints_rows_leave_their_panels_as_they_came() {
    for w in Weight::all_of_checkpoints(21) {
        let k = w.layout.k();
        for row in 0..21 {
            let mut out = Vec::new();
            for b in 0..w.layout.blocks() {
                let mut part = [0.0; BLOCK];
                // SAFETY: the matrix has the row and the block.
                unsafe { w.layout.unpack(w.bytes.as_ptr(), row, b, &mut part) };
                out.extend_from_slice(&part[..w.layout.columns(b).len()]);
            }
            let want = &w.exact[row * k..][..k];
            let size = want.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
            for (got, want) in out.iter().zip(want) {
                let error = (f64::from(*got) - want).abs();
                assert!(error <= 2e-7 * size, "{:?}: {got} is not {want}", w.layout);
            }
            assert_eq!(out.len(), k);
        }
    }
}

#[test]
fn a_nan_among_8_bit_floats_spoils_its_row_only() {
    let layout = DenseLayout::new(Store::E4m3 { blocks: true }, 3, 130).unwrap();
    let mut bytes = vec![0; layout.bytes()];
    for row in 0..3 {
        let mut codes = [0x38; 130];
        codes[129] = if row == 1 { 0xff } else { 0x01 };
        let scales: Vec<u8> = [1f32, 2.0].iter().flat_map(|s| s.to_le_bytes()).collect();
        // SAFETY: sizes as the layout says.
        unsafe {
            layout.pack_row(bytes.as_mut_ptr(), row, codes.as_ptr());
            layout.pack_scales(bytes.as_mut_ptr(), row, &scales);
        }
    }
    let w = Weight { layout: Layout::Dense(layout), bytes, exact: vec![], order: vec![] };
    let ones = 1f32.to_le_bytes().repeat(130);
    let x = Floats { elem: Elem::F32, bytes: ones };
    let pool = Pool::new(1).unwrap();
    for isa in Isa::all_available() {
        let y = run(isa, &pool, &w, &x, 0..1, Elem::F32).values();
        let want = 128.0 + 2.0 + 2.0 / 512.0;
        assert!(y[0] == want && y[1].is_nan() && y[2] == want, "{isa:?}: {y:?}");
    }
}

#[test]
fn an_element_does_not_depend_on_what_is_around_it() {
    let pools = [Pool::new(1).unwrap(), Pool::new(2).unwrap(), Pool::new(3).unwrap()];
    for isa in Isa::all_available() {
        let mut weights: Vec<_> =
            Quant::GGUF.map(|quant| (Weight::quant(quant, 100, 256), Elem::F32)).into();
        for elem in [Elem::F32, Elem::F16, Elem::Bf16] {
            weights.push((Weight::dense(elem, 100, 256), Elem::F32));
            weights.push((Weight::dense(elem, 100, 256), elem));
        }
        weights.extend(Weight::all_of_checkpoints(100).into_iter().map(|w| (w, Elem::F32)));
        for (w, elem) in &weights {
            let x = floats(*elem, 37 * w.layout.k(), 9);
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
    for quant in Quant::GGUF {
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
