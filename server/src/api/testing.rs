//! A scripted engine and a tokenizer of bytes, so that the API can be tested without a model.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    http::{Request, Response, StatusCode, header},
};
use futures_util::{StreamExt, stream};
use halyard_engine::{
    DecodeGraphs, EngineEvent, EngineInfo, EngineRequest, FinishReason, PromptOutput, RequestError,
    SubmitError, TokenLogprobs, TokenOutput,
};
use http_body_util::BodyExt;
use serde_json::Value;
use tower::ServiceExt;

use super::{App, AppOptions, router};
use crate::{
    engine::{Engine, Events},
    metrics::Metrics,
    text::{Chat, ChatError, Text, TextStream},
};

/// The id that ends a sequence.
pub(crate) const EOS: u32 = 256;
/// The id before a text.
pub(crate) const BOS: u32 = 257;

/// What the scripted engine does next for a request.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Event(EngineEvent),
    Sleep(Duration),
    /// Nothing more happens.
    Hang,
}

type Script = Box<dyn Fn(&EngineRequest, usize) -> Vec<Step> + Send + Sync>;

/// An engine that plays a script a request.
pub(crate) struct ScriptedEngine {
    info: EngineInfo,
    script: Script,
    pub(crate) queue_limit: AtomicUsize,
    pub(crate) requests: Mutex<Vec<EngineRequest>>,
    pub(crate) active: Arc<AtomicUsize>,
    pub(crate) draining: AtomicBool,
    pub(crate) dead: AtomicBool,
}

impl std::fmt::Debug for ScriptedEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ScriptedEngine")
    }
}

impl ScriptedEngine {
    pub(crate) fn new(
        script: impl Fn(&EngineRequest, usize) -> Vec<Step> + Send + Sync + 'static,
    ) -> Arc<Self> {
        let info = EngineInfo {
            max_model_len: 256,
            vocab_size: 258,
            eos_token_ids: vec![EOS],
            block_size: 16,
            num_blocks: 64,
            max_num_seqs: 8,
            max_num_batched_tokens: 512,
            prefix_caching: true,
            max_logprobs: 5,
            dtype: "float32".into(),
            device: "scripted".into(),
            tensor_parallel_size: 1,
            weight_bytes: 0,
            kv_bytes: 0,
            dispatch: None,
            graphs: DecodeGraphs::Off("nothing runs".into()),
        };
        Arc::new(Self {
            info,
            script: Box::new(script),
            queue_limit: AtomicUsize::new(usize::MAX),
            requests: Mutex::default(),
            active: Arc::default(),
            draining: AtomicBool::new(false),
            dead: AtomicBool::new(false),
        })
    }

    /// Answers every request with this text and the end of the sequence.
    pub(crate) fn says(text: &'static str) -> Arc<Self> {
        Self::new(move |request, _| answer(request, text.as_bytes()))
    }
}

impl Engine for ScriptedEngine {
    fn info(&self) -> &EngineInfo {
        &self.info
    }

    fn submit(&self, request: EngineRequest) -> Result<Events, SubmitError> {
        if self.dead.load(Ordering::SeqCst) {
            return Err(SubmitError::EngineDead("scripted".into()));
        }
        if self.draining.load(Ordering::SeqCst) {
            return Err(SubmitError::ShuttingDown);
        }
        let waiting = self.active.load(Ordering::SeqCst);
        let limit = self.queue_limit.load(Ordering::SeqCst);
        if waiting >= limit {
            return Err(SubmitError::QueueFull { waiting, limit });
        }
        let mut requests = self.requests.lock().expect("no panic under it");
        let steps = (self.script)(&request, requests.len());
        requests.push(request);
        let guard = Active::enter(&self.active);
        let events = stream::iter(steps).fuse().filter_map(move |step| {
            let _ = &guard;
            async {
                match step {
                    Step::Event(event) => Some(event),
                    Step::Sleep(time) => {
                        tokio::time::sleep(time).await;
                        None
                    }
                    Step::Hang => std::future::pending().await,
                }
            }
        });
        Ok(Box::pin(events))
    }

    fn health(&self) -> Result<(), String> {
        if self.dead.load(Ordering::SeqCst) { Err("scripted death".into()) } else { Ok(()) }
    }

    fn load(&self) -> usize {
        self.active.load(Ordering::SeqCst)
    }

