//! How ranks end together: the first that fails says why, ends the communicator, which wakes whoever waits in it, and with that the
//! engine.

use std::{
    fmt,
    sync::OnceLock,
    thread,
    time::{Duration, Instant},
};

use halyard_core::CommHandle;

/// How long a rank that woke because another failed waits for that one's word: it may be on its way from another process.
const PATIENCE: Duration = Duration::from_secs(2);

/// Called with the cause when a rank fails while nobody may be waiting for it.
pub(crate) type OnLoss = Box<dyn Fn(&str) + Send + Sync>;

/// What the ranks' threads share, and those that watch ranks in other processes.
#[derive(Default)]
pub(crate) struct End {
    /// Every rank's that is in this process, since a device that has failed answers nothing any more.
    comms: OnceLock<Vec<CommHandle>>,
    /// Of the rank that failed first.
    fault: OnceLock<String>,
    /// Of a rank that failed because another had.
    echo: OnceLock<String>,
    on_loss: OnceLock<OnLoss>,
}

impl fmt::Debug for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("End").field("fault", &self.fault.get()).finish_non_exhaustive()
    }
}

impl End {
    /// The communicator that ends with them.
    pub(crate) fn set_comms(&self, comms: Vec<CommHandle>) {
        let _ = self.comms.set(comms);
    }

    /// From now on a loss is told, also one that was before.
    pub(crate) fn set_on_loss(&self, on_loss: OnLoss) {
        let _ = self.on_loss.set(on_loss);
        if let (Some(on_loss), Some(fault)) = (self.on_loss.get(), self.fault.get()) {
            on_loss(fault);
        }
    }

    /// The first cause, if a rank has failed by itself.
    pub(crate) fn fault(&self) -> Option<&str> {
        self.fault.get().map(String::as_str)
    }

    /// Notes a cause without ending anything yet.
    pub(crate) fn note(&self, cause: &str) {
        self.fault.get_or_init(|| cause.to_owned());
    }

    /// Ends the communicator for all ranks; gives the first cause.
    pub(crate) fn by(&self, cause: impl FnOnce() -> String) -> &str {
        // Before the communicator ends, so that those whom that wakes find the cause.
        let fault = self.fault.get_or_init(|| self.echo.get().cloned().unwrap_or_else(cause));
        if let Some(comms) = self.comms.get() {
            let ended = comms.iter().filter(|comm| comm.abort().is_ok()).count();
            if ended == 0 {
                tracing::warn!("no rank could end the communicator");
            }
        }
        fault
    }

    /// A rank of another process is lost.
    pub(crate) fn lose(&self, cause: &str) {
        let cause = self.by(|| cause.to_owned());
        if let Some(on_loss) = self.on_loss.get() {
            on_loss(cause);
        }
    }

    /// A rank of another process failed because the communicator had ended: the cause is with another.
    pub(crate) fn hear(&self, echo: String) {
        let _ = self.echo.set(echo);
    }

    /// Waits for the word of the rank that failed first, where the communicator has ended and nobody in this process knows why.
    pub(crate) fn await_cause(&self) {
        let begun = Instant::now();
        while self.fault.get().is_none() && begun.elapsed() < PATIENCE {
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Whether the communicator has ended, by whichever rank.
    pub(crate) fn has_ended(&self) -> bool {
        self.comms.get().is_some_and(|comms| comms.iter().any(|comm| comm.status().is_err()))
    }
}
