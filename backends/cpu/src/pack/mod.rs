//! Packed weights: rows interleaved sixteen at a time, so that one vector lane is one output row.
//!
//! A matrix `[n, k]` becomes `ceil(n / 16)` *panels*; lane `r` of panel `p` is row `16 p + r`, and lanes
//! past `n` hold zeros. Every output element is then one lane of one chain of operations along `k`,
//! whatever tile it is computed in, which makes results independent of the batch around them.
//!
//! A quantised panel keeps the file's codes and scales bit for bit, only arranged anew: first the
//! scales of all blocks (*aux*), then the codes, 32 columns at a time. Bits of a code are split into
//! *planes* whose groups of four columns can be cut out of a 32-bit lane with a shift and a mask:
//!
//! | plane | bytes per 16 rows and 32 columns | columns `4 s + i` are in byte `i` of |
//! | --- | --- | --- |
//! | 8 bits | 512 | vector `s` |
//! | 4 bits | 256 | vector `s & 3`, bits `4 (s >> 2)..` |
//! | 2 bits | 128 | vector `s & 1`, bits `2 (s >> 1)..` |
//! | 1 bit | 64 | the vector, bit `s` |
//!
//! Schemes whose groups of columns are no whole blocks of 32 begin a fresh block with each group; the columns that a group's last
//! block lacks count as zero activations.

pub(crate) mod dense;
pub(crate) mod formats;
pub(crate) mod ggml;
pub(crate) mod grouped;

use crate::simd::LANES;
use formats::{Format as _, with_format};
use std::ops::Range;

/// Columns that share one activation record.
pub(crate) const BLOCK: usize = 32;

/// A quantisation scheme of integer codes: GGUF's, and two whose groups of columns share a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(non_camel_case_types, reason = "the schemes' own names")]
pub(crate) enum Quant {
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    IQ4_NL,
    /// Codes of 4 bits; an f32 scale and a zero point a group.
    INT4,
    /// Signed codes of 8 bits; an f32 scale a group.
    INT8,
}

impl Quant {
    /// GGUF's schemes.
    #[cfg(test)]
    pub(crate) const GGUF: [Self; 11] = [
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2_K,
        Self::Q3_K,
        Self::Q4_K,
        Self::Q5_K,
        Self::Q6_K,
        Self::IQ4_NL,
    ];

    /// Columns and bytes of one block of the file format; of the schemes without one, of their codes.
    pub(crate) fn file_block(self) -> (usize, usize) {
        match self {
            Self::Q4_0 | Self::IQ4_NL => (32, 18),
            Self::Q4_1 => (32, 20),
            Self::Q5_0 => (32, 22),
            Self::Q5_1 => (32, 24),
            Self::Q8_0 => (32, 34),
            Self::Q2_K => (256, 84),
            Self::Q3_K => (256, 110),
            Self::Q4_K => (256, 144),
            Self::Q5_K => (256, 176),
            Self::Q6_K => (256, 210),
            Self::INT4 => (2, 1),
            Self::INT8 => (1, 1),
        }
    }
}

/// Where things are in a packed quantised matrix: its panels, then the order of its columns if it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct QuantLayout {
    pub(crate) quant: Quant,
    pub(crate) n: usize,
    pub(crate) k: usize,
    /// Columns of a group, each of which begins a fresh block.
    group: usize,
    /// Column `j` multiplies activation `order[j]`, not activation `j`.
    pub(crate) ordered: bool,
    /// Blocks that share a unit of scales.
    pub(crate) unit_blocks: usize,
    /// Bytes of a panel's scales, which precede its codes.
    pub(crate) aux_bytes: usize,
    pub(crate) panel_bytes: usize,
}

impl QuantLayout {
    /// The layout of an `[n, k]` matrix of a GGUF scheme; `None` if `k` is not whole blocks or sizes overflow.
    pub(crate) fn new(quant: Quant, n: usize, k: usize) -> Option<Self> {
        let (columns, _) = quant.file_block();
        if !k.is_multiple_of(columns) {
            return None;
        }
        let (unit, _) = with_format!(quant, F => F::UNIT);
        Self::with_units(quant, n, k, k, unit)
    }

