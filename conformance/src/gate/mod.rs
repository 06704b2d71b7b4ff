//! The gate: exactly the kernels that a server is about to launch, at their real sizes, before it serves.
//!
//! Each kernel runs on the device with the model's own dimensions and attributes on one row, a few, and many; the oracle computes only
//! a sample of the output columns, the embedding rows and the experts that were touched, so that layers of any size take seconds. A
//! kernel's promises (the same bits again, and for rows alone) are held to on all of its outputs. Weights are made in their scheme's
//! bytes, a piece at a time. A report that passed is kept and used again while nothing has changed that could matter: the backend's
//! library, its version, the device's model and driver, the kernels, this crate.

mod cache;
mod exchange;
mod sample;
mod trial;

use std::{path::PathBuf, time::Instant};

use halyard_core::{Decompose, Device, InfoKey, OpBuf};
use serde::{Deserialize, Serialize};

use crate::{
    compare::Comparison,
    execute::{Prepared, Setting, Trouble},
    generate::inputs,
    judge::judge,
    report::Outcome,
    rng::Rng,
    verify::{Progress, check_promises, check_support, expected},
    weight::WeightSource,
};
pub use exchange::{Exchange, exchanges, exchanges_of_rank};
use trial::{Trial, trials};

/// How the gate works.
#[derive(Clone, Debug, Default)]
pub struct GateOptions {
    /// Seed of the inputs; 0 is the usual one.
    pub seed: u64,
    /// Where reports that passed are kept; `None` keeps none. See [`standard_cache_dir`].
    pub cache_dir: Option<PathBuf>,
}

/// `$HALYARD_CACHE_DIR/gate`, or `halyard/gate` in the user's cache folder; `None` if there is none.
#[must_use]
pub fn standard_cache_dir() -> Option<PathBuf> {
    cache::standard_dir(|name| std::env::var_os(name))
}

/// What the gate found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GateReport {
    /// Id of the backend.
    pub backend: String,
    /// Name of the device.
    pub device: String,
    /// Seed of the inputs.
    pub seed: u64,
    /// Every kernel.
    pub kernels: Vec<KernelResult>,
    /// Time it took.
    pub millis: u64,
    /// Whether this is a kept report.
    #[serde(skip)]
    pub from_cache: bool,
}

/// What became of one kernel.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct KernelResult {
    /// The op in canonical form.
    pub op: String,
    /// What became of it; anything but passed closes the gate.
    pub outcome: Outcome,
    /// Why it did not pass.
    pub message: Option<String>,
    /// The launch that failed, or the last one: rows, arrangement.
    pub trial: String,
    /// Each output of that launch against the oracle's.
    pub comparisons: Vec<Comparison>,
    /// Time it took.
    pub millis: u64,
}

/// Some kernels did not pass.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{} of {total} kernels of backend {backend} ({device}) failed verification:\n{}", failures.len(), failures.join("\n"))]
pub struct GateError {
    /// Id of the backend.
    pub backend: String,
    /// Name of the device.
    pub device: String,
    /// Kernels verified.
    pub total: usize,
    /// A few lines each: op, launch, worst error with expected and got, seed.
    pub failures: Vec<String>,
}

impl GateReport {
    /// Whether every kernel passed.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.kernels.iter().all(|k| k.outcome == Outcome::Passed)
    }

    /// What failed, for people.
    ///
    /// # Errors
    /// If a kernel did not pass.
    pub fn require(&self) -> Result<(), GateError> {
        let failed = self.kernels.iter().filter(|k| k.outcome != Outcome::Passed);
        let failures: Vec<String> = failed.map(|k| self.describe(k)).collect();
        if failures.is_empty() {
            return Ok(());
        }
        let (backend, device) = (self.backend.clone(), self.device.clone());
        Err(GateError { backend, device, total: self.kernels.len(), failures })
    }

    fn describe(&self, kernel: &KernelResult) -> String {
        let worst =
            kernel.comparisons.iter().max_by(|a, b| a.max_of_bound.total_cmp(&b.max_of_bound));
        let error = worst.filter(|c| !c.passed).map_or_else(String::new, |c| {
            let times = match c.max_of_bound {
                times if times > 1e6 => "far beyond".to_owned(),
                times => format!("{times:.1} times"),
            };
            format!(
                "\n    worst absolute error {:.3e}, {times} its bound; nmse {:.2e}",
                c.max_abs, c.nmse
            )
        });
        format!(
            "  {}\n    with {}: {}{error}\n    seed {}",
            kernel.op,
            kernel.trial,
            kernel.message.as_deref().unwrap_or("unknown"),
            self.seed
        )
    }
}

