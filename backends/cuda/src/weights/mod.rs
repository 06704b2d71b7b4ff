//! Packed weights: rows as the kernels read them, copied to the device through a pinned buffer.
//!
//! - `layout`: the packed forms: a matrix is planes of codes, scales and so on, each of rows that begin at multiples of 16 bytes
//! - `ggml`: blocks of GGUF files, taken apart into planes
//! - `staging`: the way to the device

mod ggml;
mod layout;
mod staging;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use halyard_sdk::{
    Error, Result, Scheme, Weight, WeightDesc, WeightFill, WeightPlan, WeightTable,
    weights::FillParts,
};

use crate::{driver::Stream, memory::ALIGN};
use layout::Content;
pub(crate) use layout::{EIGHT, Layout, ROW_ALIGN, SCHEMES};
use staging::Staging;

/// Identity of the packed form, for caches on disk: a change of this module needs a new number.
const FORMAT: u64 = 0x6375_6461_0001;

/// A weight on the device.
#[derive(Debug)]
pub(crate) struct Packed {
    pub(crate) layout: Layout,
    pub(crate) groups: u32,
    /// Address of the first group.
    pub(crate) start: u64,
    /// Each group's order of columns, once it has come.
    orders: Mutex<HashMap<u32, Vec<u8>>>,
}

/// Weights by handle.
#[derive(Debug, Default)]
pub(crate) struct Weights {
    table: WeightTable<Packed>,
    staging: Mutex<Option<Staging>>,
}

impl Weights {
    /// What a weight takes.
    pub(crate) fn plan(w: &WeightDesc<'_>) -> Result<WeightPlan> {
        let group = Layout::of(w)?.bytes;
        let bytes = group.checked_mul(u64::from(w.groups)).filter(|&b| b > 0 && b < 1 << 46);
        let bytes = bytes.ok_or_else(|| {
            Error::invalid(format!("a weight of {} groups of {group} bytes", w.groups))
        })?;
        Ok(WeightPlan { bytes, align: ALIGN, scratch_bytes: 0, format: FORMAT })
    }

    pub(crate) fn create(&self, w: &WeightDesc<'_>, start: u64) -> Result<Weight> {
        let layout = Layout::of(w)?;
        if !start.is_multiple_of(ALIGN) {
            return Err(Error::invalid(format!("a weight at {start:#x}, not aligned to {ALIGN}")));
        }
        let orders = Mutex::default();
        self.table.create(w, Packed { layout, groups: w.groups, start, orders })
    }

    /// Packs rows; they are on the device when the stream has reached this point. The context is bound.
    pub(crate) fn fill(&self, on: &Stream, w: Weight, f: &WeightFill<'_>) -> Result<()> {
        self.table.fill(w, f, |desc, packed| {
            let mut staging = lock(&self.staging);
            let staging = match &mut *staging {
                Some(staging) => staging,
                none => none.insert(Staging::new()?),
            };
            let parts = FillParts::new(desc, f)?;
            let group = packed.start + u64::from(f.group) * packed.layout.bytes;
            for plane in &packed.layout.planes {
                let to = group + plane.offset + f.row0 / plane.shared * plane.pitch;
                let rows = f.rows.div_ceil(plane.shared) as usize;
                let fill = |i: usize, out: &mut [u8]| {
                    let i = i * plane.shared as usize;
                    // SAFETY: the table has checked the fill, which has this row.
                    unsafe { write(desc.scheme, &parts, plane.content, i, out) };
                };
                // SAFETY: the table has checked that the rows are the weight's, whose memory the host keeps.
                unsafe { staging.send(on, (to, plane.pitch as usize), rows, fill) }?;
            }
            let (Some(offset), Some(perm)) = (packed.layout.order, parts.perm) else {
                return Ok(());
            };
            // SAFETY: the table has checked the fill; all rows share one order.
            let order = unsafe { perm.row(0) };
            if !packed.takes_order(f.group, order)? {
                return Ok(());
            }
            let copy = |_: usize, out: &mut [u8]| out.copy_from_slice(order);
            // SAFETY: as above.
            unsafe { staging.send(on, (group + offset, order.len()), 1, copy) }
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

    /// Frees what the driver gave; the context is bound.
    pub(crate) fn clear(&self) {
        *lock(&self.staging) = None;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Packed {
    /// Whether a group's order of columns is new. It must be a permutation, and that of the rows before.
    fn takes_order(&self, group: u32, order: &[u8]) -> Result<bool> {
        let mut orders = lock(&self.orders);
        if let Some(before) = orders.get(&group) {
            let differs = || Error::invalid("perm differs from that of the rows before");
            return if before == order { Ok(false) } else { Err(differs()) };
        }
        let k = self.layout.k as usize;
        let mut seen = vec![false; k];
        for word in order.as_chunks().0 {
            let column = usize::try_from(i32::from_ne_bytes(*word)).ok().filter(|&c| c < k);
            if column.is_none_or(|c| std::mem::replace(&mut seen[c], true)) {
                return Err(Error::invalid(format!("perm is no permutation of 0..{k}")));
            }
        }
        orders.insert(group, order.to_vec());
        Ok(true)
    }
}

/// Writes row `i` of a plane, which holds zeros; `i` counts rows of the fill.
///
/// # Safety
/// As [`PartRows::row`](halyard_sdk::weights::PartRows::row).
unsafe fn write(scheme: Scheme, parts: &FillParts, content: Content, i: usize, out: &mut [u8]) {
    let part = match content {
        Content::Scales if parts.scale.is_some() => parts.scale,
        Content::Zeros => parts.zero,
        _ => Some(parts.data),
    };
    let Some(part) = part else { return };
    // SAFETY: the caller's promise.
    let row = unsafe { part.row(i) };
    if scheme.gguf_block().is_some() {
        ggml::write(scheme, content, row, out);
    } else {
        out[..row.len()].copy_from_slice(row);
    }
}
