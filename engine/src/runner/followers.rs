//! The ranks beside rank 0: a thread each, which runs what rank 0 runs, in the same order.
//!
//! Rank 0 is the engine's own thread. Before it runs a part of a step it puts the part's inputs into every follower's mailbox; a
//! follower swaps them with those of the part before, so nothing is allocated. The ranks' collectives keep them in step. One that
//! fails says so, ends the communicator, which wakes whoever waits in it, and with that the engine.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError},
    thread::{Builder, JoinHandle},
    time::Duration,
};

use halyard_core::{CommHandle, DeviceError};

use super::{Model, StepError};
use crate::{batch::Batch, engine_loop::panic_message};

/// All ranks but rank 0.
#[derive(Debug)]
pub(crate) struct Followers {
    all: Vec<Follower>,
    end: Arc<End>,
    /// Ranks may be at different places: a part has begun and not come to its end on rank 0.
    apart: bool,
    timeout: Duration,
}

/// How the ranks end together.
#[derive(Debug)]
struct End {
    /// Every rank's, since a device that has failed answers nothing any more.
    comms: Vec<CommHandle>,
    /// Of the rank that failed first.
    fault: OnceLock<String>,
}

#[derive(Debug)]
struct Follower {
    name: String,
    mailbox: Arc<Mailbox>,
    thread: Option<JoinHandle<()>>,
}

/// A part of a step.
#[derive(Debug)]
pub(crate) struct Work {
    part: Part,
    batch: Batch,
    rows: Vec<i32>,
}

#[derive(Clone, Copy, Debug)]
enum Part {
    /// From the batch to the residual stream.
    Forward,
    /// Logits of some rows of the batch of the last `Forward`.
    Head { num_tokens: usize, bucket: Option<usize> },
    /// The graphs of decode steps of so many sequences.
    Capture { bucket: usize },
}

/// Where a follower finds its next part.
#[derive(Debug)]
struct Mailbox {
    slot: Mutex<Slot>,
    changed: Condvar,
}

#[derive(Debug)]
struct Slot {
    work: Work,
    full: bool,
    /// No more is to come.
    stop: bool,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Serving,
    /// It takes no more parts.
    Ended,
    /// Its device has been let go of, too.
    Gone,
}

/// What a follower's thread owns.
struct Rank {
    name: String,
    model: Model,
    mailbox: Arc<Mailbox>,
    end: Arc<End>,
    work: Work,
    timeout: Duration,
}

impl Followers {
    /// Starts a thread for each of `models`, ranks 1 and up; `None` if there are none. `batch` makes an empty batch with room.
    /// `timeout` bounds every wait for a rank.
    pub(crate) fn start(
        first: &Model,
        models: Vec<Model>,
        batch: &dyn Fn() -> Batch,
        timeout: Duration,
    ) -> io::Result<Option<Self>> {
        let comms = std::iter::once(first).chain(&models);
        let Some(comms) = comms.map(|model| model.exec.comm_handle()).collect() else {
            return Ok(None);
        };
        let end = Arc::new(End { comms, fault: OnceLock::new() });
        let world = models.len() + 1;
        let mut this = Self { all: Vec::new(), end, apart: false, timeout };
        for (index, model) in (1..).zip(models) {
            let name = format!("rank {index} of {world}");
            let mailbox = Arc::new(Mailbox::new(Work::new(batch())));
            let rank = Rank {
                name: name.clone(),
                model,
                mailbox: Arc::clone(&mailbox),
                end: Arc::clone(&this.end),
                work: Work::new(batch()),
                timeout,
            };
            let thread = Builder::new().name(format!("halyard-rank-{index}"));
            let thread = Some(thread.spawn(move || rank.serve())?);
            this.all.push(Follower { name, mailbox, thread });
        }
        Ok(Some(this))
    }

    /// Runs [`Model::forward`] on every rank; `own` does it on rank 0.
    ///
    /// # Errors
    /// A rank failed; [`Followers::ended_by`] says which.
    pub(crate) fn forward(
        &mut self,
        batch: &Batch,
        own: impl FnOnce() -> Result<(), DeviceError>,
    ) -> Result<(), StepError> {
        self.together(|work| work.forward(batch), own)
    }

