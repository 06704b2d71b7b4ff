//! A report as a page of its own, without anything to fetch: counts, a matrix, how much of their bounds results use, and failures.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
};

use super::{CaseResult, Counts, Outcome, Report, junit::escape};

const STYLE: &str = "
:root{color-scheme:light dark}
body{font:15px/1.5 system-ui,sans-serif;max-width:76rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2.2rem}
table{border-collapse:collapse;font-size:13px}th,td{padding:3px 8px;text-align:right;border:1px solid #8884}
th:first-child,td:first-child{text-align:left}.scroll{overflow-x:auto}
.passed{background:#2a9d5c33}.failed{background:#d6404088;font-weight:600}.none{color:#8888}
pre{white-space:pre-wrap;background:#8881;padding:.6rem;border-radius:6px;font-size:13px}
summary{cursor:pointer}small{color:#888}rect{fill:#4a7fb5}rect.over{fill:#d64040}";

/// The reports as one page.
#[must_use]
pub fn html(reports: &[Report]) -> String {
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\">\
         <title>Halyard conformance</title><style>{STYLE}</style></head><body>\n"
    );
    for report in reports {
        head(&mut page, report);
        matrix(&mut page, report);
        distributions(&mut page, report);
        failures(&mut page, report);
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
        "<h1>{} {} {verdict}</h1><p>{} ({}), seed {}, {seconds} s<br>{} passed, {} failed, {} unsupported, {} unavailable of {} \
         cases<br>declares: {}<br><small>sha256 {}</small></p>",
        escape(&report.backend),
        escape(&report.version),
        escape(&report.device),
        escape(&report.arch),
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

/// The first dtype of a case's descriptor (`linear x:bf16[*,64] …`) and the schemes of its weights (`… w0:q4_k[8,64]`).
fn column(case: &CaseResult) -> String {
    let typed = |word: &str| -> Option<(String, String)> {
        let (name, rest) = word.split_once(':')?;
        Some((name.to_owned(), rest.split('[').next()?.to_owned()))
    };
    let words: Vec<(String, String)> =
        case.descriptor.split_whitespace().filter_map(typed).collect();
    let scheme = case.profile.strip_prefix("quant:").map(str::to_owned);
    let floats = ["f32", "f16", "bf16"];
    let dtype = words.iter().map(|(_, ty)| ty).find(|ty| floats.contains(&ty.as_str()));
    scheme.or_else(|| dtype.cloned()).unwrap_or_else(|| "other".into())
}

fn matrix(page: &mut String, report: &Report) {
    let mut cells: BTreeMap<(&str, String), Counts> = BTreeMap::new();
    let mut columns = BTreeSet::new();
    for case in &report.cases {
        let column = column(case);
        columns.insert(column.clone());
        cells.entry((&case.op, column)).or_default().add(case.outcome);
    }
    let ops: BTreeSet<&str> = cells.keys().map(|(op, _)| *op).collect();
    page.push_str("<h2>Ops by dtype and scheme</h2><div class=scroll><table><tr><th>op</th>");
    columns.iter().for_each(|c| {
        let _ = write!(page, "<th>{}</th>", escape(c));
    });
    page.push_str("</tr>\n");
    for op in ops {
        let _ = write!(page, "<tr><td>{}</td>", escape(op));
        for column in &columns {
            let (class, text) = match cells.get(&(op, column.clone())) {
                None => ("none", String::new()),
                Some(c) if c.failed > 0 => ("failed", format!("{} of {}", c.failed, c.total())),
                Some(c) if c.passed > 0 => ("passed", c.passed.to_string()),
                Some(_) => ("none", "–".into()),
            };
            let _ = write!(page, "<td class={class}>{text}</td>");
        }
        page.push_str("</tr>\n");
    }
    page.push_str("</table></div><p><small>Green: cases that passed. Red: failed of all. –: not supported.</small></p>\n");
}

/// Bins of a plot, a factor of ten each: up to 1e-5 of the bound, …, up to the bound, beyond.
const BINS: usize = 7;

fn bin(of_bound: f64) -> usize {
    let edges = [1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0];
    edges.iter().position(|e| of_bound <= *e).unwrap_or(BINS - 1)
}

/// For each op how much of its bound the worst element of each output uses.
fn distributions(page: &mut String, report: &Report) {
    let mut ops: BTreeMap<&str, [usize; BINS]> = BTreeMap::new();
    for case in &report.cases {
        for comparison in &case.comparisons {
            ops.entry(&case.op).or_default()[bin(comparison.max_of_bound)] += 1;
        }
    }
    page.push_str(
        "<h2>How much of its bound the worst element of each output uses</h2>\
         <p><small>Bars from left to right: up to 10⁻⁵, 10⁻⁴, 10⁻³, 10⁻², 10⁻¹ of the bound, up to the bound; red: beyond.</small></p>\
         <div class=scroll><table><tr><th>op</th><th>outputs</th><th>distribution</th></tr>\n",
    );
    for (op, bins) in ops {
        let most = bins.iter().copied().max().unwrap_or(1).max(1);
        let bar = |(at, &count): (usize, &usize)| {
            let height = if count == 0 { 0 } else { (count * 34 / most).max(2) };
            let class = if at + 1 == BINS { " class=over" } else { "" };
            let (x, y) = (at * 22, 36 - height);
            format!(
                "<rect{class} x={x} y={y} width=18 height={height}><title>{count}</title></rect>"
            )
        };
        let bars: String = bins.iter().enumerate().map(bar).collect();
        let total: usize = bins.iter().sum();
        let _ = writeln!(
            page,
            "<tr><td>{}</td><td>{total}</td><td><svg width=154 height=38>{bars}</svg></td></tr>",
            escape(op)
        );
    }
    page.push_str("</table></div>\n");
}

fn failures(page: &mut String, report: &Report) {
    let failed: Vec<_> = report.cases.iter().filter(|c| c.outcome == Outcome::Failed).collect();
    if failed.is_empty() {
        return;
    }
    let _ = writeln!(page, "<h2>{} failures</h2>", failed.len());
    for case in failed {
        let _ = writeln!(
            page,
            "<details open><summary><b>{}</b> ({})</summary><pre>{}\n{}\n{}</pre></details>",
            escape(&case.name),
            escape(&case.why),
            escape(&case.descriptor),
            escape(case.message.as_deref().unwrap_or_default()),
            escape(&report.replay(case)),
        );
    }
}
