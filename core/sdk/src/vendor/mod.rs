//! For devices behind a vendor's driver: what the host names by number, its memory, waits with a bound, measurements.
//!
//! - [`Handles`]: streams, events and graphs
//! - [`Buffers`]: device memory and pinned host memory; [`Plane`]: one side of a copy
//! - [`wait`], [`report`]
//! - [`Watched`]: ranks of a vendor's communicator that fail together; [`pieces`]: how a reduction is cut

mod buffers;
mod handles;
mod pieces;
mod watch;

use std::time::{Duration, Instant};

use halyard_abi::{Code, Metric, MetricKey};

pub use buffers::{ALIGN, Buffers, Place, Plane};
pub use handles::Handles;
pub use pieces::{Piece, SCRATCH, pieces};
pub use watch::{Health, Link, Mark, Watched};

use crate::{Error, Result};

/// Asks until the answer is no longer `NOT_READY`, or the time is over; a timeout of `u64::MAX` ns waits by `forever` instead.
///
/// # Errors
/// `TIMEOUT`; what `forever` or `ask` gives.
pub fn wait(
    timeout_ns: u64,
    forever: impl Fn() -> Result<()>,
    ask: impl Fn() -> Result<()>,
) -> Result<()> {
    if timeout_ns == u64::MAX {
        return forever();
    }
    let begin = Instant::now();
    loop {
        match ask() {
            Err(error) if error.code == Code::NOT_READY => {}
            done => return done,
        }
        let waited = begin.elapsed();
        if waited >= Duration::from_nanos(timeout_ns) {
            return Err(Error::new(Code::TIMEOUT, format!("still running after {timeout_ns} ns")));
        }
        // Short work is met by spinning; what takes longer does not burn a core.
        if waited > Duration::from_micros(200) {
            std::thread::sleep(Duration::from_micros(50));
        } else {
            std::hint::spin_loop();
        }
    }
}

/// Writes as many measurements as there is room for; how many there are.
pub fn report(out: &mut [Metric], values: impl IntoIterator<Item = (MetricKey, u64)>) -> u32 {
    let mut count = 0;
    for (key, value) in values {
        #[expect(clippy::cast_precision_loss, reason = "a measurement for people")]
        let value = value as f64;
        if let Some(metric) = out.get_mut(count) {
            *metric = Metric { key, index: 0, value };
        }
        count += 1;
    }
    count as u32
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn a_wait_ends_with_an_answer_or_its_time() {
        let asked = Cell::new(0);
        let ask = || {
            asked.set(asked.get() + 1);
            if asked.get() < 3 { Err(Error::new(Code::NOT_READY, "pending")) } else { Ok(()) }
        };
        assert_eq!(wait(u64::MAX - 1, || unreachable!("it has a bound"), ask), Ok(()));
        assert_eq!(asked.get(), 3);
        let pending = || Err(Error::new(Code::NOT_READY, "pending"));
        assert_eq!(wait(1, || Ok(()), pending).unwrap_err().code, Code::TIMEOUT);
        assert_eq!(wait(u64::MAX, || Ok(()), pending), Ok(()));
        let broken = || Err(Error::invalid("broken"));
        assert_eq!(wait(1, || Ok(()), broken).unwrap_err().message, "broken");
    }

    #[test]
    fn measurements_without_room_are_counted() {
        let none = Metric { key: MetricKey::MEM_FREE, index: 7, value: 0.0 };
        let mut out = [none];
        let values = [(MetricKey::MEM_USED, 5), (MetricKey::MEM_FREE, 6)];
        assert_eq!(report(&mut out, values), 2);
        assert_eq!((out[0].key, out[0].index), (MetricKey::MEM_USED, 0));
    }
}
