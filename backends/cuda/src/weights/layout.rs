//! The packed forms: which planes a matrix has, and where. `kernels/weight.h` and `kernels/quant.h` read them.

use halyard_sdk::{
    DType, Error, Result, Scheme, WeightDesc,
    abi::{
        scheme::FP8_BLOCK,
        types::{WEIGHT_PERM, WEIGHT_ZERO},
    },
    weights::known_parts,
};

use crate::memory::ALIGN;

/// Schemes this backend computes with.
pub(crate) const SCHEMES: [Scheme; 16] = [
    Scheme::DENSE,
    Scheme::FP8_BLOCK,
    Scheme::FP8_CHANNEL,
    Scheme::INT8_CHANNEL,
    Scheme::INT4_GROUP,
    Scheme::GGUF_Q4_0,
    Scheme::GGUF_Q4_1,
    Scheme::GGUF_Q5_0,
    Scheme::GGUF_Q5_1,
    Scheme::GGUF_Q8_0,
    Scheme::GGUF_Q2_K,
    Scheme::GGUF_Q3_K,
    Scheme::GGUF_Q4_K,
    Scheme::GGUF_Q5_K,
    Scheme::GGUF_Q6_K,
    Scheme::GGUF_IQ4_NL,
];

/// Rows of a plane begin at multiples of this.
pub(crate) const ROW_ALIGN: u64 = 16;

/// Columns that kernels read at once.
pub(crate) const EIGHT: u64 = 8;

/// Columns of a matrix whose columns share scales: kernels find the scale by a multiplication in f32.
const MOST_GROUPED_COLUMNS: u64 = 1 << 22;

/// What a plane holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// Floats, or the low bits of codes.
    Codes = 0,
    /// The high bits of codes.
    High = 1,
    /// Scales (and minima) of a few columns.
    Scales = 2,
    /// Scales (and minima) of a block of columns.
    Blocks = 3,
    /// Zero points.
    Zeros = 4,
}

/// Rows of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Plane {
    pub(crate) content: Content,
    /// Bytes from the group's start.
    pub(crate) offset: u64,
    /// Bytes from row to row.
    pub(crate) pitch: u64,
    /// Rows of the matrix that share a row of this.
    pub(crate) shared: u64,
}

/// The form of each group of a weight.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    pub(crate) scheme: Scheme,
    /// Of the data (dense) or the scales.
    pub(crate) dtype: DType,
    pub(crate) n: u64,
    pub(crate) k: u64,
    /// Columns that share a float scale.
    pub(crate) columns: u64,
    pub(crate) planes: Vec<Plane>,
    /// Where the order of the columns is, `k` numbers of 32 bits; bytes from the group's start.
    pub(crate) order: Option<u64>,
    /// Bytes of a group; each begins aligned.
    pub(crate) bytes: u64,
}

/// Sizes of a GGUF scheme's parts.
pub(crate) struct Form {
    /// Bits of a code in the planes of low and of high bits.
    pub(crate) low: u64,
    pub(crate) high: u64,
    /// Columns and bytes of a scale, and of a block.
    scales: Option<(u64, u64)>,
    blocks: (u64, u64),
}

impl Form {
    pub(crate) fn of(scheme: Scheme) -> Option<Self> {
        let form = |low, high, scales, blocks| Some(Self { low, high, scales, blocks });
        match scheme {
            Scheme::GGUF_Q4_0 | Scheme::GGUF_IQ4_NL => form(4, 0, None, (32, 2)),
            Scheme::GGUF_Q4_1 => form(4, 0, None, (32, 4)),
            Scheme::GGUF_Q5_0 => form(4, 1, None, (32, 2)),
            Scheme::GGUF_Q5_1 => form(4, 1, None, (32, 4)),
            Scheme::GGUF_Q8_0 => form(8, 0, None, (32, 2)),
            Scheme::GGUF_Q2_K => form(2, 0, Some((16, 2)), (256, 4)),
            Scheme::GGUF_Q3_K => form(2, 1, Some((16, 1)), (256, 2)),
            Scheme::GGUF_Q4_K => form(4, 0, Some((32, 2)), (256, 4)),
            Scheme::GGUF_Q5_K => form(4, 1, Some((32, 2)), (256, 4)),
            Scheme::GGUF_Q6_K => form(4, 2, Some((16, 1)), (256, 2)),
            _ => None,
        }
    }
}

