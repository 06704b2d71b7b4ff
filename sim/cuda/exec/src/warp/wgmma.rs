//! `wgmma`: products of 64 rows by the four warps of a warpgroup, each of which has 16 of them.
//!
//! A warp computes its rows when it comes to the instruction; that all four come to the same ones, with the same descriptors, is
//! checked. What it reads of shared memory may not be written, and its registers not be touched, until it waits for the group.

use super::registers::{FULL, LANES};
use super::{Env, Warp, handler};
use crate::fault::{FaultKind, Step, Trouble};
use crate::number::{E4M3, E5M2, F8, f16_to_f32, f32_to_f16};
use crate::program::{Ins, Left, Product, Slot, Sums, Values};
use crate::shared::Instruction;
use crate::tensor_map::swizzled;
use std::collections::VecDeque;

/// Warps of a warpgroup.
const WARPS: usize = 4;
/// Rows that a warp has.
const ROWS: usize = 16;
/// Bytes of K of a product.
const K_BYTES: usize = 32;

/// The products of a warp that it has not waited for.
#[derive(Debug, Default)]
pub(super) struct Products {
    begun: u32,
    under_way: Vec<UnderWay>,
}

#[derive(Debug)]
struct UnderWay {
    pc: u32,
    group: u32,
    /// As `Shared` numbers it.
    reader: Option<u64>,
}

/// Which products each warp of a warpgroup has come to.
#[derive(Debug, Default)]
pub(crate) struct Warpgroups(Vec<Warpgroup>);

#[derive(Debug, Default)]
struct Warpgroup {
    /// Those that not all warps have come to: instruction and descriptors.
    open: VecDeque<(u32, [u64; 2])>,
    /// Products that all have come to.
    closed: usize,
    /// Products that each has come to.
    counts: [usize; WARPS],
}

impl Warpgroups {
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    /// A warp and what is wrong if it did not come to a product of its warpgroup.
    pub(crate) fn check_end(&self) -> Option<(usize, Box<Trouble>)> {
        let (group, unequal) =
            self.0.iter().enumerate().find(|(_, group)| !group.open.is_empty())?;
        let least = *unequal.counts.iter().min()?;
        let warp = unequal.counts.iter().position(|count| *count == least)?;
        let (pc, _) = unequal.open.front()?;
        let text = format!(
            "warp {} of the warpgroup never executes the wgmma at {}",
            group * WARPS + warp,
            Instruction(*pc as usize)
        );
        Some((group * WARPS + warp, Trouble::new(FaultKind::Wgmma, 0, text)))
    }

    fn come(&mut self, warp: usize, product: (u32, [u64; 2])) -> Result<(), String> {
        let (index, part) = (warp / WARPS, warp % WARPS);
        if self.0.len() <= index {
            self.0.resize_with(index + 1, Warpgroup::default);
        }
        let group = &mut self.0[index];
        let at = group.counts[part] - group.closed;
        group.counts[part] += 1;
        match group.open.get(at) {
            None => group.open.push_back(product),
            Some(other) if *other != product => {
                let pc = other.0 as usize;
                return Err(if other.0 == product.0 {
                    format!(
                        "descriptors {:#x?} of this warp, {:#x?} of another of its warpgroup",
                        product.1, other.1
                    )
                } else {
                    format!(
                        "another warp of the warpgroup is at the wgmma at {} instead",
                        Instruction(pc)
                    )
                });
            }
            Some(_) => {}
        }
        while group.counts.iter().all(|count| *count > group.closed) {
            group.open.pop_front();
            group.closed += 1;
        }
        Ok(())
    }
}

pub(super) fn commit(w: &mut Warp) {
    w.products.begun += 1;
}

pub(super) fn wait(w: &mut Warp, e: &mut Env<'_>, keep: u32) {
    let begun = w.products.begun;
    let done = |product: &mut UnderWay| product.group + keep < begun;
    for product in w.products.under_way.extract_if(.., done) {
        if let Some(reader) = product.reader {
            e.shared.end_reading(reader);
        }
    }
}

/// Executes an instruction that may touch registers of a product under way.
pub(crate) fn watched_handler(w: &mut Warp, e: &mut Env<'_>, ins: &Ins, m: u32) -> Step {
    let held = e.program.hazards.early.get(&e.pc);
    let held =
        held.and_then(|pcs| w.products.under_way.iter().find(|product| pcs.contains(&product.pc)));
    if let Some(product) = held {
        let text = format!(
            "uses a register of the wgmma at {} before wgmma.wait_group",
            Instruction(product.pc as usize)
        );
        return Err(Trouble::new(FaultKind::Wgmma, m.trailing_zeros(), text));
    }
    super::execute(w, e, (handler(ins.op), ins), m)
}

