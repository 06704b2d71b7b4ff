//! What is refused, and how.

use axum::{
    body::Body,
    http::{Request, StatusCode, header},
};
use serde_json::{Value, json};
use std::sync::atomic::Ordering;

use crate::api::testing::{Client, ScriptedEngine, failing_after};

const CHAT: &str = "/v1/chat/completions";
const PLAIN: &str = "/v1/completions";

/// A request with one field set.
fn with(path: &str, field: &str, value: Value) -> Value {
    let mut request = match path {
        CHAT => json!({"messages": [{"role": "user", "content": "hi"}]}),
        _ => json!({"prompt": "hi"}),
    };
    request[field] = value;
    request
}

#[tokio::test]
async fn ranges() {
    let client = Client::new(&ScriptedEngine::says("x"));
    for (field, value) in [
        ("temperature", json!(-1.0)),
        ("temperature", json!(2.5)),
        ("top_p", json!(0)),
        ("top_p", json!(1.5)),
        ("top_k", json!(-2)),
        ("min_p", json!(1.5)),
        ("presence_penalty", json!(2.5)),
        ("frequency_penalty", json!(-3)),
        ("repetition_penalty", json!(0)),
        ("n", json!(0)),
        ("n", json!(100_000)),
        ("best_of", json!(0)),
        ("max_tokens", json!(0)),
        ("max_tokens", json!(-1)),
        ("max_tokens", json!(9_000)),
        ("max_tokens", json!(5_000_000_000_u64)),
        ("min_tokens", json!(-1)),
        ("stop", json!("")),
        ("stop", json!(["a", ""])),
        ("stop", json!(vec!["a"; 1000])),
        ("logit_bias", json!({"258": 1})),
        ("logit_bias", json!({"x": 1})),
        ("allowed_token_ids", json!([])),
        ("allowed_token_ids", json!([258])),
        ("prompt_logprobs", json!(6)),
        ("prompt_logprobs", json!(-1)),
        ("priority", json!(1)),
        ("cache_salt", json!("")),
        ("cache_salt", json!("a/b")),
        ("stream_options", json!({"include_usage": true})),
        ("truncate_prompt_tokens", json!(0)),
        ("truncate_prompt_tokens", json!(1000)),
        ("response_format", json!({"type": "json_object"})),
        ("response_format", json!({"type": "json_schema", "json_schema": {}})),
        ("response_format", json!({"type": "poem"})),
        ("structured_outputs", json!({"regex": "a"})),
        ("guided_json", json!({})),
        ("guided_regex", json!("a")),
        ("guided_choice", json!(["a"])),
        ("guided_grammar", json!("a")),
        ("suffix", json!("a")),
        ("use_beam_search", json!(true)),
        ("bad_words", json!(["a"])),
        ("logits_processors", json!(["a"])),
    ] {
        for path in [CHAT, PLAIN] {
            let (param, message) = client.refused(path, with(path, field, value.clone())).await;
            assert_eq!(param, field, "{message}");
            assert!(message.contains(field) || message.contains("Stream"), "{field}: {message}");
        }
    }
}

#[tokio::test]
async fn ranges_of_one_endpoint() {
    let client = Client::new(&ScriptedEngine::says("x"));
    for (path, field, value) in [
        (PLAIN, "logprobs", json!(6)),
        (PLAIN, "logprobs", json!(-1)),
        (PLAIN, "prompt", json!([])),
        (PLAIN, "prompt", json!([258])),
        (PLAIN, "prompt", json!([[]])),
        (PLAIN, "prompt", Value::Null),
        (PLAIN, "prompt_embeds", json!("AAAA")),
        (CHAT, "messages", json!([])),
        (CHAT, "messages", Value::Null),
        (CHAT, "messages", json!([{"role": "forbidden", "content": "x"}])),
        (CHAT, "top_logprobs", json!(2)),
        (CHAT, "max_completion_tokens", json!(0)),
        (CHAT, "tools", json!([])),
        (CHAT, "tools", json!([{"type": "function", "function": {"name": "f"}}])),
        (CHAT, "tool_choice", json!("auto")),
        (CHAT, "functions", json!([])),
        (CHAT, "chat_template", json!("{{ x }}")),
        (CHAT, "audio", json!({})),
        (CHAT, "modalities", json!(["text", "audio"])),
        (CHAT, "web_search_options", json!({})),
    ] {
        let (param, message) = client.refused(path, with(path, field, value)).await;
        assert_eq!(param, field, "{message}");
    }
    let request = json!({"messages": [{"role": "user", "content": [
        {"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": "x"}}]}]});
    let (param, message) = client.refused(CHAT, request).await;
    assert_eq!(param, "messages[0].content[1].type");
    assert!(message.contains("`image_url`"), "{message}");
}

