//! Weights on the device: each part of all groups one behind the other, rows as the checkpoint has them. Codes of 4 bits get a sign; matrices
//! of 8 bits that are linear layers are laid out as the chip's products read them, FRACTAL_NZ, where they come out even.

use std::sync::Arc;

use halyard_sdk::{
    DType, Error, Result, Role, Scheme, Weight, WeightDesc, WeightFill, WeightPlan, WeightTable,
    abi::{
        scheme::Rows,
        types::{WEIGHT_PERM, WEIGHT_ZERO},
    },
    weights::{FillParts, PartRows, known_parts},
};

use crate::{
    driver::{self, Plane, Stream},
    memory::ALIGN,
};

/// Schemes that weights can have.
pub(crate) const SCHEMES: [Scheme; 3] = [Scheme::DENSE, Scheme::INT8_CHANNEL, Scheme::INT4_GROUP];

/// Identity of the packed form, for caches on disk: a change of this module needs a new number.
const FORMAT: u64 = 0x6163_6c00_0002;
/// The same of codes in FRACTAL_NZ.
const FORMAT_NZ: u64 = 0x6163_6c00_0102;

/// Rows and columns of a fractal of bytes.
const FRACTAL: [i64; 2] = [16, 32];

/// Bytes that are gathered on the host before they are sent.
const PIECE: usize = 8 << 20;

/// Bytes of [`Packed::codes`]: two f32 for each byte.
const TABLE_BYTES: u64 = 256 * 2 * 4;

/// What the numbers of a weight are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Floats.
    Dense,
    /// `code scale` of an i8 and a row's f32.
    Int8,
    /// `(code + offset) scale` of 4 bits with a sign, `group` of a row with one scale and offset each.
    Int4 { group: i64, offset: bool, perm: bool },
}

/// A part of all groups: where it begins, and the bytes of a row.
#[derive(Clone, Copy, Debug, Default)]
struct Part {
    start: u64,
    row: u64,
}

/// A weight on the device: `[groups, n, k]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Packed {
    pub(crate) form: Form,
    /// Of the elements, or of scales and offsets.
    pub(crate) dtype: DType,
    pub(crate) groups: i64,
    pub(crate) n: i64,
    pub(crate) k: i64,
    /// Address of the elements or codes.
    pub(crate) start: u64,
    /// Of scales: `[groups, n, scales]`.
    pub(crate) scale: u64,
    /// Of offsets, as scales.
    pub(crate) offset: u64,
    /// Of an i8 weight's scales rounded to bf16.
    pub(crate) rounded: u64,
    /// Of the inputs' columns, i32 `[groups, k]`.
    pub(crate) perm: u64,
    /// Of the two numbers that each byte of codes is, f32 `[256, 2]`.
    pub(crate) codes: u64,
    /// Whether the codes are in FRACTAL_NZ: `[k / 32, n, 32]`.
    nz: bool,
    rows: [u64; 3],
    bytes: u64,
}

/// Whether the release multiplies codes with codes in FRACTAL_NZ.
fn has_fractals() -> bool {
    driver::start().is_ok_and(|d| d.operators.QuantMatmulWeightNz.is_some())
}

