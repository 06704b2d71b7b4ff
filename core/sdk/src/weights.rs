//! The bookkeeping every backend needs for weights: handles, and which rows have come.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
};

use halyard_abi::{RSlice, Weight, WeightDesc, WeightFill, scheme};

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
    use halyard_abi::{DType, Scheme, TensorSpec, TensorView};

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
