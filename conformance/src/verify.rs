//! Runs the catalogue on a device and compares with the oracle.

use std::{collections::BTreeMap, time::Instant};

use halyard_core::{BATCH_INVARIANT, DETERMINISTIC, Device, InfoKey, OpBuf, Support};

use crate::{
    catalog::{self, Case, CatalogError},
    comm::{self, CommCase},
    compare::Comparison,
    conduct::{self, Left, Subject},
    execute::{Layout, Outputs, Prepared, Setting, Trouble},
    generate::{Inputs, Slot, inputs, parts},
    judge::{Reference, first_difference, judge},
    opbuf,
    report::{CaseResult, Counts, Outcome, Report},
    rng::Rng,
    weight::WeightSource,
};

/// Which cases run, and on what inputs.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Only the case of this name, or those whose names contain it.
    pub case: Option<String>,
    /// Only cases of these profiles (`quant` stands for every `quant:<scheme>`); empty for all.
    pub profiles: Vec<String>,
    /// Only cases of these ops; empty for all.
    pub ops: Vec<String>,
    /// The full sweep too, not only the default cases.
    pub full: bool,
    /// Seed of the inputs; 0 is the usual one.
    pub seed: u64,
}

impl Options {
    /// Whether a case of this name, profile and op is wanted.
    pub(crate) fn wants(&self, name: &str, profile: &str, op: &str) -> bool {
        let named = self.case.as_ref().is_none_or(|part| name.contains(part.as_str()));
        let of = |wanted: &String| {
            *wanted == profile || profile.split(':').next() == Some(wanted.as_str())
        };
        let profiled = self.profiles.is_empty() || self.profiles.iter().any(of);
        named && profiled && (self.ops.is_empty() || self.ops.iter().any(|o| o == op))
    }

    /// The cases of every kind that are wanted.
    fn jobs(&self) -> Result<Vec<Job>, CatalogError> {
        let mut jobs: Vec<Job> =
            catalog::cases(self.full)?.into_iter().map(|c| Job::Op(Box::new(c))).collect();
        jobs.extend(comm::cases()?.into_iter().map(Job::Comm));
        jobs.retain(|job| self.wants(job.name(), job.profile(), &job.op()));
        // A whole name means that case, although others may begin with it.
        let whole = |job: &Job| Some(job.name()) == self.case.as_deref();
        if jobs.iter().any(whole) {
            jobs.retain(whole);
        }
        Ok(jobs)
    }
}

/// What a case came to, and what it left of the device.
type Verdict = Result<(Vec<Comparison>, Left), Trouble>;

/// A case of any kind.
enum Job {
    /// Of an op.
    Op(Box<Case>),
    /// Of a collective.
    Comm(CommCase),
}

impl Job {
    fn name(&self) -> &str {
        match self {
            Self::Op(case) => &case.name,
            Self::Comm(case) => &case.name,
        }
    }

    fn profile(&self) -> &str {
        match self {
            Self::Op(case) => &case.profile,
            Self::Comm(_) => comm::PROFILE,
        }
    }

    fn op(&self) -> String {
        match self {
            Self::Op(case) => case.op.kind().to_string(),
            Self::Comm(case) => case.op(),
        }
    }

    fn run(&self, device: &Device, oracle: &Device, seed: u64) -> Verdict {
        match self {
            Self::Op(case) => run_case(device, oracle, case, seed),
            Self::Comm(case) => {
                let comparison = comm::run(device, case, seed)?;
                Ok((vec![comparison], Left::Usable))
            }
        }
    }

    fn result(
        &self,
        verdict: Result<Vec<Comparison>, Trouble>,
        declared: &[String],
        start: Instant,
    ) -> CaseResult {
        let profile = self.profile();
        // A yes to a profile is a promise.
        let (why, descriptor, promised) = match self {
            Self::Op(case) => (&case.why, case.op.to_string(), case.promised_by(declared)),
            Self::Comm(case) => {
                (&case.why, case.descriptor(), declared.iter().any(|p| p == profile))
            }
        };
        let (outcome, message, comparisons) = outcome(verdict, promised.then_some(profile));
        CaseResult {
            name: self.name().to_owned(),
            why: why.clone(),
            profile: profile.to_owned(),
            op: self.op(),
            descriptor,
            outcome,
            message,
            comparisons,
            millis: u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX),
        }
    }
}

/// How far a verification has come.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// Cases done.
    pub done: usize,
    /// Cases altogether.
    pub total: usize,
    /// The case that comes next.
    pub name: &'a str,
}

