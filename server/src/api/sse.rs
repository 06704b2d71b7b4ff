//! Answers as a stream of events.
//!
//! Each event is `data: `, a JSON object and a blank line, exactly: there are clients that cut the
//! first six bytes of every line. There are no comments and no keep-alives.

use std::collections::VecDeque;

use axum::{
    body::{Body, Bytes},
    http::header,
    response::{IntoResponse, Response},
};
use futures_util::stream;
use serde::Serialize;

use super::ApiError;
use crate::generation::{Piece, Run};

/// Turns pieces into events.
pub(super) trait Chunks: Send + 'static {
    /// The events for a piece of one sequence.
    fn piece(&mut self, index: usize, piece: Piece, events: &mut Events);
    /// The events after the last piece, before `[DONE]`.
    fn end(&mut self, events: &mut Events);
}

/// Events on their way out.
#[derive(Debug, Default)]
pub(super) struct Events(VecDeque<Bytes>);

impl Events {
    pub(super) fn push<T: Serialize>(&mut self, event: &T) {
        let mut line = b"data: ".to_vec();
        match serde_json::to_writer(&mut line, event) {
            Ok(()) => {
                line.extend_from_slice(b"\n\n");
                self.0.push_back(line.into());
            }
            // Our types hold only strings and numbers; were it to fail, the stream goes on without.
            Err(error) => tracing::error!(%error, "an event could not be written"),
        }
    }

    fn done(&mut self) {
        self.0.push_back(Bytes::from_static(b"data: [DONE]\n\n"));
    }
}

struct State<C> {
    /// `None` once all sequences have ended; dropping it aborts them.
    run: Option<Run>,
    chunks: C,
    events: Events,
}

/// The response whose body follows the run. Dropping the body aborts it.
pub(super) fn respond<C: Chunks>(run: Run, chunks: C) -> Response {
    let state = State { run: Some(run), chunks, events: Events::default() };
    let body = stream::unfold(state, async |mut state| {
        let event = state.next().await?;
        Some((Ok::<_, std::convert::Infallible>(event), state))
    });
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream; charset=utf-8"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    // Proxies of one well-known kind would otherwise hold the events back.
    let unbuffered = [("x-accel-buffering", "no")];
    (headers, unbuffered, Body::from_stream(body)).into_response()
}

impl<C: Chunks> State<C> {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(event) = self.events.0.pop_front() {
                return Some(event);
            }
            match self.run.as_mut()?.next().await {
                Some((index, Ok(piece))) => self.chunks.piece(index, piece, &mut self.events),
                Some((_, Err(error))) => {
                    tracing::error!(%error, "a request failed after its answer had begun");
                    self.run = None;
                    self.events.push(&ApiError::from(error).body());
                    self.events.done();
                }
                None => {
                    self.run = None;
                    self.chunks.end(&mut self.events);
                    self.events.done();
                }
            }
        }
    }
}
