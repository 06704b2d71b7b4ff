//! Streams and events.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use halyard_abi::{Code, Event as RawEvent, Stream as RawStream};

use crate::{
    Device, Result,
    device::DeviceInner,
    error::{DeviceError, Named, could_not},
    graph::Uses,
};

/// An ordered queue of work. Waits for its work before it goes.
#[derive(Debug)]
pub struct Stream {
    pub(crate) device: Arc<DeviceInner>,
    pub(crate) raw: RawStream,
    /// What the open capture uses so far.
    pub(crate) capture: Mutex<Option<Uses>>,
}

/// A point in a stream.
#[derive(Debug)]
pub struct Event {
    device: Arc<DeviceInner>,
    raw: RawEvent,
}

impl Device {
    /// A new stream; lower `priority` values run first where the device can tell.
    ///
    /// # Errors
    /// If the device has no more.
    pub fn stream(&self, priority: i32) -> Result<Stream> {
        let raw = self.inner.raw.stream_create(priority, 0).named("stream_create")?;
        self.inner.stream_opened(raw);
        Ok(Stream { device: Arc::clone(&self.inner), raw, capture: Mutex::default() })
    }

    /// A new event; `timing` makes it keep the time.
    ///
    /// # Errors
    /// If the device has no more.
    pub fn event(&self, timing: bool) -> Result<Event> {
        let raw = self.inner.raw.event_create(u32::from(timing)).named("event_create")?;
        Ok(Event { device: Arc::clone(&self.inner), raw })
    }
}

impl Stream {
    /// Waits until all work is done.
    ///
    /// # Errors
    /// What failed on the device since the last wait.
    pub fn sync(&self) -> Result<()> {
        self.refuse_in_capture("stream_sync")?;
        self.device.raw.stream_sync(self.raw, u64::MAX).named("stream_sync")
    }

    /// Waits, but not longer than `timeout`.
    ///
    /// # Errors
    /// `TIMEOUT` with the work still running, or what failed.
    pub fn sync_timeout(&self, timeout: Duration) -> Result<()> {
        self.refuse_in_capture("stream_sync")?;
        let nanos = u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX);
        self.device.raw.stream_sync(self.raw, nanos).named("stream_sync")
    }

    /// Whether all work is done.
    ///
    /// # Errors
    /// What failed on the device.
    pub fn is_idle(&self) -> Result<bool> {
        self.refuse_in_capture("stream_query")?;
        match self.device.raw.stream_query(self.raw).named("stream_query") {
            Ok(()) => Ok(true),
            Err(DeviceError { code: Code::NOT_READY, .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Marks this stream's current end.
    ///
    /// # Errors
    /// If the event is another device's, or the vendor's failure.
    pub fn record(&self, event: &Event) -> Result<()> {
        self.same_device(event, "event_record")?;
        self.device.raw.event_record(event.raw, self.raw).named("event_record")
    }

    /// Makes later work of this stream wait for an event.
    ///
    /// # Errors
    /// If the event is another device's, or the vendor's failure.
    pub fn wait(&self, event: &Event) -> Result<()> {
        self.same_device(event, "event_wait")?;
        self.device.raw.event_wait(self.raw, event.raw).named("event_wait")
    }

    fn same_device(&self, event: &Event, call: &'static str) -> Result<()> {
        self.refuse_in_capture(call)?;
        if Arc::ptr_eq(&self.device, &event.device) {
            return Ok(());
        }
        Err(DeviceError::invalid(call, "the event belongs to another device"))
    }
}

impl Event {
    /// Waits on the host.
    ///
    /// # Errors
    /// What failed on the device.
    pub fn sync(&self) -> Result<()> {
        self.device.raw.event_sync(self.raw, u64::MAX).named("event_sync")
    }

    /// Time from `earlier` to this, both with timing.
    ///
    /// # Errors
    /// If one has not been recorded.
    pub fn since(&self, earlier: &Self) -> Result<Duration> {
        self.device
            .raw
            .event_elapsed_ns(earlier.raw, self.raw)
            .named("event_elapsed_ns")
            .map(Duration::from_nanos)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let Err(error) = self.sync() {
            could_not("finish a stream's work", &error);
        }
        self.device.stream_closed(self.raw);
        if let Err(error) = self.device.raw.stream_destroy(self.raw).named("stream_destroy") {
            could_not("destroy a stream", &error);
        }
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if let Err(error) = self.device.raw.event_destroy(self.raw).named("event_destroy") {
            could_not("destroy an event", &error);
        }
    }
}