/// Where a matrix lies in shared memory.
#[derive(Clone, Copy, Debug)]
struct Layout {
    start: usize,
    leading: usize,
    stride: usize,
    swizzle: u8,
    element: usize,
    /// Neighbours are in the dimension of rows (of A) or columns (of B) instead of K.
    transposed: bool,
}

impl Layout {
    fn of(descriptor: u64, values: Values, transposed: bool) -> Result<Self, String> {
        let field = |from: u32| (descriptor >> from & 0x3fff) as usize * 16;
        let base = descriptor >> 49 & 7;
        if base != 0 {
            return Err(format!("unsupported: base offset {base} of a matrix descriptor"));
        }
        let swizzle = match descriptor >> 62 {
            0 => 0,
            // Patterns of 128, 64 and 32 bytes.
            mode => 4 - mode as u8,
        };
        let element = values.bytes() as usize;
        Ok(Self {
            start: field(0),
            leading: field(16),
            stride: field(32),
            swizzle,
            element,
            transposed,
        })
    }

    /// Where the element of a row or column `at` and of `k` lies.
    fn place(&self, at: usize, k: usize) -> usize {
        let Self { start, leading, stride, swizzle, element, transposed } = *self;
        // Elements of 16 bytes, and of a row of the pattern.
        let unit = 16 / element;
        let width = unit << swizzle;
        let offset = match (transposed, swizzle) {
            (false, 0) => at % 8 * 16 + at / 8 * stride + k / unit * leading + k % unit * element,
            (false, _) => at % 8 * (16 << swizzle) + at / 8 * stride + k * element,
            (true, 0) => at % unit * element + at / unit * stride + k % 8 * 16 + k / 8 * leading,
            (true, _) => {
                at % width * element
                    + at / width * leading
                    + k % 8 * (16 << swizzle)
                    + k / 8 * stride
            }
        };
        swizzled(start + offset, swizzle)
    }

    /// The 16 bytes each that rows or columns `from` to `to` lie in.
    fn pieces(&self, from: usize, to: usize) -> impl Iterator<Item = usize> {
        let unit = 16 / self.element;
        let (step, k_step) = if self.transposed { (unit, 1) } else { (1, unit) };
        let all = (from..to).step_by(step);
        all.flat_map(move |at| {
            (0..K_BYTES / self.element).step_by(k_step).map(move |k| self.place(at, k))
        })
    }
}

/// Numbers of a matrix: for each row of A or column of B, those of K.
#[inline(always)]
fn fetch<T: Copy + Default>(
    e: &Env<'_>,
    layout: &Layout,
    (from, to): (usize, usize),
    number: impl Fn(&[u8]) -> T,
) -> Vec<T> {
    let depth = K_BYTES / layout.element;
    let unit = 16 / layout.element;
    let mut all = vec![T::default(); (to - from) * depth];
    // From neighbour to neighbour in 16 bytes.
    let (step, k_step, next) = if layout.transposed { (unit, 1, depth) } else { (1, unit, 1) };
    for at in (from..to).step_by(step) {
        for k in (0..depth).step_by(k_step) {
            let piece = e.shared.bytes(layout.place(at, k), 16);
            let first = (at - from) * depth + k;
            for (index, bytes) in piece.chunks_exact(layout.element).enumerate() {
                all[first + index * next] = number(bytes);
            }
        }
    }
    all
}

