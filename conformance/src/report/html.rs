//! A report as a page of its own, without anything to fetch: counts, failures, matrices, and how much of their bounds results use.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
};

use super::{CaseResult, Counts, Outcome, Report, hardware, junit::escape};

const STYLE: &str = "
:root{color-scheme:light dark}
body{font:15px/1.5 system-ui,sans-serif;max-width:76rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2.2rem}
table{border-collapse:collapse;font-size:13px}th,td{padding:3px 8px;text-align:right;border:1px solid #8884}
th:first-child,td:first-child{text-align:left}.scroll{overflow-x:auto}
.passed{background:#2a9d5c33}.failed{background:#d6404088;font-weight:600}.none{color:#8888}
pre{white-space:pre-wrap;background:#8881;padding:.6rem;border-radius:6px;font-size:13px}
summary{cursor:pointer}small{color:#888}rect{fill:#4a7fb5}rect.over{fill:#d64040}
svg text{font:9px system-ui,sans-serif;fill:#888}line{stroke:#8888}a{color:inherit}code{font-size:12px}";

/// The reports as one page.
#[must_use]
pub fn html(reports: &[Report]) -> String {
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\">\
         <title>Halyard conformance</title><style>{STYLE}</style></head><body>\n"
    );
    for (at, report) in reports.iter().enumerate() {
        head(&mut page, report);
        failures(&mut page, at, report);
        let profile = |case: &CaseResult| (case.profile.clone(), dtype(case));
        let op = |case: &CaseResult| (case.op.clone(), dtype_or_scheme(case));
        matrix(&mut page, (at, report), "Profiles by dtype", &profile);
        matrix(&mut page, (at, report), "Ops by dtype and scheme", &op);
        distributions(&mut page, report);
    }
    page.push_str("</body></html>\n");
    page
}

fn head(page: &mut String, report: &Report) {
    let c = report.counts;
    let seconds = report.cases.iter().map(|case| case.millis).sum::<u64>() / 1000;
    let verdict = if report.passed() { "passed" } else { "did not pass" };
    let _ = writeln!(
        page,
        "<h1>{} {} {verdict}</h1><p>{}, seed {}, {seconds} s<br>{} passed, {} failed, {} unsupported, {} unavailable of {} \
         cases<br>declares: {}<br><small>sha256 {}</small></p>",
        escape(&report.backend),
        escape(&report.version),
        escape(&hardware(&report.device, &report.arch)),
        report.seed,
        c.passed,
        c.failed,
        c.unsupported,
        c.unavailable,
        c.total(),
        escape(&report.declared.join(", ")),
        escape(&report.sha256),
    );
}

/// The compute type: the first float type of a case's descriptor (`linear x:bf16[*,64] …`).
fn dtype(case: &CaseResult) -> String {
    let typed = |word: &str| -> Option<String> {
        let (_, rest) = word.split_once(':')?;
        Some(rest.split('[').next()?.to_owned())
    };
    let floats = ["f32", "f16", "bf16"];
    let mut words = case.descriptor.split_whitespace().filter_map(typed);
    words.find(|ty| floats.contains(&ty.as_str())).unwrap_or_else(|| "other".into())
}

/// The scheme of a case's weights, or its compute type if they are dense.
fn dtype_or_scheme(case: &CaseResult) -> String {
    case.profile.strip_prefix("quant:").map_or_else(|| dtype(case), str::to_owned)
}

/// Cases counted by the row and the column that `place` gives each.
fn matrix(
    page: &mut String,
    (at, report): (usize, &Report),
    title: &str,
    place: &dyn Fn(&CaseResult) -> (String, String),
) {
    let mut cells: BTreeMap<(String, String), Counts> = BTreeMap::new();
    for case in &report.cases {
        cells.entry(place(case)).or_default().add(case.outcome);
    }
    let rows: BTreeSet<&String> = cells.keys().map(|(row, _)| row).collect();
    let columns: BTreeSet<&String> = cells.keys().map(|(_, column)| column).collect();
    let _ = write!(page, "<h2>{title}</h2><div class=scroll><table><tr><th></th>");
    for column in &columns {
        let _ = write!(page, "<th>{}</th>", escape(column));
    }
    page.push_str("</tr>\n");
    for row in rows {
        let _ = write!(page, "<tr><td>{}</td>", escape(row));
        for &column in &columns {
            let (class, text) = match cells.get(&(row.clone(), column.clone())) {
                None => ("none", String::new()),
                Some(c) if c.failed > 0 => {
                    let text =
                        format!("<a href=\"#failures{at}\">{} of {}</a>", c.failed, c.total());
                    ("failed", text)
                }
                Some(c) if c.passed > 0 => ("passed", c.passed.to_string()),
                Some(_) => ("none", "–".into()),
            };
            let _ = write!(page, "<td class={class}>{text}</td>");
        }
        page.push_str("</tr>\n");
    }
    page.push_str("</table></div><p><small>Green: cases that passed. Red: failed of all. –: not supported.</small></p>\n");
}

/// Upper edges of a histogram's bins, as shares of the bound: exact, then finer the nearer the bound is; what lies beyond is one bin more.
const EDGES: [(f64, &str); 10] = [
    (0.0, "0"),
    (1e-4, "10⁻⁴"),
    (1e-3, "10⁻³"),
    (1e-2, ".01"),
    (0.03, ".03"),
    (0.1, ".1"),
    (0.2, ".2"),
    (0.4, ".4"),
    (0.7, ".7"),
    (1.0, "1"),
];
const BINS: usize = EDGES.len() + 1;

fn bin(of_bound: f64) -> usize {
    // Not a number is as far beyond as can be.
    EDGES.iter().position(|(edge, _)| of_bound <= *edge).unwrap_or(BINS - 1)
}

/// What is known of an op's outputs.
#[derive(Default)]
struct Spread<'a> {
    bins: [usize; BINS],
    worst: Option<(f64, &'a str)>,
}

/// For each op how much of its bound the worst element of each output uses.
fn distributions(page: &mut String, report: &Report) {
    let mut ops: BTreeMap<&str, Spread<'_>> = BTreeMap::new();
    for case in &report.cases {
        for comparison in &case.comparisons {
            let spread = ops.entry(&case.op).or_default();
            let share = comparison.max_of_bound;
            spread.bins[bin(share)] += 1;
            if spread.worst.is_none_or(|(worst, _)| share > worst) {
                spread.worst = Some((share, &case.name));
            }
        }
    }
    page.push_str(
        "<h2>How much of its bound the worst element of each output uses</h2>\
         <p><small>A bar counts outputs up to the share below its right edge; the first are exact, red ones beyond the bound.</small></p>\
         <div class=scroll><table><tr><th>op</th><th>outputs</th><th>share of the bound</th><th>largest</th><th>where</th></tr>\n",
    );
    for (op, Spread { bins, worst }) in ops {
        let total: usize = bins.iter().sum();
        let (share, name) = worst.unwrap_or_default();
        let share = if share > 1e6 { ">10⁶".into() } else { format!("{share:.3}") };
        let _ = writeln!(
            page,
            "<tr><td>{}</td><td>{total}</td><td>{}</td><td>{share}</td><td><code>{}</code></td></tr>",
            escape(op),
            histogram(&bins),
            escape(name)
        );
    }
    page.push_str("</table></div>\n");
}

/// Bars on an axis; the number of outputs of each is shown when it is pointed at.
fn histogram(bins: &[usize; BINS]) -> String {
    const STEP: usize = 26;
    const TOP: usize = 40;
    let most = bins.iter().copied().max().unwrap_or(1).max(1);
    let mut svg = format!(
        "<svg width={} height={} role=img><line x1=0 y1={TOP} x2={} y2={TOP} />",
        STEP * BINS + 8,
        TOP + 12,
        STEP * BINS
    );
    for (at, &count) in bins.iter().enumerate() {
        // One output of thousands must be seen.
        let height = if count == 0 { 0 } else { (count * (TOP - 2) / most).max(2) };
        let (class, label) = match EDGES.get(at) {
            Some((_, label)) => ("", *label),
            None => (" class=over", "&gt;1"),
        };
        let (x, y) = (at * STEP, TOP - height);
        let _ = write!(
            svg,
            "<rect{class} x={x} y={y} width={} height={height}><title>{count}</title></rect>\
             <text x={} y={} text-anchor=end>{label}</text>",
            STEP - 4,
            x + STEP - 4,
            TOP + 10
        );
    }
    svg.push_str("</svg>");
    svg
}

/// Failures that are unfolded; of thousands, the page would be nothing else.
const UNFOLDED: usize = 20;

fn failures(page: &mut String, at: usize, report: &Report) {
    let failed: Vec<_> = report.cases.iter().filter(|c| c.outcome == Outcome::Failed).collect();
    if failed.is_empty() {
        return;
    }
    let _ = writeln!(page, "<h2 id=failures{at}>{} failures</h2>", failed.len());
    for (i, case) in failed.into_iter().enumerate() {
        let open = if i < UNFOLDED { " open" } else { "" };
        let _ = writeln!(
            page,
            "<details{open}><summary><b>{}</b> ({})</summary><pre>{}\n{}\n<b>{}</b></pre></details>",
            escape(&case.name),
            escape(&case.why),
            escape(&case.descriptor),
            escape(case.message.as_deref().unwrap_or_default()),
            escape(&report.replay(case)),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_fall_into_their_bins() {
        assert_eq!([0.0, 1e-9, 0.5, 1.0].map(bin), [0, 1, 8, 9]);
        assert_eq!([1.01, f64::INFINITY, f64::NAN].map(bin), [BINS - 1; 3]);
    }

    #[test]
    fn bars_are_as_high_as_their_share_and_none_vanishes() {
        let mut bins = [0; BINS];
        (bins[0], bins[3], bins[BINS - 1]) = (1000, 500, 1);
        let svg = histogram(&bins);
        assert!(svg.contains("x=0 y=2 width=22 height=38><title>1000<"), "{svg}");
        assert!(svg.contains("x=78 y=21 width=22 height=19><title>500<"), "{svg}");
        assert!(svg.contains("<rect class=over x=260 y=38 width=22 height=2><title>1<"), "{svg}");
        assert_eq!(svg.matches("<rect").count(), BINS);
    }
}
