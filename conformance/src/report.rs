//! What a verification found: as JSON and as a table.

mod html;
mod junit;

use std::{collections::BTreeMap, fmt::Write};

use serde::{Deserialize, Serialize};

use crate::compare::Comparison;
pub use html::html;
pub use junit::junit;

/// What became of a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Every check held.
    Passed,
    /// The backend says it can never do this.
    Unsupported,
    /// This machine cannot try it.
    Unavailable,
    /// A check did not hold.
    Failed,
}

/// A case's result.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CaseResult {
    /// Which case; what `--case` takes.
    pub name: String,
    /// What it is for.
    pub why: String,
    /// `dense`, `moe`, `quant:<scheme>`, `sample` or `comm`.
    pub profile: String,
    /// Op name; for collectives the call.
    pub op: String,
    /// The op in canonical form.
    pub descriptor: String,
    /// What became of it.
    pub outcome: Outcome,
    /// Why it did not pass.
    pub message: Option<String>,
    /// Each output against the oracle's.
    pub comparisons: Vec<Comparison>,
    /// Time it took.
    pub millis: u64,
}

/// Cases by outcome.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Passed.
    pub passed: usize,
    /// Failed.
    pub failed: usize,
    /// Unsupported.
    pub unsupported: usize,
    /// Unavailable.
    pub unavailable: usize,
}

impl Counts {
    pub(crate) fn add(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Passed => self.passed += 1,
            Outcome::Failed => self.failed += 1,
            Outcome::Unsupported => self.unsupported += 1,
            Outcome::Unavailable => self.unavailable += 1,
        }
    }

    /// All cases.
    #[must_use]
    pub fn total(&self) -> usize {
        self.passed + self.failed + self.unsupported + self.unavailable
    }
}

/// A verification's result.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// Id of the backend.
    pub backend: String,
    /// Its version.
    pub version: String,
    /// Its library; none if built in.
    pub library: Option<String>,
    /// SHA-256 of the library (or of the program it is built into).
    pub sha256: String,
    /// Name of the device.
    pub device: String,
    /// Its architecture.
    pub arch: String,
    /// Its driver.
    pub driver: String,
    /// The opset the cases are of.
    pub opset: u32,
    /// Whether the full sweep was among the cases.
    #[serde(default)]
    pub full: bool,
    /// Seed of the inputs.
    pub seed: u64,
    /// Profiles that the backend declares.
    pub declared: Vec<String>,
    /// Counts by profile.
    pub profiles: BTreeMap<String, Counts>,
    /// Counts of all cases.
    pub counts: Counts,
    /// Every case.
    pub cases: Vec<CaseResult>,
}

impl Report {
    /// Adds a case's result.
    pub(crate) fn add(&mut self, result: CaseResult) {
        self.counts.add(result.outcome);
        self.profiles.entry(result.profile.clone()).or_default().add(result.outcome);
        self.cases.push(result);
    }