/// `mma_async`: what one warp does of it.
#[inline(always)]
pub(super) fn product(w: &mut Warp, e: &mut Env<'_>, ins: &Ins) -> Step {
    let program = e.program;
    let wrong = |text: String| Trouble::new(FaultKind::Wgmma, 0, text);
    let Some(product) = program.products.get(ins.imm as usize) else { return Ok(()) };
    if program.hazards.unfenced.contains(&e.pc) {
        let text = "no wgmma.fence since its registers were written, or none at all";
        return Err(wrong(text.to_owned()));
    }
    if w.index as usize / WARPS * WARPS + WARPS > w.warps {
        return Err(wrong("a wgmma by a warpgroup of less than four warps".to_owned()));
    }
    let left = match product.left {
        Left::Shared(slot) => uniform(w, slot).map_err(&wrong)?,
        Left::Registers(_) => 0,
    };
    let right = uniform(w, product.right).map_err(&wrong)?;
    e.warpgroups.come(w.index as usize, (e.pc, [left, right])).map_err(&wrong)?;
    let b = Layout::of(right, product.values, product.transposed[1]).map_err(&wrong)?;
    let first = w.index as usize % WARPS * ROWS;
    let columns = product.columns as usize;
    let mut pieces: Vec<usize> = b.pieces(0, columns).collect();
    let mut a = None;
    if let Left::Shared(_) = product.left {
        let layout = Layout::of(left, product.values, product.transposed[0]).map_err(&wrong)?;
        pieces.extend(layout.pieces(first, first + ROWS));
        a = Some(layout);
    }
    if let Some(at) = pieces.iter().find(|at| **at + 16 > e.shared_bytes) {
        let text =
            format!("a wgmma reads shared memory at {at:#x}: the block has {}", e.shared_bytes);
        return Err(Trouble::new(FaultKind::OutOfBounds, 0, text));
    }
    let reader = w.begin_reading(e, (0, true), pieces.into_iter())?;
    let group = w.products.begun;
    w.products.under_way.push(UnderWay { pc: e.pc, group, reader: Some(reader) });
    let layouts = (a.map(|a| (a, first)), b);
    match product.values {
        Values::Int8 { a: x, b: y } => {
            integers(w, e, product, layouts, (x, y));
            e.counters.tensor_ops_int8 += 2 * (ROWS * columns * K_BYTES) as u64;
        }
        values => {
            floats(w, e, product, layouts);
            let ops = 2 * (ROWS * columns * K_BYTES) as u64 / u64::from(values.bytes());
            match values {
                Values::Fp8 { .. } => e.counters.tensor_ops_fp8 += ops,
                _ => e.counters.tensor_ops += ops,
            }
        }
    }
    Ok(())
}

/// A 64-bit register that must be the same in all lanes.
fn uniform(w: &Warp, slot: Slot) -> Result<u64, String> {
    let values = w.registers.long(slot);
    match values.iter().find(|value| **value != values[0]) {
        Some(other) => Err(format!("descriptors {:#x} and {other:#x} in one warp", values[0])),
        None => Ok(values[0]),
    }
}

type Layouts = (Option<(Layout, usize)>, Layout);

