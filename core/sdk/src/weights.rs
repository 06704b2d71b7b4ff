//! The bookkeeping every backend needs for weights: handles, which rows have come, and where their parts are.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
};

use halyard_abi::{
    RSlice, Role, Scheme, TensorView, Weight, WeightDesc, WeightFill,
    scheme::{self, Part, Rows},
    types::{WEIGHT_PERM, WEIGHT_ZERO},
};

use crate::{Error, Result};

/// Weights by handle; `P` is what the backend keeps of each.
#[derive(Debug)]
pub struct WeightTable<P> {
    inner: RwLock<Inner<P>>,
}

#[derive(Debug)]
struct Inner<P> {
    last: u64,
    weights: HashMap<u64, Entry<P>>,
}

#[derive(Debug)]
struct Entry<P> {
    desc: WeightDesc<'static>,
    payload: Arc<P>,
    /// A bit a row of a group: has come.
    filled: Vec<u64>,
    missing: u64,
    sealed: bool,
}

impl<P> Default for WeightTable<P> {
    fn default() -> Self {
        Self { inner: RwLock::new(Inner { last: 0, weights: HashMap::new() }) }
    }
}

impl<P> WeightTable<P> {
    /// No weights.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Begins a weight.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` if it has no rows or more than memory could hold.
    pub fn create(&self, desc: &WeightDesc<'_>, payload: P) -> Result<Weight> {
        let rows = desc.n.checked_mul(u64::from(desc.groups)).filter(|&r| r > 0 && r < 1 << 40);
        let Some(rows) = rows else {
            return Err(Error::invalid(format!("a weight of {} × {} rows", desc.groups, desc.n)));
        };
        let filled = vec![0; rows.div_ceil(64) as usize];
        let desc = WeightDesc { attrs: RSlice::EMPTY, ..*desc };
        let entry =
            Entry { desc, payload: Arc::new(payload), filled, missing: rows, sealed: false };
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        inner.last += 1;
        let handle = inner.last;
        inner.weights.insert(handle, entry);
        Ok(Weight(handle))
    }

    /// Checks a fill, runs `pack` and notes the rows. Rows that came before are refused.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for an unknown or sealed weight, rows outside it or twice, or parts of another shape; what `pack` gives.
    pub fn fill(
        &self,
        w: Weight,
        f: &WeightFill<'_>,
        pack: impl FnOnce(&WeightDesc<'static>, &P) -> Result<()>,
    ) -> Result<()> {
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        let entry = inner.weights.get_mut(&w.0).ok_or_else(|| unknown(w))?;
        if entry.sealed {
            return Err(Error::invalid("the weight is sealed"));
        }
        scheme::check_fill(&entry.desc, f)?;
        let first = u64::from(f.group) * entry.desc.n + f.row0;
        let bit = |row: u64| ((row / 64) as usize, 1u64 << (row % 64));
        for row in first..first + f.rows {
            let (word, mask) = bit(row);
            if entry.filled[word] & mask != 0 {
                let at = row - u64::from(f.group) * entry.desc.n;
                return Err(Error::invalid(format!("row {at} of group {} came twice", f.group)));
            }
        }
        pack(&entry.desc, &entry.payload)?;
        for row in first..first + f.rows {
            let (word, mask) = bit(row);
            entry.filled[word] |= mask;
        }
        entry.missing -= f.rows;
        Ok(())
    }

    /// Ends filling.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for an unknown weight, or if rows are missing, saying how many.
    pub fn seal(&self, w: Weight) -> Result<()> {
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        let entry = inner.weights.get_mut(&w.0).ok_or_else(|| unknown(w))?;
        if entry.missing > 0 {
            return Err(Error::invalid(format!("{} rows have not been filled", entry.missing)));
        }
        entry.sealed = true;
        entry.filled = Vec::new();
        Ok(())
    }

    /// A sealed weight, for a launch.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for an unknown weight or one that is not sealed.
    pub fn get(&self, w: Weight) -> Result<(WeightDesc<'static>, Arc<P>)> {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        let entry = inner.weights.get(&w.0).ok_or_else(|| unknown(w))?;
        if !entry.sealed {
            return Err(Error::invalid(format!("weight {} is not sealed", w.0)));
        }
        Ok((entry.desc, Arc::clone(&entry.payload)))
    }

    /// Forgets a weight.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for an unknown weight.
    pub fn destroy(&self, w: Weight) -> Result<()> {
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        inner.weights.remove(&w.0).map(|_| ()).ok_or_else(|| unknown(w))
    }
}

fn unknown(w: Weight) -> Error {
    Error::invalid(format!("no weight {}", w.0))
}

/// The parts of a weight that a backend with these schemes can have.
///
/// # Errors
/// `UNSUPPORTED` for another scheme, naming those there are, and for an unknown role or flag; `INVALID_ARGUMENT` as [`scheme::parts`].
pub fn known_parts(w: &WeightDesc<'_>, schemes: &[Scheme]) -> Result<Vec<Part>> {
    let roles = [Role::LINEAR, Role::EMBEDDING, Role::EXPERTS, Role::BATCHED];
    if !roles.contains(&Role(w.role)) {
        return Err(Error::unsupported(format!("a weight of role {}", Role(w.role))));
    }
    if !schemes.contains(&w.scheme) {
        let known: Vec<_> = schemes.iter().map(ToString::to_string).collect();
        return Err(Error::unsupported(format!(
            "weights of scheme {}; supported: {}",
            w.scheme,
            known.join(", ")
        )));
    }
    scheme::parts(w)
}

/// Rows of one part of a fill, in host memory.
#[derive(Clone, Copy, Debug)]
pub struct PartRows {
    start: *const u8,
    /// Bytes from row to row.
    stride: usize,
    /// Bytes of a row.
    bytes: usize,
    /// Rows of the weight that share a row of this part.
    shared: usize,
}

// SAFETY: an address; who reads rows keeps the promise of `row`, from whichever thread.
unsafe impl Send for PartRows {}
// SAFETY: as above.
unsafe impl Sync for PartRows {}

impl PartRows {
    fn new(view: &TensorView, rows: Rows) -> Result<Self> {
        // The table has checked that dims and strides are not negative.
        let size = |n: i64| n.unsigned_abs() as usize;
        let bits = view.dtype.bits().unwrap_or(8) as usize;
        let (columns, stride) = match (rows, view.dims()) {
            (Rows::Scalar, _) => (1, 1),
            (_, [.., columns]) => (size(*columns), size(view.strides[0])),
            (_, []) => (0, 0),
        };
        if !(stride * bits).is_multiple_of(8) {
            return Err(Error::invalid("rows of 4-bit codes that do not begin with a byte"));
        }
        let shared = match rows {
            Rows::Each | Rows::Scalar => 1,
            Rows::Blocks => scheme::FP8_BLOCK as usize,
            Rows::Shared => usize::MAX,
        };
        Ok(Self {
            start: (view.data + view.byte_offset) as *const u8,
            stride: stride * bits / 8,
            bytes: (columns * bits).div_ceil(8),
            shared,
        })
    }