    /// The same for [`Model::head`].
    ///
    /// # Errors
    /// As [`Followers::forward`].
    pub(crate) fn head(
        &mut self,
        (rows, num_tokens, bucket): (&[i32], usize, Option<usize>),
        own: impl FnOnce() -> Result<(), DeviceError>,
    ) -> Result<(), StepError> {
        self.together(|work| work.head(rows, num_tokens, bucket), own)
    }

    /// The same for [`Model::capture`].
    ///
    /// # Errors
    /// As [`Followers::forward`].
    pub(crate) fn capture(
        &mut self,
        bucket: usize,
        own: impl FnOnce() -> Result<(), DeviceError>,
    ) -> Result<(), StepError> {
        self.together(|work| work.part = Part::Capture { bucket }, own)
    }

    fn together(
        &mut self,
        fill: impl Fn(&mut Work),
        own: impl FnOnce() -> Result<(), DeviceError>,
    ) -> Result<(), StepError> {
        self.apart = true;
        for follower in &self.all {
            self.post(follower, &fill)?;
        }
        own()?;
        self.apart = false;
        Ok(())
    }

    /// Puts a part into a mailbox, once the one before has been taken out.
    fn post(&self, follower: &Follower, fill: &impl Fn(&mut Work)) -> Result<(), StepError> {
        let Follower { name, mailbox, .. } = follower;
        let taken = |slot: &mut Slot| slot.full && slot.state == State::Serving;
        let wait = mailbox.changed.wait_timeout_while(mailbox.lock(), self.timeout, taken);
        let (mut slot, _) = wait.unwrap_or_else(PoisonError::into_inner);
        if slot.state != State::Serving {
            return Err(StepError { message: format!("{name} has ended"), sticky: true });
        }
        if slot.full {
            let message = format!("{name} has not come back for {:.0?}", self.timeout);
            self.end.fault.get_or_init(|| message.clone());
            return Err(StepError { message, sticky: true });
        }
        fill(&mut slot.work);
        slot.full = true;
        mailbox.changed.notify_all();
        Ok(())
    }

    /// What a failed step comes to. If only rank 0's sampler failed, all ranks are where they should be and can go on. Else the
    /// communicator ends, and the error is that of the rank that failed first.
    pub(crate) fn ended_by(&self, error: StepError) -> StepError {
        if self.end.fault.get().is_none() && !self.apart && !error.sticky {
            return error;
        }
        let world = self.all.len() + 1;
        let message = self.end.by(|| format!("rank 0 of {world}: {error}"));
        StepError { message: message.to_owned(), sticky: true }
    }
}

impl End {
    /// Ends the communicator for all ranks; gives the first cause.
    fn by(&self, cause: impl FnOnce() -> String) -> &str {
        // Before the communicator ends, so that those whom that wakes find the cause.
        let fault = self.fault.get_or_init(cause);
        let ended = self.comms.iter().filter(|comm| comm.abort().is_ok()).count();
        if ended == 0 {
            tracing::warn!("no rank could end the communicator");
        }
        fault
    }
}

impl Drop for Followers {
    fn drop(&mut self) {
        if self.apart {
            self.end.by(|| "the engine's loop has ended within a step".into());
        }
        for Follower { mailbox, .. } in &self.all {
            mailbox.lock().stop = true;
            mailbox.changed.notify_all();
        }
        for Follower { name, mailbox, thread } in &mut self.all {
            let here = |slot: &mut Slot| slot.state != State::Gone;
            let wait = mailbox.changed.wait_timeout_while(mailbox.lock(), self.timeout, here);
            let (slot, timeout) = wait.unwrap_or_else(PoisonError::into_inner);
            drop(slot);
            if timeout.timed_out() {
                tracing::warn!(name, "a rank hangs and is left behind");
            } else if let Some(thread) = thread.take() {
                // It catches its own panics.
                let _ = thread.join();
            }
        }
    }
}