/// Runs the catalogue's cases on a device.
///
/// # Errors
/// If the built-in catalogue is malformed: a bug of this crate, held off by its tests.
pub fn verify(
    device: &Device,
    oracle: &Device,
    options: &Options,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Report, CatalogError> {
    verify_while(device, oracle, options, progress, &mut |_| true)
}

/// As [`verify`], as long as `more` says so of each result.
///
/// # Errors
/// As [`verify`].
pub fn verify_while(
    device: &Device,
    oracle: &Device,
    options: &Options,
    progress: &mut dyn FnMut(Progress<'_>),
    more: &mut dyn FnMut(&CaseResult) -> bool,
) -> Result<Report, CatalogError> {
    let jobs = options.jobs()?;
    let mut report = empty_report(device, options);
    // A device that a case ended is opened anew, so that one bad kernel, or one bad index, does not hide the others.
    let mut device = device.clone();
    for (done, job) in jobs.iter().enumerate() {
        progress(Progress { done, total: jobs.len(), name: job.name() });
        let start = Instant::now();
        let verdict = job.run(&device, oracle, options.seed);
        let lost = match &verdict {
            Ok((_, left)) => *left == Left::Lost,
            Err(trouble) => trouble.is_sticky(),
        };
        if lost && let Ok(fresh) = device.reopen() {
            device = fresh;
        }
        let verdict = verdict.map(|(comparisons, _)| comparisons);
        let result = job.result(verdict, &report.declared, start);
        let go_on = more(&result);
        report.add(result);
        if !go_on {
            break;
        }
    }
    Ok(report)
}

fn empty_report(device: &Device, options: &Options) -> Report {
    let backend = device.backend();
    let declared = backend.info(InfoKey::PROFILES);
    Report {
        backend: backend.id().to_owned(),
        version: backend.info(InfoKey::VERSION),
        library: backend.library().map(|p| p.display().to_string()),
        sha256: backend.sha256().to_owned(),
        device: device.info(InfoKey::NAME),
        arch: device.info(InfoKey::ARCH),
        driver: device.info(InfoKey::DRIVER),
        opset: halyard_abi::module::OPSET,
        full: options.full,
        seed: options.seed,
        declared: declared.split(',').filter(|p| !p.is_empty()).map(str::to_owned).collect(),
        profiles: BTreeMap::new(),
        counts: Counts::default(),
        cases: Vec::new(),
    }
}

/// What became of a case, and why; `promised` is the profile that the backend declares and that demands it.
fn outcome(
    verdict: Result<Vec<Comparison>, Trouble>,
    promised: Option<&str>,
) -> (Outcome, Option<String>, Vec<Comparison>) {
    let trouble = match verdict {
        Ok(comparisons) => {
            let failure = comparisons.iter().find_map(|c| c.failure.clone());
            let outcome = if failure.is_none() { Outcome::Passed } else { Outcome::Failed };
            return (outcome, failure, comparisons);
        }
        Err(trouble) => trouble,
    };
    let (outcome, promise) = match (trouble.is_unsupported(), promised) {
        (true, Some(profile)) => {
            (Outcome::Failed, format!("the backend declares {profile}, but: "))
        }
        (true, None) => (Outcome::Unsupported, String::new()),
        (false, _) if trouble.is_unavailable() => (Outcome::Unavailable, String::new()),
        (false, _) => (Outcome::Failed, String::new()),
    };
    (outcome, Some(format!("{promise}{trouble}")), Vec::new())
}

/// Scratch memory full of NaN, and full of zeros.
pub(crate) const SCRATCH: [u32; 2] = [u32::MAX, 0];

/// The weights and inputs of a case.
pub(crate) fn drawn(case: &Case, seed: u64) -> Result<(Vec<WeightSource>, Inputs), String> {
    let mut rng = Rng::new(seed, &case.name);
    let weights = case.weights.iter().map(|w| WeightSource::new(*w, &mut rng));
    let weights = weights.collect::<Result<_, _>>()?;
    Ok((weights, inputs(&case.op, &case.symbols, &case.recipe, &mut rng)?))
}

fn run_case(device: &Device, oracle: &Device, case: &Case, seed: u64) -> Verdict {
    check_support(device, &case.op)?;
    let (weights, inputs) = drawn(case, seed).map_err(Trouble::Case)?;
    let inputs = inputs.shown(&case.op, case.layout);

    let under_test = Prepared::new(device, &case.op, &weights)?;
    let setting = Setting { layout: case.layout, scratch: SCRATCH[0] };
    let got = under_test.launch(&inputs, setting)?;

    let reference = expected(oracle, &case.op, &weights, &inputs, case.layout)?;
    let comparisons = judge(&case.op, &inputs, &got, &reference, None);
    if comparisons.iter().any(|c| !c.passed) {
        return Ok((comparisons, Left::Usable));
    }
    check_promises(&under_test, &case.op, &inputs, (case.layout, &got))?;
    conduct::signs_of_zeros(&case.op, &got, &reference)?;
    let (weights, inputs, reference) = (&weights[..], &inputs, &reference);
    let subject = Subject { device, oracle, case, weights, inputs, reference, seed };
    Ok((comparisons, conduct::check(subject)?))
}

/// What the oracle gives for the same inputs.
pub(crate) fn expected(
    oracle: &Device,
    op: &OpBuf,
    weights: &[WeightSource],
    inputs: &Inputs,
    layout: Layout,
) -> Result<Reference, Trouble> {
    // In packed memory of its own, unless the arrangement changes what is read.
    let layout = if layout == Layout::Broadcast { layout } else { Layout::Packed };
    let setting = Setting { layout, scratch: SCRATCH[0] };
    let run = |op: &OpBuf, inputs: &Inputs| {
        let run = Prepared::new(oracle, op, weights).and_then(|p| p.launch(inputs, setting));
        run.map_err(|e| Trouble::Reference(Box::new(e)))
    };
    let outputs = run(op, inputs)?;
    let unrounded = match &inputs.cache {
        Some(cache) if cache.read_back => {
            let op = opbuf::with_float_cache(op).map_err(Trouble::Case)?;
            let mut inputs = Inputs { cache: Some(cache.unrounded()), ..inputs.clone() };
            for (slot, spec) in inputs.slots.iter_mut().zip(op.tensors()) {
                if spec.is_none() {
                    *slot = Slot::Absent;
                }
            }
            run(&op, &inputs)?.probe
        }
        _ => Vec::new(),
    };
    Ok(Reference { outputs, unrounded })
}

/// `supports` and `prepare` must agree, and what nobody knows must be refused.
pub(crate) fn check_support(device: &Device, op: &OpBuf) -> Result<(), Trouble> {
    match device.support(op) {
        Support::No(why) => match device.prepare(op.clone()) {
            Ok(_) => {
                Err(Trouble::Violation(format!("`supports` says no ({why}), yet it prepares")))
            }
            Err(error) => Err(Trouble::Device(error)),
        },
        _ => {
            let odd = opbuf::with_unknown_attr(op).map_err(Trouble::Case)?;
            match device.prepare(odd) {
                Ok(_) => Err(Trouble::Violation(
                    "an attribute that it cannot know was ignored instead of refused".into(),
                )),
                Err(error) if error.is_unsupported() => Ok(()),
                Err(error) if error.is_sticky() => Err(Trouble::Device(error)),
                Err(error) => Err(Trouble::Violation(format!(
                    "an attribute that it cannot know is `unsupported`, but it says: {error}"
                ))),
            }
        }
    }
}

/// Holds a kernel to its flags: the same bits again, and the same bits for rows alone.
pub(crate) fn check_promises(
    prepared: &Prepared<'_>,
    op: &OpBuf,
    inputs: &Inputs,
    (layout, got): (Layout, &Outputs),
) -> Result<(), Trouble> {
    if prepared.flags() & DETERMINISTIC != 0 {
        let again = prepared.launch(inputs, Setting { layout, scratch: SCRATCH[1] })?;
        if let Some(difference) = first_difference(op, got, &again) {
            return Err(Trouble::Violation(format!(
                "declared deterministic, but a second launch differs: {difference}"
            )));
        }
    }
    if prepared.flags() & BATCH_INVARIANT == 0 || layout == Layout::Broadcast {
        return Ok(());
    }
    for part in parts(op, inputs) {
        let alone = prepared.launch(&part.inputs, Setting { layout, scratch: SCRATCH[0] })?;
        let rows =
            |a: &Option<crate::array::Array>| a.as_ref().map(|a| a.narrow(part.start, part.len));
        let slots = got.slots.iter().map(rows).collect();
        let whole = Outputs { slots, probe: Vec::new() };
        if let Some(difference) = first_difference(op, &alone, &whole) {
            return Err(Trouble::Violation(format!(
                "declared batch-invariant, but rows {}..{} alone differ: {difference}",
                part.start,
                part.start + part.len
            )));
        }
    }
    Ok(())
}
