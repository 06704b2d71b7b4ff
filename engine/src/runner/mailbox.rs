//! Where a rank's thread finds its next part.

use std::{
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::work::Work;

/// A slot for one part.
#[derive(Debug)]
pub(crate) struct Mailbox {
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

/// Where the thread is that takes the parts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum State {
    Serving,
    /// It takes no more parts.
    Ended,
    /// Its device has been let go of, too.
    Gone,
}

/// Why a part could not be put in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Refused {
    /// The thread has ended.
    Ended,
    /// The part before was not taken out in time.
    Full,
}

impl Mailbox {
    pub(crate) fn new(work: Work) -> Self {
        let slot = Slot { work, full: false, stop: false, state: State::Serving };
        Self { slot: Mutex::new(slot), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Slot> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a part in, once the one before has been taken out.
    pub(crate) fn put(
        &self,
        timeout: Duration,
        fill: impl FnOnce(&mut Work),
    ) -> Result<(), Refused> {
        let taken = |slot: &mut Slot| slot.full && slot.state == State::Serving;
        let wait = self.changed.wait_timeout_while(self.lock(), timeout, taken);
        let (mut slot, _) = wait.unwrap_or_else(PoisonError::into_inner);
        if slot.state != State::Serving {
            return Err(Refused::Ended);
        }
        if slot.full {
            return Err(Refused::Full);
        }
        fill(&mut slot.work);
        slot.full = true;
        self.changed.notify_all();
        Ok(())
    }

    /// Waits for the next part and swaps it with the last one; `false` if none is to come.
    pub(crate) fn take(&self, work: &mut Work) -> bool {
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

    /// No more parts will come.
    pub(crate) fn stop(&self) {
        self.lock().stop = true;
        self.changed.notify_all();
    }

    pub(crate) fn set(&self, state: State) {
        self.lock().state = state;
        self.changed.notify_all();
    }

    /// Whether the thread is gone, within some time.
    pub(crate) fn is_gone_within(&self, timeout: Duration) -> bool {
        let here = |slot: &mut Slot| slot.state != State::Gone;
        let wait = self.changed.wait_timeout_while(self.lock(), timeout, here);
        let (slot, timeout) = wait.unwrap_or_else(PoisonError::into_inner);
        drop(slot);
        !timeout.timed_out()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        batch::Batch,
        fake::{scheduler, sequence},
        process::{FrameReader, FrameWriter},
        request::SamplingParams,
        runner::work::Order,
    };

    fn batch() -> Batch {
        let mut scheduler = scheduler(8, 4, 8, 12);
        scheduler.add(sequence(&[10, 11, 12, 13, 14, 15], &SamplingParams::default()));
        scheduler.add(sequence(&[20], &SamplingParams::default()));
        scheduler.schedule();
        let mut batch = Batch::with_capacity(12, 8, 8);
        batch.build(scheduler.running(), 4);
        batch
    }

    fn work() -> Work {
        Work::new(Batch::with_capacity(12, 8, 8))
    }

    #[test]
    fn parts_come_out_as_they_were_put_in_and_nothing_is_allocated() {
        let batch = batch();
        let orders =
            [Order::Forward(&batch), Order::Head { rows: &[0, 6], num_tokens: 7, bucket: None }];
        let (mailbox, mut taken) = (Mailbox::new(work()), work());
        let info = allocation_counter::measure(|| {
            for order in orders.iter().cycle().take(6) {
                mailbox.put(Duration::ZERO, |work| work.fill(*order)).expect("room");
                assert!(mailbox.put(Duration::ZERO, |_| {}).is_err());
                assert!(mailbox.take(&mut taken));
            }
        });
        assert_eq!(info.count_total, 0, "of {} bytes", info.bytes_total);
        for order in orders {
            mailbox.put(Duration::ZERO, |work| work.fill(order)).expect("room");
            assert!(mailbox.take(&mut taken) && taken.is(order));
        }
        mailbox.stop();
        assert!(!mailbox.take(&mut taken));
        mailbox.set(State::Ended);
        assert_eq!(mailbox.put(Duration::ZERO, |_| {}), Err(Refused::Ended));
    }

    #[test]
    fn frames_hold_the_same_parts_and_nothing_is_allocated() {
        let batch = batch();
        let orders = [
            Order::Forward(&batch),
            Order::Head { rows: &[0, 6], num_tokens: 7, bucket: Some(8) },
            Order::Capture { bucket: 16 },
        ];
        let mut writer = FrameWriter::with_capacity(1 << 10);
        let (mut reader, mut read) = (FrameReader::default(), work());
        let mut pass = |order: Order<'_>| {
            let frame = order.frame(&mut writer).expect("short");
            let parsed = reader.next(&mut &*frame).expect("whole").expect("a frame");
            read.read(parsed).expect("an order");
            read.is(order)
        };
        assert!(orders.into_iter().all(&mut pass));
        let info = allocation_counter::measure(|| {
            assert!(orders[1..].iter().cycle().take(6).all(|order| pass(*order)));
        });
        assert_eq!(info.count_total, 0, "of {} bytes", info.bytes_total);
    }

    #[test]
    fn orders_that_mean_nothing_are_refused() {
        let whole = batch();
        let mut writer = FrameWriter::default();
        let frame = Order::Forward(&whole).frame(&mut writer).expect("short").to_vec();
        let read = |bytes: &[u8]| -> Option<()> {
            let mut reader = FrameReader::default();
            let parsed = reader.next(&mut &*bytes).ok()??;
            work().read(parsed).ok()
        };
        assert!(read(&frame).is_some());
        for end in 0..frame.len() {
            assert!(read(&frame[..end]).is_none(), "cut off at {end}");
            // The same with a head that says so.
            let mut short = frame[..end].to_vec();
            if let Some(head) = short.get_mut(..4) {
                let bytes = u32::try_from(end.saturating_sub(5)).expect("few");
                head.copy_from_slice(&bytes.to_le_bytes());
            }
            assert!(read(&short).is_none(), "shortened to {end}");
        }
        let mut loose = batch();
        loose.positions.pop();
        let frame = Order::Forward(&loose).frame(&mut writer).expect("short").to_vec();
        assert!(read(&frame).is_none());
    }
}
