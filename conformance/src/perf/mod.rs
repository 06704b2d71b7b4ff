//! Times kernels at the shapes of real models, beside what the same device can do at best; `counted` launches them once.

mod counted;
mod work;

use std::{fmt::Write, time::Duration};

use halyard_core::{Device, InfoKey, OpKind, Scheme};
use serde::{Deserialize, Serialize};

use crate::{
    catalog::{self, Case, CatalogError},
    execute::{Prepared, Trouble},
    report::hardware,
    verify::{Options, Progress, drawn},
};
pub use counted::{Counted, Counter, counted};
use work::Work;

/// A device's limits, measured by what it does best.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes a second: the most that its COPY or a dense LINEAR moved.
    pub bytes_per_s: f64,
    /// Operations a second: the most that a dense LINEAR did.
    pub flops: f64,
}

/// One kernel at one shape.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PerfRow {
    /// Entry name and what varies; what `--case` takes.
    pub name: String,
    /// What it is.
    pub why: String,
    /// Op name.
    pub op: String,
    /// The op in canonical form.
    pub descriptor: String,
    /// Bytes that the launch must move at least (`src/perf/work.rs` says what counts).
    pub bytes: u64,
    /// Multiplications and additions of its products of matrices; 0 where there are none.
    pub flops: u64,
    /// Microseconds a launch, the median; nothing if it could not be timed.
    pub micros: Option<f64>,
    /// Half the distance between the fastest and the slowest measurement, in microseconds.
    pub spread: Option<f64>,
    /// Share of what the limits allow: the time that the bytes or the operations need at least, whichever is longer, of the time taken.
    pub roofline: Option<f64>,
    /// Why it could not be timed.
    pub error: Option<String>,
}

impl PerfRow {
    fn per_s(&self, count: u64) -> Option<f64> {
        self.micros.map(|micros| count as f64 / micros * 1e6)
    }

    fn place(&mut self, limits: Limits) {
        let least = |count: u64, limit: f64| if limit > 0.0 { count as f64 / limit } else { 0.0 };
        let needed = least(self.bytes, limits.bytes_per_s).max(least(self.flops, limits.flops));
        self.roofline = self.micros.map(|micros| needed / micros * 1e6);
    }
}

/// What was timed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PerfReport {
    /// Id of the backend.
    pub backend: String,
    /// Its version.
    pub version: String,
    /// Name of the device.
    pub device: String,
    /// Its architecture.
    pub arch: String,
    /// What the device can do at best.
    pub limits: Limits,
    /// Every kernel.
    pub rows: Vec<PerfRow>,
}