impl Packed {
    /// The form of a weight that would begin at `start`.
    ///
    /// # Errors
    /// `UNSUPPORTED`, naming what is.
    pub(crate) fn of(w: &WeightDesc<'_>, start: u64) -> Result<Self> {
        let parts = known_parts(w, &SCHEMES)?;
        let small = |what, size: u64| {
            i32::try_from(size)
                .map(i64::from)
                .map_err(|_| Error::unsupported(format!("a weight with {what} of {size}")))
        };
        let (n, k, groups) = (small("n", w.n)?, small("k", w.k)?, i64::from(w.groups));
        let has = |flag: u32| w.flags & flag != 0;
        let form = match w.scheme {
            Scheme::INT8_CHANNEL => Form::Int8,
            Scheme::INT4_GROUP => Form::Int4 {
                group: w.group_size.into(),
                offset: has(WEIGHT_ZERO),
                perm: has(WEIGHT_PERM),
            },
            _ => Form::Dense,
        };
        let even = n % FRACTAL[0] == 0 && k % FRACTAL[1] == 0 && n > 0 && k > 0;
        let nz =
            form == Form::Int8 && w.role == Role::LINEAR.0 && groups == 1 && even && has_fractals();
        let too_large = || Error::invalid(format!("a weight of {} × {} × {}", w.groups, w.n, w.k));
        let mut end = start;
        let mut lay = |row: u64, rows: u64| -> Result<Part> {
            let bytes = row.checked_mul(rows).and_then(|b| b.checked_mul(u64::from(w.groups)));
            let part = Part { start: end, row };
            end = bytes
                .and_then(|b| end.checked_add(b))
                .filter(|e| e - start < 1 << 46)
                .ok_or_else(too_large)?
                .next_multiple_of(ALIGN);
            Ok(part)
        };
        let row = |part: usize| {
            let part = parts.get(part).ok_or_else(too_large)?;
            part.dtype.bytes(part.columns).ok_or_else(too_large)
        };
        let data = lay(row(0)?, w.n)?;
        let (mut scale, mut offset, mut perm, mut codes) = <(Part, Part, Part, Part)>::default();
        let mut rounded = Part::default();
        if form != Form::Dense {
            scale = lay(row(1)?, w.n)?;
        }
        if form == Form::Int8 {
            rounded = lay(2, w.n)?;
        }
        if has(WEIGHT_ZERO) {
            offset = lay(scale.row, w.n)?;
        }
        if let Some(order) = parts.iter().find(|p| p.rows == Rows::Shared) {
            perm = lay(order.bytes(1).ok_or_else(too_large)?, 1)?;
        }
        if matches!(form, Form::Int4 { .. }) {
            codes = Part { start: end, row: 0 };
            end += TABLE_BYTES;
        }
        Ok(Self {
            form,
            dtype: w.dtype,
            groups,
            n,
            k,
            start,
            scale: scale.start,
            offset: offset.start,
            rounded: rounded.start,
            perm: perm.start,
            codes: codes.start,
            nz,
            rows: [data.row, scale.row, perm.row],
            bytes: end - start,
        })
    }

    /// Dims of the codes' storage, where that is FRACTAL_NZ: of the matrix `[n, k]`.
    pub(crate) fn fractals(&self) -> Option<[i64; 4]> {
        let [rows, columns] = FRACTAL;
        self.nz.then_some([self.k / columns, self.n / rows, rows, columns])
    }

    /// Scales of a row.
    pub(crate) fn scales(&self) -> i64 {
        match self.form {
            Form::Int4 { group, .. } => self.k / group.max(1),
            _ => 1,
        }
    }
}

/// Sends rows of a part, changed on the way; they are on the device when this returns.
///
/// # Safety
/// The part is of a fill that has been checked and has not ended, and has so many rows. `to` is of memory that holds them.
unsafe fn send(
    on: &Stream,
    part: &PartRows,
    (rows, bytes): (usize, u64),
    to: u64,
    change: impl Fn(&[u8], &mut Vec<u8>),
) -> Result<()> {
    let a_piece = (PIECE / (bytes as usize).max(1)).clamp(1, rows.max(1));
    let mut piece = Vec::with_capacity(a_piece * bytes as usize);
    for at in (0..rows).step_by(a_piece) {
        piece.clear();
        for row in at..rows.min(at + a_piece) {
            // SAFETY: the caller's promise.
            change(unsafe { part.row(row) }, &mut piece);
        }
        // SAFETY: the caller's promise.
        unsafe { put(on, &piece, to + at as u64 * bytes) }?;
    }
    Ok(())
}

/// Sends rows of codes to FRACTAL_NZ, from row `first` of `n` on; they are on the device when this returns. Each piece of 32 columns is there
/// for all rows before the next.
///
/// # Safety
/// As of [`send`]; `to` is where the weight's codes begin.
unsafe fn send_fractals(
    on: &Stream,
    part: &PartRows,
    (first, rows): (u64, usize),
    (n, k): (u64, usize),
    to: u64,
) -> Result<()> {
    let width = FRACTAL[1] as usize;
    let a_piece = (PIECE / k.max(1)).clamp(1, rows.max(1));
    let mut piece = vec![0; a_piece * k];
    for at in (0..rows).step_by(a_piece) {
        let count = a_piece.min(rows - at);
        for row in 0..count {
            // SAFETY: the caller's promise.
            let codes = unsafe { part.row(at + row) };
            for (stripe, columns) in codes.chunks_exact(width).enumerate() {
                piece[(stripe * count + row) * width..][..width].copy_from_slice(columns);
            }
        }
        let bytes = (count * width) as u64;
        let from = Plane { start: piece.as_ptr() as u64, on_host: true, pitch: bytes };
        let start = to + (first + at as u64) * width as u64;
        let stripes = Plane { start, on_host: false, pitch: n * width as u64 };
        // SAFETY: the caller's promise; the piece lives until the stream has passed the copy.
        unsafe { driver::copy(on, stripes, from, bytes, (k / width) as u64) }?;
        on.synchronize()?;
    }
    Ok(())
}