    /// The layout of an `[n, k]` matrix with a scale for every `group` columns; `None` if `k` is not whole groups or sizes overflow.
    pub(crate) fn grouped(
        quant: Quant,
        n: usize,
        k: usize,
        group: usize,
        ordered: bool,
    ) -> Option<Self> {
        if group == 0 || !k.is_multiple_of(group) {
            return None;
        }
        let layout = Self::with_units(quant, n, k, group, group.div_ceil(BLOCK))?;
        layout.bytes().checked_add(k.checked_mul(4)?.checked_next_multiple_of(64)?)?;
        Some(Self { ordered, ..layout })
    }

    fn with_units(
        quant: Quant,
        n: usize,
        k: usize,
        group: usize,
        unit_blocks: usize,
    ) -> Option<Self> {
        if k == 0 {
            return None;
        }
        let (code_bytes, (_, unit_bytes)) = with_format!(quant, F => (F::CODE_BYTES, F::UNIT));
        let blocks = (k / group).checked_mul(group.div_ceil(BLOCK))?;
        let aux_bytes = (blocks / unit_blocks).checked_mul(unit_bytes)?.next_multiple_of(64);
        let panel_bytes = blocks.checked_mul(code_bytes)?.checked_add(aux_bytes)?;
        n.div_ceil(LANES).checked_mul(panel_bytes)?;
        Some(Self { quant, n, k, group, ordered: false, unit_blocks, aux_bytes, panel_bytes })
    }

    pub(crate) fn panels(&self) -> usize {
        self.n.div_ceil(LANES)
    }

    pub(crate) fn bytes(&self) -> usize {
        let order = if self.ordered { (4 * self.k).next_multiple_of(64) } else { 0 };
        self.panels() * self.panel_bytes + order
    }

    /// Blocks of a row.
    pub(crate) fn blocks(&self) -> usize {
        self.k / self.group * self.group.div_ceil(BLOCK)
    }

    /// Columns of block `b`: up to [`BLOCK`] of them.
    #[inline(always)]
    pub(crate) fn columns(&self, b: usize) -> Range<usize> {
        if self.group == self.k {
            return b * BLOCK..(b * BLOCK + BLOCK).min(self.k);
        }
        let (group, block) = (b / self.unit_blocks, b % self.unit_blocks);
        let start = group * self.group + block * BLOCK;
        start..(start + BLOCK).min((group + 1) * self.group)
    }

    /// The order of the columns of the matrix at `base`, if it has one.
    ///
    /// # Safety
    /// `base` is a packed matrix of this layout, readable for [`Self::bytes`].
    #[inline(always)]
    pub(crate) unsafe fn order(&self, base: *const u8) -> Option<*const u32> {
        // SAFETY: the caller's promise: the order follows the panels.
        self.ordered.then(|| unsafe { base.add(self.panels() * self.panel_bytes).cast() })
    }

    /// Bytes of one row's codes, or of one row in the file format.
    pub(crate) fn file_row_bytes(&self) -> usize {
        let (cols, bytes) = self.quant.file_block();
        self.k / cols * bytes
    }

    /// Writes block `b` of row `row` as floats: `scale * code + offset`, rounded once.
    ///
    /// # Safety
    /// `base` is a packed matrix of this layout, readable for [`Self::bytes`]; `row < n`; the block is
    /// one of the row's.
    pub(crate) unsafe fn unpack_block(
        &self,
        base: *const u8,
        row: usize,
        b: usize,
        out: &mut [f32; BLOCK],
    ) {
        debug_assert!(row < self.n && b < self.blocks());
        let (panel, lane) = (row / LANES, row % LANES);
        // SAFETY: `row < n`, so its panel is inside the matrix: its scales, then its codes.
        unsafe {
            let aux = base.add(panel * self.panel_bytes);
            let codes = aux.add(self.aux_bytes);
            with_format!(self.quant, F => {
                let unit = aux.add(b / self.unit_blocks * F::UNIT.1);
                F::unpack_block(unit, codes.add(b * F::CODE_BYTES), b % self.unit_blocks, lane, out);
            });
        }
    }
}
