//! Where tensors lie: each in a buffer of its own between guard zones, with gaps and offsets as a case asks.

use halyard_abi::ops::schema::{Layout as Allowed, Slot as SlotSchema};
use halyard_core::{Device, DeviceBuffer, DeviceError, Stream, Tensor, ops::Access};
use serde::Deserialize;

use super::Trouble;
use crate::array::{Array, is_float, size_of};

/// How a launch's tensors are arranged, as far as each slot allows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Layout {
    /// Row-major, start aligned.
    #[default]
    Packed,
    /// Row-major, one element past an aligned start.
    Offset,
    /// A gap after each entry of the first dim: columns of a wider matrix.
    Pitched,
    /// A gap after each row of every dim but the last.
    Gapped,
    /// The last two dims swapped in memory, where any strides are allowed.
    Transposed,
    /// Float inputs repeat their first row with a stride of 0.
    Broadcast,
    /// Outputs in place of the input that they may share.
    Alias,
    /// The same with gaps after each row of every dim but the last.
    AliasGapped,
}

impl Layout {
    pub(crate) const ALL: [(&'static str, Self); 8] = [
        ("packed", Self::Packed),
        ("offset", Self::Offset),
        ("pitched", Self::Pitched),
        ("gapped", Self::Gapped),
        ("transposed", Self::Transposed),
        ("broadcast", Self::Broadcast),
        ("alias", Self::Alias),
        ("alias_gapped", Self::AliasGapped),
    ];

    pub(crate) fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, l)| *l == self).map_or("?", |(name, _)| name)
    }

    /// Whether outputs lie in the memory of inputs.
    pub(super) fn aliases(self) -> bool {
        matches!(self, Self::Alias | Self::AliasGapped)
    }

    /// Whether this slot repeats its first row.
    fn repeats(self, slot: &SlotSchema, array: &Array) -> bool {
        let rows = matches!(slot.layout, Allowed::Rows | Allowed::Any) && array.dims().len() > 1;
        self == Self::Broadcast && slot.access == Access::In && rows && is_float(array.dtype())
    }

    /// The data as the slot will show it.
    pub(crate) fn shown(self, slot: &SlotSchema, array: &Array) -> Array {
        if !self.repeats(slot, array) || array.dims()[0] == 0 {
            return array.clone();
        }
        let first = array.narrow(0, 1);
        Array::from_bytes(array.dtype(), array.dims(), first.bytes().repeat(array.dims()[0]))
    }

    /// Strides in elements. `at` is the slot's place among the op's: each has gaps of its own, so that one slot's strides are no other's.
    fn strides(self, (slot, at): (&SlotSchema, usize), array: &Array) -> Vec<usize> {
        const GAP: usize = 3;
        let dims = array.dims();
        let free = slot.layout == Allowed::Any;
        let gaps = slot.layout != Allowed::Packed;
        let mut order: Vec<usize> = (0..dims.len()).rev().collect();
        if self == Self::Transposed && free && dims.len() > 1 {
            order.swap(0, 1);
        }
        let mut strides = vec![0; dims.len()];
        let mut step = 1;
        for (place, &axis) in order.iter().enumerate() {
            let first_dim = place + 1 == order.len();
            let gapped = matches!(self, Self::Gapped | Self::AliasGapped);
            if place > 0 && gaps && (gapped || (self == Self::Pitched && first_dim)) {
                step += GAP + at;
            }
            strides[axis] = step;
            step *= dims[axis].max(1);
        }
        if self.repeats(slot, array) {
            strides[0] = 0;
        }
        strides
    }
}

/// Bytes before and after each tensor that nobody may write.
const GUARD: usize = 256;
/// What guard zones and gaps of written buffers hold.
pub(super) const GUARD_BYTE: u8 = 0xb5;

/// A tensor on a device between guard zones.
#[derive(Debug)]
pub(crate) struct Guarded {
    name: &'static str,
    written: bool,
    buffer: DeviceBuffer,
    tensor: Tensor,
    before: Vec<u8>,
    shape: Array,
    strides: Vec<usize>,
    start: usize,
}

impl Guarded {
    /// Places an array of the slot at place `at` of its op. Gaps and guards of what is only read hold NaN, or numbers that are wrong
    /// everywhere. Each slot begins at an offset of its own, so that one slot's offset is no other's.
    pub(crate) fn new(
        (device, stream): (&Device, &Stream),
        layout: Layout,
        (slot, at): (&SlotSchema, usize),
        array: &Array,
    ) -> Result<Self, DeviceError> {
        let (array, strides) = (layout.shown(slot, array), layout.strides((slot, at), array));
        let size = size_of(array.dtype());
        let written = slot.access != Access::In;
        let offset = if layout == Layout::Offset { size } else { 0 };
        let start = GUARD * (1 + at) + offset;
        let last = |dims: &[usize]| -> usize {
            if array.len() == 0 {
                return 0;
            }
            dims.iter().zip(&strides).map(|(d, s)| (d - 1) * s).sum::<usize>() + 1
        };
        let end = (start + last(array.dims()) * size + GUARD).next_multiple_of(4);
        let guard = match (written, is_float(array.dtype())) {
            (true, _) => GUARD_BYTE,
            (false, true) => 0xff,
            (false, false) => 0x7f,
        };
        let mut before = vec![guard; end];
        scatter(&mut before, &array, &strides, start);
        let buffer = device.alloc(before.len() as u64)?;
        buffer.write(stream, 0, &before)?;
        let tensor = Tensor::strided(&buffer, array.dtype(), array.dims(), &strides, start as u64)?;
        Ok(Self { name: slot.name, written, buffer, tensor, before, shape: array, strides, start })
    }

