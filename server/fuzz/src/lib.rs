//! An engine and a tokenizer of bytes for fuzzing the API: every path but the model's own.
//!
//! `cargo +nightly fuzz run --fuzz-dir server/fuzz http`

use std::sync::Arc;

use axum::Router;
use futures_util::stream;
use halyard_engine::{
    DecodeGraphs, EngineEvent, EngineInfo, EngineRequest, FinishReason, PromptOutput, SubmitError,
    TokenLogprobs, TokenOutput,
};
use halyard_server::{
    api::{App, AppOptions, router},
    engine::{Engine, Events},
    metrics::Metrics,
    text::{Chat, ChatError, Text, TextStream},
};

const EOS: u32 = 256;

/// The whole API over an engine that repeats the prompt.
pub fn api() -> Router {
    let info = EngineInfo {
        max_model_len: 64,
        vocab_size: 257,
        eos_token_ids: vec![EOS],
        block_size: 16,
        num_blocks: 16,
        max_num_seqs: 4,
        max_num_batched_tokens: 64,
        prefix_caching: true,
        max_logprobs: 5,
        dtype: "float32".into(),
        device: "none".into(),
        tensor_parallel_size: 1,
        weight_bytes: 0,
        kv_bytes: 0,
        dispatch: None,
        graphs: DecodeGraphs::Off("nothing runs".into()),
    };
    let metrics = Arc::new(Metrics::new("m", &info));
    let options = AppOptions {
        model_names: vec!["m".into(), "a/b".into()],
        response_role: "assistant".into(),
        priority_allowed: true,
        prompt_tokens_details: true,
        request_id_headers: true,
        access_log: true,
        log_requests: true,
        ..AppOptions::default()
    };
    router(Arc::new(App::new(Arc::new(Echo(info)), Arc::new(Bytes), metrics, options)))
}

#[derive(Debug)]
struct Echo(EngineInfo);

impl Engine for Echo {
    fn info(&self) -> &EngineInfo {
        &self.0
    }

    fn submit(&self, request: EngineRequest) -> Result<Events, SubmitError> {
        // What the server has to keep: the engine is never given what it would have to refuse.
        let params = &request.params;
        let length = request.prompt.len() + params.max_tokens as usize;
        assert!(!request.prompt.is_empty() && length <= self.0.max_model_len);
        assert!(request.prompt.iter().all(|&id| id <= EOS));
        assert!((0.0..=2.0).contains(&params.temperature));
        assert!(params.top_p > 0.0 && params.top_p <= 1.0);
        assert!((0.0..=1.0).contains(&params.min_p));
        assert!(params.repetition_penalty > 0.0);
        assert!(params.logit_bias.iter().all(|&(id, bias)| id <= EOS && bias.abs() <= 100.0));

        let logprobs = |id: u32, k: u32| TokenLogprobs {
            logprob: f32::NEG_INFINITY,
            top: (0..k).map(|i| ((id + i) % 257, f32::NEG_INFINITY)).collect(),
        };
        let of_prompt = params.prompt_logprobs.map(|k| {
            let entry = |(i, &id): (usize, &u32)| (i > 0).then(|| logprobs(id, k));
            request.prompt.iter().enumerate().map(entry).collect()
        });
        let prompt = PromptOutput { cached_tokens: 0, logprobs: of_prompt };
        let mut events = vec![EngineEvent::Prompt(prompt)];
        for &id in request.prompt.iter().cycle().take(params.max_tokens as usize) {
            let logprobs = params.logprobs.map(|k| logprobs(id, k));
            events.push(EngineEvent::Token(TokenOutput { id, logprobs }));
            let stops = params.stop_token_ids.contains(&id) || (id == EOS && !params.ignore_eos);
            if stops {
                events.push(EngineEvent::Finished(FinishReason::StopToken(id)));
                return Ok(Box::pin(stream::iter(events)));
            }
        }
        events.push(EngineEvent::Finished(FinishReason::Length));
        Ok(Box::pin(stream::iter(events)))
    }

    fn health(&self) -> Result<(), String> {
        Ok(())
    }

    fn load(&self) -> usize {
        0
    }

    fn begin_drain(&self) {}

    fn shutdown(&self) {}
}

/// A token a byte.
#[derive(Debug)]
struct Bytes;

impl Text for Bytes {
    fn encode(&self, text: &str, _: bool) -> Result<Vec<u32>, String> {
        Ok(text.bytes().map(u32::from).collect())
    }

    fn decode(&self, ids: &[u32], _: bool) -> String {
        let bytes: Vec<u8> = ids.iter().flat_map(|&id| self.token_bytes(id)).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn token_bytes(&self, id: u32) -> Vec<u8> {
        u8::try_from(id).map(|byte| vec![byte]).unwrap_or_default()
    }

    fn stream(&self, _: bool) -> Box<dyn TextStream> {
        Box::new(Lossy)
    }

    fn chat(&self, chat: &Chat<'_>) -> Result<String, ChatError> {
        Ok(chat.messages.to_string())
    }

    fn longest_token_bytes(&self) -> usize {
        1
    }
}

struct Lossy;

impl TextStream for Lossy {
    fn push(&mut self, id: u32) -> String {
        u8::try_from(id).map(|byte| char::from(byte).to_string()).unwrap_or_default()
    }

    fn finish(&mut self) -> String {
        String::new()
    }
}
