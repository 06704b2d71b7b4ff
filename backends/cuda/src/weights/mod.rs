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
    Error, Result, Scheme, TensorView, Weight, WeightDesc, WeightFill, WeightPlan, WeightTable,
    abi::{scheme::Rows, scheme::parts, types::WEIGHT_ZERO},
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
        // Each group begins aligned.
        let group = Layout::of(w)?.bytes.next_multiple_of(ALIGN);
        let bytes = group.checked_mul(u64::from(w.groups)).filter(|&b| b > 0 && b < 1 << 46);
        let bytes = bytes.ok_or_else(|| {
            Error::invalid(format!("a weight of {} groups of {group} bytes", w.groups))
        })?;
        Ok(WeightPlan { bytes, align: ALIGN, scratch_bytes: 0, format: FORMAT })
    }

    pub(crate) fn create(&self, w: &WeightDesc<'_>, start: u64) -> Result<Weight> {
        let mut layout = Layout::of(w)?;
        layout.bytes = layout.bytes.next_multiple_of(ALIGN);
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
            let source = Source::new(desc, f)?;
            let group = packed.start + u64::from(f.group) * packed.layout.bytes;
            for plane in &packed.layout.planes {
                let to = group + plane.offset + f.row0 / plane.shared * plane.pitch;
                let rows = f.rows.div_ceil(plane.shared) as usize;
                let write = |i: usize, out: &mut [u8]| source.write(plane.content, i, out);
                // SAFETY: the table has checked that the rows are the weight's, whose memory the host keeps.
                unsafe { staging.send(on, (to, plane.pitch as usize), rows, write) }?;
            }
            let (Some(offset), Some(order)) = (packed.layout.order, source.order) else {
                return Ok(());
            };
            if !packed.takes_order(f.group, order.row(0))? {
                return Ok(());
            }
            let copy = |_: usize, out: &mut [u8]| out.copy_from_slice(order.row(0));
            // SAFETY: as above.
            unsafe { staging.send(on, (group + offset, order.bytes), 1, copy) }
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

/// One part of a fill, in host memory.
#[derive(Clone, Copy)]
struct Part {
    start: *const u8,
    /// Bytes from row to row.
    pitch: usize,
    /// Bytes of a row.
    bytes: usize,
    rows: usize,
}

impl Part {
    fn new(view: &TensorView, rows: Rows) -> Result<Self> {
        let bits = view.dtype.bits().unwrap_or(8) as usize;
        let (count, columns, stride) = match (rows, view.dims()) {
            (Rows::Scalar, [count]) => (*count as usize, 1, 1),
            (Rows::Shared, [columns]) => (1, *columns as usize, 0),
            (_, [count, columns]) => (*count as usize, *columns as usize, view.strides[0] as usize),
            (_, dims) => return Err(Error::invalid(format!("a part of rank {}", dims.len()))),
        };
        if !(stride * bits).is_multiple_of(8) {
            return Err(Error::invalid("rows of 4-bit codes that do not begin with a byte"));
        }
        let start = (view.data + view.byte_offset) as *const u8;
        let bytes = (columns * bits).div_ceil(8);
        Ok(Self { start, pitch: stride * bits / 8, bytes, rows: count })
    }

    fn row(&self, row: usize) -> &[u8] {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        // SAFETY: the table has checked the part's shape.
        let start = unsafe { self.start.add(row * self.pitch) };
        // SAFETY: as above, and the host keeps the part while the fill is under way.
        unsafe { std::slice::from_raw_parts(start, self.bytes) }
    }
}

/// Rows in canonical form.
struct Source {
    scheme: Scheme,
    data: Part,
    scale: Option<Part>,
    zero: Option<Part>,
    order: Option<Part>,
}

impl Source {
    fn new(desc: &WeightDesc<'_>, f: &WeightFill<'_>) -> Result<Self> {
        let schema = parts(desc)?;
        let opened = schema.iter().zip(f.parts.iter()).map(|(part, v)| Part::new(v, part.rows));
        let mut opened = opened.collect::<Result<Vec<_>>>()?.into_iter();
        let data = opened.next().ok_or_else(|| Error::invalid("no parts"))?;
        let scale = opened.next();
        let zero = if desc.flags & WEIGHT_ZERO != 0 { opened.next() } else { None };
        Ok(Self { scheme: desc.scheme, data, scale, zero, order: opened.next() })
    }

    /// Writes row `i` of a plane, which holds zeros.
    fn write(&self, content: Content, i: usize, out: &mut [u8]) {
        let gguf = self.scheme.gguf_block().is_some();
        let part = match content {
            _ if gguf => return ggml::write(self.scheme, content, self.data.row(i), out),
            Content::Scales => self.scale,
            Content::Zeros => self.zero,
            _ => Some(self.data),
        };
        if let Some(part) = part {
            out[..part.bytes].copy_from_slice(part.row(i));
        }
    }
}
