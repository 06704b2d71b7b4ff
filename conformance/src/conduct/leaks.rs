//! Everything is made and dropped many times: memory, of the device by its own account and of the process, must not grow.

use std::{fs, rc::Rc};

use halyard_abi::MetricKey;
use halyard_core::{Device, Event};

use super::Subject;
use crate::execute::{Prepared, Scratch, Trouble};

/// Times in a run. Each doubles the number so far, so that a table which only grows grows in each; the first one may fill what is left
/// of freed memory. What other threads of the process allocate may look like a leak in some runs, not in every one.
const RUNS: [usize; 6] = [1250, 1250, 2500, 5000, 10_000, 20_000];
/// Bytes a time that are no leak: entries of tables of streams and of events whose handles are never given twice, as such a table doubles.
const NO_LEAK: u64 = 56;
/// What is made and dropped.
type Cycle<'c> = &'c mut dyn FnMut() -> Result<(), Trouble>;

pub(super) fn check(subject: Subject<'_>) -> Result<(), Trouble> {
    let Subject { device, case, weights, inputs, .. } = subject;
    let op = &case.op;
    let _ballast = ballast();
    steady(device, "preparing a kernel", &mut || {
        let _dropped = device.prepare(op.clone())?;
        Ok(())
    })?;
    steady(device, "asking for support", &mut || {
        let _dropped = device.support(op);
        Ok(())
    })?;
    steady(device, "allocating memory", &mut || {
        let _dropped = device.alloc(100)?;
        Ok(())
    })?;
    steady(device, "a stream with an event", &mut || {
        let stream = device.stream(0)?;
        let event: Event = device.event(true)?;
        stream.record(&event)?;
        stream.wait(&event)?;
        Ok(event.sync()?)
    })?;
    let stream = Rc::new(device.stream(0)?);
    let prepared = Prepared::on(device, Rc::clone(&stream), op, weights)?;
    let flight = prepared.board(inputs, case.layout)?;
    let scratch = Scratch::new(device, &stream, flight.scratch_bytes(), u32::MAX)?;
    steady(device, "launching a kernel", &mut || {
        flight.go(scratch.as_ref())?;
        Ok(stream.sync()?)
    })?;
    if let Some(weight) = weights.first() {
        steady(device, "packing a weight", &mut || {
            let mut place = |bytes, align| Ok((device.alloc_aligned(bytes, align)?, 0));
            let _dropped = weight.load(device, &stream, &mut place)?;
            Ok(())
        })?;
    }
    Ok(())
}

/// Runs a cycle again and again, until a run needs no memory; if every one does, it is lost.
fn steady(device: &Device, what: &str, cycle: Cycle<'_>) -> Result<(), Trouble> {
    let mut lost = (0, 0);
    for (run, times) in RUNS.into_iter().enumerate() {
        let before = (used(device), resident());
        for _ in 0..times {
            cycle()?;
        }
        let grown = |after: u64, before: u64| after.saturating_sub(before) / times as u64;
        lost = (grown(used(device), before.0), grown(resident(), before.1));
        if run > 0 && lost.0 == 0 && lost.1 < NO_LEAK {
            return Ok(());
        }
    }
    let (device, process) = lost;
    Err(Trouble::Violation(format!(
        "{what} loses memory: {device} bytes of the device and {process} of the process each time"
    )))
}

/// Blocks that fill what the process had freed and not given back: memory that is lost would go there first, unseen. It is full when
/// the process grows by what is allocated, time after time.
fn ballast() -> Vec<Vec<Vec<u8>>> {
    const SIZES: [usize; 4] = [24, 56, 120, 248];
    const BATCH: usize = 4096;
    // Batch by batch: a list that grows would leave holes of its own.
    let (mut batches, mut growing) = (Vec::with_capacity(256), 0);
    while growing < 6 && batches.len() < 256 {
        let before = resident();
        batches.push((0..BATCH).map(|i| vec![1; SIZES[i % SIZES.len()]]).collect());
        let batch = (SIZES.iter().sum::<usize>() * BATCH / SIZES.len()) as u64;
        growing = if resident() >= before + batch * 3 / 4 { growing + 1 } else { 0 };
        if resident() == 0 {
            break;
        }
    }
    batches
}

/// Bytes in use by the device's own account; 0 if it gives none.
fn used(device: &Device) -> u64 {
    let telemetry = device.telemetry();
    let metric = telemetry.iter().find(|m| m.key == MetricKey::MEM_USED_BY_US);
    metric.map_or(0, |m| (m.value as i64).max(0).cast_unsigned())
}

/// Bytes of memory that this process has; 0 where the system does not tell.
fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    let kib = line.and_then(|l| l.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.map_or(0, |kib| kib * 1024)
}