impl Rank {
    /// Runs part after part until it is told to stop, or fails.
    fn serve(mut self) {
        while self.mailbox.take(&mut self.work) {
            let Self { work, model, timeout, .. } = &mut self;
            let result = catch_unwind(AssertUnwindSafe(|| work.run(model, *timeout)));
            let message = match result {
                Ok(Ok(())) => continue,
                Ok(Err(error)) => error.to_string(),
                Err(panic) => format!("panicked: {}", panic_message(panic.as_ref())),
            };
            self.end.by(|| format!("{}: {message}", self.name));
            break;
        }
        let Self { mailbox, model, .. } = self;
        mailbox.set(State::Ended);
        // After a failure it may be in any state, so its own drop may panic too.
        let _ = catch_unwind(AssertUnwindSafe(move || drop(model)));
        mailbox.set(State::Gone);
    }
}

impl Work {
    fn new(batch: Batch) -> Self {
        // Wanted rows are of the batch.
        let rows = Vec::with_capacity(batch.ids.capacity());
        Self { part: Part::Forward, batch, rows }
    }

    fn forward(&mut self, batch: &Batch) {
        self.part = Part::Forward;
        self.batch.copy_inputs(batch);
    }

    fn head(&mut self, rows: &[i32], num_tokens: usize, bucket: Option<usize>) {
        self.part = Part::Head { num_tokens, bucket };
        self.rows.clear();
        self.rows.extend_from_slice(rows);
    }

    fn run(&self, model: &mut Model, timeout: Duration) -> Result<(), DeviceError> {
        match self.part {
            Part::Forward => model.forward(&self.batch),
            Part::Capture { bucket } => model.capture(bucket),
            Part::Head { num_tokens, bucket } => {
                model.head(&self.rows, num_tokens, bucket)?;
                // What failed on the device must be known here: rank 0 sees its own device only.
                model.exec.wait(timeout)
            }
        }
    }
}

impl Mailbox {
    fn new(work: Work) -> Self {
        let slot = Slot { work, full: false, stop: false, state: State::Serving };
        Self { slot: Mutex::new(slot), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Slot> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the next part and swaps it with the last one; `false` if none is to come.
    fn take(&self, work: &mut Work) -> bool {
        let idle = |slot: &mut Slot| !slot.full && !slot.stop;
        let wait = self.changed.wait_while(self.lock(), idle);
        let mut slot = wait.unwrap_or_else(PoisonError::into_inner);
        if slot.stop {
            return false;
        }
        std::mem::swap(&mut slot.work, work);
        slot.full = false;
        self.changed.notify_all();
        true
    }

    fn set(&self, state: State) {
        self.lock().state = state;
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        fake::{scheduler, sequence},
        request::SamplingParams,
    };

    #[test]
    fn parts_come_out_as_they_were_put_in_and_nothing_is_allocated() {
        let mut scheduler = scheduler(8, 4, 8, 12);
        scheduler.add(sequence(&[10, 11, 12, 13, 14, 15], &SamplingParams::default()));
        scheduler.add(sequence(&[20], &SamplingParams::default()));
        scheduler.schedule();
        let mut batch = Batch::with_capacity(12, 8, 8);
        batch.build(scheduler.running(), 4);

        let work = || Work::new(Batch::with_capacity(12, 8, 8));
        let (mailbox, mut taken) = (Mailbox::new(work()), work());
        let mut put = |fill: &dyn Fn(&mut Work)| {
            let mut slot = mailbox.lock();
            fill(&mut slot.work);
            slot.full = true;
            drop(slot);
            assert!(mailbox.take(&mut taken));
            assert!(!mailbox.lock().full);
            (taken.part, taken.batch.num_tokens(), taken.rows.len())
        };
        let info = allocation_counter::measure(|| {
            for _ in 0..3 {
                assert!(matches!(put(&|work| work.forward(&batch)), (Part::Forward, 7, _)));
                let head = put(&|work| work.head(&[0, 6], 7, None));
                assert!(matches!(head, (Part::Head { num_tokens: 7, bucket: None }, _, 2)));
            }
        });
        assert_eq!(info.count_total, 0, "of {} bytes", info.bytes_total);
        put(&|work| work.forward(&batch));
        assert_eq!((&taken.batch.ids, &taken.batch.slots), (&batch.ids, &batch.slots));
        assert_eq!((taken.batch.max_kv, taken.batch.num_single), (6, 1));

        mailbox.lock().stop = true;
        assert!(!mailbox.take(&mut taken));
    }
}
