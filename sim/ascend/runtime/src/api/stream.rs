//! Streams.

use super::Out;
use super::device::bound;
use crate::capture::{Capture, Model};
use crate::code::{Code, Failure, Outcome};
use crate::event::Event;
use crate::runtime::{Device, Runtime, here, runtime};
use crate::stream::Stream;
use std::sync::Arc;

/// The stream that an entry was given, of this thread's device.
pub(crate) fn find(handle: usize) -> Outcome<(&'static Runtime, &'static Device, Arc<Stream>)> {
    let (runtime, device) = here()?;
    let stream = runtime.stream(device, handle)?;
    Ok((runtime, device, stream))
}

fn create(stream: &Out<usize>) -> Outcome {
    let (runtime, device) = here()?;
    if stream.is_null() {
        return Err(Failure::null("stream"));
    }
    stream.set("stream", runtime.handles.add(Stream::new(runtime, device, false)?))
}

/// Takes a stream away, if no graph needs it.
fn remove(handle: usize) -> Outcome<(&'static Runtime, Arc<Stream>)> {
    let runtime = runtime()?;
    let stream: Arc<Stream> = runtime.handles.get("stream", handle)?;
    if stream.capturing().is_some() {
        let text = "argument `stream`: it is capturing";
        return Err(Failure::new(Code::STREAM_CAPTURED, text));
    }
    let models = runtime.handles.all::<Model>();
    if let Some((model, _)) = models.iter().find(|(_, model)| model.streams.contains(&handle)) {
        let text = format!(
            "argument `stream`: model {model:#x}, which was captured on it, is not destroyed"
        );
        return Err(Failure::new(Code::MODEL_CAPTURED, text));
    }
    runtime.handles.remove::<Stream>("stream", handle)?;
    Ok((runtime, stream))
}

/// Waiting for or asking after a stream that is capturing, or while another one is.
pub(super) fn forbid_capture(stream: &Stream) -> Outcome {
    let Some(capture) = stream.capturing() else { return Capture::forbid() };
    let text = "argument `stream`: it is capturing";
    capture.invalidate(text);
    Err(Failure::new(Code::STREAM_CAPTURED, text))
}

fn synchronize(handle: usize, timeout: i32) -> Outcome {
    let (runtime, device, stream) = find(handle)?;
    forbid_capture(&stream)?;
    stream.synchronize(runtime, bound(timeout)?, Code::STREAM_TIMEOUT)?;
    device.healthy()
}

entries! { ENTRIES of Acl:
    fn aclrtCreateStream(stream: Out<usize>) {
        create(&stream)
    }

    fn aclrtCreateStreamWithConfig(stream: Out<usize>, priority: u32, flag: u32) {
        if priority > 7 {
            return Err(Failure::argument("priority", format!("{priority} (0 to 7)")));
        }
        if flag & !3 != 0 {
            return Err(Failure::argument("flag", format!("{flag:#x} (FAST_LAUNCH 1, FAST_SYNC 2)")));
        }
        create(&stream)
    }

    fn aclrtDestroyStream(stream: usize) {
        let (runtime, stream) = remove(stream)?;
        // How its work ended was told to whoever synchronised.
        _ = stream.synchronize(runtime, None, Code::STREAM_TIMEOUT);
        Ok(())
    }

    fn aclrtDestroyStreamForce(stream: usize) {
        remove(stream)?.1.abort();
        Ok(())
    }

    fn aclrtStreamGetId(stream: usize, id: Out<i32>) {
        id.set("streamId", find(stream)?.2.id)
    }

    fn aclrtSynchronizeStream(stream: usize) {
        synchronize(stream, -1)
    }

    fn aclrtSynchronizeStreamWithTimeout(stream: usize, timeout: i32) {
        synchronize(stream, timeout)
    }

    /* 0 complete, 1 not ready. */
    fn aclrtStreamQuery(stream: usize, status: Out<u32>) {
        let (runtime, device, stream) = find(stream)?;
        forbid_capture(&stream)?;
        status.set("status", u32::from(!stream.is_idle(runtime)))?;
        device.healthy()
    }

    fn aclrtStreamWaitEvent(stream: usize, event: usize) {
        let (runtime, _, found) = find(stream)?;
        let event: Arc<Event> = runtime.handles.get("event", event)?;
        if event.is_external() && found.capturing().is_some() {
            return found.enqueue(runtime, "aclrtStreamWaitEvent", super::event::awaiting(event));
        }
        found.wait_for(stream, &event)
    }

    fn aclrtStreamAbort(stream: usize) {
        find(stream)?.2.abort();
        Ok(())
    }

    fn aclrtSetStreamFailureMode(stream: usize, mode: u64) {
        if mode > 1 {
            return Err(Failure::argument("mode", format!("{mode} (0 continue, 1 stop)")));
        }
        find(stream)?.2.set_stops(mode == 1);
        Ok(())
    }
}
