//! Bugs in how a weight's rows are packed. Rows are held back until all of a weight have come, unless it is their way that is wrong.

use std::collections::HashMap;

use halyard_cpu_ref::RefDevice;
use halyard_sdk::{
    CopyReq, Device, MemRef, Result, Stream, TensorView, Weight, WeightDesc, WeightFill,
    abi::{
        RSlice,
        scheme::{self, Rows},
        types::mem,
    },
};

use crate::mutant::Mutant;

/// A part of one group: all of its rows.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    pub(crate) bytes: Vec<u8>,
    /// Bytes of a row (of a block of rows, of all rows if they share it).
    pub(crate) pitch: usize,
}

impl Part {
    /// The rows.
    pub(crate) fn rows(&mut self) -> std::slice::ChunksExactMut<'_, u8> {
        self.bytes.chunks_exact_mut(self.pitch)
    }
}

/// Rows on their way.
#[derive(Debug)]
pub(crate) struct Fill {
    pub(crate) group: u32,
    pub(crate) groups: u32,
    pub(crate) row0: u64,
    pub(crate) rows: u64,
    /// The bytes of each part.
    pub(crate) parts: Vec<Vec<u8>>,
}

/// Weights that are being filled.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    by_weight: HashMap<u64, Growing>,
}

#[derive(Debug)]
struct Growing {
    desc: WeightDesc<'static>,
    /// By group.
    groups: Vec<Vec<Part>>,
    came: u64,
}

impl Pending {
    pub(crate) fn create(&mut self, w: Weight, desc: &WeightDesc<'_>) -> Result<()> {
        let desc = WeightDesc { attrs: RSlice::EMPTY, ..*desc };
        let parts: Vec<Part> = scheme::parts(&desc)?
            .iter()
            .map(|p| {
                let bytes = vec![0; p.bytes(desc.n).unwrap_or(0) as usize];
                Part { pitch: p.bytes(1).unwrap_or(0).max(1) as usize, bytes }
            })
            .collect();
        let groups = vec![parts; desc.groups as usize];
        self.by_weight.insert(w.0, Growing { desc, groups, came: 0 });
        Ok(())
    }

    pub(crate) fn forget(&mut self, w: Weight) {
        self.by_weight.remove(&w.0);
    }

    /// Keeps the rows, in the place where the mutant believes they belong.
    pub(crate) fn fill(
        &mut self,
        device: &RefDevice,
        mutant: &Mutant,
        w: Weight,
        f: &WeightFill<'_>,
    ) -> Result<()> {
        let Some(weight) = self.by_weight.get_mut(&w.0) else { return Ok(()) };
        scheme::check_fill(&weight.desc, f)?;
        let parts = f.parts.iter().map(|v| read(device, v)).collect::<Result<_>>()?;
        let mut fill =
            Fill { group: f.group, groups: weight.desc.groups, row0: f.row0, rows: f.rows, parts };
        if let Some(change) = mutant.fill {
            change(&mut fill, weight.came % weight.desc.n);
        }
        weight.came += f.rows;
        let shapes = scheme::parts(&weight.desc)?;
        let to = &mut weight.groups[fill.group as usize];
        for ((part, shape), bytes) in to.iter_mut().zip(&shapes).zip(&fill.parts) {
            let first = match shape.rows {
                Rows::Each | Rows::Scalar => fill.row0,
                Rows::Blocks => fill.row0 / scheme::FP8_BLOCK,
                Rows::Shared => 0,
            };
            let start = first as usize * part.pitch;
            part.bytes[start..start + bytes.len()].copy_from_slice(bytes);
        }
        Ok(())
    }

    /// Hands the whole weight on, with the bug in it.
    pub(crate) fn seal(&mut self, device: &RefDevice, mutant: &Mutant, w: Weight) -> Result<()> {
        let Some(mut weight) = self.by_weight.remove(&w.0) else { return Ok(()) };
        for (group, parts) in (0..).zip(&mut weight.groups) {
            if let Some(change) = mutant.weight {
                change(&weight.desc, parts);
            }
            let views: Vec<TensorView> = scheme::parts(&weight.desc)?
                .iter()
                .zip(parts.iter())
                .map(|(shape, part)| {
                    let spec =
                        halyard_sdk::TensorSpec::new(shape.dtype, &shape.dims(weight.desc.n));
                    TensorView::contiguous(part.bytes.as_ptr() as u64, 0, &spec)
                })
                .collect();
            let whole = WeightFill {
                group,
                flags: 0,
                row0: 0,
                rows: weight.desc.n,
                parts: RSlice::from_slice(&views),
            };
            Device::weight_fill(device, Stream::NONE, w, &whole)?;
        }
        Ok(())
    }
}

/// The bytes of a part with contiguous rows.
fn read(device: &RefDevice, view: &TensorView) -> Result<Vec<u8>> {
    let bytes = |elements: i64| view.dtype.bytes(elements.cast_unsigned()).unwrap_or(0);
    let (rows, width) = match *view.dims() {
        [rows, width] => (rows.cast_unsigned(), width),
        [width] => (1, width),
        _ => (0, 0),
    };
    let row = bytes(width);
    let mut data = vec![0u8; (rows * row) as usize];
    let place = |base| MemRef { base, offset: 0, kind: mem::HOST, device: 0 };
    let (dst, src) = (place(data.as_mut_ptr() as u64), place(view.data + view.byte_offset));
    let pitch = bytes(view.strides[0]);
    let req = CopyReq { dst, src, row_bytes: row, rows, dst_pitch: row, src_pitch: pitch.max(row) };
    if !data.is_empty() {
        device.copy(Stream::NONE, &req)?;
    }
    Ok(data)
}
