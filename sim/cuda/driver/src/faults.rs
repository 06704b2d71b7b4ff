//! Failures of hardware and of the driver on request, to show that users are told of them: `HALYARD_SIM_CUDA_FAULTS`, a list of
//!
//! - `CODE launch N of KERNEL on DEVICE`: the `N`th launch ends the context with this `CUresult`; `of KERNEL` (how kernels' names begin) and
//!   `on DEVICE` may be left out, and then any counts
//! - `CODE call N of ENTRY`: the `N`th call of an entry of the driver's does nothing and gives this `CUresult`
//! - `version N`: what `cuDriverGetVersion` says, 11040 for CUDA 11.4
//!
//! with semicolons between; `N+` is the `N`th time and all that follow. A list that is none of these fails `cuInit`.

use crate::code::{Code, Failure, Outcome};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

const FAULTS: &str = "HALYARD_SIM_CUDA_FAULTS";

#[derive(Debug, Default)]
struct Faults {
    launches: Vec<Fault>,
    calls: Vec<Fault>,
    version: Option<i32>,
}

/// What happens at the `nth` time.
#[derive(Debug)]
struct Fault {
    code: Code,
    nth: u64,
    /// Every later time, too.
    lasts: bool,
    /// How the kernel's name begins, or the entry's whole name.
    of: String,
    device: Option<u32>,
    /// Times so far.
    seen: AtomicU64,
}

/// The faults of the environment; the message if it has none that are known.
fn faults() -> &'static Result<Faults, String> {
    static KNOWN: OnceLock<Result<Faults, String>> = OnceLock::new();
    KNOWN.get_or_init(|| {
        let Ok(text) = std::env::var(FAULTS) else { return Ok(Faults::default()) };
        Faults::parse(&text).map_err(|what| format!("{FAULTS}={text}: {what}"))
    })
}

/// Refuses a list that cannot be understood.
pub(crate) fn check() -> Outcome {
    faults().as_ref().map(|_| ()).map_err(|what| Failure::new(Code::InvalidValue, what))
}

/// The driver's version, where it is to be another than the real one.
pub(crate) fn version() -> Option<i32> {
    faults().as_ref().ok()?.version
}

/// Fails if this launch is to.
pub(crate) fn launch(kernel: &str, device: u32) -> Outcome {
    faults().as_ref().map_or(Ok(()), |faults| faults.launch(kernel, device))
}

/// Fails if this call of an entry is to.
pub(crate) fn call(entry: &str) -> Outcome {
    faults().as_ref().map_or(Ok(()), |faults| faults.call(entry))
}

impl Faults {
    fn parse(text: &str) -> Result<Self, String> {
        let mut all = Self::default();
        for fault in text.split(';') {
            let words: Vec<_> = fault.split_whitespace().collect();
            match words[..] {
                ["version", number] => all.version = Some(parsed(number)?),
                [code, "launch", nth, ref rest @ ..] => {
                    let (of, device) = match rest {
                        [] => ("", None),
                        ["of", kernel] => (*kernel, None),
                        ["on", device] => ("", Some(parsed(device)?)),
                        ["of", kernel, "on", device] => (*kernel, Some(parsed(device)?)),
                        _ => return Err(format!("'{fault}', expected `of KERNEL on DEVICE`")),
                    };
                    all.launches.push(Fault::new(code, nth, of, device)?);
                }
                [code, "call", nth, "of", entry] => {
                    all.calls.push(Fault::new(code, nth, entry, None)?);
                }
                _ => {
                    return Err(format!(
                        "'{fault}', expected `CODE launch N`, `CODE call N of ENTRY` or `version N`"
                    ));
                }
            }
        }
        Ok(all)
    }

