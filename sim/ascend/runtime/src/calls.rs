//! A record of calls, for tests that count them: with `HALYARD_SIM_ASCEND_CALLS`, a file gets a line for each, its name and its result.

use std::env;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::sync::OnceLock;

const VARIABLE: &str = "HALYARD_SIM_ASCEND_CALLS";

fn record() -> Option<&'static File> {
    static RECORD: OnceLock<Option<File>> = OnceLock::new();
    let record = RECORD.get_or_init(|| {
        let path = env::var_os(VARIABLE)?;
        OpenOptions::new().create(true).append(true).open(path).ok()
    });
    record.as_ref()
}

/// A call that is over.
pub(crate) fn note(name: &str, number: i32) {
    if let Some(mut record) = record() {
        // One write a line, so that lines of threads and processes stay whole.
        let _ = record.write_all(format!("{name} {number}\n").as_bytes());
    }
}
