//! Weights, kept as given (format 0) and dequantised a row at a time.

use std::sync::Arc;

use halyard_sdk::{
    Error, HostMemory, MemRef, Result, Scheme, TensorView, Weight, WeightDesc, WeightFill,
    WeightPlan, WeightTable,
    abi::scheme::{self, FP8_BLOCK, Part, Rows},
};

use crate::{dequant, glue::WeightMemory};

/// The schemes this backend reads.
pub(crate) const SCHEMES: [Scheme; 16] = [
    Scheme::DENSE,
    Scheme::FP8_BLOCK,
    Scheme::FP8_CHANNEL,
    Scheme::INT8_CHANNEL,
    Scheme::INT4_GROUP,
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
pub(crate) fn check(w: &WeightDesc<'_>) -> Result<()> {
    Layout::of(w).map(|_| ())
}

/// Where a weight's parts lie: one after the other, each with all rows of all groups.
#[derive(Clone, Debug)]
struct Layout {
    parts: Vec<Placed>,
    /// Of all parts.
    bytes: u64,
}

/// A part and its place.
#[derive(Clone, Copy, Debug)]
struct Placed {
    part: Part,
    offset: u64,
    row_bytes: u64,
    /// Rows of this part a group.
    rows: u64,
}

impl Layout {
    fn of(w: &WeightDesc<'_>) -> Result<Self> {
        if !SCHEMES.contains(&w.scheme) {
            let known = SCHEMES.map(|s| s.to_string()).join(", ");
            return Err(Error::unsupported(format!("scheme {}; supported: {known}", w.scheme)));
        }
        let mut layout = Self { parts: Vec::new(), bytes: 0 };
        for part in scheme::parts(w)? {
            layout = layout.with(w, part).ok_or_else(|| {
                Error::invalid(format!("a weight of {} × [{}, {}]", w.groups, w.n, w.k))
            })?;
        }
        Ok(layout)
    }

    /// Appends a part; `None` if there is nothing of it or more than memory could hold.
    fn with(mut self, w: &WeightDesc<'_>, part: Part) -> Option<Self> {
        // One row is one of each kind: a row, a number, a block's, the group's.
        let row_bytes = part.bytes(1)?;
        let rows = match part.rows {
            Rows::Each | Rows::Scalar => w.n,
            Rows::Blocks => w.n.div_ceil(FP8_BLOCK),
            Rows::Shared => 1,
        };
        let bytes = rows.checked_mul(u64::from(w.groups))?.checked_mul(row_bytes)?;
        self.parts.push(Placed { part, offset: self.bytes, row_bytes, rows });
        self.bytes = self.bytes.checked_add(bytes)?;
        let fits = bytes > 0 && usize::try_from(self.bytes).is_ok();
        fits.then_some(self)
    }
}

impl Placed {
    /// Which of this part's rows belongs to a row of the weight.
    fn row(&self, row: u64) -> u64 {
        match self.part.rows {
            Rows::Each | Rows::Scalar => row,
            Rows::Blocks => row / FP8_BLOCK,
            Rows::Shared => 0,
        }
    }

    /// The bytes that belong to a row of the weight: where, and how many.
    fn span(&self, group: u64, row: u64) -> (usize, usize) {
        let at = self.offset + (group * self.rows + self.row(row)) * self.row_bytes;
        let fits = |bytes| usize::try_from(bytes).expect("inside the weight's memory");
        (fits(at), fits(self.row_bytes))
    }

    /// Copies what a fill has of this part.
    fn fill(&self, memory: &WeightMemory, f: &WeightFill<'_>, view: &TensorView) {
        for row in 0..f.rows {
            let (at, bytes) = self.span(u64::from(f.group), f.row0 + row);
            memory.write_row(at, view, self.row(row), bytes);
        }
    }
}

/// The weights of a device.
#[derive(Debug, Default)]
pub(crate) struct Weights {
    table: WeightTable<WeightMemory>,
}

impl Weights {
    pub(crate) fn plan(w: &WeightDesc<'_>) -> Result<WeightPlan> {
        let bytes = Layout::of(w)?.bytes;
        Ok(WeightPlan { bytes, align: 64, scratch_bytes: 0, format: 0 })
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
            let layout = Layout::of(desc)?;
            for (placed, view) in layout.parts.iter().zip(f.parts.iter()) {
                placed.fill(memory, f, view);
                if placed.part.rows == Rows::Shared {
                    let (at, bytes) = placed.span(u64::from(f.group), 0);
                    check_perm(memory.read(at, bytes), desc.k)?;
                }
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
        Ok(RefWeight { layout: Layout::of(&desc)?, desc, memory })
    }
}

/// Refuses a permutation that leaves the columns.
fn check_perm(perm: &[u8], k: u64) -> Result<()> {
    match dequant::columns(perm).find(|&column| column as u64 >= k) {
        Some(column) => Err(Error::invalid(format!("perm has column {column}, there are {k}"))),
        None => Ok(()),
    }
}

/// A weight's values.
#[derive(Clone, Debug)]
pub(crate) struct RefWeight {
    desc: WeightDesc<'static>,
    memory: Arc<WeightMemory>,
    layout: Layout,
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
        let bytes = |placed: &Placed| {
            let (at, bytes) = placed.span(group as u64, row as u64);
            self.memory.read(at, bytes)
        };
        let parts: Vec<&[u8]> = self.layout.parts.iter().map(bytes).collect();
        dequant::row(&self.desc, &parts)
    }
}