#[tokio::test]
async fn fields_that_exclude_each_other() {
    let client = Client::new(&ScriptedEngine::says("x"));
    let (param, message) =
        client.refused(PLAIN, json!({"prompt": "a", "n": 2, "temperature": 0})).await;
    assert_eq!(param, "n");
    assert_eq!(message, "n must be 1 when using greedy sampling, got 2.");
    let (param, _) = client.refused(PLAIN, json!({"prompt": "a", "n": 3, "best_of": 2})).await;
    assert_eq!(param, "best_of");
    let request = json!({"prompt": "a", "best_of": 2, "stream": true});
    assert_eq!(client.refused(PLAIN, request).await.0, "best_of");
    let request = json!({"prompt": "a", "min_tokens": 5, "max_tokens": 4});
    assert_eq!(client.refused(PLAIN, request).await.0, "min_tokens");
    let request = json!({"prompt": "a", "prompt_logprobs": 1, "stream": true});
    assert_eq!(client.refused(PLAIN, request).await.0, "prompt_logprobs");
    let mut request = with(CHAT, "continue_final_message", json!(true));
    request["add_generation_prompt"] = json!(true);
    assert_eq!(client.refused(CHAT, request).await.0, "continue_final_message");
}

#[tokio::test]
async fn prompts_that_do_not_fit() {
    let client = Client::new(&ScriptedEngine::says("x"));
    let long = "x".repeat(256);
    for stream in [false, true] {
        let (param, message) =
            client.refused(PLAIN, json!({"prompt": long, "stream": stream})).await;
        assert_eq!(param, "input_tokens");
        assert!(message.starts_with("This model's maximum context length is 256 tokens. However, your prompt contains at least 257 input tokens."), "{message}");
    }
    let request = json!({"prompt": "x".repeat(200), "max_tokens": 100});
    let (_, message) = client.refused(PLAIN, request).await;
    assert!(
        message.contains(
            "you requested 100 output tokens and your prompt contains at least 201 input tokens"
        ),
        "{message}"
    );
    let (_, message) = client.refused(PLAIN, json!({"prompt": "x".repeat(1_000_000)})).await;
    assert!(message.contains("at least 250000 input tokens"), "{message}");
    let (param, message) = client.refused(PLAIN, json!({"prompt": "x", "max_tokens": 9000})).await;
    assert_eq!(param, "max_tokens");
    assert!(
        message.contains("max_tokens=9000 cannot be greater than max_model_len=256"),
        "{message}"
    );
}

#[tokio::test]
async fn unknown_models() {
    let client = Client::new(&ScriptedEngine::says("x"));
    for path in [CHAT, PLAIN] {
        let (status, answer) = client.post(path, &with(path, "model", json!("gpt"))).await;
        assert_eq!(status, StatusCode::NOT_FOUND);
        let expected = json!({"error": {
            "message": "The model `gpt` does not exist.",
            "type": "NotFoundError",
            "param": "model",
            "code": 404,
        }});
        assert_eq!(answer, expected);
        let (status, _) = client.post(path, &with(path, "model", Value::Null)).await;
        assert_eq!(status, StatusCode::OK);
    }
}