    pub(crate) fn tensor(&self) -> &Tensor {
        &self.tensor
    }

    /// Marks a read tensor as one that an output shares.
    pub(crate) fn shared(&mut self) {
        self.written = true;
    }

    /// Reads it back: what is in it now, after checking that nothing else has changed.
    pub(crate) fn finish(&self, stream: &Stream) -> Result<Array, Trouble> {
        let mut after = vec![0u8; self.before.len()];
        self.buffer.read(stream, 0, &mut after)?;
        let now = gather(&after, &self.shape, &self.strides, self.start);
        if self.written {
            // Put back what it may write; then all must be as before.
            scatter(&mut after, &self.shape, &self.strides, self.start);
        }
        match after.iter().zip(&self.before).position(|(a, b)| a != b) {
            None => Ok(now),
            Some(at) => Err(Trouble::Violation(self.describe(at))),
        }
    }

    fn describe(&self, at: usize) -> String {
        let size = size_of(self.shape.dtype());
        let inside = self.before.len() - GUARD;
        let element = (at as i64 - self.start as i64).div_euclid(size as i64);
        let place = if !self.written {
            "changed, although the op only reads it".to_owned()
        } else if at < self.start {
            format!("written {} bytes before its start", self.start - at)
        } else if at >= inside {
            "written past its end".to_owned()
        } else {
            "written in a gap between its rows".to_owned()
        };
        format!("{} was {place} (element {element} from its start)", self.name)
    }
}

/// Byte positions in the buffer and in the packed array, element by element.
fn positions<'a>(
    array: &'a Array,
    strides: &'a [usize],
    start: usize,
    size: usize,
) -> impl Iterator<Item = (usize, usize)> + 'a {
    let dims = array.dims();
    let mut index = vec![0usize; dims.len()];
    let mut element = 0usize;
    (0..array.len()).map(move |i| {
        let at = start + element * size;
        // Odometer: the last dim runs fastest.
        for axis in (0..dims.len()).rev() {
            index[axis] += 1;
            element += strides[axis];
            if index[axis] < dims[axis] {
                break;
            }
            element -= strides[axis] * dims[axis];
            index[axis] = 0;
        }
        (at, i * size)
    })
}

/// Whether the elements lie side by side in order.
fn is_packed(array: &Array, strides: &[usize]) -> bool {
    let mut step = 1;
    array.dims().iter().zip(strides).rev().all(|(&d, &s)| {
        let packed = d <= 1 || s == step;
        step *= d;
        packed
    })
}

fn scatter(buffer: &mut [u8], array: &Array, strides: &[usize], start: usize) {
    let size = size_of(array.dtype());
    if is_packed(array, strides) {
        buffer[start..start + array.bytes().len()].copy_from_slice(array.bytes());
        return;
    }
    for (to, from) in positions(array, strides, start, size) {
        buffer[to..to + size].copy_from_slice(&array.bytes()[from..from + size]);
    }
}

fn gather(buffer: &[u8], array: &Array, strides: &[usize], start: usize) -> Array {
    let size = size_of(array.dtype());
    let mut bytes = vec![0; array.bytes().len()];
    if is_packed(array, strides) {
        bytes.copy_from_slice(&buffer[start..start + array.bytes().len()]);
        return Array::from_bytes(array.dtype(), array.dims(), bytes);
    }
    for (from, to) in positions(array, strides, start, size) {
        bytes[to..to + size].copy_from_slice(&buffer[from..from + size]);
    }
    Array::from_bytes(array.dtype(), array.dims(), bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use halyard_core::{DType, OpKind, ops::OpSchema};

    fn slot(kind: OpKind, at: usize) -> &'static SlotSchema {
        &OpSchema::of(kind).unwrap().slots[at]
    }

    #[test]
    fn strides_follow_the_layout_as_far_as_the_slot_allows() {
        let a = Array::filled(DType::F32, &[2, 3, 4], 0);
        let rows = slot(OpKind::ROPE, 0);
        let strides = |l: Layout, s: &SlotSchema| l.strides((s, 0), &a);
        assert_eq!(strides(Layout::Packed, rows), [12, 4, 1]);
        assert_eq!(strides(Layout::Pitched, rows), [15, 4, 1]);
        assert_eq!(strides(Layout::Gapped, rows), [24, 7, 1]);
        assert_eq!(Layout::Gapped.strides((rows, 2), &a), [32, 9, 1]);
        assert_eq!(strides(Layout::Transposed, rows), [12, 4, 1]);
        assert_eq!(strides(Layout::Broadcast, rows), [12, 4, 1]);
        let any = slot(OpKind::COPY, 0);
        assert_eq!(strides(Layout::Transposed, any), [12, 1, 3]);
        assert_eq!(strides(Layout::Broadcast, any), [0, 4, 1]);
        let packed = slot(OpKind::ROPE, 2);
        assert_eq!(strides(Layout::Gapped, packed), [12, 4, 1]);
    }

    #[test]
    fn what_is_scattered_is_gathered() {
        let a = Array::floats(DType::F32, &[2, 3, 4], |i| i as f64);
        let strides = [24, 7, 1];
        let mut buffer = vec![0xb5; 400];
        scatter(&mut buffer, &a, &strides, 8);
        assert_eq!(gather(&buffer, &a, &strides, 8), a);
        assert_eq!(&buffer[..8], [0xb5; 8]);
        let untouched = buffer.iter().filter(|&&b| b == 0xb5).count();
        assert_eq!(untouched, 400 - 96);
    }
}
