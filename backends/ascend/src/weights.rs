//! Weights on the device: rows one behind the other, as the checkpoint has them.

use std::sync::Arc;

use halyard_sdk::{
    DType, Error, Result, Scheme, Weight, WeightDesc, WeightFill, WeightPlan, WeightTable,
    weights::{FillParts, known_parts},
};

use crate::{
    driver::{self, Plane, Stream},
    memory::ALIGN,
};

/// Schemes that weights can have.
pub(crate) const SCHEMES: [Scheme; 1] = [Scheme::DENSE];

/// Identity of the packed form, for caches on disk: a change of this module needs a new number.
const FORMAT: u64 = 0x6163_6c00_0001;

/// Bytes that are gathered on the host before they are sent.
const PIECE: usize = 8 << 20;

/// A weight on the device: `[groups, n, k]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Packed {
    pub(crate) dtype: DType,
    pub(crate) n: i64,
    pub(crate) k: i64,
    /// Address of the first group.
    pub(crate) start: u64,
    row_bytes: u64,
}

impl Packed {
    /// The form of a weight that would begin at `start`.
    ///
    /// # Errors
    /// `UNSUPPORTED`, naming what is.
    pub(crate) fn of(w: &WeightDesc<'_>, start: u64) -> Result<Self> {
        known_parts(w, &SCHEMES)?;
        if ![DType::F32, DType::F16, DType::BF16].contains(&w.dtype) {
            return Err(Error::unsupported(format!(
                "weights of {}; supported: f32, f16, bf16",
                w.dtype
            )));
        }
        let small = |what, size: u64| {
            i32::try_from(size)
                .map(i64::from)
                .map_err(|_| Error::unsupported(format!("a weight with {what} of {size}")))
        };
        let row_bytes = w.dtype.bytes(w.k).ok_or_else(|| Error::invalid("a row too long"))?;
        Ok(Self { dtype: w.dtype, n: small("n", w.n)?, k: small("k", w.k)?, start, row_bytes })
    }

    fn group_bytes(&self) -> u64 {
        self.row_bytes * self.n.unsigned_abs()
    }
}

/// Weights by handle.
#[derive(Debug, Default)]
pub(crate) struct Weights {
    table: WeightTable<Packed>,
}

impl Weights {
    /// What a weight takes.
    pub(crate) fn plan(w: &WeightDesc<'_>) -> Result<WeightPlan> {
        let group = Packed::of(w, 0)?.group_bytes();
        let bytes = group.checked_mul(u64::from(w.groups)).filter(|&b| b > 0 && b < 1 << 46);
        let bytes = bytes.ok_or_else(|| {
            Error::invalid(format!("a weight of {} groups of {group} bytes", w.groups))
        })?;
        Ok(WeightPlan { bytes, align: ALIGN, scratch_bytes: 0, format: FORMAT })
    }

    pub(crate) fn create(&self, w: &WeightDesc<'_>, start: u64) -> Result<Weight> {
        if !start.is_multiple_of(ALIGN) {
            return Err(Error::invalid(format!("a weight at {start:#x}, not aligned to {ALIGN}")));
        }
        self.table.create(w, Packed::of(w, start)?)
    }

    /// Sends rows; they are on the device when this returns. The context is bound.
    pub(crate) fn fill(&self, on: &Stream, w: Weight, f: &WeightFill<'_>) -> Result<()> {
        self.table.fill(w, f, |desc, packed| {
            let parts = FillParts::new(desc, f)?;
            let bytes = packed.row_bytes as usize;
            let (rows, a_piece) = (f.rows as usize, (PIECE / bytes.max(1)).max(1));
            let first = u64::from(f.group) * packed.group_bytes() + f.row0 * packed.row_bytes;
            let mut piece = Vec::with_capacity(a_piece.min(rows) * bytes);
            for at in (0..rows).step_by(a_piece) {
                piece.clear();
                for row in at..rows.min(at + a_piece) {
                    // SAFETY: the table has checked the fill, which has this row.
                    piece.extend_from_slice(unsafe { parts.data.row(row) });
                }
                let size = piece.len() as u64;
                let plane = |start, on_host| Plane { start, on_host, pitch: size };
                let to = plane(packed.start + first + (at * bytes) as u64, false);
                let from = plane(piece.as_ptr() as u64, true);
                // SAFETY: the rows are the weight's, whose memory the host keeps; the piece lives until the stream has passed the copy.
                unsafe { driver::copy(on, to, from, size, 1) }?;
                on.synchronize()?;
            }
            Ok(())
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
}
