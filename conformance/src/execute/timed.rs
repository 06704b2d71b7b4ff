//! Launches for their time or their work alone: plain memory, one after the other.

use std::time::{Duration, Instant};

use halyard_core::Workspace;

use super::{Layout, Prepared, Trouble};
use crate::generate::Inputs;

/// Measurements, of which the median counts; the fewest, where each takes long.
const SAMPLES: std::ops::RangeInclusive<usize> = 3..=7;
/// No more than the fewest are made once this time is over.
const LONG: Duration = Duration::from_secs(1);
/// What a measurement should last at least: short launches are measured several at a time.
const AT_LEAST: Duration = Duration::from_millis(2);

impl Prepared<'_> {
    /// Times a launch: the sorted times of several measurements, each from the first of some launches in a row to the end of the last.
    pub(crate) fn time(&self, inputs: &Inputs) -> Result<Vec<Duration>, Trouble> {
        let flight = self.board(inputs, Layout::Packed)?;
        let launch = &flight.launch;
        let host: Vec<&[i32]> = inputs.host.iter().map(Vec::as_slice).collect();
        let workspace = Workspace::new(self.device, launch.workspace_bytes())?;
        let several = |count: u32| -> Result<Duration, Trouble> {
            let start = Instant::now();
            for _ in 0..count {
                launch.run(&self.stream, &workspace, &host)?;
            }
            self.stream.sync()?;
            Ok(start.elapsed() / count)
        };
        // The first launch wakes threads and fills caches.
        several(1)?;
        let once = several(1)?.as_nanos().max(1);
        let count = u32::try_from(AT_LEAST.as_nanos() / once + 1).unwrap_or(u32::MAX);
        let (begun, mut times) = (Instant::now(), Vec::new());
        while times.len() < *SAMPLES.start()
            || (times.len() < *SAMPLES.end() && begun.elapsed() < LONG)
        {
            times.push(several(count)?);
        }
        times.sort_unstable();
        Ok(times)
    }

    /// Launches once; `begin` is told when everything else is done.
    pub(crate) fn once(&self, inputs: &Inputs, begin: &mut dyn FnMut()) -> Result<(), Trouble> {
        let flight = self.board(inputs, Layout::Packed)?;
        let host: Vec<&[i32]> = inputs.host.iter().map(Vec::as_slice).collect();
        let workspace = Workspace::new(self.device, flight.launch.workspace_bytes())?;
        self.stream.sync()?;
        begin();
        flight.launch.run(&self.stream, &workspace, &host)?;
        Ok(self.stream.sync()?)
    }
}
