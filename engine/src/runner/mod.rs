//! The seam between the loop and what computes.

mod device;
mod end;
mod followers;
mod mailbox;
mod model;
mod rank;
mod work;

pub(crate) use device::{Bounds, DeviceRunner};
pub(crate) use end::{End, OnLoss};
pub(crate) use mailbox::{Mailbox, Refused};
pub(crate) use model::Model;
pub(crate) use rank::Rank;
pub(crate) use work::{Order, Work};

use crate::{batch::Batch, request::TokenLogprobs, sequence::Sequence};

/// Runs a model over batches and chooses tokens. Lives on the engine's thread.
pub(crate) trait ModelRunner: Send {
    /// Computes a batch, which it may fill up with padding; `seqs` is the list that the batch's indices mean.
    ///
    /// On `Ok`, `out` holds one token for each of `batch.samples` and one list for each of
    /// `batch.prompts`. On `Err` the keys and values of the batch's tokens may hold anything.
    fn run(
        &mut self,
        batch: &mut Batch,
        seqs: &[Sequence],
        out: &mut StepOutput,
    ) -> Result<(), StepError>;

    /// Has a loss told that comes between two runs, if such can come.
    fn set_on_loss(&mut self, _on_loss: OnLoss) {}
}

/// What a step yields. The vectors keep their memory from step to step.
#[derive(Debug, Default)]
pub(crate) struct StepOutput {
    /// The chosen tokens, one for each of `batch.samples`.
    pub(crate) tokens: Vec<u32>,
    /// Their log-probabilities, for those who want them.
    pub(crate) logprobs: Vec<Option<TokenLogprobs>>,
    /// One list for each of `batch.prompts`, an entry a row.
    pub(crate) prompts: Vec<Vec<TokenLogprobs>>,
    /// Graphs that were launched.
    pub(crate) graphs: usize,
}

impl StepOutput {
    pub(crate) fn clear(&mut self) {
        self.tokens.clear();
        self.logprobs.clear();
        self.prompts.clear();
        self.graphs = 0;
    }
}

/// The device failed in a step.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct StepError {
    pub(crate) message: String,
    /// The device is of no use any more.
    pub(crate) sticky: bool,
}
