//! A rank beside rank 0: runs what rank 0 runs, in the same order.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use halyard_core::Code;

use super::{
    Model,
    mailbox::{Mailbox, State},
    work::Work,
};
use crate::{engine_loop::panic_message, process::Failed};

/// What a rank's thread owns.
pub(crate) struct Rank {
    pub(crate) model: Model,
    pub(crate) mailbox: Arc<Mailbox>,
    pub(crate) work: Work,
    /// Bound of waits for the device.
    pub(crate) timeout: Duration,
}

impl Rank {
    /// Runs part after part until it is told to stop, or fails; `failed` is told why before the device is let go of.
    pub(crate) fn serve(mut self, failed: impl FnOnce(Failed)) {
        while self.mailbox.take(&mut self.work) {
            let Self { work, model, timeout, .. } = &mut self;
            let result = catch_unwind(AssertUnwindSafe(|| work.run(model, *timeout)));
            let (message, by_others) = match result {
                Ok(Ok(())) => continue,
                Ok(Err(error)) => {
                    let by_others = matches!(error.code, Code::COMM_ERROR | Code::COMM_ABORTED);
                    (error.to_string(), by_others)
                }
                Err(panic) => (format!("panicked: {}", panic_message(panic.as_ref())), false),
            };
            failed(Failed { message, by_others });
            break;
        }
        let Self { mailbox, model, .. } = self;
        mailbox.set(State::Ended);
        // After a failure it may be in any state, so its own drop may panic too.
        let _ = catch_unwind(AssertUnwindSafe(move || drop(model)));
        mailbox.set(State::Gone);
    }
}
