//! Weights, kept as given (format 0) and dequantised a row at a time.

use std::sync::Arc;

use halyard_sdk::{
    Error, HostMemory, MemRef, Result, Scheme, Weight, WeightDesc, WeightFill, WeightPlan,
    WeightTable, weights::row_bytes,
};

use crate::{dequant, glue::WeightMemory};

/// The schemes this backend reads.
pub(crate) const SCHEMES: [Scheme; 12] = [
    Scheme::DENSE,
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

/// Refuses a weight that this backend cannot read.
pub(crate) fn check(w: &WeightDesc<'_>) -> Result<usize> {
    if !SCHEMES.contains(&w.scheme) {
        let known = SCHEMES.map(|s| s.to_string()).join(", ");
        return Err(Error::unsupported(format!("scheme {}; supported: {known}", w.scheme)));
    }
    if !w.attrs.is_empty() || w.flags != 0 || w.group_size != 0 {
        return Err(Error::unsupported(format!(
            "a {} weight with {} attributes, flags {:#x} and group size {}",
            w.scheme,
            w.attrs.len(),
            w.flags,
            w.group_size
        )));
    }
    usize::try_from(row_bytes(w)?).map_err(|_| Error::invalid("a row too long"))
}

/// The weights of a device.
#[derive(Debug, Default)]
pub(crate) struct Weights {
    table: WeightTable<WeightMemory>,
}

impl Weights {
    pub(crate) fn plan(w: &WeightDesc<'_>) -> Result<WeightPlan> {
        let row = check(w)? as u64;
        let bytes = w.n.checked_mul(u64::from(w.groups)).and_then(|rows| rows.checked_mul(row));
        match bytes {
            Some(bytes) if bytes > 0 => {
                Ok(WeightPlan { bytes, align: 64, scratch_bytes: 0, format: 0 })
            }
            _ => Err(Error::invalid(format!("a weight of {} × [{}, {}]", w.groups, w.n, w.k))),
        }
    }

    pub(crate) fn create(
        &self,
        memory: &HostMemory,
        w: &WeightDesc<'_>,
        dst: &MemRef,
    ) -> Result<Weight> {
        let plan = Self::plan(w)?;
        self.table.create(w, WeightMemory::at(memory, dst, plan.bytes)?)
    }

    pub(crate) fn fill(&self, w: Weight, f: &WeightFill<'_>) -> Result<()> {
        self.table.fill(w, f, |desc, memory| {
            let bytes = check(desc)?;
            for row in 0..f.rows {
                let at = index(desc, u64::from(f.group), f.row0 + row) * bytes;
                memory.write_row(at, &f.parts[0], row, bytes);
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

    pub(crate) fn get(&self, w: Weight) -> Result<RefWeight> {
        let (desc, memory) = self.table.get(w)?;
        Ok(RefWeight { row_bytes: check(&desc)?, desc, memory })
    }
}

/// Position of a row among all groups' rows; inside the weight's memory, so it fits.
fn index(desc: &WeightDesc<'_>, group: u64, row: u64) -> usize {
    usize::try_from(group * desc.n + row).expect("a row that was allocated fits in memory")
}

/// A sealed weight.
#[derive(Clone, Debug)]
pub(crate) struct RefWeight {
    desc: WeightDesc<'static>,
    memory: Arc<WeightMemory>,
    row_bytes: usize,
}

impl RefWeight {
    /// Rows a group.
    pub(crate) fn rows(&self) -> usize {
        usize::try_from(self.desc.n).expect("allocated rows fit in memory")
    }

    /// Groups.
    pub(crate) fn groups(&self) -> usize {
        self.desc.groups as usize
    }

    /// A row's values.
    pub(crate) fn row(&self, group: usize, row: usize) -> Vec<f64> {
        let at = index(&self.desc, group as u64, row as u64) * self.row_bytes;
        dequant::row(self.desc.scheme, self.desc.dtype, self.memory.read(at, self.row_bytes))
    }
}