    fn launch(&self, kernel: &str, device: u32) -> Outcome {
        let meant = |fault: &&Fault| {
            kernel.starts_with(&fault.of) && fault.device.is_none_or(|wanted| wanted == device)
        };
        let due = |fault: &Fault| {
            let (nth, of) = (fault.nth, &fault.of);
            let place = format!("kernel {kernel} on device {device}");
            fault.due(|| format!("{place}: {FAULTS} asks for it at launch {nth} of '{of}'"))
        };
        all(self.launches.iter().filter(meant).map(due))
    }

    fn call(&self, entry: &str) -> Outcome {
        let meant = |fault: &&Fault| fault.of == entry;
        let due = |fault: &Fault| {
            fault.due(|| format!("{FAULTS} asks for it at call {} of {entry}", fault.nth))
        };
        all(self.calls.iter().filter(meant).map(due))
    }
}

impl Fault {
    fn new(code: &str, nth: &str, of: &str, device: Option<u32>) -> Result<Self, String> {
        let code = Code::numbered(parsed(code)?)
            .ok_or_else(|| format!("'{code}' is no CUresult of this driver"))?;
        let lasts = nth.ends_with('+');
        let nth = parsed(nth.strip_suffix('+').unwrap_or(nth))?;
        if nth == 0 {
            return Err("the 0th time; times are counted from 1".to_owned());
        }
        Ok(Self { code, nth, lasts, of: of.to_owned(), device, seen: AtomicU64::new(0) })
    }

    /// Counts, and fails when it is time.
    fn due(&self, text: impl FnOnce() -> String) -> Outcome {
        let time = self.seen.fetch_add(1, Relaxed) + 1;
        if time == self.nth || self.lasts && time > self.nth {
            return Err(Failure::new(self.code, text()));
        }
        Ok(())
    }
}

/// The first failure; the others count on.
fn all(outcomes: impl Iterator<Item = Outcome>) -> Outcome {
    outcomes.fold(Ok(()), Outcome::and)
}

fn parsed<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("'{text}' is no number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_comes_at_its_time_and_place() {
        let faults =
            Faults::parse("700 launch 2 of norm on 1; 2 call 3 of cuMemAllocAsync").unwrap();
        let mut codes = Vec::new();
        for (kernel, device) in [("norm_f32", 1), ("norm_f32", 0), ("rope", 1), ("norm_bf16", 1)] {
            codes.push(faults.launch(kernel, device).map_err(|failure| failure.code));
        }
        assert_eq!(codes, [Ok(()), Ok(()), Ok(()), Err(Code::IllegalAddress)]);
        assert_eq!(faults.launch("norm_f32", 1).map_err(|failure| failure.code), Ok(()));
        let calls = (0..4).map(|_| faults.call("cuMemAllocAsync").is_ok());
        assert_eq!(calls.collect::<Vec<_>>(), [true, true, false, true]);
        assert!(faults.call("cuInit").is_ok());
        let faults = Faults::parse("2 call 1 of cuInit; 999 call 3+ of cuInit").unwrap();
        let codes = (0..4).map(|_| faults.call("cuInit").map_err(|failure| failure.code));
        let expected = [Err(Code::OutOfMemory), Ok(()), Err(Code::Unknown), Err(Code::Unknown)];
        assert_eq!(codes.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn the_version_may_be_another() {
        assert_eq!(Faults::parse("version 11040").unwrap().version, Some(11_040));
        assert_eq!(Faults::parse("999 launch 1").unwrap().version, None);
    }

    #[test]
    fn what_is_no_fault_is_refused_with_what_is() {
        for (text, message) in [
            ("", "expected `CODE launch N`"),
            ("700", "expected `CODE launch N`"),
            ("700 launch 0", "counted from 1"),
            ("12345 launch 1", "no CUresult"),
            ("x launch 1", "'x' is no number"),
            ("700 launch 1 at norm", "expected `of KERNEL on DEVICE`"),
            ("700 call 1", "expected `CODE launch N`"),
        ] {
            let what = Faults::parse(text).unwrap_err();
            assert!(what.contains(message), "{text}: {what}");
        }
    }
}
