//! The engine's thread: takes requests, steps the model, sends events.

use std::{
    any::Any,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        mpsc::{Receiver, TryRecvError, channel},
    },
    thread,
    time::Instant,
};

use crate::{
    batch::Batch,
    handle::EngineHandle,
    request::{
        EngineEvent, FinishReason, Observer, PromptOutput, RequestError, StepStats, TokenOutput,
    },
    runner::{ModelRunner, StepError, StepOutput},
    scheduler::{Scheduler, StepPlan},
    sequence::Sequence,
    shared::Shared,
};

/// What handles tell the loop.
#[derive(Debug)]
pub(crate) enum Message {
    Add(Box<Sequence>),
    Shutdown,
    /// A rank is lost, why.
    Lost(String),
}

/// Starts the engine's thread.
pub(crate) fn spawn(
    shared: Shared,
    scheduler: Scheduler,
    mut runner: impl ModelRunner + 'static,
    observer: Box<dyn Observer>,
) -> io::Result<EngineHandle> {
    let shared = Arc::new(shared);
    let (sender, inbox) = channel::<Message>();
    let sender = Arc::new(sender);
    // Not one that would keep the inbox open.
    let on_loss = Arc::downgrade(&sender);
    runner.set_on_loss(Box::new(move |cause| {
        if let Some(sender) = on_loss.upgrade() {
            let _ = sender.send(Message::Lost(cause.to_owned()));
        }
    }));
    let engine = EngineLoop::new(Arc::clone(&shared), inbox, scheduler, runner, observer);
    let thread = thread::Builder::new().name("halyard-engine".into()).spawn(|| engine.run())?;
    Ok(EngineHandle::new(shared, sender, thread))
}

/// Everything the engine's thread owns.
struct EngineLoop<R> {
    shared: Arc<Shared>,
    inbox: Receiver<Message>,
    scheduler: Scheduler,
    runner: R,
    observer: Box<dyn Observer>,
    batch: Batch,
    output: StepOutput,
}

/// Why the loop ends.
enum End {
    /// [`EngineHandle::shutdown`] was called.
    Shutdown,
    /// All handles are gone, and all requests done.
    Unused,
    /// The device is of no use any more.
    DeviceLost(String),
}

impl<R: ModelRunner> EngineLoop<R> {
    fn new(
        shared: Arc<Shared>,
        inbox: Receiver<Message>,
        scheduler: Scheduler,
        runner: R,
        observer: Box<dyn Observer>,
    ) -> Self {
        let info = &shared.info;
        let batch = Batch::with_capacity(
            info.max_num_batched_tokens,
            info.max_num_seqs,
            info.max_model_len.div_ceil(info.block_size).min(info.num_blocks),
        );
        Self { shared, inbox, scheduler, runner, observer, batch, output: StepOutput::default() }
    }