impl Layout {
    /// # Errors
    /// `UNSUPPORTED` for a scheme, role, flag or group size this backend does not have; `INVALID_ARGUMENT` for a shape that the
    /// scheme does not have.
    pub(crate) fn of(w: &WeightDesc<'_>) -> Result<Self> {
        known_parts(w, &SCHEMES)?;
        let limit = u64::from(i32::MAX.unsigned_abs());
        if w.n == 0 || w.n > limit || w.k > limit {
            return Err(Error::invalid(format!("a {} weight of [{}, {}]", w.scheme, w.n, w.k)));
        }
        let mut layout = Self {
            scheme: w.scheme,
            dtype: w.dtype,
            n: w.n,
            k: w.k,
            columns: w.k,
            planes: Vec::new(),
            order: None,
            bytes: 0,
        };
        layout.add_planes(w)?;
        layout.bytes = layout.bytes.next_multiple_of(ALIGN);
        Ok(layout)
    }

    fn add_planes(&mut self, w: &WeightDesc<'_>) -> Result<()> {
        if let Some(form) = Form::of(w.scheme) {
            self.add_bits(Content::Codes, form.low);
            if form.high > 0 {
                self.add_bits(Content::High, form.high);
            }
            if let Some((columns, bytes)) = form.scales {
                self.add(Content::Scales, w.k / columns * bytes, 1);
            }
            self.add(Content::Blocks, w.k / form.blocks.0 * form.blocks.1, 1);
            return Ok(());
        }
        if w.scheme == Scheme::DENSE {
            self.add_bits(Content::Codes, w.dtype.bits().unwrap_or(0).into());
            return Ok(());
        }
        self.add_bits(Content::Codes, if w.scheme == Scheme::INT4_GROUP { 4 } else { 8 });
        if w.group_size != 0 {
            self.columns = u64::from(w.group_size);
            self.check_columns()?;
        }
        let scales = w.k.div_ceil(self.columns);
        let shared = if w.scheme == Scheme::FP8_BLOCK { FP8_BLOCK } else { 1 };
        self.add(Content::Scales, w.dtype.bytes(scales).unwrap_or(0), shared);
        if w.flags & WEIGHT_ZERO != 0 {
            self.add(Content::Zeros, scales, 1);
        }
        if w.flags & WEIGHT_PERM != 0 {
            self.order = Some(self.bytes);
            self.bytes += (w.k * 4).next_multiple_of(ROW_ALIGN);
        }
        Ok(())
    }

    /// Kernels take eight columns at once, which must have one scale.
    fn check_columns(&self) -> Result<()> {
        let one = self.columns >= self.k;
        if one || (self.columns.is_multiple_of(EIGHT) && self.k < MOST_GROUPED_COLUMNS) {
            return Ok(());
        }
        Err(Error::unsupported(format!(
            "a {} weight of {} columns in groups of {}; groups are multiples of {EIGHT}, or all of the columns",
            self.scheme, self.k, self.columns
        )))
    }

    /// A plane with so many bits a column, of whole eights of columns.
    fn add_bits(&mut self, content: Content, bits: u64) {
        self.add(content, self.k.next_multiple_of(EIGHT) * bits / 8, 1);
    }

    fn add(&mut self, content: Content, row_bytes: u64, shared: u64) {
        let pitch = row_bytes.next_multiple_of(ROW_ALIGN);
        self.planes.push(Plane { content, offset: self.bytes, pitch, shared });
        self.bytes += pitch * self.n.div_ceil(shared);
    }

    /// How kernels' names call this form.
    pub(crate) fn kernel_name(&self) -> String {
        match (self.scheme, self.dtype) {
            (Scheme::DENSE, dtype) => dtype.to_string(),
            (Scheme::FP8_BLOCK | Scheme::FP8_CHANNEL, _) => "fp8".into(),
            (Scheme::INT8_CHANNEL, _) => "int8".into(),
            (Scheme::INT4_GROUP, _) => "int4".into(),
            (gguf, _) => gguf.to_string(),
        }
    }
}
