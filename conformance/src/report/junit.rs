//! A report as JUnit's XML, which continuous integration servers read.

use std::fmt::Write;

use super::{Outcome, Report};

/// The reports as one document: a suite a backend, a test a case.
#[must_use]
pub fn junit(reports: &[Report]) -> String {
    let mut text = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n");
    for report in reports {
        suite(&mut text, report);
    }
    text.push_str("</testsuites>\n");
    text
}

fn suite(text: &mut String, report: &Report) {
    let c = report.counts;
    let millis: u64 = report.cases.iter().map(|case| case.millis).sum();
    let _ = writeln!(
        text,
        "  <testsuite name=\"{}\" tests=\"{}\" failures=\"{}\" skipped=\"{}\" time=\"{}\">",
        escape(&report.backend),
        c.total(),
        c.failed,
        c.unsupported + c.unavailable,
        seconds(millis)
    );
    for case in &report.cases {
        let message = escape(case.message.as_deref().unwrap_or_default());
        let replay = escape(&report.replay(case));
        let inside = match case.outcome {
            Outcome::Passed => String::new(),
            Outcome::Failed => format!("<failure message=\"{message}\">replay: {replay}</failure>"),
            Outcome::Unsupported | Outcome::Unavailable => {
                format!("<skipped message=\"{message}\"/>")
            }
        };
        let _ = writeln!(
            text,
            "    <testcase classname=\"{}.{}\" name=\"{}\" time=\"{}\">{inside}</testcase>",
            escape(&case.profile),
            escape(&case.op),
            escape(&case.name),
            seconds(case.millis)
        );
    }
    text.push_str("  </testsuite>\n");
}

fn seconds(millis: u64) -> String {
    format!("{}.{:03}", millis / 1000, millis % 1000)
}

/// Text as XML and HTML want it, in elements and in quoted attributes.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c if c.is_control() && c != '\n' && c != '\t' => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}