    /// Runs until told to stop. Whatever ends the loop, every caller gets a last event.
    fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        match catch_unwind(AssertUnwindSafe(|| self.serve())) {
            Ok(End::Unused) => shared.die("it is not in use any more".into()),
            Ok(End::Shutdown) => {
                shared.die("it was shut down".into());
                self.end_all(&Ok(FinishReason::Aborted));
            }
            Ok(End::DeviceLost(message)) => {
                let device = shared.info.device.as_str();
                tracing::error!(device, error = message, "the device is lost; the engine stops");
                shared.die(format!("the device is lost: {device}: {message}"));
                self.end_all(&Err(RequestError::Device(message)));
            }
            Err(panic) => {
                let message = panic_message(panic.as_ref());
                tracing::error!(panic = message, "the engine's loop panicked; the engine stops");
                shared.die(format!("its loop panicked: {message}"));
            }
        }
        // A step's panic leaves it marked as running; the cause of death says more.
        shared.step_ends();
        // Whoever is left, in the scheduler or the inbox, is told by the drop of its client. After a
        // panic these values may be in any state, so their own drops may panic too.
        let _ = catch_unwind(AssertUnwindSafe(move || drop(self)));
    }

    fn serve(&mut self) -> End {
        loop {
            if let Some(end) = self.receive() {
                return end;
            }
            self.retire_abandoned();
            if !self.scheduler.is_idle() {
                self.shared.step_begins();
                let result = self.step();
                self.shared.step_ends();
                if let Err(error) = result
                    && let Some(end) = self.fail_step(&error)
                {
                    return end;
                }
            }
        }
    }

    /// Takes all new messages; waits for one if there is nothing else to do.
    fn receive(&mut self) -> Option<End> {
        loop {
            let message = if self.scheduler.is_idle() {
                self.inbox.recv().map_err(|_| TryRecvError::Disconnected)
            } else {
                self.inbox.try_recv()
            };
            match message {
                Ok(Message::Add(seq)) => self.scheduler.add(*seq),
                Ok(Message::Shutdown) => return Some(End::Shutdown),
                Ok(Message::Lost(cause)) => return Some(End::DeviceLost(cause)),
                Err(TryRecvError::Empty) => return None,
                Err(TryRecvError::Disconnected) => {
                    return self.scheduler.is_idle().then_some(End::Unused);
                }
            }
        }
    }

    fn step(&mut self) -> Result<(), StepError> {
        let plan = self.scheduler.schedule();
        self.shared.set_congested(self.scheduler.num_waiting() > 0);
        for mut seq in self.scheduler.take_oversized() {
            finish(&mut seq, Ok(FinishReason::Length), self.observer.as_mut());
        }
        self.output.clear();
        if plan.tokens > 0 {
            self.batch.build(self.scheduler.running(), self.shared.info.block_size);
            self.runner.run(&mut self.batch, self.scheduler.running(), &mut self.output)?;
            self.deliver();
        }
        self.observe(&plan);
        Ok(())
    }

    /// Hands out what a step yielded, and takes out the sequences it ended.
    fn deliver(&mut self) {
        let observer = self.observer.as_mut();
        let seqs = self.scheduler.running_mut();
        for (rows, logprobs) in self.batch.prompts.iter().zip(self.output.prompts.drain(..)) {
            seqs[rows.seq].prompt_logprobs.extend(logprobs);
        }
        self.scheduler.commit();
        let seqs = self.scheduler.running_mut();
        seqs.iter_mut().for_each(announce_prompt);
        let chosen = self.output.tokens.iter().zip(self.output.logprobs.iter_mut());
        for (sample, (&id, logprobs)) in self.batch.samples.iter().zip(chosen) {
            let seq = &mut seqs[sample.seq];
            observe_token(seq, observer);
            let output = TokenOutput { id, logprobs: logprobs.take() };
            seq.client.send(EngineEvent::Token(output));
            seq.push(id, &self.shared.info.eos_token_ids);
        }
        self.scheduler.retire(
            |seq| seq.is_over(),
            |mut seq| {
                let reason = seq.finish.unwrap_or(FinishReason::Length);
                finish(&mut seq, Ok(reason), observer);
            },
        );
    }

    /// A failed step ends the requests that were in it; a lost device ends everything.
    fn fail_step(&mut self, error: &StepError) -> Option<End> {
        if error.sticky {
            return Some(End::DeviceLost(error.message.clone()));
        }
        tracing::error!(error = error.message, "a step failed on the device");
        self.scheduler.forget_prefixes();
        self.end(|seq| seq.scheduled > 0, &Err(RequestError::Device(error.message.clone())));
        None
    }

    fn retire_abandoned(&mut self) {
        self.end(|seq| seq.client.is_abandoned(), &Ok(FinishReason::Aborted));
    }

    fn end_all(&mut self, result: &Result<FinishReason, RequestError>) {
        while let Ok(message) = self.inbox.try_recv() {
            if let Message::Add(seq) = message {
                self.scheduler.add(*seq);
            }
        }
        self.end(|_| true, result);
    }

    fn end(
        &mut self,
        which: impl FnMut(&mut Sequence) -> bool,
        result: &Result<FinishReason, RequestError>,
    ) {
        let observer = self.observer.as_mut();
        self.scheduler.retire(which, |mut seq| finish(&mut seq, result.clone(), observer));
    }

    fn observe(&mut self, plan: &StepPlan) {
        self.observer.step(&StepStats {
            running: self.scheduler.running().len(),
            waiting: self.scheduler.num_waiting(),
            kv_usage: self.scheduler.kv_usage(),
            prompt_tokens: plan.prompt_tokens,
            generated_tokens: self.output.tokens.len(),
            preemptions: plan.preemptions,
            prefix_queries: plan.prefix_queries,
            prefix_hits: plan.prefix_hits,
            graphs: self.output.graphs,
        });
    }
}

/// Tells the caller that its prompt has been computed, once.
fn announce_prompt(seq: &mut Sequence) {
    if seq.computed < seq.prompt_len || std::mem::replace(&mut seq.announced, true) {
        return;
    }
    let logprobs = seq.params.prompt_logprobs.map(|_| {
        let known = std::mem::take(&mut seq.prompt_logprobs).into_iter().map(Some);
        std::iter::once(None).chain(known).collect()
    });
    let cached_tokens = seq.cached.unwrap_or(0);
    seq.client.send(EngineEvent::Prompt(PromptOutput { cached_tokens, logprobs }));
}

fn observe_token(seq: &mut Sequence, observer: &mut dyn Observer) {
    let now = Instant::now();
    let times = &mut seq.client.times;
    match times.last_token.replace(now) {
        None => {
            times.first_token = Some(now);
            observer.first_token(now.saturating_duration_since(times.arrival));
        }
        Some(previous) => observer.next_token(now.saturating_duration_since(previous)),
    }
}

fn finish(
    seq: &mut Sequence,
    result: Result<FinishReason, RequestError>,
    observer: &mut dyn Observer,
) {
    observer.request_finished(&seq.stats(result.as_ref().ok().copied()));
    seq.client.end(result);
}

/// What a panic said.
pub(crate) fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "without a message".into())
}

#[cfg(test)]
mod tests;
