//! Kernels of packages of PyPI, as NVRTC and numba-cuda compile them, against values computed here. `make.py` makes the PTX; `SOURCES.md` says
//! whose it is.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_possible_wrap,
    clippy::cast_precision_loss,
    clippy::float_cmp,
    reason = "tests: sizes are small, results exact where compared"
)]

mod cccl;
mod cupy;
#[path = "../machine/mod.rs"]
mod machine;
mod numba;

use machine::{Arg, Machine, words};
use std::fs;
use std::path::PathBuf;

/// Relative error of one rounding.
const F32: f64 = 1.0 / (1 << 24) as f64;
const F64: f64 = 1.0 / (1u64 << 53) as f64;

/// The arguments of a launch.
macro_rules! args {
    ($($value:expr),* $(,)?) => { vec![$($crate::machine::Arg::from($value)),*] };
}
pub(crate) use args;

/// Calls `test` with a device of each architecture that has loaded the file for it, or the one for the nearest before it; and with one that
/// compiles nothing.
fn on_each(name: &str, test: impl Fn(&Machine)) {
    let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/wheels/ptx"));
    let mut text = None;
    for (arch, device) in [("sm_80", "a100-80g"), ("sm_89", "l20"), ("sm_90", "h100")] {
        text = fs::read_to_string(folder.join(format!("{name}.{arch}.ptx"))).ok().or(text);
        let text = text.as_deref().unwrap_or_else(|| panic!("{name} for {arch} is not there"));
        let load = || Machine::load(text, device, 1);
        test(&load().unwrap_or_else(|error| panic!("{name} on {device}: {error}")));
        test(&load().unwrap().interpreting());
    }
}

impl Machine {
    /// Launches `entry` under each of three orders of blocks and warps, and calls `check` after each.
    fn run(
        &self,
        entry: &str,
        (grid, block): (usize, [usize; 2]),
        args: impl Fn() -> Vec<Arg>,
        check: impl Fn(),
    ) {
        for seed in 1..4 {
            self.seed.set(seed);
            let block = [block[0] as u32, block[1] as u32, 1];
            let shape = ([grid as u32, 1, 1], block, 0);
            self.launch(entry, shape, &args()).unwrap_or_else(|fault| panic!("{fault}"));
            check();
        }
    }

    fn f64s(&self, values: &[f64]) -> u64 {
        self.buffer(values, f64::to_le_bytes)
    }

    fn i64s(&self, values: &[i64]) -> u64 {
        self.buffer(values, i64::to_le_bytes)
    }

    fn i32s(&self, values: &[i32]) -> u64 {
        self.buffer(values, i32::to_le_bytes)
    }
}

/// Doubles from -1 to 1 that the seed decides.
fn doubles(count: usize, seed: u64) -> Vec<f64> {
    let high: Vec<_> = words(count, seed).collect();
    let low = words(count, seed + 1000);
    let bits = high.iter().zip(low).map(|(high, low)| u64::from(*high) << 32 | u64::from(low));
    bits.map(|bits| (bits >> 10) as f64 / (1u64 << 53) as f64 - 1.0).collect()
}

/// Each element is as near to its value as its bound says: `(value, bound)`. Infinities and NaN must be the same.
fn assert_within(got: impl IntoIterator<Item = f64>, want: &[(f64, f64)]) {
    let mut count = 0;
    for (at, (got, (want, bound))) in got.into_iter().zip(want).enumerate() {
        let same = got == *want || got.is_nan() && want.is_nan();
        let error = (got - want).abs();
        assert!(
            same || error <= *bound,
            "element {at}: {got:e} for {want:e}, {error:e} off, {bound:e} allowed"
        );
        count += 1;
    }
    assert_eq!(count, want.len());
}