    fn begin_drain(&self) {
        self.draining.store(true, Ordering::SeqCst);
    }

    fn shutdown(&self) {
        self.dead.store(true, Ordering::SeqCst);
    }
}

/// Counts a request from its submission to the end of its stream.
struct Active(Arc<AtomicUsize>);

impl Active {
    fn enter(active: &Arc<AtomicUsize>) -> Self {
        active.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(active))
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// What a model that wants to say `bytes` would do under the request's parameters.
pub(crate) fn answer(request: &EngineRequest, bytes: &[u8]) -> Vec<Step> {
    let params = &request.params;
    let prompt_logprobs = params.prompt_logprobs.map(|k| {
        let entry = |(i, &id): (usize, &u32)| (i > 0).then(|| logprobs(id, k));
        request.prompt.iter().enumerate().map(entry).collect()
    });
    let prompt = PromptOutput { cached_tokens: 4, logprobs: prompt_logprobs };
    let mut steps = vec![Step::Event(EngineEvent::Prompt(prompt))];
    let mut finish = FinishReason::Length;
    let ids = bytes.iter().map(|&byte| u32::from(byte)).chain([EOS]);
    for (count, id) in (0_u32..).zip(ids) {
        if count >= params.max_tokens {
            break;
        }
        let logprobs = params.logprobs.map(|k| logprobs(id, k));
        steps.push(Step::Event(EngineEvent::Token(TokenOutput { id, logprobs })));
        if id == EOS && !params.ignore_eos {
            finish = FinishReason::EndOfSequence;
        }
        if params.stop_token_ids.contains(&id) {
            finish = FinishReason::StopToken(id);
            break;
        }
    }
    steps.push(Step::Event(EngineEvent::Finished(finish)));
    steps
}

/// The chosen id at -0.5 and the ids after it below.
fn logprobs(id: u32, k: u32) -> TokenLogprobs {
    let top = (0..k).map(|i| {
        let below = f32::from(u8::try_from(i).expect("few"));
        ((id + i) % 256, -0.5 - below)
    });
    TokenLogprobs { logprob: -0.5, top: top.collect() }
}

/// Fails after a beginning.
pub(crate) fn failing_after(tokens: usize) -> Arc<ScriptedEngine> {
    ScriptedEngine::new(move |_, _| {
        let token = TokenOutput { id: u32::from(b'x'), logprobs: None };
        let mut steps = vec![Step::Event(EngineEvent::Token(token)); tokens];
        let error = RequestError::Device("kernel `matmul` failed".into());
        steps.push(Step::Event(EngineEvent::Failed(error)));
        steps
    })
}

/// A token a byte.
#[derive(Debug)]
pub(crate) struct ByteText;

impl Text for ByteText {
    fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, String> {
        assert!(!text.contains("make the tokenizer panic"), "as asked for");
        let bos = add_special_tokens.then_some(BOS);
        Ok(bos.into_iter().chain(text.bytes().map(u32::from)).collect())
    }

    fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> String {
        let keep = |id: &&u32| !skip_special_tokens || **id < EOS;
        let bytes: Vec<u8> = ids.iter().filter(keep).flat_map(|&id| self.token_bytes(id)).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn token_bytes(&self, id: u32) -> Vec<u8> {
        match id {
            EOS => b"</s>".to_vec(),
            BOS => b"<s>".to_vec(),
            id => u8::try_from(id).map(|byte| vec![byte]).unwrap_or_default(),
        }
    }

    fn stream(&self, skip_special_tokens: bool) -> Box<dyn TextStream> {
        Box::new(ByteStream { held: Vec::new(), skip_special_tokens })
    }

    fn chat(&self, chat: &Chat<'_>) -> Result<String, ChatError> {
        let mut prompt = String::new();
        for message in chat.messages.as_array().expect("a list") {
            let role = message["role"].as_str().unwrap_or_default();
            if role == "forbidden" {
                return Err(ChatError::Messages("no such role".into()));
            }
            let content = match &message["content"] {
                Value::Array(parts) => parts
                    .iter()
                    .filter_map(|part| part["text"].as_str())
                    .collect::<Vec<_>>()
                    .join("+"),
                content => content.as_str().unwrap_or_default().to_owned(),
            };
            prompt.push_str(&format!("{role}: {content}\n"));
        }
        if let Some(extra) = chat.kwargs.get("extra").and_then(Value::as_str) {
            prompt.push_str(extra);
        }
        if chat.continue_final_message {
            prompt.pop();
        }
        if chat.add_generation_prompt {
            prompt.push_str("assistant: ");
        }
        Ok(prompt)
    }

    fn longest_token_bytes(&self) -> usize {
        4
    }
}

struct ByteStream {
    held: Vec<u8>,
    skip_special_tokens: bool,
}

impl TextStream for ByteStream {
    fn push(&mut self, id: u32) -> String {
        if id >= EOS && self.skip_special_tokens {
            return String::new();
        }
        self.held.extend(ByteText.token_bytes(id));
        match std::str::from_utf8(&self.held) {
            Ok(text) => {
                let text = text.to_owned();
                self.held.clear();
                text
            }
            Err(_) => String::new(),
        }
    }

    fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.held)).into_owned()
    }
}

/// The API over an engine, for requests in the same process.
pub(crate) struct Client {
    pub(crate) router: Router,
}

impl Client {
    pub(crate) fn new(engine: &Arc<ScriptedEngine>) -> Self {
        Self::with(engine, AppOptions::default())
    }

    pub(crate) fn with(engine: &Arc<ScriptedEngine>, options: AppOptions) -> Self {
        let options = AppOptions {
            model_names: vec!["tiny".into(), "org/tiny".into()],
            model_root: "models/tiny".into(),
            response_role: "assistant".into(),
            ..options
        };
        let metrics = Arc::new(Metrics::new("tiny", engine.info(), Vec::new()));
        let engine: Arc<dyn Engine> = Arc::clone(engine) as _;
        Self { router: router(Arc::new(App::new(engine, Arc::new(ByteText), metrics, options))) }
    }

    pub(crate) async fn send(&self, request: Request<Body>) -> Response<Body> {
        self.router.clone().oneshot(request).await.expect("infallible")
    }

    pub(crate) async fn get(&self, path: &str) -> (StatusCode, String) {
        let request = Request::get(path).body(Body::empty()).expect("a request");
        text(self.send(request).await).await
    }

    /// Posts JSON and reads the whole answer.
    pub(crate) async fn post_text(&self, path: &str, body: &Value) -> (StatusCode, String) {
        text(self.send(post(path, body)).await).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> (StatusCode, Value) {
        let (status, text) = self.post_text(path, body).await;
        (status, serde_json::from_str(&text).unwrap_or_else(|_| panic!("no JSON: {text}")))
    }

    /// Posts JSON that must be accepted.
    pub(crate) async fn ok(&self, path: &str, body: Value) -> Value {
        let (status, answer) = self.post(path, &body).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
        answer
    }

    /// Posts JSON that must be refused with 400; the parameter at fault and the message.
    pub(crate) async fn refused(&self, path: &str, body: Value) -> (String, String) {
        let (status, answer) = self.post(path, &body).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{answer}");
        let error = &answer["error"];
        assert_eq!(error["code"], 400, "{answer}");
        let string = |name: &str| error[name].as_str().expect("a string").to_owned();
        (string("param"), string("message"))
    }

    /// Posts JSON with `stream` and returns the events; `[DONE]` must be the last.
    pub(crate) async fn events(&self, path: &str, body: Value) -> Vec<Value> {
        let (status, text) = self.post_text(path, &body).await;
        assert_eq!(status, StatusCode::OK, "{text}");
        events(&text)
    }
}

/// The events of a stream.
pub(crate) fn events(text: &str) -> Vec<Value> {
    let mut events: Vec<&str> = text
        .strip_suffix("\n\n")
        .expect("a blank line at the end")
        .split("\n\n")
        .map(|event| event.strip_prefix("data: ").expect("exactly `data: `"))
        .collect();
    assert_eq!(events.pop(), Some("[DONE]"));
    events.iter().map(|event| serde_json::from_str(event).expect("JSON")).collect()
}

pub(crate) fn post(path: &str, body: &Value) -> Request<Body> {
    Request::post(path)
        .header(header::CONTENT_TYPE, "application/json")
        .body(Body::from(body.to_string()))
        .expect("a request")
}

async fn text(response: Response<Body>) -> (StatusCode, String) {
    let status = response.status();
    let body = response.into_body().collect().await.expect("a whole body").to_bytes();
    (status, String::from_utf8(body.to_vec()).expect("UTF-8"))
}
