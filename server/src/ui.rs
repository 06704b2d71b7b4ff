//! The terminal: the one place that writes to standard output.

use std::{
    fmt,
    io::{self, IsTerminal, Write},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Writes a line to standard output.
///
/// # Errors
/// As the stream's; a closed pipe among them, on which the caller ends.
pub fn line(text: fmt::Arguments<'_>) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_fmt(text)?;
    out.write_all(b"\n")?;
    out.flush()
}

/// Writes a value as JSON, indented, to standard output.
///
/// # Errors
/// As the stream's.
pub fn json<T: serde::Serialize>(value: &T) -> io::Result<()> {
    let text = serde_json::to_string_pretty(value)?;
    line(format_args!("{text}"))
}

/// Writes a line to standard error, for what must be said whatever the log's level.
pub fn complain(text: fmt::Arguments<'_>) {
    // Nothing can be done about a closed standard error, and nobody could be told.
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// A bar on standard error that counts to `total`; hidden where standard error is no terminal.
#[must_use]
pub fn progress(label: &'static str, total: u64, unit: Unit) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(total), draw_target());
    let template = match unit {
        Unit::Bytes => "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec}",
        Unit::Items => "{msg} [{bar:30}] {pos}/{len} {per_sec} {eta}",
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_message(label);
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// What a bar counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Bytes.
    Bytes,
    /// Prompts, cases, requests.
    Items,
}

fn draw_target() -> ProgressDrawTarget {
    if io::stderr().is_terminal() {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    }
}

/// Rows under headings, as wide as their widest cell; the last column is not padded.
#[must_use]
pub fn table(headings: &[&str], rows: &[Vec<String>]) -> String {
    let chars = |text: &str| text.chars().count();
    let mut widths: Vec<usize> = headings.iter().map(|heading| chars(heading)).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(chars(cell));
        }
    }
    let mut text = String::new();
    let headings: Vec<String> = headings.iter().map(|heading| (*heading).to_owned()).collect();
    for row in std::iter::once(&headings).chain(rows) {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(cell);
            line.extend(std::iter::repeat_n(' ', width + 2 - chars(cell)));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text.truncate(text.trim_end().len());
    text
}

/// `1.5 GiB`
#[must_use]
pub fn bytes(count: u64) -> String {
    indicatif::BinaryBytes(count).to_string()
}

#[cfg(test)]
mod tests {
    #[test]
    fn tables_align() {
        let rows = [vec!["cpu".to_owned(), "1".into()], vec!["cpu-ref".into(), "22".into()]];
        let text = super::table(&["ID", "DEVICES"], &rows);
        assert_eq!(text, "ID       DEVICES\ncpu      1\ncpu-ref  22");
    }
}
