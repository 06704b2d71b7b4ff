//! The ranks beside rank 0: each a thread of this process, or a process of its own.
//!
//! Rank 0 is the engine's own thread. Before it runs a part of a step it gives the part's inputs to every follower: into a thread's
//! mailbox, or as a frame to a process. The ranks' collectives keep them in step. How they end is said in [`End`].

use std::{
    io,
    sync::Arc,
    thread::{Builder, JoinHandle},
    time::Duration,
};

use halyard_core::DeviceError;

use super::{
    Model, StepError,
    end::{End, OnLoss},
    mailbox::{Mailbox, Refused},
    rank::Rank,
    work::{Order, Work},
};
use crate::{
    batch::Batch,
    process::{Failed, FrameWriter, Peer, RankProcesses},
};

/// All ranks but rank 0: threads or processes.
#[derive(Debug)]
pub(crate) struct Followers {
    threads: Vec<RankThread>,
    processes: Vec<Peer>,
    end: Arc<End>,
    /// Ranks may be at different places: a part has begun and not come to its end on rank 0.
    apart: bool,
    timeout: Duration,
    /// For processes.
    writer: FrameWriter,
}

#[derive(Debug)]
struct RankThread {
    name: String,
    mailbox: Arc<Mailbox>,
    thread: Option<JoinHandle<()>>,
}

impl Followers {
    /// Starts a thread for each of `models`, ranks 1 and up, or takes over `processes`; `None` if there are neither. `batch` makes an
    /// empty batch with room. `timeout` bounds every wait for a rank.
    pub(crate) fn start(
        first: &Model,
        models: Vec<Model>,
        processes: Option<RankProcesses>,
        batch: &dyn Fn() -> Batch,
        timeout: Duration,
    ) -> io::Result<Option<Self>> {
        let comms = std::iter::once(first).chain(&models);
        let Some(comms) = comms.map(|model| model.exec.comm_handle()).collect() else {
            return Ok(None);
        };
        let (processes, end) = processes.map(RankProcesses::into_peers).unwrap_or_default();
        end.set_comms(comms);
        let writer = FrameWriter::with_capacity(Order::most_bytes(&batch()));
        let world = models.len() + 1;
        let mut this = Self { threads: Vec::new(), processes, end, apart: false, timeout, writer };
        for (index, model) in (1..).zip(models) {
            let name = format!("rank {index} of {world}");
            let mailbox = Arc::new(Mailbox::new(Work::new(batch())));
            let work = Work::new(batch());
            let rank = Rank { model, mailbox: Arc::clone(&mailbox), work, timeout };
            let (of_thread, end) = (name.clone(), Arc::clone(&this.end));
            let failed = move |failed: Failed| {
                end.by(|| format!("{of_thread}: {}", failed.message));
            };
            let thread = Builder::new().name(format!("halyard-rank-{index}"));
            let thread = Some(thread.spawn(move || rank.serve(failed))?);
            this.threads.push(RankThread { name, mailbox, thread });
        }
        Ok(Some(this))
    }

    /// Called with the cause when a rank is lost, also between steps.
    pub(crate) fn set_on_loss(&self, on_loss: OnLoss) {
        self.end.set_on_loss(on_loss);
    }

    /// Runs a part on every rank; `own` does it on rank 0.
    ///
    /// # Errors
    /// A rank failed; [`Followers::ended_by`] says which.
    pub(crate) fn together(
        &mut self,
        order: Order<'_>,
        own: impl FnOnce() -> Result<(), DeviceError>,
    ) -> Result<(), StepError> {
        self.apart = true;
        self.post(order)?;
        own()?;
        self.apart = false;
        Ok(())
    }

    /// Gives a part to every follower.
    fn post(&mut self, order: Order<'_>) -> Result<(), StepError> {
        for RankThread { name, mailbox, .. } in &self.threads {
            let posted = mailbox.put(self.timeout, |work| work.fill(order));
            if let Err(refused) = posted {
                let message = match refused {
                    Refused::Ended => format!("{name} has ended"),
                    Refused::Full => format!("{name} has not come back for {:.0?}", self.timeout),
                };
                // One that has ended has said why.
                self.end.note(&message);
                return Err(StepError { message, sticky: true });
            }
        }
        if self.processes.is_empty() {
            return Ok(());
        }
        let failed = |message: String| StepError { message, sticky: true };
        let frame = order.frame(&mut self.writer).map_err(|error| failed(error.to_string()))?;
        for peer in &self.processes {
            if let Err(error) = peer.write(frame) {
                self.end.await_cause();
                return Err(failed(format!("{} cannot be reached: {error}", peer.name())));
            }
        }
        Ok(())
    }

    /// What a failed step comes to. If only rank 0's sampler failed, all ranks are where they should be and can go on. Else the
    /// communicator ends, and the error is that of the rank that failed first.
    pub(crate) fn ended_by(&self, error: StepError) -> StepError {
        if self.end.fault().is_none() && !self.apart && !error.sticky {
            return error;
        }
        if !self.processes.is_empty() && self.end.has_ended() {
            self.end.await_cause();
        }
        let world = self.threads.len() + self.processes.len() + 1;
        let message = self.end.by(|| format!("rank 0 of {world}: {error}"));
        StepError { message: message.to_owned(), sticky: true }
    }
}

impl Drop for Followers {
    fn drop(&mut self) {
        if self.apart {
            self.end.by(|| "the engine's loop has ended within a step".into());
        }
        self.threads.iter().for_each(|thread| thread.mailbox.stop());
        // They are gone when their peers are, which are dropped last.
        self.processes.iter().for_each(Peer::tell_to_end);
        for RankThread { name, mailbox, thread } in &mut self.threads {
            if !mailbox.is_gone_within(self.timeout) {
                tracing::warn!(name, "a rank hangs and is left behind");
            } else if let Some(thread) = thread.take() {
                // It catches its own panics.
                let _ = thread.join();
            }
        }
    }
}
