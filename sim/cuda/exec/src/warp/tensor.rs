//! Tensor-core products: `mma.sync` of one 16×8 tile.
//!
//! Lane `4g + t` holds of A rows `g` and `g + 8`, of B column `g`, of C and D columns `2t` and `2t + 1` of rows `g` and
//! `g + 8`. A 32-bit register has as many neighbouring elements of `k` as fit. Sums are f32, one product after the other
//! along `k`: hardware leaves the order and the rounding inside a group open, so tests compare with a tolerance.

#![expect(
    clippy::needless_range_loop,
    reason = "loops over rows, columns and k read best, and become vector code, as such"
)]

use super::registers::{LANES, O, Registers, each};
use crate::number::{E4M3, E5M2, F8, f16_to_f32};
use crate::program::{Mma, Slot};

const ROWS: usize = 16;
const COLUMNS: usize = 8;

/// Results that are executed on `r`; all lanes take part.
#[inline(always)]
pub(super) fn mma(r: &mut Registers, o: &O, op: Mma) {
    match op {
        Mma::Bf16K16 => floats::<16, 2>(r, o, bf16_pair),
        Mma::F16K16 => floats::<16, 2>(r, o, f16_pair),
        Mma::Bf16K8 => floats::<8, 2>(r, o, bf16_pair),
        Mma::F16K8 => floats::<8, 2>(r, o, f16_pair),
        Mma::Tf32K8 => floats::<8, 1>(r, o, |x, _| [f32::from_bits(x & !0x1fff)]),
        Mma::Fp8K32 { a, b } => eight_bits(r, o, a, b),
        Mma::Int8K32 { a, b } => integers(r, o, a, b),
    }
}

#[inline(always)]
fn bf16_pair(x: u32, _: bool) -> [f32; 2] {
    [f32::from_bits(x << 16), f32::from_bits(x & 0xffff_0000)]
}

#[inline(always)]
fn f16_pair(x: u32, _: bool) -> [f32; 2] {
    [f16_to_f32(x as u16), f16_to_f32((x >> 16) as u16)]
}

#[inline(always)]
fn eight_bits(r: &mut Registers, o: &O, a: bool, b: bool) {
    let format = |e5m2: bool| -> F8 { if e5m2 { E5M2 } else { E4M3 } };
    let (a, b) = (format(a), format(b));
    floats::<32, 4>(r, o, |x, left| {
        let format = if left { a } else { b };
        x.to_le_bytes().map(|byte| format.to_f32(byte))
    });
}

/// Two operands of a product over `K`: A by rows, B by rows of `k`.
struct Operands<const K: usize> {
    a: [[f32; K]; ROWS],
    b: [[f32; COLUMNS]; K],
}

/// A product of floats: `PER` elements a register, unpacked by `unpack`, which is told whether they are of A.
#[inline(always)]
fn floats<const K: usize, const PER: usize>(
    r: &mut Registers,
    o: &O,
    unpack: impl Fn(u32, bool) -> [f32; PER],
) {
    // Registers come in blocks of four lanes a row: 4 · PER elements of k.
    let blocks = K / (4 * PER);
    let mut x = Operands::<K> { a: [[0.0; K]; ROWS], b: [[0.0; COLUMNS]; K] };
    for block in 0..blocks {
        let first = block * 4 * PER;
        for half in 0..2 {
            let register = r.word(o[4 + 2 * block + half]);
            for row in 0..8 {
                for t in 0..4 {
                    let values = unpack(register[4 * row + t], true);
                    for part in 0..PER {
                        x.a[row + 8 * half][first + t * PER + part] = values[part];
                    }
                }
            }
        }
        let register = r.word(o[4 + 2 * blocks + block]);
        for t in 0..4 {
            for column in 0..COLUMNS {
                let values = unpack(register[4 * column + t], false);
                for part in 0..PER {
                    x.b[first + t * PER + part][column] = values[part];
                }
            }
        }
    }
    let c = 4 + 3 * blocks;
    // A register of D may be another one of C.
    let mut sums = [gather(r, o[c], o[c + 1]), gather(r, o[c + 2], o[c + 3])];
    for half in 0..2 {
        multiply(&mut sums[half], &x, 8 * half);
        scatter(r, o[2 * half], o[2 * half + 1], &sums[half]);
    }
}

/// Eight rows of C, from the registers of their even and odd columns.
#[inline(always)]
fn gather(r: &Registers, even: Slot, odd: Slot) -> [[f32; COLUMNS]; 8] {
    let (even, odd) = (r.word(even), r.word(odd));
    let mut rows = [[0.0; COLUMNS]; 8];
    for row in 0..8 {
        for pair in 0..4 {
            rows[row][2 * pair] = f32::from_bits(even[row * 4 + pair]);
            rows[row][2 * pair + 1] = f32::from_bits(odd[row * 4 + pair]);
        }
    }
    rows
}

#[inline(always)]
fn scatter(r: &mut Registers, even: Slot, odd: Slot, rows: &[[f32; COLUMNS]; 8]) {
    let part = |first: usize| each(|lane| rows[lane / 4][lane % 4 * 2 + first].to_bits());
    let (evens, odds) = (part(0), part(1));
    r.words[usize::from(even)].0 = evens;
    r.words[usize::from(odd)].0 = odds;
}

/// Adds rows `first` to `first + 8` of A times B.
#[inline(always)]
fn multiply<const K: usize>(sums: &mut [[f32; COLUMNS]; 8], x: &Operands<K>, first: usize) {
    for row in 0..8 {
        let mut sum = sums[row];
        for k in 0..K {
            let a = x.a[first + row][k];
            for column in 0..COLUMNS {
                sum[column] = a.mul_add(x.b[k][column], sum[column]);
            }
        }
        sums[row] = sum;
    }
}

/// m16n8k32 of bytes, with 32-bit sums that wrap.
#[inline(always)]
fn integers(r: &mut Registers, o: &O, a_signed: bool, b_signed: bool) {
    let byte = |x: u8, signed: bool| if signed { i32::from(x.cast_signed()) } else { i32::from(x) };
    let mut a = [[0i32; 32]; ROWS];
    let mut b = [[0i32; COLUMNS]; 32];
    for lane in 0..LANES {
        let (group, k) = (lane / 4, lane % 4 * 4);
        for part in 0..4 {
            for (at, value) in r.word(o[4 + part])[lane].to_le_bytes().into_iter().enumerate() {
                a[group + part % 2 * 8][part / 2 * 16 + k + at] = byte(value, a_signed);
            }
        }
        for part in 0..2 {
            for (at, value) in r.word(o[8 + part])[lane].to_le_bytes().into_iter().enumerate() {
                b[part * 16 + k + at][group] = byte(value, b_signed);
            }
        }
    }
    let sums = [0, 1, 2, 3].map(|part| {
        let c = r.word(o[10 + part]);
        each(|lane| {
            let (row, column) = (lane / 4 + part / 2 * 8, lane % 4 * 2 + part % 2);
            let sum = (0..32).fold(0i32, |sum, k| sum.wrapping_add(a[row][k] * b[k][column]));
            c[lane].wrapping_add(sum.cast_unsigned())
        })
    });
    for part in 0..4 {
        r.words[usize::from(o[part])].0 = sums[part];
    }
}