/// Verifies a set of kernels. A set that passed before, in the same circumstances, is not run again.
pub fn gate(
    device: &Device,
    oracle: &Device,
    kernel_set: &[OpBuf],
    options: &GateOptions,
    progress: &mut dyn FnMut(Progress<'_>),
) -> GateReport {
    // As the engine prepares them: what the backend lacks is built from what it has, and proved as well.
    let device = &device.decomposing(Decompose::Missing);
    let key = cache::key(device, kernel_set, options.seed);
    let dir = options.cache_dir.as_deref();
    if let Some(report) = dir.and_then(|dir| cache::load(dir, key.as_ref()?)) {
        return report;
    }
    let start = Instant::now();
    let mut report = GateReport {
        backend: device.backend().id().to_owned(),
        device: device.info(InfoKey::NAME),
        seed: options.seed,
        kernels: Vec::new(),
        millis: 0,
        from_cache: false,
    };
    for (done, op) in kernel_set.iter().enumerate() {
        let name = op.to_string();
        progress(Progress { done, total: kernel_set.len(), name: &name });
        report.kernels.push(kernel(device, oracle, op, kernel_set, options.seed));
    }
    report.millis = millis(start);
    if let (true, Some(dir), Some(key)) = (report.passed(), dir, key)
        && let Err(error) = cache::store(dir, &key, &report)
    {
        tracing::warn!(%error, dir = %dir.display(), "could not keep the gate's report");
    }
    report
}

fn millis(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX)
}

fn kernel(
    device: &Device,
    oracle: &Device,
    op: &OpBuf,
    kernel_set: &[OpBuf],
    seed: u64,
) -> KernelResult {
    let start = Instant::now();
    let mut result = KernelResult {
        op: op.to_string(),
        outcome: Outcome::Passed,
        message: None,
        trial: "no launch".into(),
        comparisons: Vec::new(),
        millis: 0,
    };
    let mut run = || -> Result<(), Trouble> {
        let mut rng = Rng::new(seed, &op.to_string());
        check_support(device, op)?;
        let weights: Vec<WeightSource> = op
            .weights()
            .iter()
            .map(|w| WeightSource::new(*w, &mut rng))
            .collect::<Result<_, _>>()
            .map_err(Trouble::Case)?;
        let prepared = Prepared::new(device, op, &weights)?;
        for trial in trials(op, kernel_set) {
            result.trial = trial.name();
            result.comparisons = attempt(&prepared, oracle, op, (&weights, &trial), &mut rng)?;
            if let Some(failure) = result.comparisons.iter().find_map(|c| c.failure.clone()) {
                return Err(Trouble::Violation(failure));
            }
        }
        Ok(())
    };
    if let Err(trouble) = run() {
        result.message = Some(trouble.to_string());
        result.outcome = match &trouble {
            t if t.is_unsupported() => Outcome::Unsupported,
            t if t.is_unavailable() => Outcome::Unavailable,
            _ => Outcome::Failed,
        };
    }
    result.millis = millis(start);
    result
}

/// One launch on the device, and the oracle's sample of it.
fn attempt(
    prepared: &Prepared<'_>,
    oracle: &Device,
    op: &OpBuf,
    (weights, trial): (&[WeightSource], &Trial),
    rng: &mut Rng,
) -> Result<Vec<Comparison>, Trouble> {
    let inputs = inputs(op, &trial.symbols, &trial.recipe, rng).map_err(Trouble::Case)?;
    let setting = Setting { layout: trial.layout, scratch: u32::MAX };
    let got = prepared.launch(&inputs, setting)?;
    let sample = sample::reduce(op, weights, &inputs, rng).map_err(Trouble::Case)?;
    let want = expected(oracle, &sample.op, &sample.weights, &sample.inputs, trial.layout)?;
    let comparisons = judge(op, &inputs, &got, &want, sample.columns.as_deref());
    if comparisons.iter().all(|c| c.passed) {
        check_promises(prepared, op, &inputs, (trial.layout, &got))?;
    }
    Ok(comparisons)
}
