//! One sequence: the engine's events in, pieces of text out.

use std::sync::Arc;

use futures_util::StreamExt;
use halyard_engine::{
    EngineEvent, FinishReason, PromptOutput, RequestError, TokenLogprobs, TokenOutput,
};
use halyard_text::StopMatcher;

use crate::{engine::Events, metrics::Metrics, text::TextStream, wire::StopReason};

/// What one event of the engine led to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Piece {
    /// Text to append; empty while it is held back.
    pub text: String,
    /// The token that was chosen.
    pub token: Option<Token>,
    /// The prompt has been computed.
    pub prompt: Option<PromptOutput>,
    /// The sequence has ended.
    pub finish: Option<Finish>,
}

/// A chosen token.
#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    /// Its id.
    pub id: u32,
    /// If asked for.
    pub logprobs: Option<TokenLogprobs>,
}

/// How a sequence ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finish {
    /// `stop`, `length` or `abort`.
    pub reason: &'static str,
    /// The string or id that stopped it.
    pub stop: Option<StopReason>,
}

/// A sequence under way.
pub(super) struct Choice {
    pub(super) events: Option<Events>,
    pub(super) decoder: Box<dyn TextStream>,
    pub(super) stops: StopMatcher,
    pub(super) metrics: Arc<Metrics>,
    /// Ids after which the engine's next event is `Finished`.
    pub(super) stop_ids: Arc<[u32]>,
    /// Tokens after which the engine's next event is `Finished`.
    pub(super) max_tokens: u32,
    /// Stop strings count after these.
    pub(super) min_tokens: u32,
    /// A stop token's text is part of the text.
    pub(super) include_stop: bool,
    /// Tokens so far.
    pub(super) num_tokens: u32,
    /// Taken off the stream too early.
    pub(super) pending: Option<EngineEvent>,
}

impl Choice {
    /// The next piece; `None` after the end or an error.
    pub(super) async fn next(&mut self) -> Option<Result<Piece, RequestError>> {
        let event = self.next_event().await?;
        let result = match event {
            Some(EngineEvent::Prompt(prompt)) => {
                Ok(Piece { prompt: Some(prompt), ..Piece::default() })
            }
            Some(EngineEvent::Token(token)) => self.token(token).await,
            Some(EngineEvent::Finished(reason)) => Ok(self.finished(Piece::default(), reason)),
            Some(EngineEvent::Failed(error)) => Err(error),
            None => Err(ended_early()),
        };
        if result.is_err() {
            self.end("error");
        }
        Some(result)
    }

    /// `None` after the end; `Some(None)` if the engine's stream broke off.
    async fn next_event(&mut self) -> Option<Option<EngineEvent>> {
        let events = self.events.as_mut()?;
        if let Some(event) = self.pending.take() {
            return Some(Some(event));
        }
        Some(events.next().await)
    }

    async fn token(&mut self, token: TokenOutput) -> Result<Piece, RequestError> {
        self.num_tokens += 1;
        // The engine says at once that this was the last token. Waiting for it puts the reason into
        // the token's own piece, and says whether the token is one whose text is left out.
        let is_last = self.num_tokens >= self.max_tokens || self.stop_ids.contains(&token.id);
        let mut finish = None;
        if is_last {
            match self.next_event().await.flatten() {
                Some(EngineEvent::Finished(reason)) => finish = Some(reason),
                Some(EngineEvent::Failed(error)) => return Err(error),
                other => self.pending = other,
            }
        }
        let stopped_by_token =
            matches!(finish, Some(FinishReason::EndOfSequence | FinishReason::StopToken(_)));
        let text = if stopped_by_token && !self.include_stop {
            String::new()
        } else {
            self.decoder.push(token.id)
        };
        let mut piece = Piece {
            token: Some(Token { id: token.id, logprobs: token.logprobs }),
            ..Piece::default()
        };
        if self.append(&mut piece, &text) {
            return Ok(piece);
        }
        Ok(match finish {
            None => piece,
            Some(reason) => self.finished(piece, reason),
        })
    }

    /// Adds text to a piece, through the stop strings; true if one of them ended the sequence.
    fn append(&mut self, piece: &mut Piece, text: &str) -> bool {
        if self.num_tokens <= self.min_tokens {
            piece.text.push_str(text);
            return false;
        }
        let output = self.stops.push(text);
        piece.text.push_str(&output.text);
        let Some(stop) = output.matched else { return false };
        piece.finish = Some(Finish { reason: "stop", stop: Some(StopReason::Text(stop)) });
        self.end("stop");
        true
    }

    fn finished(&mut self, mut piece: Piece, reason: FinishReason) -> Piece {
        let rest = self.decoder.finish();
        if self.append(&mut piece, &rest) {
            return piece;
        }
        piece.text.push_str(&self.stops.finish());
        let (reason, stop) = match reason {
            FinishReason::EndOfSequence => ("stop", None),
            FinishReason::StopToken(id) => ("stop", Some(StopReason::Id(id))),
            FinishReason::Length => ("length", None),
            FinishReason::Aborted => ("abort", None),
        };
        self.end(reason);
        piece.finish = Some(Finish { reason, stop });
        piece
    }

    /// Lets go of the engine's request.
    fn end(&mut self, reason: &'static str) {
        if self.events.take().is_some() {
            self.metrics.finished(reason);
        }
    }
}

fn ended_early() -> RequestError {
    RequestError::EngineDead("the request ended without a reason".into())
}

impl Drop for Choice {
    fn drop(&mut self) {
        self.end("abort");
    }
}