/// Sends bytes; they are on the device when this returns.
///
/// # Safety
/// `to` is of memory that holds them.
unsafe fn put(on: &Stream, bytes: &[u8], to: u64) -> Result<()> {
    let size = bytes.len() as u64;
    let plane = |start, on_host| Plane { start, on_host, pitch: size };
    // SAFETY: the caller's promise; the bytes live until the stream has passed the copy.
    unsafe { driver::copy(on, plane(to, false), plane(bytes.as_ptr() as u64, true), size, 1) }?;
    on.synchronize()
}

/// A number of 0 to 255 in the type of scales, to `out`.
fn push_number(dtype: DType, value: i16, out: &mut Vec<u8>) {
    let value = f32::from(value);
    let bits = value.to_bits();
    match dtype {
        DType::F32 => out.extend_from_slice(&value.to_le_bytes()),
        // Whole numbers below 256 have at most 8 digits, so that the lower half of an f32 is zeros.
        DType::BF16 => out.extend_from_slice(&((bits >> 16) as u16).to_le_bytes()),
        _ => {
            let exponent = (bits >> 23 & 0xff).saturating_sub(112);
            let half = if value == 0.0 { 0 } else { exponent << 10 | bits >> 13 & 0x3ff };
            out.extend_from_slice(&((bits >> 16 & 0x8000 | half) as u16).to_le_bytes());
        }
    }
}

/// f32 rounded to bf16, to the nearest even.
fn push_rounded(from: &[u8], out: &mut Vec<u8>) {
    for bytes in from.chunks_exact(4) {
        let bits = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        let nearest = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
        let kept = if f32::from_bits(bits).is_finite() { nearest } else { bits };
        out.extend_from_slice(&((kept >> 16) as u16).to_le_bytes());
    }
}

/// The two codes of a byte, the low one first, as numbers.
fn code_table() -> Vec<u8> {
    let signed = |code: u8| f32::from(code as i8 - if code > 7 { 16 } else { 0 });
    (0..=255u8).flat_map(|b| [signed(b & 15), signed(b >> 4)]).flat_map(f32::to_le_bytes).collect()
}

/// Weights by handle.
#[derive(Debug, Default)]
pub(crate) struct Weights {
    table: WeightTable<Packed>,
}

impl Weights {
    /// What a weight takes.
    pub(crate) fn plan(w: &WeightDesc<'_>) -> Result<WeightPlan> {
        let Packed { bytes, nz, .. } = Packed::of(w, 0)?;
        if bytes == 0 {
            return Err(Error::invalid(format!("a weight of {} groups of nothing", w.groups)));
        }
        let format = if nz { FORMAT_NZ } else { FORMAT };
        Ok(WeightPlan { bytes, align: ALIGN, scratch_bytes: 0, format })
    }

    pub(crate) fn create(&self, w: &WeightDesc<'_>, start: u64) -> Result<Weight> {
        if !start.is_multiple_of(ALIGN) {
            return Err(Error::invalid(format!("a weight at {start:#x}, not aligned to {ALIGN}")));
        }
        self.table.create(w, Packed::of(w, start)?)
    }

    /// Sends rows; they are on the device when this returns. The context is bound.
    pub(crate) fn fill(&self, on: &Stream, w: Weight, f: &WeightFill<'_>) -> Result<()> {
        self.table.fill(w, f, |desc, packed| {
            let parts = FillParts::new(desc, f)?;
            let [data, scale, perm] = packed.rows;
            let first = u64::from(f.group) * packed.n.unsigned_abs() + f.row0;
            let rows = f.rows as usize;
            let sign = if matches!(packed.form, Form::Int4 { .. }) { 0x88 } else { 0 };
            let copied = |from: &[u8], to: &mut Vec<u8>| to.extend(from.iter().map(|b| b ^ sign));
            if packed.nz {
                let (of, shape) = ((first, rows), (packed.n.unsigned_abs(), data as usize));
                // SAFETY: the table has checked the fill, and the host keeps the weight's memory, which holds each part's rows as planned.
                unsafe { send_fractals(on, &parts.data, of, shape, packed.start) }?;
            } else {
                let to = packed.start + first * data;
                // SAFETY: as above.
                unsafe { send(on, &parts.data, (rows, data), to, copied) }?;
            }
            let plain = |from: &[u8], to: &mut Vec<u8>| to.extend_from_slice(from);
            if let Some(part) = &parts.scale {
                // SAFETY: as above.
                unsafe { send(on, part, (rows, scale), packed.scale + first * scale, plain) }?;
            }
            if let (Some(part), Form::Int8) = (&parts.scale, packed.form) {
                // SAFETY: as above.
                unsafe { send(on, part, (rows, 2), packed.rounded + first * 2, push_rounded) }?;
            }
            if let Some(part) = &parts.zero {
                let offsets = |from: &[u8], to: &mut Vec<u8>| {
                    from.iter().for_each(|&z| push_number(packed.dtype, 8 - i16::from(z), to));
                };
                // SAFETY: as above.
                unsafe { send(on, part, (rows, scale), packed.offset + first * scale, offsets) }?;
            }
            if let Some(part) = &parts.perm {
                // SAFETY: as above; a fill has a row at least.
                let order = unsafe { part.row(0) };
                check_order(order, packed.k)?;
                // SAFETY: as above.
                unsafe { put(on, order, packed.perm + u64::from(f.group) * perm) }?;
            }
            if packed.codes != 0 && first == 0 {
                // SAFETY: as above.
                unsafe { put(on, &code_table(), packed.codes) }?;
            }
            Ok(())
        })
    }