#[tokio::test]
async fn paths_methods_and_bodies() {
    let client = Client::new(&ScriptedEngine::says("x"));
    let send = async |request: Request<Body>| {
        let response = client.send(request).await;
        let status = response.status();
        let body = http_body_util::BodyExt::collect(response.into_body()).await.expect("a body");
        let body: Value = serde_json::from_slice(&body.to_bytes()).expect("the error object");
        assert_eq!(body["error"]["code"], status.as_u16(), "{body}");
        status
    };
    let json_post = |path: &str, body: Body| {
        Request::post(path)
            .header(header::CONTENT_TYPE, "application/json; charset=utf-8")
            .body(body)
            .expect("a request")
    };
    let empty = Body::empty;
    let get = |path: &str| Request::get(path).body(empty()).expect("a request");
    assert_eq!(send(get("/nothing")).await, StatusCode::NOT_FOUND);
    assert_eq!(send(get("/v1/nothing")).await, StatusCode::NOT_FOUND);
    assert_eq!(send(get("/v1/completions")).await, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(send(json_post("/health", empty())).await, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(send(json_post(PLAIN, empty())).await, StatusCode::BAD_REQUEST);
    assert_eq!(send(json_post(PLAIN, "[]".into())).await, StatusCode::BAD_REQUEST);
    assert_eq!(send(json_post(PLAIN, "{\"prompt\"".into())).await, StatusCode::BAD_REQUEST);
    let untyped = Request::post(PLAIN).body("{\"prompt\": \"a\"}".into()).expect("a request");
    assert_eq!(send(untyped).await, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    let large = vec![b' '; (16 << 20) + 1];
    assert_eq!(send(json_post(PLAIN, large.into())).await, StatusCode::PAYLOAD_TOO_LARGE);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_does_not_come() {
    let client = Client::new(&ScriptedEngine::says("x"));
    let never = futures_util::stream::pending::<Result<Vec<u8>, std::io::Error>>();
    let request = Request::post(PLAIN)
        .header(header::CONTENT_TYPE, "application/json")
        .body(Body::from_stream(never))
        .expect("a request");
    assert_eq!(client.send(request).await.status(), StatusCode::REQUEST_TIMEOUT);
}

#[tokio::test]
async fn a_full_queue() {
    let engine = ScriptedEngine::says("x");
    engine.queue_limit.store(1, Ordering::SeqCst);
    let client = Client::new(&engine);
    let request = json!({"prompt": ["a", "b"]});
    let response = client.send(crate::api::testing::post(PLAIN, &request)).await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(response.headers().contains_key(header::RETRY_AFTER));
    // The one that had been taken was let go.
    assert_eq!(engine.active.load(Ordering::SeqCst), 0);
    let (_, text) = client.get("/metrics").await;
    let line =
        r#"halyard:admission_rejections_total{model_name="tiny",engine="0",reason="queue_full"} 1"#;
    assert!(text.contains(line), "{text}");
}

#[tokio::test]
async fn failures_of_the_engine() {
    let client = Client::new(&failing_after(0));
    let (status, answer) = client.post(PLAIN, &json!({"prompt": "a"})).await;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(answer["error"]["type"], "InternalServerError");

    let client = Client::new(&failing_after(2));
    for path in [CHAT, PLAIN] {
        let events = client.events(path, with(path, "stream", json!(true))).await;
        let error = &events.last().expect("events")["error"];
        assert_eq!(error["code"], 500);
        assert!(error["message"].as_str().expect("a message").contains("matmul"), "{error}");
        assert!(events.len() >= 3);
    }

    let engine = ScriptedEngine::says("x");
    engine.dead.store(true, Ordering::SeqCst);
    let client = Client::new(&engine);
    let (status, answer) = client.post(PLAIN, &json!({"prompt": "a"})).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(answer["error"]["message"], "the engine has stopped: scripted");
    assert_eq!(client.get("/health").await.0, StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn an_engine_that_breaks_off() {
    for tokens in [0, 1, 16] {
        let engine = ScriptedEngine::new(move |request, _| {
            let mut steps = crate::api::testing::answer(request, &[b'x'; 16]);
            steps.truncate(1 + tokens);
            steps
        });
        let client = Client::new(&engine);
        let (status, _) = client.post(PLAIN, &json!({"prompt": "a"})).await;
        assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR, "after {tokens}");
        let events = client.events(PLAIN, json!({"prompt": "a", "stream": true})).await;
        assert_eq!(events.len(), tokens + 1);
        assert_eq!(events[tokens]["error"]["code"], 500);
    }
}

#[tokio::test]
async fn a_panic_is_an_answer() {
    let client = Client::new(&ScriptedEngine::says("x"));
    let (status, answer) = client.post(PLAIN, &json!({"prompt": "make the tokenizer panic"})).await;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(answer["error"]["code"], 500);
    let long = format!("make the tokenizer panic {}", "x".repeat(20_000));
    let request = json!({"prompt": long, "truncate_prompt_tokens": 5});
    let (status, _) = client.post(PLAIN, &request).await;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(client.get("/health").await.0, StatusCode::OK);
}