/// A in registers, as rows: lane `4g + t` has the 4 bytes `t` of rows `g` and `g + 8`, of the lower and the upper half of K.
fn rows_of(w: &Warp, slots: [Slot; 4]) -> [[u8; K_BYTES]; ROWS] {
    let mut rows = [[0; K_BYTES]; ROWS];
    for (part, slot) in slots.into_iter().enumerate() {
        for (lane, value) in w.registers.word(slot).iter().enumerate() {
            let at = part / 2 * 16 + lane % 4 * 4;
            rows[lane / 4 + part % 2 * 8][at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
    }
    rows
}

fn float(values: Values, left: bool) -> impl Fn(&[u8]) -> f32 {
    let format = |e5m2: bool| -> F8 { if e5m2 { E5M2 } else { E4M3 } };
    let half = |bytes: &[u8]| u16::from_le_bytes([bytes[0], bytes[1]]);
    move |bytes| match values {
        Values::Bf16 => f32::from_bits(u32::from(half(bytes)) << 16),
        Values::F16 => f16_to_f32(half(bytes)),
        Values::Tf32 => {
            f32::from_bits(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) & !0x1fff)
        }
        Values::Fp8 { a, b } => format(if left { a } else { b }).to_f32(bytes[0]),
        Values::Int8 { .. } => 0.0,
    }
}

/// A, of `ROWS` rows, whichever place it has.
fn left_of<T: Copy + Default>(
    w: &Warp,
    e: &Env<'_>,
    product: &Product,
    a: Option<(Layout, usize)>,
    number: impl Fn(&[u8]) -> T,
) -> Vec<T> {
    match (product.left, a) {
        (Left::Shared(_), Some((layout, first))) => {
            fetch(e, &layout, (first, first + ROWS), number)
        }
        (Left::Registers(slots), _) => {
            let rows = rows_of(w, slots);
            rows.iter()
                .flat_map(|row| row.chunks_exact(product.values.bytes() as usize))
                .map(number)
                .collect()
        }
        (Left::Shared(_), None) => Vec::new(),
    }
}

#[inline(always)]
fn floats(w: &mut Warp, e: &Env<'_>, product: &Product, (a, b): Layouts) {
    let columns = product.columns as usize;
    let depth = K_BYTES / product.values.bytes() as usize;
    let mut left = left_of(w, e, product, a, float(product.values, true));
    if product.negated[0] != product.negated[1] {
        left.iter_mut().for_each(|x| *x = -*x);
    }
    let right = fetch(e, &b, (0, columns), float(product.values, false));
    // B by rows of K, so that columns are neighbours.
    let mut by_k = vec![[0f32; 8]; depth * columns / 8];
    for (at, value) in right.iter().enumerate() {
        let (column, k) = (at / depth, at % depth);
        by_k[column / 8 * depth + k][column % 8] = *value;
    }
    let add = w.registers.predicate(product.add) == FULL;
    for block in 0..columns / 8 {
        let b = &by_k[block * depth..(block + 1) * depth];
        let mut sums = if add { sums_of(w, product, block) } else { [[0.0; 8]; ROWS] };
        for (row, sums) in sums.iter_mut().enumerate() {
            let mut sum = *sums;
            for (x, y) in left[row * depth..(row + 1) * depth].iter().zip(b) {
                for column in 0..8 {
                    sum[column] = x.mul_add(y[column], sum[column]);
                }
            }
            *sums = sum;
        }
        set_sums(w, product, block, &sums);
    }
}

/// C of eight columns.
fn sums_of(w: &Warp, product: &Product, block: usize) -> [[f32; 8]; ROWS] {
    let mut sums = [[0.0; 8]; ROWS];
    for half in 0..2 {
        for pair in 0..2 {
            for lane in 0..LANES {
                let value = match product.sums {
                    Sums::F16 => {
                        let word = w.registers.word(product.sums_in[2 * block + half])[lane];
                        f16_to_f32((word >> (16 * pair)) as u16)
                    }
                    _ => f32::from_bits(
                        w.registers.word(product.sums_in[4 * block + 2 * half + pair])[lane],
                    ),
                };
                sums[lane / 4 + 8 * half][lane % 4 * 2 + pair] = value;
            }
        }
    }
    sums
}

fn set_sums(w: &mut Warp, product: &Product, block: usize, sums: &[[f32; 8]; ROWS]) {
    for half in 0..2 {
        let of = |lane: usize, pair: usize| sums[lane / 4 + 8 * half][lane % 4 * 2 + pair];
        if product.sums == Sums::F16 {
            let both = |lane: usize| {
                u32::from(f32_to_f16(of(lane, 0))) | u32::from(f32_to_f16(of(lane, 1))) << 16
            };
            let slot = usize::from(product.sums_in[2 * block + half]);
            w.registers.words[slot].0 = std::array::from_fn(both);
            continue;
        }
        for pair in 0..2 {
            let slot = usize::from(product.sums_in[4 * block + 2 * half + pair]);
            w.registers.words[slot].0 = std::array::from_fn(|lane| of(lane, pair).to_bits());
        }
    }
}

fn integers(w: &mut Warp, e: &Env<'_>, product: &Product, (a, b): Layouts, (x, y): (bool, bool)) {
    let number = |signed: bool| {
        move |bytes: &[u8]| {
            if signed { i32::from(bytes[0].cast_signed()) } else { i32::from(bytes[0]) }
        }
    };
    let left = left_of(w, e, product, a, number(x));
    let right = fetch(e, &b, (0, product.columns as usize), number(y));
    let add = w.registers.predicate(product.add) == FULL;
    for (at, slot) in product.sums_in.iter().enumerate() {
        let before = *w.registers.word(*slot);
        let sum = |lane: usize| {
            let row = lane / 4 + at % 4 / 2 * 8;
            let column = at / 4 * 8 + lane % 4 * 2 + at % 2;
            let pairs =
                left[row * K_BYTES..][..K_BYTES].iter().zip(&right[column * K_BYTES..][..K_BYTES]);
            let sum = pairs.fold(0i32, |sum, (x, y)| sum.wrapping_add(x * y));
            let before = if add { before[lane] } else { 0 };
            before.wrapping_add(sum.cast_unsigned())
        };
        w.registers.words[usize::from(*slot)].0 = std::array::from_fn(sum);
    }
}
