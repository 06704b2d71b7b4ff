//! Packed weights: from the host's rows to panels, and back for launches.

use std::sync::Arc;

use halyard_sdk::{
    DType, Error, Result, Role, Scheme, Weight, WeightDesc, WeightFill, WeightTable,
    weights::row_bytes,
};

use crate::elem::{Elem, Rows};
use crate::gemm::{Layout, Matrix};
use crate::huge;
use crate::pack::dense::DenseLayout;
use crate::pack::{Quant, QuantLayout, ggml};
use crate::pool::Pool;

/// Schemes this backend computes with.
pub(crate) const SCHEMES: [Scheme; 12] = [
    Scheme::DENSE,
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

/// Rows that one task packs.
const ROWS_PER_TASK: usize = 64;

/// The form of each group of a weight.
///
/// # Errors
/// `UNSUPPORTED` for a scheme, role or flag this backend does not have; `INVALID_ARGUMENT` for a shape
/// that the scheme does not have.
pub(crate) fn layout(w: &WeightDesc<'_>) -> Result<Layout> {
    if !w.attrs.is_empty() || w.flags != 0 || w.group_size != 0 {
        return Err(Error::unsupported(format!(
            "a weight with {} attributes, flags {:#x}, groups of {}",
            w.attrs.len(),
            w.flags,
            w.group_size
        )));
    }
    if ![Role::LINEAR, Role::EMBEDDING, Role::EXPERTS].contains(&Role(w.role)) {
        return Err(Error::unsupported(format!("a weight of role {}", Role(w.role))));
    }
    let size = |x: u64| usize::try_from(x).ok().filter(|&x| x > 0 && x < 1 << 40);
    let (n, k) = (size(w.n), size(w.k));
    let bad = || Error::invalid(format!("a {} weight of [{}, {}]", w.scheme, w.n, w.k));
    let (Some(n), Some(k)) = (n, k) else { return Err(bad()) };
    if w.scheme == Scheme::DENSE {
        let elem =
            Elem::of(w.dtype).map_err(|e| Error::unsupported(format!("a dense weight of {e}")))?;
        return DenseLayout::new(elem, n, k).map(Layout::Dense).ok_or_else(bad);
    }
    let Some(quant) = quant(w.scheme) else {
        let known: Vec<_> = SCHEMES.iter().map(ToString::to_string).collect();
        return Err(Error::unsupported(format!(
            "weights of scheme {}; supported: {}",
            w.scheme,
            known.join(", ")
        )));
    };
    if w.dtype != DType::NONE {
        return Err(Error::invalid(format!("{} fixes its types, {} was given", w.scheme, w.dtype)));
    }
    row_bytes(w)?;
    QuantLayout::new(quant, n, k).map(Layout::Quant).ok_or_else(bad)
}

fn quant(scheme: Scheme) -> Option<Quant> {
    Some(match scheme {
        Scheme::GGUF_Q4_0 => Quant::Q4_0,
        Scheme::GGUF_Q4_1 => Quant::Q4_1,
        Scheme::GGUF_Q5_0 => Quant::Q5_0,
        Scheme::GGUF_Q5_1 => Quant::Q5_1,
        Scheme::GGUF_Q8_0 => Quant::Q8_0,
        Scheme::GGUF_Q2_K => Quant::Q2_K,
        Scheme::GGUF_Q3_K => Quant::Q3_K,
        Scheme::GGUF_Q4_K => Quant::Q4_K,
        Scheme::GGUF_Q5_K => Quant::Q5_K,
        Scheme::GGUF_Q6_K => Quant::Q6_K,
        Scheme::GGUF_IQ4_NL => Quant::IQ4_NL,
        _ => return None,
    })
}

/// A packed weight: `groups` matrices of one layout, one after the other.
#[derive(Debug)]
pub(crate) struct Packed {
    layout: Layout,
    groups: usize,
    start: *mut u8,
}

// SAFETY: the memory is the host's, which keeps it until `weight_destroy` and does not touch it; fills
// write it one at a time (the weight table's lock), launches read it after `weight_seal` only.
unsafe impl Send for Packed {}
// SAFETY: as above.
unsafe impl Sync for Packed {}

impl Packed {
    pub(crate) fn groups(&self) -> usize {
        self.groups
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// One group's matrix.
    ///
    /// # Panics
    /// If there is no such group: a bug of this crate.
    pub(crate) fn matrix(&self, group: usize) -> Matrix {
        assert!(group < self.groups, "group {group} of {}", self.groups);
        let base = self.start.wrapping_add(group * self.layout.bytes());
        Matrix { layout: self.layout, base }
    }
}

/// Weights by handle.
#[derive(Debug, Default)]
pub(crate) struct Weights(WeightTable<Packed>);

impl Weights {
    /// Bytes of a weight's packed form.
    pub(crate) fn bytes(w: &WeightDesc<'_>) -> Result<u64> {
        let bytes = layout(w)?.bytes() as u64;
        bytes.checked_mul(u64::from(w.groups)).filter(|&b| b > 0 && b < 1 << 46).ok_or_else(|| {
            Error::invalid(format!("a weight of {} groups of {bytes} bytes", w.groups))
        })
    }

    /// Begins a weight at `start`.
    ///
    /// # Safety
    /// [`Self::bytes`] bytes at `start` are the weight's own until it is destroyed.
    pub(crate) unsafe fn create(&self, w: &WeightDesc<'_>, start: *mut u8) -> Result<Weight> {
        let packed = Packed { layout: layout(w)?, groups: w.groups as usize, start };
        let (bytes, panels) = (packed.layout.bytes(), packed.layout.panels());
        for group in 0..packed.groups {
            // Lanes after the last row take part in the arithmetic: they must not hold garbage.
            let panel = packed.layout.panel_bytes();
            // SAFETY: the last panel of a group is inside the caller's bytes.
            unsafe {
                start.add(group * bytes + (panels - 1) * panel).write_bytes(0, panel);
            }
        }
        self.0.create(w, packed)
    }

    /// Packs rows.
    pub(crate) fn fill(&self, pool: &Pool, w: Weight, f: &WeightFill<'_>) -> Result<()> {
        self.0.fill(w, f, |desc, packed| {
            let bytes = row_bytes(desc)? as usize;
            let part = f.parts[0];
            let source = Source {
                base: (part.data + part.byte_offset) as *const u8,
                stride: part.strides[0] as usize * element_bytes(part.dtype),
                bytes,
            };
            let (first, rows) = (f.row0 as usize, f.rows as usize);
            let base = packed.matrix(f.group as usize).base.cast_mut();
            let to = Target { layout: packed.layout, base };
            pool.run(rows.div_ceil(ROWS_PER_TASK), &|task| {
                let start = task * ROWS_PER_TASK;
                for i in start..(start + ROWS_PER_TASK).min(rows) {
                    // SAFETY: the table has checked rows and part; tasks pack different rows.
                    unsafe { to.pack(first + i, &source, i) };
                }
            });
            Ok(())
        })
    }

    pub(crate) fn seal(&self, w: Weight) -> Result<()> {
        self.0.seal(w)?;
        let (_, packed) = self.0.get(w)?;
        huge::collapse(packed.start, packed.groups * packed.layout.bytes());
        Ok(())
    }

    pub(crate) fn destroy(&self, w: Weight) -> Result<()> {
        self.0.destroy(w)
    }

    /// A sealed weight.
    pub(crate) fn get(&self, w: Weight) -> Result<(WeightDesc<'static>, Arc<Packed>)> {
        self.0.get(w)
    }
}

fn element_bytes(dtype: DType) -> usize {
    dtype.bits().map_or(1, |b| (b / 8) as usize)
}

/// Rows in canonical form.
#[derive(Clone, Copy)]
struct Source {
    base: *const u8,
    stride: usize,
    bytes: usize,
}

/// A matrix being filled.
#[derive(Clone, Copy)]
struct Target {
    layout: Layout,
    base: *mut u8,
}

// SAFETY: addresses; tasks read the source and write different rows of the target.
unsafe impl Sync for Source {}
// SAFETY: as above.
unsafe impl Sync for Target {}

impl Target {
    /// Packs row `i` of the source as row `row`.
    ///
    /// # Safety
    /// Both exist; nobody else writes the row.
    unsafe fn pack(&self, row: usize, source: &Source, i: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            match &self.layout {
                Layout::Quant(q) => {
                    let from = source.base.add(i * source.stride);
                    let from = std::slice::from_raw_parts(from, source.bytes);
                    ggml::pack_row(q, self.base, row, from);
                }
                Layout::Dense(d) => {
                    let rows = Rows {
                        base: source.base,
                        elem: d.elem,
                        row_stride: source.stride,
                        col_stride: d.elem.bytes(),
                    };
                    d.pack_row(self.base, row, &rows, i);
                }
            }
        }
    }
}
