//! Graphs: capture, replay, update of task groups.

use super::stream::find;
use super::{In, Out};
use crate::capture::{Capture, Member, Mode, Model, TaskGroup, exchange_mode};
use crate::code::{Code, Failure, Outcome};
use crate::runtime::runtime;
use crate::stream::Stream;
use std::sync::Arc;

fn not_capturing() -> Failure {
    Failure::new(Code::STREAM_NOT_CAPTURED, "argument `stream`: it is not capturing")
}

/// What the stream has of a capture, which must be under way.
fn member<T>(stream: &Stream, change: impl FnOnce(&mut Member) -> Outcome<T>) -> Outcome<T> {
    stream.with_capture(|member| change(member.as_mut().ok_or_else(not_capturing)?))
}

fn run(model: usize, handle: usize) -> Outcome<(&'static crate::runtime::Runtime, Arc<Stream>)> {
    let (runtime, _, stream) = find(handle)?;
    let model: Arc<Model> = runtime.handles.get("modelRI", model)?;
    stream.replay(runtime, &model.nodes)?;
    Ok((runtime, stream))
}

entries! { ENTRIES of Acl:
    fn aclmdlRICaptureBegin(handle: usize, mode: u32) {
        let (_, _, stream) = find(handle)?;
        let mode = Mode::try_from(mode)?;
        stream.with_capture(|member| {
            if member.is_some() {
                let text = "argument `stream`: it is capturing already";
                return Err(Failure::new(Code::STREAM_CAPTURED, text));
            }
            *member = Some(Capture::begin(mode, handle));
            Ok(())
        })
    }

    /* NONE 0, ACTIVE 1, INVALIDATED 2. */
    fn aclmdlRICaptureGetInfo(stream: usize, status: Out<u32>, model: Out<usize>) {
        let (_, _, stream) = find(stream)?;
        let capture = stream.capturing();
        let now = capture.map_or(0, |capture| 1 + u32::from(capture.invalid().is_some()));
        status.set("status", now)?;
        if model.is_null() { Ok(()) } else { model.set("modelRI", 0) }
    }

    fn aclmdlRICaptureEnd(stream: usize, model: Out<usize>) {
        let (runtime, _, stream) = find(stream)?;
        if model.is_null() {
            return Err(Failure::null("modelRI"));
        }
        let member = stream.with_capture(|member| match member {
            None => Err(not_capturing()),
            Some(Member { origin: false, .. }) => {
                let text = "argument `stream`: it joined a capture that another stream began";
                Err(Failure::new(Code::CAPTURE_UNJOINED, text))
            }
            Some(_) => member.take().ok_or_else(not_capturing),
        })?;
        for (_, other) in runtime.handles.all::<Stream>() {
            other.with_capture(|its| {
                its.take_if(|its| Arc::ptr_eq(&its.capture, &member.capture));
                Ok(())
            })?;
        }
        model.set("modelRI", runtime.handles.add(Arc::new(member.finish()?)))
    }

    fn aclmdlRIExecuteAsync(model: usize, stream: usize) {
        run(model, stream).map(|_| ())
    }

    fn aclmdlRIDestroy(model: usize) {
        let handles = &runtime()?.handles;
        let model = handles.remove::<Model>("modelRI", model)?;
        model.groups.iter().try_for_each(|&group| handles.remove::<TaskGroup>("handle", group).map(drop))
    }

    fn aclmdlRIDebugPrint(model: usize) {
        let model: Arc<Model> = runtime()?.handles.get("modelRI", model)?;
        let names: Vec<_> = model.nodes.iter().map(|node| node.name).collect();
        crate::code::write_line(&names.join(", "));
        Ok(())
    }

    fn aclmdlRICaptureThreadExchangeMode(mode: Out<u32>) {
        let wanted = Mode::try_from(In(mode.0.cast_const()).at("mode", 0)?)?;
        mode.set("mode", exchange_mode(wanted) as u32)
    }

    fn aclmdlRICaptureTaskGrpBegin(stream: usize) {
        member(&find(stream)?.2, |member| {
            if member.group.is_some() {
                let text = "argument `stream`: a task group was begun before and not ended";
                return Err(Failure::new(Code::PARAM, text));
            }
            member.begin_group();
            Ok(())
        })
    }

    fn aclmdlRICaptureTaskGrpEnd(stream: usize, handle: Out<usize>) {
        let (runtime, _, stream) = find(stream)?;
        if handle.is_null() {
            return Err(Failure::null("handle"));
        }
        let group = member(&stream, |member| {
            let text = "argument `stream`: no task group was begun on it";
            member.group.take().ok_or_else(|| Failure::new(Code::PARAM, text))
        })?;
        let number = runtime.handles.add(group);
        member(&stream, |member| {
            member.ended_group(number);
            Ok(())
        })?;
        handle.set("handle", number)
    }

    fn aclmdlRICaptureTaskUpdateBegin(stream: usize, handle: usize) {
        let (runtime, _, stream) = find(stream)?;
        let group: Arc<TaskGroup> = runtime.handles.get("handle", handle)?;
        stream.begin_update(group)
    }

    fn aclmdlRICaptureTaskUpdateEnd(stream: usize) {
        let (runtime, _, stream) = find(stream)?;
        let (group, steps) = stream.end_update()?;
        group.check(&steps)?;
        stream.enqueue(runtime, "aclmdlRICaptureTaskUpdateEnd", Arc::new(move |site| {
            group.updates(site)?;
            group.replace(&steps);
            Ok(())
        }))
    }
}

entries! { ENTRIES_9 of Acl:
    fn aclmdlRIExecute(model: usize, timeout: i32) {
        Capture::forbid()?;
        let (runtime, stream) = run(model, 0)?;
        stream.synchronize(runtime, super::device::bound(timeout)?, Code::STREAM_TIMEOUT)
    }
}
