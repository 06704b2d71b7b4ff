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

pub(crate) mod dense;
pub(crate) mod formats;
pub(crate) mod ggml;

use crate::simd::LANES;
use formats::{Format as _, with_format};

/// Columns that share one activation record.
pub(crate) const BLOCK: usize = 32;

/// A GGUF quantisation scheme.
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
}

impl Quant {
    #[cfg(test)]
    pub(crate) const ALL: [Self; 11] = [
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

    /// Columns and bytes of one block of the file format.
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
        }
    }
}

/// Where things are in a packed quantised matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct QuantLayout {
    pub(crate) quant: Quant,
    pub(crate) n: usize,
    pub(crate) k: usize,
    /// Bytes of a panel's scales, which precede its codes.
    pub(crate) aux_bytes: usize,
    pub(crate) panel_bytes: usize,
}

impl QuantLayout {
    /// The layout of an `[n, k]` matrix; `None` if `k` is not whole blocks or sizes overflow.
    pub(crate) fn new(quant: Quant, n: usize, k: usize) -> Option<Self> {
        let (cols, _) = quant.file_block();
        if k == 0 || !k.is_multiple_of(cols) {
            return None;
        }
        let blocks = k / BLOCK;
        let (code_bytes, (unit, unit_bytes)) = with_format!(quant, F => (F::CODE_BYTES, F::UNIT));
        let aux_bytes = (blocks / unit).checked_mul(unit_bytes)?.next_multiple_of(64);
        let panel_bytes = blocks.checked_mul(code_bytes)?.checked_add(aux_bytes)?;
        n.div_ceil(LANES).checked_mul(panel_bytes)?;
        Some(Self { quant, n, k, aux_bytes, panel_bytes })
    }

    pub(crate) fn panels(&self) -> usize {
        self.n.div_ceil(LANES)
    }

    pub(crate) fn bytes(&self) -> usize {
        self.panels() * self.panel_bytes
    }

    /// Bytes of one row in the file format.
    pub(crate) fn file_row_bytes(&self) -> usize {
        let (cols, bytes) = self.quant.file_block();
        self.k / cols * bytes
    }

    /// Writes block `b` of row `row` as floats: `scale * code + offset`, rounded once.
    ///
    /// # Safety
    /// `base` is a packed matrix of this layout, readable for [`Self::bytes`]; `row < n`; the block is
    /// one of the row's; `out` has [`BLOCK`] elements.
    pub(crate) unsafe fn unpack_block(
        &self,
        base: *const u8,
        row: usize,
        b: usize,
        out: &mut [f32],
    ) {
        debug_assert!(row < self.n && b < self.k / BLOCK && out.len() == BLOCK);
        let (panel, lane) = (row / LANES, row % LANES);
        // SAFETY: `row < n`, so its panel is inside the matrix: its scales, then its codes.
        unsafe {
            let aux = base.add(panel * self.panel_bytes);
            let codes = aux.add(self.aux_bytes);
            with_format!(self.quant, F => F::unpack_block(aux, codes, b, lane, out));
        }
    }
}