/// Times the kernels that the options want, and those that tell the device's limits.
///
/// # Errors
/// If the built-in list of shapes is malformed: a bug of this crate, held off by its tests.
pub fn perf(
    device: &Device,
    options: &Options,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<PerfReport, CatalogError> {
    let mut cases = catalog::perf_cases()?;
    cases.retain(|case| wanted(options, case) || tells_limits(case));
    let mut device = device.clone();
    let (mut limits, mut rows) = (Limits::default(), Vec::new());
    for (done, case) in cases.iter().enumerate() {
        progress(Progress { done, total: cases.len(), name: &case.name });
        let row = row(&mut device, case, options.seed);
        if tells_limits(case) {
            limits.bytes_per_s = limits.bytes_per_s.max(row.per_s(row.bytes).unwrap_or(0.0));
            limits.flops = limits.flops.max(row.per_s(row.flops).unwrap_or(0.0));
        }
        if wanted(options, case) {
            rows.push(row);
        }
    }
    rows.iter_mut().for_each(|row| row.place(limits));
    Ok(PerfReport {
        backend: device.backend().id().to_owned(),
        version: device.backend().info(InfoKey::VERSION),
        device: device.info(InfoKey::NAME),
        arch: device.info(InfoKey::ARCH),
        limits,
        rows,
    })
}

fn wanted(options: &Options, case: &Case) -> bool {
    options.wants(&case.name, &case.profile, &case.op.kind().to_string())
}

/// Copies, and linear layers with dense weights.
fn tells_limits(case: &Case) -> bool {
    let dense = case.weights.iter().all(|w| w.scheme == Scheme::DENSE);
    case.op.kind() == OpKind::COPY || (case.op.kind() == OpKind::LINEAR && dense)
}

fn row(device: &mut Device, case: &Case, seed: u64) -> PerfRow {
    let mut row = PerfRow {
        name: case.name.clone(),
        why: case.why.clone(),
        op: case.op.kind().to_string(),
        descriptor: case.op.to_string(),
        bytes: 0,
        flops: 0,
        micros: None,
        spread: None,
        roofline: None,
        error: None,
    };
    match time(device, case, seed) {
        Ok((work, times)) => {
            let micros = |time: Duration| time.as_secs_f64() * 1e6;
            let (fastest, slowest) = (times[0], times[times.len() - 1]);
            (row.bytes, row.flops) = (work.bytes, work.flops);
            row.micros = Some(micros(times[times.len() / 2]));
            row.spread = Some(micros(slowest - fastest) / 2.0);
        }
        Err(trouble) => {
            if trouble.is_sticky()
                && let Ok(fresh) = device.reopen()
            {
                *device = fresh;
            }
            row.error = Some(trouble.to_string());
        }
    }
    row
}

/// The counts of a launch, and its sorted times.
fn time(device: &Device, case: &Case, seed: u64) -> Result<(Work, Vec<Duration>), Trouble> {
    let (weights, inputs) = drawn(case, seed).map_err(Trouble::Case)?;
    let work = Work::of(&case.op, &case.symbols, &inputs);
    let times = Prepared::new(device, &case.op, &weights)?.time(&inputs)?;
    Ok((work, times))
}

impl PerfReport {
    /// For people: a line a kernel.
    #[must_use]
    pub fn table(&self) -> String {
        let Self { backend, version, device, arch, limits, rows } = self;
        let mut text = format!(
            "{backend} {version} on {}: at best {:.1} GB/s, {:.1} GFLOP/s\n\n",
            hardware(device, arch),
            limits.bytes_per_s / 1e9,
            limits.flops / 1e9
        );
        let width = rows.iter().map(|row| row.name.chars().count()).max().unwrap_or(0);
        let head = ["µs", "±", "GB/s", "GFLOP/s", "roofline"].map(|h| format!(" {h:>10}")).concat();
        let _ = writeln!(text, "{:<width$}{head}", "kernel");
        for row in rows {
            let rate = |count| match row.per_s(count) {
                Some(rate) if count > 0 => format!("{:.1}", rate / 1e9),
                _ => "-".to_owned(),
            };
            let _ = write!(text, "{:<width$}", row.name);
            match (row.micros, row.spread, row.roofline) {
                (Some(micros), Some(spread), Some(share)) => {
                    let cells = [
                        format!("{micros:.1}"),
                        format!("{spread:.1}"),
                        rate(row.bytes),
                        rate(row.flops),
                        format!("{:.0} %", 100.0 * share),
                    ];
                    let _ = writeln!(text, "{}", cells.map(|c| format!(" {c:>10}")).concat());
                }
                _ => {
                    let _ = writeln!(text, "  {}", row.error.as_deref().unwrap_or_default());
                }
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shape_is_there_and_limits_are_found() {
        let cases = catalog::perf_cases().unwrap();
        let there = |op: OpKind| cases.iter().any(|c| c.op.kind() == op);
        for op in [
            OpKind::COPY,
            OpKind::LINEAR,
            OpKind::PAGED_ATTENTION,
            OpKind::MLA_ATTENTION,
            OpKind::MOE_EXPERTS,
            OpKind::RMS_NORM,
            OpKind::SAMPLE,
            OpKind::KV_WRITE,
        ] {
            assert!(there(op), "{op}");
        }
        assert!(cases.iter().filter(|c| tells_limits(c)).count() >= 3);
    }

    #[test]
    fn a_report_has_the_rows_that_are_wanted_and_says_what_could_not_be_timed() {
        let case = |name: &str, micros: Option<f64>| PerfRow {
            name: name.into(),
            why: String::new(),
            op: "linear".into(),
            descriptor: String::new(),
            bytes: 1000,
            flops: 8000,
            micros,
            spread: micros.map(|_| 0.5),
            roofline: None,
            error: micros.is_none().then(|| "no room".into()),
        };
        let limits = Limits { bytes_per_s: 1e9, flops: 4e9 };
        let mut report = PerfReport {
            backend: "toy".into(),
            version: "1".into(),
            device: "a toy".into(),
            arch: String::new(),
            limits,
            rows: vec![case("fast", Some(4.0)), case("none", None)],
        };
        report.rows.iter_mut().for_each(|row| row.place(limits));
        // 1 µs for the bytes, 2 µs for the operations.
        assert_eq!(report.rows[0].roofline, Some(0.5));
        assert_eq!(report.rows[1].roofline, None);
        let table = report.table();
        assert!(table.contains("50 %") && table.contains("no room"), "{table}");
        let json = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<PerfReport>(&json).unwrap().rows.len(), 2);
    }

    #[test]
    fn kernels_are_timed_through_the_boundary() {
        let text = "[[case]]\nname = \"small\"\nop = \"rms_norm\"\nwhy = \"a test\"\ndtype = \"f32\"\nshape = [[2, 64]]\n";
        let cases = catalog::parse("small.toml", text).unwrap();
        let mut device = crate::oracle().unwrap();
        let row = row(&mut device, &cases[0], 0);
        assert_eq!((row.error, row.bytes, row.flops), (None, 4 * (2 * 128 + 64), 0));
        assert!(row.micros.is_some_and(|micros| micros > 0.0));
    }
}
