//! Functions of the host in streams.

use super::stream::find;
use crate::code::{Code, Failure, Outcome};
use crate::runtime::runtime;
use crate::stream::Stream;
use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

type Function = unsafe extern "C" fn(*mut c_void);

/// A function of the host and its argument.
#[derive(Clone, Copy)]
struct Call {
    function: Function,
    data: *mut c_void,
}

// SAFETY: who hands in a callback promises that it may be called, with this argument, from another thread.
unsafe impl Send for Call {}
// SAFETY: as for `Send`; a stream calls it from one thread at a time.
unsafe impl Sync for Call {}

impl Call {
    fn new(function: Option<Function>, data: *mut c_void) -> Outcome<Self> {
        Ok(Self { function: function.ok_or_else(|| Failure::null("fn"))?, data })
    }

    fn run(&self) {
        // SAFETY: who handed it in promised that the function may be called with this argument.
        unsafe { (self.function)(self.data) }
    }
}

/// A call that a thread is to make, and where it says that it has.
struct Report {
    call: Call,
    done: Sender<()>,
}

/// Both ends of what waits for a thread.
type Queue = (Sender<Report>, Arc<Mutex<Receiver<Report>>>);

/// Threads that wait for calls, by their number, and which streams' calls they make.
#[derive(Default)]
struct Subscribers {
    threads: HashMap<u64, Queue>,
    streams: HashMap<usize, u64>,
}

fn subscribers() -> MutexGuard<'static, Subscribers> {
    static ALL: LazyLock<Mutex<Subscribers>> = LazyLock::new(Mutex::default);
    ALL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// This thread's number, as `pthread_self` gives it.
fn this_thread() -> u64 {
    // SAFETY: it has no conditions.
    unsafe { libc::pthread_self() }
}

/// A stream's callbacks are all of one kind.
fn use_callbacks(stream: &Stream, name: &'static str) -> Outcome {
    let mut used = stream.callbacks.lock().unwrap_or_else(PoisonError::into_inner);
    match used.replace(name) {
        Some(other) if other != name => {
            *used = Some(other);
            let text =
                format!("argument `stream`: {other} was used on it, and the two must not be mixed");
            Err(Failure::new(Code::PARAM, text))
        }
        _ => Ok(()),
    }
}

entries! { ENTRIES of Acl:
    fn aclrtSubscribeReport(thread: u64, stream: usize) {
        find(stream)?;
        let mut all = subscribers();
        all.threads.entry(thread).or_insert_with(|| {
            let (sender, receiver) = channel();
            (sender, Arc::new(Mutex::new(receiver)))
        });
        all.streams.insert(stream, thread);
        Ok(())
    }

    fn aclrtUnSubscribeReport(thread: u64, stream: usize) {
        find(stream)?;
        let mut all = subscribers();
        if all.streams.get(&stream) != Some(&thread) {
            return Err(Failure::argument("threadId", format!("thread {thread} did not subscribe for the stream")));
        }
        all.streams.remove(&stream);
        if !all.streams.values().any(|other| *other == thread) {
            all.threads.remove(&thread);
        }
        Ok(())
    }

    fn aclrtProcessReport(timeout: i32) {
        runtime()?;
        let queue = subscribers().threads.get(&this_thread()).map(|(_, queue)| Arc::clone(queue));
        let queue = queue.ok_or_else(|| {
            Failure::new(Code::PARAM, "this thread did not subscribe (aclrtSubscribeReport)")
        })?;
        let queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
        let bound = super::device::bound(timeout)?.unwrap_or(Duration::MAX);
        match queue.recv_timeout(bound) {
            Ok(report) => {
                report.call.run();
                // A stream that does not wait for it has gone on.
                _ = report.done.send(());
                Ok(())
            }
            Err(RecvTimeoutError::Timeout) => Err(Failure::new(Code(107_019), format!("no callback within {timeout} ms"))),
            Err(RecvTimeoutError::Disconnected) => Err(Failure::new(Code::PARAM, "this thread's subscription ended")),
        }
    }

    fn aclrtLaunchCallback(function: Option<Function>, data: *mut c_void, block: u32, handle: usize) {
        let (runtime, _, stream) = find(handle)?;
        let call = Call::new(function, data)?;
        if block > 1 {
            return Err(Failure::argument("blockType", format!("{block} (0 or 1)")));
        }
        use_callbacks(&stream, "aclrtLaunchCallback")?;
        let queue = {
            let all = subscribers();
            let thread = all.streams.get(&handle).and_then(|thread| all.threads.get(thread));
            thread.map(|(queue, _)| queue.clone())
        };
        let queue = queue.ok_or_else(|| {
            Failure::new(Code::PARAM, "argument `stream`: no thread subscribed for it (aclrtSubscribeReport)")
        })?;
        let queue = Mutex::new(queue);
        stream.enqueue(runtime, "aclrtLaunchCallback", Arc::new(move |_| {
            let (done, is_done) = channel();
            let sent = queue.lock().unwrap_or_else(PoisonError::into_inner).send(Report { call, done });
            if block == 1 && (sent.is_err() || is_done.recv().is_err()) {
                return Err(Failure::new(Code::PARAM, "the thread that subscribed is gone"));
            }
            Ok(())
        }))
    }

    fn aclrtSetExceptionInfoCallback(_callback: *mut c_void) {
        Err(Failure::new(Code::NOT_SUPPORTED, "the simulator has no callback for exceptions; aclGetRecentErrMsg tells them"))
    }
}

entries! { ENTRIES_9 of Acl:
    fn aclrtLaunchHostFunc(stream: usize, function: Option<Function>, data: *mut c_void) {
        let (runtime, _, stream) = find(stream)?;
        let call = Call::new(function, data)?;
        use_callbacks(&stream, "aclrtLaunchHostFunc")?;
        stream.enqueue(runtime, "aclrtLaunchHostFunc", Arc::new(move |_| {
            call.run();
            Ok(())
        }))
    }
}
