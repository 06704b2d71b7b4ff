//! From rows of codes and scales to packed panels: INT4_GROUP and INT8_CHANNEL.

use super::formats::{Format as _, GROUP_ZEROS, INT4_ZERO, with_format};
use super::ggml::Panel;
use super::{BLOCK, Quant, QuantLayout};
use crate::elem::Elem;
use crate::simd::LANES;

/// One row in canonical form.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GroupedRow<'a> {
    /// Two codes of 4 bits a byte, the first low; or a signed code a byte.
    pub(crate) codes: &'a [u8],
    /// A scale a group.
    pub(crate) scales: &'a [u8],
    pub(crate) scale: Elem,
    /// A zero point a group.
    pub(crate) zeros: Option<&'a [u8]>,
}

impl GroupedRow<'_> {
    fn scale(&self, group: usize) -> f32 {
        let bytes = self.scale.bytes();
        // SAFETY: the slice is one element.
        unsafe { self.scale.read(self.scales[group * bytes..][..bytes].as_ptr()) }
    }

    fn nibble(&self, column: usize) -> u8 {
        (self.codes[column / 2] >> (4 * (column % 2))) & 15
    }
}

/// Packs one row.
///
/// # Safety
/// `base` is a packed matrix of `layout`, writable for its bytes; `row < layout.n`; nobody else touches that row meanwhile.
pub(crate) unsafe fn pack_row(
    layout: &QuantLayout,
    base: *mut u8,
    row: usize,
    from: &GroupedRow<'_>,
) {
    debug_assert!(row < layout.n);
    let (code_bytes, (_, unit_bytes)) = with_format!(layout.quant, F => (F::CODE_BYTES, F::UNIT));
    for b in 0..layout.blocks() {
        let group = b / layout.unit_blocks;
        let columns = layout.columns(b);
        // SAFETY: `row < n`, so the panel is inside the matrix; block and group are inside the panel.
        let panel = unsafe {
            let start = base.add(row / LANES * layout.panel_bytes);
            Panel {
                aux: start.add(group * unit_bytes),
                codes: start.add(layout.aux_bytes + b * code_bytes),
                lane: row % LANES,
            }
        };
        let mut codes = [0; BLOCK];
        // SAFETY: the panel has a unit and a block of this scheme.
        unsafe {
            panel.aux.cast::<f32>().add(panel.lane).write_unaligned(from.scale(group));
            if layout.quant == Quant::INT8 {
                codes[..columns.len()].copy_from_slice(&from.codes[columns]);
                panel.words(&codes, 0x8080_8080);
            } else {
                let zero = from.zeros.map_or(INT4_ZERO, |z| z[group]);
                panel.aux.add(GROUP_ZEROS + panel.lane).write(zero);
                for (code, column) in codes.iter_mut().zip(columns) {
                    *code = from.nibble(column);
                }
                panel.put_nibble_codes(0, &codes, 0);
            }
        }
    }
}

/// Writes the order of a matrix's columns; `false` if it is none: a column named twice or outside.
///
/// # Safety
/// As [`pack_row`], of the order in place of a row; the layout is an ordered one.
pub(crate) unsafe fn put_order(layout: &QuantLayout, base: *mut u8, order: &[u32]) -> bool {
    let mut seen = vec![false; layout.k];
    let fresh = |&column: &u32| {
        seen.get_mut(column as usize).is_some_and(|seen| !std::mem::replace(seen, true))
    };
    if order.len() != layout.k || !order.iter().all(fresh) {
        return false;
    }
    // SAFETY: the caller's promise; an ordered layout has room for its columns' order.
    unsafe {
        if let Some(to) = layout.order(base) {
            std::ptr::copy_nonoverlapping(order.as_ptr(), to.cast_mut(), order.len());
        }
    }
    true
}
