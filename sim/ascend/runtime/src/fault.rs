//! Failures on request, for tests of those who handle them.
//!
//! `HALYARD_SIM_ASCEND_FAULT` (or `halyard_sim_ascend_fault`) is a list of `WHERE:CODE@N`, separated by commas. The N-th time (from 1;
//! with `@N+` every time from then on) that WHERE comes by, it fails with CODE:
//!
//! - the name of a function, such as `aclrtMalloc:207018@3`: that call returns CODE and does nothing
//! - `stream:NAME`, such as `stream:aclnnMm:507015@1`: the operation that NAME enqueued fails on its stream, `stream:*` any
//! - `device:NAME`: likewise, and the device is lost until it is reset: every later call fails with CODE
//! - `hccl:NAME`, such as `hccl:HcclAllReduce:19@1`: the exchange fails with an HcclResult, as does the communicator from then on

use crate::code::{Code, Failure, Outcome};
use crate::runtime::Device;
use std::env;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

const VARIABLE: &str = "HALYARD_SIM_ASCEND_FAULT";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Call,
    Stream,
    Device,
    Hccl,
}

#[derive(Debug)]
struct Fault {
    place: Place,
    name: String,
    code: i32,
    at: u64,
    again: bool,
    seen: u64,
}

impl Fault {
    fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("'{text}': WHERE:CODE@N was expected, such as aclrtMalloc:207018@3");
        let (place, code) = text.rsplit_once(':').ok_or_else(wrong)?;
        let (code, at) = code.split_once('@').ok_or_else(wrong)?;
        let (at, again) = at.strip_suffix('+').map_or((at, false), |at| (at, true));
        let (place, name) = match place.split_once(':') {
            None => (Place::Call, place),
            Some(("stream", name)) => (Place::Stream, name),
            Some(("device", name)) => (Place::Device, name),
            Some(("hccl", name)) => (Place::Hccl, name),
            Some(_) => return Err(wrong()),
        };
        let (code, at) = (code.parse().map_err(|_| wrong())?, at.parse().map_err(|_| wrong())?);
        Ok(Self { place, name: name.to_owned(), code, at, again, seen: 0 })
    }

    /// Counts that `name` came by, and whether it is to fail.
    fn strikes(&mut self, place: Place, name: &str) -> bool {
        if self.place != place || self.name != "*" && self.name != name {
            return false;
        }
        self.seen += 1;
        self.seen == self.at || self.again && self.seen > self.at
    }
}

fn faults() -> MutexGuard<'static, Vec<Fault>> {
    static FAULTS: OnceLock<Mutex<Vec<Fault>>> = OnceLock::new();
    let faults = FAULTS.get_or_init(|| {
        let text = env::var(VARIABLE).unwrap_or_default();
        Mutex::new(parse(&text).unwrap_or_else(|why| {
            crate::code::write_line(&format!("{VARIABLE}: {why}; it is left out"));
            Vec::new()
        }))
    });
    faults.lock().unwrap_or_else(PoisonError::into_inner)
}

fn parse(text: &str) -> Result<Vec<Fault>, String> {
    text.split(',').map(str::trim).filter(|one| !one.is_empty()).map(Fault::parse).collect()
}

/// Plants these instead of those that were planted before.
pub(crate) fn plant(text: &str) -> Outcome {
    *faults() = parse(text).map_err(|why| Failure::argument("faults", why))?;
    Ok(())
}

fn strike(place: Place, name: &str) -> Option<Failure> {
    let mut faults = faults();
    let code = faults.iter_mut().find_map(|fault| fault.strikes(place, name).then_some(fault.code));
    code.map(|code| Failure::new(Code(code), format!("planted by {VARIABLE}")))
}

/// Whether this call of a function is to fail.
pub(crate) fn on_call(name: &str) -> Outcome {
    strike(Place::Call, name).map_or(Ok(()), Err)
}

/// Whether this operation is to fail on its stream.
pub(crate) fn on_stream(device: &Device, name: &str) -> Outcome {
    if let Some(failure) = strike(Place::Device, name) {
        device.lose(failure.clone().within("the device is lost"));
        return Err(failure);
    }
    strike(Place::Stream, name).map_or(Ok(()), Err)
}

/// Whether this exchange is to fail.
pub(crate) fn on_exchange(name: &str) -> Outcome {
    strike(Place::Hccl, name).map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_strike_when_they_are_meant_to() {
        let mut planted = parse("aclrtMalloc:207018@2, stream:*:507015@1+").unwrap();
        let mut strikes = |place, name| planted.iter_mut().any(|fault| fault.strikes(place, name));
        assert!(!strikes(Place::Call, "aclrtMalloc"));
        assert!(!strikes(Place::Call, "aclrtFree"));
        assert!(strikes(Place::Call, "aclrtMalloc"));
        assert!(!strikes(Place::Call, "aclrtMalloc"));
        assert!(strikes(Place::Stream, "aclnnMm") && strikes(Place::Stream, "aclnnAdd"));
    }

    #[test]
    fn faults_that_say_nothing_are_refused() {
        for text in ["aclrtMalloc", "aclrtMalloc:1", "aclrtMalloc:x@1", "moon:a:1@1"] {
            assert!(parse(text).unwrap_err().contains("WHERE:CODE@N"), "{text}");
        }
    }
}
