//! A rank's part of NCCL, as the watch over its calls sees it.

use std::sync::Arc;

use halyard_sdk::{
    Result,
    vendor::{Link, Mark},
};

use crate::{
    device::Shared,
    driver::{self, Bound, Event},
    nccl::Comm,
};

#[derive(Debug)]
pub(crate) struct Rank {
    pub(super) shared: Arc<Shared>,
    pub(super) comm: Comm,
}

impl Link for Rank {
    type Mark = Event;
    type Bound<'a> = Bound<'a>;

    fn bind(&self) -> Result<Bound<'_>> {
        self.shared.bind()
    }

    fn mark(&self) -> Result<Event> {
        Event::create(false)
    }

    fn check(&self) -> Result<()> {
        self.comm.in_progress().map(|_| ())
    }

    fn abort(&self) {
        self.comm.abort();
    }
}

impl Mark for Event {
    type Stream = driver::Stream;

    fn record(&self, on: &driver::Stream) -> Result<()> {
        Self::record(self, on)
    }

    fn hold(&self, on: &driver::Stream) -> Result<()> {
        Self::hold(self, on)
    }

    fn query(&self) -> Result<()> {
        Self::query(self)
    }

    fn synchronize(&self) -> Result<()> {
        Self::synchronize(self)
    }
}
