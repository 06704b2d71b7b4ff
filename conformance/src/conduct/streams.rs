//! Streams and events: work waits for what it is told to wait for, and so does the host.

use std::{
    rc::Rc,
    thread::sleep,
    time::{Duration, Instant},
};

use halyard_core::{
    Device, Event, Launch, OpBuf, Stream, Tensor, TensorSpec, Workspace,
    attrs::Copy,
    ops::{Access, OpSchema},
};

use super::{Subject, judged};
use crate::{
    array::{Array, is_float},
    execute::{Outputs, Prepared, Scratch, Trouble},
};

/// Launches that keep a stream busy before the one that counts.
const BUSY: usize = 8;

/// A second stream waits for the first one's event and copies the result; then the host waits for an event, and a third stream copies it.
pub(super) fn check(subject: Subject<'_>) -> Result<(), Trouble> {
    let Subject { device, case, weights, inputs, .. } = subject;
    let slots = OpSchema::of(case.op.kind()).map_or(&[][..], |s| s.slots);
    let output = slots
        .iter()
        .position(|s| {
            s.access != Access::In && s.layout != halyard_abi::ops::schema::Layout::Opaque
        })
        .ok_or_else(|| Trouble::Case("it has no output to copy".into()))?;
    for host_waits in [false, true] {
        let stream = Rc::new(device.stream(0)?);
        let prepared = Prepared::on(device, Rc::clone(&stream), &case.op, weights)?;
        let busy = prepared.board(inputs, case.layout)?;
        let flight = prepared.board(inputs, case.layout)?;
        let result = flight.tensor(output).ok_or_else(|| Trouble::Case("no output".into()))?;
        let other = device.stream(0)?;
        let copy = Copied::new(device, &other, result)?;
        let scratch = Scratch::new(device, &stream, flight.scratch_bytes(), u32::MAX)?;
        stream.sync()?;
        other.sync()?;

        let event = device.event(false)?;
        for _ in 0..BUSY {
            busy.go(scratch.as_ref())?;
        }
        flight.go(scratch.as_ref())?;
        stream.record(&event)?;
        if host_waits {
            event.sync()?;
        } else {
            other.wait(&event)?;
        }
        let copied = copy.run(&other)?;
        stream.sync()?;
        let idle = stream.is_idle()?;
        if !idle {
            return Err(Trouble::Violation("a stream that was waited for is not idle".into()));
        }
        copy.ordered(&other)?;
        busy.outputs()?;
        let mut got: Outputs = flight.outputs()?;
        let when = if host_waits {
            "read by a stream after the host waited for the event"
        } else {
            "read by a stream that waited for the event"
        };
        got.slots[output] = Some(copied);
        judged(&case.op, inputs, (&got, subject.reference), when)?;
    }
    time(device)?;
    fills(device)
}

/// A copy of a tensor, made by a kernel of its own.
struct Copied {
    launch: Launch,
    workspace: Workspace,
    to: Tensor,
}

impl Copied {
    fn new(device: &Device, stream: &Stream, from: &Tensor) -> Result<Self, Trouble> {
        if !is_float(from.dtype()) {
            return Err(Trouble::Case(format!("a copy of {}", from.dtype())));
        }
        let dims: Vec<i64> = from.dims().iter().map(|&d| d as i64).collect();
        let spec = TensorSpec::new(from.dtype(), &dims);
        let kernel = device.prepare(OpBuf::new(&Copy {}, [spec, spec], []))?;
        let to = device.tensor(from.dtype(), &from.dims())?;
        to.buffer().fill(stream, 0, to.buffer().bytes() / 4 * 4, u32::MAX)?;
        let launch = Launch::new(&kernel, &[Some(from), Some(&to)], &[])?;
        let workspace = Workspace::new(device, launch.workspace_bytes())?;
        Ok(Self { launch, workspace, to })
    }

    /// A fill waits for the launch before it, and a launch for the fill.
    fn ordered(&self, stream: &Stream) -> Result<(), Trouble> {
        const WORD: u32 = 0x0bad_f00d;
        self.launch.run(stream, &self.workspace, &[])?;
        self.to.buffer().fill(stream, 0, 4, WORD)?;
        let mut word = [0u32];
        self.to.buffer().read(stream, 0, &mut word)?;
        if word == [WORD] {
            return Ok(());
        }
        Err(Trouble::Violation("a fill did not wait for the launch before it".into()))
    }

    /// Enqueues it, and waits for this stream alone.
    fn run(&self, stream: &Stream) -> Result<Array, Trouble> {
        self.launch.run(stream, &self.workspace, &[])?;
        let mut bytes = vec![0u8; self.to.dtype().bytes(elements(&self.to)).unwrap_or(0) as usize];
        self.to.buffer().read(stream, 0, &mut bytes)?;
        Ok(Array::from_bytes(self.to.dtype(), &self.to.dims(), bytes))
    }
}

fn elements(tensor: &Tensor) -> u64 {
    tensor.dims().iter().map(|&d| d as u64).product()
}

/// The time between two events is no less than the pause between them, and no more than what the host saw.
fn time(device: &Device) -> Result<(), Trouble> {
    const PAUSE: Duration = Duration::from_millis(3);
    let stream = device.stream(0)?;
    let events: [Event; 2] = [device.event(true)?, device.event(true)?];
    let start = Instant::now();
    stream.record(&events[0])?;
    stream.sync()?;
    sleep(PAUSE);
    stream.record(&events[1])?;
    events[1].sync()?;
    let (seen, told) = (start.elapsed(), events[1].since(&events[0])?);
    // Clocks of devices differ from the host's by parts in ten thousand.
    let slack = Duration::from_micros(100);
    if told + slack < PAUSE || told > seen + slack {
        return Err(Trouble::Violation(format!(
            "{told:?} between two events, with a pause of {PAUSE:?} in {seen:?}"
        )));
    }
    Ok(())
}

/// Fills and copies reach what they name, and no more; on one stream they come one after the other.
fn fills(device: &Device) -> Result<(), Trouble> {
    const WORDS: usize = 301;
    let stream = device.stream(0)?;
    let buffer = device.alloc(4 * WORDS as u64)?;
    let mut want = vec![0x0102_0304u32; WORDS];
    buffer.fill(&stream, 0, 4 * WORDS as u64, want[0])?;
    for (start, words, pattern) in [(7, 130, 0xdead_beef), (64, 64, 7), (300, 1, 9), (20, 0, 5)] {
        buffer.fill(&stream, 4 * start as u64, 4 * words as u64, pattern)?;
        want[start..start + words].fill(pattern);
    }
    buffer.write(&stream, 4 * 33, &[1u32, 2, 3])?;
    want[33..36].copy_from_slice(&[1, 2, 3]);
    buffer.write(&stream, 4 * 99 + 1, &[0x55u8, 0x66])?;
    want[99] = want[99] & 0xff00_00ff | 0x0066_5500;
    let mut got = vec![0u32; WORDS];
    buffer.read(&stream, 0, &mut got)?;
    match got.iter().zip(&want).position(|(g, w)| g != w) {
        None => Ok(()),
        Some(at) => Err(Trouble::Violation(format!(
            "after fills and copies word {at} is {:#x}, expected {:#x}",
            got[at], want[at]
        ))),
    }
}
