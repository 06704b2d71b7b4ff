//! Packed weights: from the host's rows to panels, and back for launches.

use std::sync::{Arc, Mutex, PoisonError};

use halyard_sdk::{
    Error, Result, Scheme, Weight, WeightDesc, WeightFill, WeightTable,
    abi::types::WEIGHT_PERM,
    weights::{FillParts, known_parts},
};

use crate::elem::Elem;
use crate::gemm::{Layout, Matrix};
use crate::huge;
use crate::pack::dense::{DenseLayout, Store};
use crate::pack::grouped::{self, GroupedRow};
use crate::pack::{Quant, QuantLayout, ggml};
use crate::pool::Pool;

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

/// Rows that one task packs.
const ROWS_PER_TASK: usize = 64;

/// The form of each group of a weight.
///
/// # Errors
/// `UNSUPPORTED` for a scheme, role or flag this backend does not have; `INVALID_ARGUMENT` for a shape
/// that the scheme does not have.
pub(crate) fn layout(w: &WeightDesc<'_>) -> Result<Layout> {
    known_parts(w, &SCHEMES)?;
    let size = |x: u64| usize::try_from(x).ok().filter(|&x| x > 0 && x < 1 << 40);
    let bad = || Error::invalid(format!("a {} weight of [{}, {}]", w.scheme, w.n, w.k));
    let (Some(n), Some(k)) = (size(w.n), size(w.k)) else { return Err(bad()) };
    let dense = |store| DenseLayout::new(store, n, k).map(Layout::Dense);
    let layout = match w.scheme {
        Scheme::DENSE => dense(Store::Float(Elem::of(w.dtype)?)),
        Scheme::FP8_BLOCK => dense(Store::E4m3 { blocks: true }),
        Scheme::FP8_CHANNEL => dense(Store::E4m3 { blocks: false }),
        Scheme::INT8_CHANNEL => {
            QuantLayout::grouped(Quant::INT8, n, k, k, false).map(Layout::Quant)
        }
        Scheme::INT4_GROUP => {
            let (group, ordered) = (w.group_size as usize, w.flags & WEIGHT_PERM != 0);
            QuantLayout::grouped(Quant::INT4, n, k, group, ordered).map(Layout::Quant)
        }
        scheme => quant(scheme).and_then(|q| QuantLayout::new(q, n, k)).map(Layout::Quant),
    };
    layout.ok_or_else(bad)
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
    /// Whether each group's order of columns has come; empty if there is none.
    has_order: Mutex<Vec<bool>>,
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
        let (layout, groups) = (layout(w)?, w.groups as usize);
        let has_order = Mutex::new(vec![false; if layout.is_ordered() { groups } else { 0 }]);
        let packed = Packed { layout, groups, start, has_order };
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
            let source = Source::new(desc, f)?;
            let group = f.group as usize;
            packed.take_order(group, &source)?;
            let (first, rows) = (f.row0 as usize, f.rows as usize);
            let base = packed.matrix(group).base.cast_mut();
            let to = Target { layout: packed.layout, base };
            pool.run(rows.div_ceil(ROWS_PER_TASK), &|task| {
                let start = task * ROWS_PER_TASK;
                for i in start..(start + ROWS_PER_TASK).min(rows) {
                    // SAFETY: the table has checked rows and parts; tasks pack different rows.
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

/// Rows in canonical form.
#[derive(Clone, Copy)]
struct Source {
    parts: FillParts,
    /// Type of the scales.
    scale_type: Elem,
}

impl Source {
    fn new(desc: &WeightDesc<'_>, f: &WeightFill<'_>) -> Result<Self> {
        let parts = FillParts::new(desc, f)?;
        let scale_type = if parts.scale.is_some() { Elem::of(desc.dtype)? } else { Elem::F32 };
        Ok(Self { parts, scale_type })
    }

    /// # Safety
    /// As [`halyard_sdk::weights::PartRows::row`].
    unsafe fn grouped_row(&self, i: usize) -> GroupedRow<'_> {
        let FillParts { data, scale, zero, .. } = &self.parts;
        // SAFETY: the caller's promise.
        unsafe {
            GroupedRow {
                codes: data.row(i),
                scales: scale.as_ref().map_or(&[], |s| s.row(i)),
                scale: self.scale_type,
                zeros: zero.as_ref().map(|z| z.row(i)),
            }
        }
    }
}

impl Packed {
    /// Writes a group's order of columns the first time; later it must be the same.
    fn take_order(&self, group: usize, source: &Source) -> Result<()> {
        let (Layout::Quant(layout), Some(part)) = (&self.layout, &source.parts.perm) else {
            return Ok(());
        };
        // SAFETY: the table has checked the part, which all rows share.
        let bytes = unsafe { part.row(0) };
        let number = |b: &[u8; 4]| u32::from_ne_bytes(*b);
        let order: Vec<u32> = bytes.as_chunks().0.iter().map(number).collect();
        let base = self.matrix(group).base.cast_mut();
        let mut has_order = self.has_order.lock().unwrap_or_else(PoisonError::into_inner);
        if has_order[group] {
            // SAFETY: the order is inside the matrix, and has been written.
            let same = unsafe {
                layout.order(base).is_some_and(|p| {
                    std::slice::from_raw_parts(p.cast::<u8>(), bytes.len()) == bytes
                })
            };
            let differs = || Error::invalid("perm differs from that of the rows before");
            return if same { Ok(()) } else { Err(differs()) };
        }
        // SAFETY: fills come one at a time (the weight table's lock), and no launch reads before the seal.
        if !unsafe { grouped::put_order(layout, base, &order) } {
            return Err(Error::invalid(format!("perm is no permutation of 0..{}", layout.k)));
        }
        has_order[group] = true;
        Ok(())
    }
}

/// A matrix being filled.
#[derive(Clone, Copy)]
struct Target {
    layout: Layout,
    base: *mut u8,
}

// SAFETY: an address; tasks write different rows of the target.
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
                Layout::Quant(q) if source.parts.scale.is_some() => {
                    grouped::pack_row(q, self.base, row, &source.grouped_row(i));
                }
                Layout::Quant(q) => ggml::pack_row(q, self.base, row, source.parts.data.row(i)),
                Layout::Dense(d) => {
                    d.pack_row(self.base, row, source.parts.data.row(i).as_ptr());
                    if let Some(scale) = &source.parts.scale {
                        d.pack_scales(self.base, row, scale.row(i));
                    }
                }
            }
        }
    }
}
