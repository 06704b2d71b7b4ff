//! What the ranks of a model exchange, at its real widths, on the devices themselves.

use std::{
    fmt,
    hash::{DefaultHasher, Hash, Hasher},
    time::Instant,
};

use halyard_core::{CommId, DType, Device, InfoKey, ReduceOp};

use super::{GateReport, KernelResult, millis};
use crate::{
    comm::{Call, CommCase, Data, run_on, run_rank},
    compare::Comparison,
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

/// The same by one rank, whose others verify them in other processes at the same time. Beside the report there is a digest of what
/// all ranks must have alike.
pub fn exchanges_of_rank(
    device: &Device,
    ends: (&CommId, u32, u32),
    all: &[Exchange],
    seed: u64,
) -> (GateReport, u64) {
    let start = Instant::now();
    let (_, rank, world) = ends;
    // The name makes the numbers, so it is the same on all ranks.
    let case = |exchange: &Exchange| exchange.case(exchange.between(world), world);
    let cases: Vec<_> = all.iter().map(case).collect();
    let mut digest = DefaultHasher::new();
    let kernels = match run_rank(device, ends, &cases, seed) {
        Ok(results) => {
            let results = cases.iter().zip(results);
            let result = results.map(|((case, _), (comparison, shared))| {
                shared.hash(&mut digest);
                judged(format!("{}, on rank {rank}", case.name), Ok(comparison))
            });
            result.collect()
        }
        Err(trouble) => {
            let names: Vec<String> = all.iter().map(ToString::to_string).collect();
            vec![judged(names.join(", "), Err(trouble))]
        }
    };
    let report = GateReport {
        backend: device.backend().id().to_owned(),
        device: device.info(InfoKey::NAME),
        seed,
        kernels,
        millis: millis(start),
        from_cache: false,
    };
    (report, digest.finish())
}

fn one(devices: &[Device], exchange: Exchange, seed: u64) -> KernelResult {
    let start = Instant::now();
    let world = u32::try_from(devices.len()).unwrap_or(u32::MAX);
    let (case, kind) = exchange.case(exchange.between(world), world);
    let compared = run_on(devices, &case, kind, seed);
    KernelResult { millis: millis(start), ..judged(case.name, compared) }
}

fn judged(name: String, compared: Result<Comparison, Trouble>) -> KernelResult {
    let mut result = KernelResult {
        op: name,
        outcome: Outcome::Passed,
        message: None,
        trial: format!("{ROWS:?} rows"),
        comparisons: Vec::new(),
        millis: 0,
    };
    match compared {
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
    result
}

impl Exchange {
    fn between(self, world: u32) -> String {
        format!("{self} between {world} ranks")
    }

    fn case(self, name: String, world: u32) -> (CommCase, Data) {
        let (kind, dtype, width) = match self {
            Self::Sum { dtype, width } => (Data::AllReduce, dtype, width),
            // Gathered are rows of two elements: so many that a rank's part is as large.
            Self::Gather { dtype, width } => (Data::AllGather, dtype, width.div_ceil(2)),
        };
        let case = CommCase {
            name,
            why: String::new(),
            call: Call::Data(kind),
            world,
            dtype,
            reduce: ReduceOp::SUM,
            sizes: ROWS.map(|rows| rows * width).to_vec(),
        };
        (case, kind)
    }
}
