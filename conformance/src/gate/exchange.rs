//! What the ranks of a model exchange, at its real widths, on the devices themselves.

use std::{fmt, time::Instant};

use halyard_core::{DType, Device, InfoKey, ReduceOp};

use super::{GateReport, KernelResult, millis};
use crate::{
    comm::{Call, CommCase, Data, run_on},
    execute::Trouble,
    report::Outcome,
};

/// Rows that are exchanged: a decode's, a few, and a prefill's.
const ROWS: [usize; 3] = [1, 7, 67];

/// A call that all ranks make together, on rows of `width` elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exchange {
    /// `all_reduce` with a sum.
    Sum {
        /// Of the elements.
        dtype: DType,
        /// Elements a row.
        width: usize,
    },
    /// `all_gather`.
    Gather {
        /// Of the elements.
        dtype: DType,
        /// Elements a row of a rank's part.
        width: usize,
    },
}

impl fmt::Display for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sum { dtype, width } => write!(f, "all_reduce(sum) of {dtype} [-1, {width}]"),
            Self::Gather { dtype, width } => write!(f, "all_gather of {dtype} [-1, {width}]"),
        }
    }
}

/// Verifies exchanges between devices, each of which is a rank. It takes too little time for reports to be kept.
pub fn exchanges(devices: &[Device], all: &[Exchange], seed: u64) -> GateReport {
    let start = Instant::now();
    let first = devices.first();
    let kernels = all.iter().map(|exchange| one(devices, *exchange, seed)).collect();
    GateReport {
        backend: first.map_or_else(String::new, |device| device.backend().id().to_owned()),
        device: first.map_or_else(String::new, |device| device.info(InfoKey::NAME)),
        seed,
        kernels,
        millis: millis(start),
        from_cache: false,
    }
}

fn one(devices: &[Device], exchange: Exchange, seed: u64) -> KernelResult {
    let start = Instant::now();
    let name = format!("{exchange} between {} ranks", devices.len());
    let mut result = KernelResult {
        op: name.clone(),
        outcome: Outcome::Passed,
        message: None,
        trial: format!("{ROWS:?} rows"),
        comparisons: Vec::new(),
        millis: 0,
    };
    match compare(devices, exchange, name, seed) {
        Ok(comparison) => {
            if let Some(failure) = &comparison.failure {
                result.outcome = Outcome::Failed;
                result.message = Some(failure.clone());
            }
            result.comparisons.push(comparison);
        }
        Err(trouble) => {
            result.message = Some(trouble.to_string());
            result.outcome =
                if trouble.is_unsupported() { Outcome::Unsupported } else { Outcome::Failed };
        }
    }
    result.millis = millis(start);
    result
}

fn compare(
    devices: &[Device],
    exchange: Exchange,
    name: String,
    seed: u64,
) -> Result<crate::Comparison, Trouble> {
    let (kind, dtype, width) = match exchange {
        Exchange::Sum { dtype, width } => (Data::AllReduce, dtype, width),
        // Gathered are rows of two elements: so many that a rank's part is as large.
        Exchange::Gather { dtype, width } => (Data::AllGather, dtype, width.div_ceil(2)),
    };
    let case = CommCase {
        name,
        why: String::new(),
        call: Call::Data(kind),
        world: u32::try_from(devices.len()).unwrap_or(u32::MAX),
        dtype,
        reduce: ReduceOp::SUM,
        sizes: ROWS.map(|rows| rows * width).to_vec(),
    };
    run_on(devices, &case, kind, seed)
}