    /// Whether nothing failed, and something passed.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.counts.failed == 0 && self.counts.passed > 0
    }

    /// Whether every case of a profile passed, apart from optional ones that the backend does not support.
    #[must_use]
    pub fn profile_passed(&self, profile: &str) -> bool {
        self.profiles.get(profile).is_some_and(|c| c.failed == 0 && c.passed > 0)
    }

    /// The command that runs a case again.
    #[must_use]
    pub fn replay(&self, case: &CaseResult) -> String {
        let backend = self.library.as_deref().unwrap_or(&self.backend);
        let full = if self.full { " --full" } else { "" };
        format!("halyard verify {backend}{full} --case {} --seed {}", case.name, self.seed)
    }

    /// For people: a line an op and profile, then every failure and how to replay it.
    #[must_use]
    pub fn table(&self) -> String {
        let mut text = format!(
            "{} {} on {}\n\n",
            self.backend,
            self.version,
            hardware(&self.device, &self.arch)
        );
        let mut rows: BTreeMap<(&str, &str), (Counts, f64, f64)> = BTreeMap::new();
        for case in &self.cases {
            let row = rows.entry((&case.profile, &case.op)).or_default();
            row.0.add(case.outcome);
            for c in &case.comparisons {
                row.1 = row.1.max(c.max_of_bound);
                row.2 = row.2.max(c.nmse);
            }
        }
        let head = ["profile", "op", "passed", "failed", "unsup.", "unavail.", "of bound", "nmse"];
        line(&mut text, &head.map(String::from));
        for ((profile, op), (c, of_bound, nmse)) in rows {
            let number = |n: usize| if n == 0 { "-".to_owned() } else { n.to_string() };
            line(
                &mut text,
                &[
                    profile.to_owned(),
                    op.to_owned(),
                    number(c.passed),
                    number(c.failed),
                    number(c.unsupported),
                    number(c.unavailable),
                    if of_bound > 1e6 { ">1e6".into() } else { format!("{of_bound:.3}") },
                    format!("{nmse:.1e}"),
                ],
            );
        }
        let c = self.counts;
        let _ = writeln!(
            text,
            "\n{} passed, {} failed, {} unsupported, {} unavailable",
            c.passed, c.failed, c.unsupported, c.unavailable
        );
        for case in self.cases.iter().filter(|c| c.outcome == Outcome::Failed) {
            let message = case.message.as_deref().unwrap_or_default();
            let _ = writeln!(text, "\nFAILED {} ({})\n  {}", case.name, case.why, case.descriptor);
            let _ = writeln!(text, "  {message}\n  replay: {}", self.replay(case));
        }
        text
    }
}

fn line(text: &mut String, cells: &[String; 8]) {
    let [profile, op, rest @ ..] = cells;
    let _ = write!(text, "{profile:<14} {op:<16}");
    for cell in rest {
        let _ = write!(text, " {cell:>9}");
    }
    text.push('\n');
}

/// A device, with its architecture if it says one.
pub(crate) fn hardware(device: &str, arch: &str) -> String {
    if arch.is_empty() { device.to_owned() } else { format!("{device} ({arch})") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_counts_names_and_replays() {
        let case = |name: &str, outcome| CaseResult {
            name: name.into(),
            why: "a test".into(),
            profile: "dense".into(),
            op: "linear".into(),
            descriptor: "linear x:f32[*,4]".into(),
            outcome,
            message: Some("y[0, 1] is 3, expected 4".into()),
            comparisons: Vec::new(),
            millis: 1,
        };
        let mut report = Report {
            backend: "toy".into(),
            version: "1".into(),
            library: None,
            sha256: String::new(),
            device: "a toy".into(),
            arch: String::new(),
            driver: String::new(),
            opset: 1,
            full: false,
            seed: 7,
            declared: vec![],
            profiles: BTreeMap::new(),
            counts: Counts::default(),
            cases: vec![case("a/b", Outcome::Passed), case("a/c", Outcome::Failed)],
        };
        for case in &report.cases {
            report.counts.add(case.outcome);
            report.profiles.entry(case.profile.clone()).or_default().add(case.outcome);
        }
        assert!(!report.passed() && !report.profile_passed("dense"));
        let table = report.table();
        assert!(table.contains("1 passed, 1 failed"), "{table}");
        assert!(table.contains("replay: halyard verify toy --case a/c --seed 7"), "{table}");
        let page = html(std::slice::from_ref(&report));
        assert!(page.contains("<td class=failed><a href=\"#failures0\">1 of 2</a></td>"), "{page}");
        let (failures, matrix) = (page.find("1 failures"), page.find("Profiles by dtype"));
        assert!(failures.is_some() && failures < matrix, "failures come first: {page}");
        assert!(page.contains("halyard verify toy --case a/c --seed 7"), "{page}");
        let xml = junit(std::slice::from_ref(&report));
        assert!(xml.contains("tests=\"2\" failures=\"1\" skipped=\"0\""), "{xml}");
        assert!(xml.contains("<failure message=\"y[0, 1] is 3, expected 4\">replay: "), "{xml}");
        let json = serde_json::to_string(&report).unwrap();
        let back: Report = serde_json::from_str(&json).unwrap();
        assert_eq!(back.counts, report.counts);
    }
}