    /// What belongs to row `i` of the fill.
    ///
    /// # Safety
    /// The part came with a fill that [`WeightTable::fill`] has checked and that has not ended, and `i` is one of its rows.
    #[must_use]
    pub unsafe fn row<'a>(&self, i: usize) -> &'a [u8] {
        // SAFETY: the caller's promise: the table has checked that the host gave the part for all rows.
        let start = unsafe { self.start.add(i / self.shared * self.stride) };
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts(start, self.bytes) }
    }
}

/// All parts of a fill.
#[derive(Clone, Copy, Debug)]
pub struct FillParts {
    /// Floats, codes, or blocks.
    pub data: PartRows,
    /// Scales, of schemes that have them apart.
    pub scale: Option<PartRows>,
    /// Zero points.
    pub zero: Option<PartRows>,
    /// The order of the columns.
    pub perm: Option<PartRows>,
}

impl FillParts {
    /// The parts of a fill that [`WeightTable::fill`] has checked.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for rows that do not begin with a byte; as [`scheme::parts`].
    pub fn new(desc: &WeightDesc<'_>, f: &WeightFill<'_>) -> Result<Self> {
        let schema = scheme::parts(desc)?;
        let opened = schema.iter().zip(f.parts.iter()).map(|(part, v)| PartRows::new(v, part.rows));
        let mut opened = opened.collect::<Result<Vec<_>>>()?.into_iter();
        let data = opened.next().ok_or_else(|| Error::invalid("no parts"))?;
        let scale = opened.next();
        let mut flagged = |flag| if desc.flags & flag != 0 { opened.next() } else { None };
        let (zero, perm) = (flagged(WEIGHT_ZERO), flagged(WEIGHT_PERM));
        Ok(Self { data, scale, zero, perm })
    }
}

/// Bytes of a row in canonical form, for the schemes with a single part.
///
/// # Errors
/// `UNSUPPORTED` for another scheme; `INVALID_ARGUMENT` if `k` is not whole blocks or the dtype does not fit.
pub fn row_bytes(desc: &WeightDesc<'_>) -> Result<u64> {
    match scheme::parts(desc)?.as_slice() {
        [part] => part.bytes(1).ok_or_else(|| Error::invalid("a row too long")),
        _ => Err(Error::unsupported(format!("weights of scheme {}", desc.scheme))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use halyard_abi::{DType, TensorSpec};

    #[test]
    fn every_row_comes_exactly_once() {
        let table = WeightTable::new();
        let desc = WeightDesc::experts(Scheme::GGUF_Q8_0, DType::NONE, 2, 3, 32);
        let w = table.create(&desc, ()).unwrap();
        let fill = |group, row0, rows: u64| {
            let spec = TensorSpec::new(DType::U8, &[rows.cast_signed(), 34]);
            let part = [TensorView::contiguous(1, 0, &spec)];
            let f = WeightFill { group, flags: 0, row0, rows, parts: RSlice::from_slice(&part) };
            table.fill(w, &f, |_, ()| Ok(()))
        };
        fill(0, 0, 3).unwrap();
        fill(1, 2, 1).unwrap();
        assert_eq!(fill(1, 1, 2).unwrap_err().message, "row 2 of group 1 came twice");
        assert!(fill(1, 2, 2).is_err());
        assert!(fill(2, 0, 1).is_err());
        assert!(table.get(w).is_err());
        assert_eq!(table.seal(w).unwrap_err().message, "2 rows have not been filled");
        fill(1, 0, 2).unwrap();
        table.seal(w).unwrap();
        assert!(fill(1, 0, 1).is_err());
        table.get(w).unwrap();
        table.destroy(w).unwrap();
        assert!(table.get(w).is_err());
    }
}
