//! A packed weight as kernels take it: `kernels/weight.h`.

use super::args::Float;
use crate::weights::Packed;

/// `struct Plane`
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Plane {
    data: u64,
    pitch: i64,
    group: i64,
}

/// `struct Matrix`
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct Matrix {
    /// Codes, high bits, scales, blocks, zeros.
    planes: [Plane; 5],
    scale_type: Float,
    scale_rows: u32,
    columns_inverse: f32,
}

impl Matrix {
    pub(super) fn of(packed: &Packed) -> Self {
        let layout = &packed.layout;
        let mut planes = [Plane::default(); 5];
        let mut scale_rows = 0;
        for plane in &layout.planes {
            planes[plane.content as usize] = Plane {
                data: packed.start + plane.offset,
                pitch: plane.pitch.cast_signed(),
                group: layout.bytes.cast_signed(),
            };
            scale_rows = scale_rows.max(plane.shared.ilog2());
        }
        #[expect(clippy::cast_precision_loss, reason = "below 2^22 where it matters")]
        let columns_inverse =
            if layout.columns < layout.k { 1.0 / layout.columns as f32 } else { 0.0 };
        let scale_type = Float::of(layout.dtype).unwrap_or(Float::F32);
        Self { planes, scale_type, scale_rows, columns_inverse }
    }
}
