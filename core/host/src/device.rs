//! An opened device.

use std::sync::{Arc, Mutex, PoisonError};

use halyard_abi::{
    Buffer, DeviceBox, InfoKey, KvDesc, KvLayout, Metric, OpBuf, PropKey, RSliceMut,
    Stream as RawStream, ops::check::check_desc,
};

use crate::{
    Backend, Decompose, Kernel, Result,
    comm::Numbered,
    decompose,
    error::{Named, could_not},
};

/// An opened device. Cheap to clone; closes when the last clone, buffer, stream, weight and kernel of it is gone.
#[derive(Clone, Debug)]
pub struct Device {
    pub(crate) inner: Arc<DeviceInner>,
    pub(crate) decompose: Decompose,
}

pub(crate) struct DeviceInner {
    pub(crate) raw: DeviceBox,
    backend: Backend,
    ordinal: u32,
    /// What it was opened with.
    options: Vec<(String, String)>,
    /// Launches run before they return.
    pub(crate) inline: bool,
    /// Streams that exist, beside the default one.
    pub(crate) streams: Mutex<Vec<RawStream>>,
    /// Buffers whose owners are gone, with the events after which no work uses them.
    retired: Mutex<Vec<Retired>>,
    captures: Mutex<Captures>,
    pub(crate) comms: Numbered,
}

/// Captures under way. A stream that captures would take the marks of a buffer's last use into its graph, so buffers wait for its end.
#[derive(Default)]
struct Captures {
    open: usize,
    waiting: Vec<Buffer>,
}

struct Retired {
    buffer: Buffer,
    events: Vec<halyard_abi::Event>,
}

/// How well a device supports an op.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Support {
    /// It does not; why.
    No(String),
    /// Correct, but slow; why.
    Slow(String),
    /// Native.
    Native,
    /// Tuned for this shape.
    Tuned,
}

impl std::fmt::Debug for DeviceInner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.backend.id(), self.ordinal)
    }
}

impl Device {
    pub(crate) fn new(
        raw: DeviceBox,
        backend: Backend,
        ordinal: u32,
        options: &[(&str, &str)],
    ) -> Self {
        let inline = raw.property(PropKey::INLINE).into_option() == Some(1);
        let (streams, retired, captures, comms) = Default::default();
        let options = options.iter().map(|&(k, v)| (k.to_owned(), v.to_owned())).collect();
        let inner = DeviceInner {
            raw,
            backend,
            ordinal,
            options,
            inline,
            streams,
            retired,
            captures,
            comms,
        };
        Self { inner: Arc::new(inner), decompose: Decompose::Never }
    }

    /// Opens the same device anew, with the options that it was opened with: after a sticky error.
    ///
    /// # Errors
    /// As [`Backend::open`].
    pub fn reopen(&self) -> Result<Self> {
        let options: Vec<(&str, &str)> =
            self.inner.options.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        let fresh = self.inner.backend.open(self.inner.ordinal, &options)?;
        Ok(fresh.decomposing(self.decompose))
    }

    /// The same device, which builds ops from others: see [`Decompose`].
    #[must_use]
    pub fn decomposing(&self, when: Decompose) -> Self {
        Self { inner: Arc::clone(&self.inner), decompose: when }
    }

    /// The backend it belongs to.
    #[must_use]
    pub fn backend(&self) -> &Backend {
        &self.inner.backend
    }

    /// Its number within the backend.
    #[must_use]
    pub fn ordinal(&self) -> u32 {
        self.inner.ordinal
    }

    /// A number about the device.
    #[must_use]
    pub fn property(&self, key: PropKey) -> Option<u64> {
        self.inner.raw.property(key).into_option()
    }

    /// A string about the device; empty if there is no answer.
    #[must_use]
    pub fn info(&self, key: InfoKey) -> String {
        self.inner.raw.info(key).into_string()
    }

    /// Live measurements.
    #[must_use]
    pub fn telemetry(&self) -> Vec<Metric> {
        let blank = Metric { key: halyard_abi::MetricKey(0), index: 0, value: 0.0 };
        let mut metrics = vec![blank; 32];
        let count = self.inner.raw.telemetry(RSliceMut::from_mut_slice(&mut metrics));
        metrics.truncate(count as usize);
        metrics
    }

