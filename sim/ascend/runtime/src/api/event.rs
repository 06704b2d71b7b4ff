//! Events.

use super::Out;
use super::device::bound;
use super::stream::find;
use crate::capture::Capture;
use crate::code::{Code, Failure, Outcome};
use crate::event::{Event, KNOWN_FLAGS, Recorded, TIME_LINE};
use crate::runtime::{Runtime, here, runtime};
use crate::stream::Work;
use std::sync::Arc;
use std::time::Duration;

/// How long a graph waits for an event from outside.
const EXTERNAL_BOUND: Duration = Duration::from_secs(60);

/// The event that an entry was given.
fn event(argument: &str, handle: usize) -> Outcome<(&'static Runtime, Arc<Event>)> {
    let runtime = runtime()?;
    Ok((runtime, runtime.handles.get(argument, handle)?))
}

fn create(out: &Out<usize>, flags: u32) -> Outcome {
    let (runtime, _) = here()?;
    if flags & !KNOWN_FLAGS != 0 {
        return Err(Failure::argument("flag", format!("{flags:#x}; known are {KNOWN_FLAGS:#x}")));
    }
    if out.is_null() {
        return Err(Failure::null("event"));
    }
    out.set("event", runtime.handles.add(Arc::new(Event::new(flags))))
}

/// What a graph does where it waits for an event from outside.
pub(super) fn awaiting(event: Arc<Event>) -> Work {
    Arc::new(move |_| match event.await_set(EXTERNAL_BOUND) {
        true => Ok(()),
        false => {
            let text = format!("argument `event`: nobody recorded it within {EXTERNAL_BOUND:?}");
            Err(Failure::new(Code::EVENT_TIMEOUT, text))
        }
    })
}

/// Sets or resets an event that graphs wait for when they run.
fn setting(event: Arc<Event>, value: bool) -> Work {
    Arc::new(move |_| {
        event.set(value);
        Ok(())
    })
}

fn synchronize(handle: usize, timeout: i32) -> Outcome {
    let (runtime, event) = event("event", handle)?;
    Capture::forbid()?;
    match event.recorded() {
        Recorded::Never => Ok(()),
        Recorded::In(..) => Err(Failure::new(
            Code::EVENT_CAPTURED,
            "argument `event`: it was recorded in a capture",
        )),
        Recorded::At(ticket, past) => {
            if !ticket.wait_for(bound(timeout)?) {
                let text = format!("argument `event`: not reached within {timeout} ms");
                return Err(Failure::new(Code::EVENT_TIMEOUT, text));
            }
            runtime.timeline().host.union(&past);
            Ok(())
        }
    }
}

/// When the event was reached.
fn reached(argument: &str, handle: usize) -> Outcome<std::time::Instant> {
    let (_, event) = event(argument, handle)?;
    if event.flags & TIME_LINE == 0 {
        return Err(Failure::argument(argument, "the event was made without ACL_EVENT_TIME_LINE"));
    }
    match event.recorded() {
        Recorded::At(ticket, _) => ticket.time().ok_or_else(|| {
            Failure::argument(argument, "the event is not reached yet: synchronise first")
        }),
        _ => Err(Failure::argument(argument, "the event was not recorded")),
    }
}

entries! { ENTRIES of Acl:
    fn aclrtCreateEvent(event: Out<usize>) {
        create(&event, TIME_LINE)
    }

    fn aclrtCreateEventWithFlag(event: Out<usize>, flag: u32) {
        create(&event, flag)
    }

    fn aclrtCreateEventExWithFlag(event: Out<usize>, flag: u32) {
        create(&event, flag)
    }

    fn aclrtDestroyEvent(event: usize) {
        runtime()?.handles.remove::<Event>("event", event).map(|_| ())
    }

    fn aclrtRecordEvent(handle: usize, stream: usize) {
        let (runtime, event) = event("event", handle)?;
        let (_, _, stream) = find(stream)?;
        if event.is_external() {
            stream.enqueue(runtime, "aclrtRecordEvent", setting(Arc::clone(&event), true))?;
            if stream.capturing().is_some() {
                return Ok(());
            }
        }
        stream.record(&event)
    }

    fn aclrtResetEvent(handle: usize, stream: usize) {
        let (runtime, event) = event("event", handle)?;
        let (_, _, stream) = find(stream)?;
        if event.is_external() {
            return stream.enqueue(runtime, "aclrtResetEvent", setting(event, false));
        }
        match stream.capturing() {
            None => event.record(Recorded::Never),
            Some(_) => {
                let text = "argument `event`: only an EXTERNAL event can be reset in a capture";
                return Err(Failure::new(Code::EVENT_CAPTURED, text));
            }
        }
        Ok(())
    }

    /* 0 not ready, 1 complete. */
    fn aclrtQueryEventStatus(handle: usize, status: Out<u32>) {
        let (runtime, event) = event("event", handle)?;
        Capture::forbid()?;
        let complete = match event.recorded() {
            Recorded::Never => true,
            Recorded::In(..) => return Err(Failure::new(Code::EVENT_CAPTURED, "argument `event`: it was recorded in a capture")),
            Recorded::At(ticket, past) => {
                let complete = ticket.time().is_some();
                if complete {
                    runtime.timeline().host.union(&past);
                }
                complete
            }
        };
        status.set("status", u32::from(complete))
    }

    fn aclrtSynchronizeEvent(handle: usize) {
        synchronize(handle, -1)
    }

    fn aclrtSynchronizeEventWithTimeout(handle: usize, timeout: i32) {
        synchronize(handle, timeout)
    }

    fn aclrtEventElapsedTime(ms: Out<f32>, start: usize, end: usize) {
        let (start, end) = (reached("startEvent", start)?, reached("endEvent", end)?);
        let (later, earlier) = (end.max(start), end.min(start));
        let between = later.duration_since(earlier).as_secs_f32() * 1e3;
        ms.set("ms", if end < start { -between } else { between })
    }
}
