//! What an NPU can do at best, as JSON: the bandwidth of its memory as a copy has it; CANN tells no figure of its own. `cargo xtask hw-check`
//! puts the backend's kernels and its decoding beside it.
//!
//! An argument is the bytes of the copy.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a report on the terminal")]

use std::{env, error::Error, process::ExitCode};

use halyard_backend_ascend::Ascend;
use halyard_sdk::{
    AllocReq, Backend, Buffer, CopyReq, Device, MemRef, Options, Stream, abi::types::mem,
};

type Fallible<T> = Result<T, Box<dyn Error>>;

/// Bytes of a copy: beyond any cache.
const COPY_BYTES: u64 = 1 << 30;
/// Measurements, of which the median counts.
const SAMPLES: usize = 7;
/// Copies of a measurement.
const COPIES: u32 = 8;
/// Events that keep the time.
const TIMED: u32 = 1;

struct Timed<'a, D: Device> {
    device: &'a D,
    stream: Stream,
}

impl<D: Device> Timed<'_, D> {
    fn memory(&self, bytes: u64) -> Fallible<(Buffer, MemRef)> {
        let request = AllocReq { bytes, align: 256, kind: mem::DEVICE, flags: 0 };
        let buffer = self.device.alloc(&request)?;
        let all = MemRef { base: buffer.base, offset: 0, kind: mem::DEVICE, device: 0 };
        self.device.fill(self.stream, &all, 0x3f80_3f80, bytes)?;
        Ok((buffer, all))
    }

    /// Nanoseconds of one of some copies.
    fn copies(&self, copy: &CopyReq) -> Fallible<f64> {
        let [start, end] = [self.device.event_create(TIMED)?, self.device.event_create(TIMED)?];
        self.device.event_record(start, self.stream)?;
        for _ in 0..COPIES {
            self.device.copy(self.stream, copy)?;
        }
        self.device.event_record(end, self.stream)?;
        self.device.stream_sync(self.stream, u64::MAX)?;
        let nanos = self.device.event_elapsed_ns(start, end)?;
        self.device.event_destroy(start)?;
        self.device.event_destroy(end)?;
        Ok(nanos as f64 / f64::from(COPIES))
    }

    /// Bytes read and written a second: the median of some measurements.
    fn bandwidth(&self, bytes: u64) -> Fallible<f64> {
        let ((from, src), (to, dst)) = (self.memory(bytes)?, self.memory(bytes)?);
        let copy =
            CopyReq { dst, src, row_bytes: bytes, rows: 1, dst_pitch: bytes, src_pitch: bytes };
        // The first loads what it needs.
        self.copies(&copy)?;
        let mut times = (0..SAMPLES).map(|_| self.copies(&copy)).collect::<Fallible<Vec<_>>>()?;
        times.sort_by(f64::total_cmp);
        self.device.free(from)?;
        self.device.free(to)?;
        Ok(2.0 * bytes as f64 / times[SAMPLES / 2].max(1.0) * 1e9)
    }
}

fn measure() -> Fallible<f64> {
    let bytes = env::args().nth(1).map_or(Ok(COPY_BYTES), |text| text.parse())?;
    let device = Ascend::open(0, Options::default())?;
    let stream = device.stream_create(0, 0)?;
    let measured = Timed { device: &device, stream }.bandwidth(bytes)?;
    device.stream_destroy(stream)?;
    Ok(measured)
}

fn main() -> ExitCode {
    match measure() {
        Ok(rate) => {
            println!("{{\"peak_bytes_per_s\": null, \"copy_bytes_per_s\": {rate}}}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
