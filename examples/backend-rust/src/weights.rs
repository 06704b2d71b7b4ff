//! Weights, packed as f32 rows.

use halyard_sdk::{
    DType, Error, HostMemory, HostTensor, MemRef, Result, Scheme, Weight, WeightDesc, WeightFill,
    WeightPlan, WeightTable, weights::row_bytes,
};

/// All weights of a device.
pub(crate) type Weights = WeightTable<Packed>;

/// Where a weight's f32 rows are.
pub(crate) struct Packed {
    address: u64,
    rows: usize,
    columns: usize,
}

impl Packed {
    /// A row.
    pub(crate) fn row(&self, row: usize) -> &[f32] {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        let start = (self.address as *const f32).wrapping_add(row * self.columns);
        // SAFETY: the host gave memory for `rows * columns` floats (`plan`), keeps it until `weight_destroy`, and every row
        // was filled before the weight could be sealed and used.
        unsafe { std::slice::from_raw_parts(start, self.columns) }
    }
}

pub(crate) fn plan(w: &WeightDesc<'_>) -> Result<WeightPlan> {
    if w.scheme != Scheme::DENSE {
        return Err(Error::unsupported(format!("weights of scheme {}; dense is", w.scheme)));
    }
    row_bytes(w)?;
    let elements = w.n.checked_mul(w.k).and_then(|e| e.checked_mul(u64::from(w.groups)));
    let bytes = elements.and_then(|e| DType::F32.bytes(e));
    let bytes = bytes.ok_or_else(|| Error::invalid("a weight too large"))?;
    Ok(WeightPlan { bytes, align: 64, scratch_bytes: 0, format: 0 })
}

pub(crate) fn create(
    weights: &Weights,
    memory: &HostMemory,
    w: &WeightDesc<'_>,
    dst: &MemRef,
) -> Result<Weight> {
    let address = memory.resolve(dst, plan(w)?.bytes)? as u64;
    let rows = usize::try_from(w.n * u64::from(w.groups)).expect("its bytes fit memory");
    let columns = usize::try_from(w.k).expect("its bytes fit memory");
    weights.create(w, Packed { address, rows, columns })
}

pub(crate) fn fill(weights: &Weights, w: Weight, f: &WeightFill<'_>) -> Result<()> {
    weights.fill(w, f, |desc, packed| {
        // SAFETY: the host's part holds these rows while this call runs.
        let part = unsafe { HostTensor::new(&f.parts[0]) }?;
        let first = u64::from(f.group) * desc.n + f.row0;
        let first = usize::try_from(first).expect("checked to be inside the weight");
        for r in 0..part.dim(0) {
            let row = (packed.address as *mut f32).wrapping_add((first + r) * packed.columns);
            for c in 0..packed.columns {
                // SAFETY: inside the memory of `plan`'s size; nobody reads a weight that is not sealed.
                unsafe { row.add(c).write(part.get(&[r, c]) as f32) };
            }
        }
        Ok(())
    })
}