    /// How well an op is supported. An op that breaks the catalogue's rules is not.
    #[must_use]
    pub fn support(&self, op: &OpBuf) -> Support {
        if let Err(error) = check_desc(&op.desc()) {
            return Support::No(error.to_string());
        }
        decompose::support(&self.inner, self.decompose, op)
    }

    /// Prepares a kernel; may take seconds.
    ///
    /// # Errors
    /// If the op breaks the catalogue's rules, or the backend does not support it.
    pub fn prepare(&self, op: OpBuf) -> Result<Kernel> {
        Kernel::new(self, op)
    }

    /// How the backend arranges a paged cache.
    ///
    /// # Errors
    /// If it cannot hold one of this kind.
    pub fn kv_layout(&self, kv: &KvDesc<'_>) -> Result<KvLayout> {
        self.inner.raw.kv_layout(kv).named("kv_layout")
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl DeviceInner {
    pub(crate) fn stream_opened(&self, stream: RawStream) {
        lock(&self.streams).push(stream);
    }

    pub(crate) fn stream_closed(&self, stream: RawStream) {
        lock(&self.streams).retain(|&s| s != stream);
    }

    /// Frees a buffer once all work enqueued up to now is done.
    pub(crate) fn retire(&self, buffer: Buffer) {
        if self.inline {
            self.free(buffer);
            return;
        }
        {
            let mut captures = lock(&self.captures);
            if captures.open > 0 {
                captures.waiting.push(buffer);
                return;
            }
        }
        let mut streams = lock(&self.streams).clone();
        streams.push(RawStream::NONE);
        let events = streams
            .into_iter()
            .filter_map(|stream| {
                let event = self.raw.event_create(0).into_result().ok()?;
                // A stream that cannot record has failed: nothing of it runs any more.
                self.raw.event_record(event, stream).into_result().ok()?;
                Some(event)
            })
            .collect();
        lock(&self.retired).push(Retired { buffer, events });
        self.reap();
    }

    pub(crate) fn capture_begins(&self) {
        lock(&self.captures).open += 1;
    }

    pub(crate) fn capture_ends(&self) {
        let mut captures = lock(&self.captures);
        captures.open -= 1;
        let waiting =
            if captures.open == 0 { std::mem::take(&mut captures.waiting) } else { vec![] };
        drop(captures);
        waiting.into_iter().for_each(|buffer| self.retire(buffer));
    }

    /// Waits for the work of a stream, if that is still there.
    pub(crate) fn wait_for(&self, stream: RawStream) {
        if lock(&self.streams).contains(&stream)
            && let Err(error) = self.raw.stream_sync(stream, u64::MAX).into_result()
        {
            tracing::debug!(%error, "work of a device that failed");
        }
    }

    /// Frees retired buffers whose work is done.
    pub(crate) fn reap(&self) {
        if self.inline {
            return;
        }
        let done = |e: &halyard_abi::Event| {
            self.raw
                .event_query(*e)
                .into_result()
                .map_or_else(|error| error.code != halyard_abi::Code::NOT_READY, |()| true)
        };
        let mut retired = lock(&self.retired);
        let all = std::mem::take(&mut *retired);
        let (ready, waiting) = all.into_iter().partition(|r: &Retired| r.events.iter().all(done));
        *retired = waiting;
        drop(retired);
        for r in ready {
            self.release(r);
        }
    }

    fn release(&self, retired: Retired) {
        for event in retired.events {
            if let Err(error) = self.raw.event_destroy(event).named("event_destroy") {
                could_not("destroy an event", &error);
            }
        }
        self.free(retired.buffer);
    }

    fn free(&self, buffer: Buffer) {
        if let Err(error) = self.raw.free(buffer).named("free") {
            could_not("free device memory", &error);
        }
    }
}

impl Drop for DeviceInner {
    fn drop(&mut self) {
        let retired = std::mem::take(&mut *lock(&self.retired));
        for r in retired {
            // Every stream object is gone by now; the default stream is the one that may still work.
            let done = self.raw.stream_sync(RawStream::NONE, u64::MAX).named("stream_sync");
            if let Err(error) = done {
                could_not("wait for the device", &error);
            }
            self.release(r);
        }
    }
}
