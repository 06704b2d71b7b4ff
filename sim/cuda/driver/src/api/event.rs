//! Events.

use super::Out;
use super::context::current;
use crate::code::{Code, Outcome};
use crate::driver::Driver;
use crate::event::{Event, Recorded};
use std::ffi::c_uint;
use std::sync::Arc;
use std::time::Instant;

/// `CU_EVENT_DISABLE_TIMING`
const UNTIMED: c_uint = 2;

/// When both events were reached.
fn times(driver: &Driver, start: usize, end: usize) -> Outcome<(Instant, Instant)> {
    let time = |event: usize| -> Outcome<Instant> {
        let event = driver.events.get(event)?;
        match event.recorded() {
            Recorded::At(ticket, _) if event.timed => {
                ticket.time().ok_or_else(|| Code::NotReady.into())
            }
            _ => Err(Code::InvalidHandle.into()),
        }
    };
    Ok((time(start)?, time(end)?))
}

fn elapsed(milliseconds: &Out<f32>, start: usize, end: usize) -> Outcome {
    let (start, end) = times(Driver::get()?, start, end)?;
    let apart =
        if end >= start { (end - start).as_secs_f32() } else { -(start - end).as_secs_f32() };
    milliseconds.set(apart * 1e3)
}

entries! {
    fn cuEventCreate(event: Out<usize>, flags: c_uint) {
        let (driver, _) = current()?;
        event.set(driver.events.add(Arc::new(Event::new(flags & UNTIMED == 0))))
    }

    fn cuEventDestroy_v2(event: usize) {
        Driver::get()?.events.remove(event).map(|_| ())
    }

    fn cuEventRecord(event: usize, stream: usize) {
        let (driver, device) = current()?;
        let event = driver.events.get(event)?;
        super::stream::find(driver, device, stream)?.record(&event)
    }

    fn cuEventQuery(event: usize) {
        let driver = Driver::get()?;
        match driver.events.get(event)?.recorded() {
            Recorded::Never => Ok(()),
            Recorded::In(_) => Err(Code::CaptureUnsupported.into()),
            Recorded::At(ticket, _) if ticket.time().is_none() => Err(Code::NotReady.into()),
            Recorded::At(_, past) => {
                driver.timeline().host.union(&past);
                current()?.1.healthy()
            }
        }
    }

    fn cuEventSynchronize(event: usize) {
        let driver = Driver::get()?;
        match driver.events.get(event)?.recorded() {
            Recorded::Never => Ok(()),
            Recorded::In(_) => Err(Code::CaptureUnsupported.into()),
            Recorded::At(ticket, past) => {
                ticket.wait();
                driver.timeline().host.union(&past);
                current()?.1.healthy()
            }
        }
    }

    fn cuEventElapsedTime(milliseconds: Out<f32>, start: usize, end: usize) {
        elapsed(&milliseconds, start, end)
    }

    fn cuEventElapsedTime_v2(milliseconds: Out<f32>, start: usize, end: usize) {
        elapsed(&milliseconds, start, end)
    }
}