    pub(crate) fn seal(&self, w: Weight) -> Result<()> {
        self.table.seal(w)
    }

    pub(crate) fn destroy(&self, w: Weight) -> Result<()> {
        self.table.destroy(w)
    }

    /// A sealed weight.
    pub(crate) fn get(&self, w: Weight) -> Result<Arc<Packed>> {
        Ok(self.table.get(w)?.1)
    }
}

/// Refuses an order of columns that leaves them.
fn check_order(order: &[u8], k: i64) -> Result<()> {
    let columns = order.chunks_exact(4).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    match columns.map(i64::from).find(|column| !(0..k).contains(column)) {
        Some(column) => Err(Error::invalid(format!("perm has column {column}, there are {k}"))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_scales_types() {
        let push = |dtype, value| {
            let mut out = Vec::new();
            push_number(dtype, value, &mut out);
            out
        };
        assert_eq!(push(DType::F32, -3), (-3f32).to_le_bytes());
        assert_eq!(push(DType::BF16, 1), 0x3f80u16.to_le_bytes());
        assert_eq!(push(DType::F16, 1), 0x3c00u16.to_le_bytes());
        assert_eq!(push(DType::F16, -247), 0xdbb8u16.to_le_bytes());
        assert_eq!(push(DType::F16, 0), [0, 0]);
        assert_eq!(push(DType::BF16, -247), 0xc377u16.to_le_bytes());
    }

    #[test]
    fn scales_are_rounded_to_the_nearest() {
        let rounded = |bits: u32| {
            let mut out = Vec::new();
            push_rounded(&bits.to_le_bytes(), &mut out);
            u16::from_le_bytes([out[0], out[1]])
        };
        // Below, at and above the middle of two neighbours, the lower one even and odd.
        assert_eq!(rounded(0x3f80_7fff), 0x3f80);
        assert_eq!([rounded(0x3f80_8000), rounded(0x3f81_8000)], [0x3f80, 0x3f82]);
        assert_eq!(rounded(0x3f80_8001), 0x3f81);
        assert_eq!(rounded(f32::INFINITY.to_bits()), 0x7f80);
    }

    #[test]
    fn codes_have_a_sign() {
        let table = code_table();
        let pair = |byte: usize| &table[8 * byte..8 * byte + 8];
        assert_eq!(pair(0x7f), [-1f32, 7.0].map(f32::to_le_bytes).concat());
        assert_eq!(pair(0x80), [0f32, -8.0].map(f32::to_le_bytes).concat());
    }

    #[test]
    fn parts_lie_one_behind_the_other() {
        let dense = WeightDesc::linear(Scheme::DENSE, DType::BF16, 3, 5);
        assert_eq!(Weights::plan(&dense).unwrap().bytes, 256);
        let int4 = WeightDesc::linear(Scheme::INT4_GROUP, DType::F16, 16, 64);
        let int4 = WeightDesc { group_size: 32, flags: WEIGHT_ZERO | WEIGHT_PERM, ..int4 };
        let packed = Packed::of(&int4, 1 << 20).unwrap();
        let at = |address: u64| address - (1 << 20);
        assert_eq!([at(packed.scale), at(packed.offset), at(packed.perm)], [512, 768, 1024]);
        assert_eq!((at(packed.codes), packed.bytes), (1280, 1280 + TABLE_BYTES));
        assert!(Packed::of(&WeightDesc::linear(Scheme::FP8_CHANNEL, DType::F32, 4, 4), 0).is_err());
    }
}
