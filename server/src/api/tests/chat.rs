//! `/v1/chat/completions`.

use serde_json::{Value, json};

use crate::api::{
    AppOptions,
    testing::{Client, ScriptedEngine},
};

const PATH: &str = "/v1/chat/completions";

fn messages() -> Value {
    json!([{"role": "system", "content": ""}, {"role": "user", "content": "hi"}])
}

fn prompt_text(engine: &ScriptedEngine) -> String {
    let requests = engine.requests.lock().expect("unpoisoned");
    let ids = &requests.last().expect("a request").prompt;
    ids.iter().map(|&id| char::from(u8::try_from(id).expect("a byte"))).collect()
}

#[tokio::test]
async fn a_plain_chat() {
    let engine = ScriptedEngine::says("hello");
    let client = Client::new(&engine);
    let mut answer = client.ok(PATH, json!({"model": "org/tiny", "messages": messages()})).await;
    assert!(answer["id"].take().as_str().expect("an id").starts_with("chatcmpl-"));
    answer["created"].take();
    let expected = json!({
        "id": null,
        "object": "chat.completion",
        "created": null,
        "model": "org/tiny",
        "choices": [{
            "index": 0,
            "message": {"role": "assistant", "content": "hello"},
            "logprobs": null,
            "finish_reason": "stop",
            "stop_reason": null,
        }],
        "usage": {"prompt_tokens": 29, "total_tokens": 35, "completion_tokens": 6},
        "system_fingerprint": format!("halyard-{}-float32", env!("CARGO_PKG_VERSION")),
    });
    assert_eq!(answer, expected);
    assert_eq!(prompt_text(&engine), "system: \nuser: hi\nassistant: ");
    let requests = engine.requests.lock().expect("unpoisoned");
    assert_eq!(requests[0].params.max_tokens, 256 - 29);
}

#[tokio::test]
async fn a_stream_begins_with_the_role() {
    let client = Client::new(&ScriptedEngine::says("hi"));
    let request = json!({
        "messages": messages(), "stream": true, "stream_options": {"include_usage": true},
    });
    let mut events = client.events(PATH, request).await;
    for event in &mut events {
        assert!(event["id"].take().as_str().expect("an id").starts_with("chatcmpl-"));
        event["created"].take();
        assert_eq!(event["object"], "chat.completion.chunk");
    }
    let choices: Vec<&Value> = events.iter().map(|event| &event["choices"]).collect();
    let delta = |delta: Value, finish: Value| json!([{"index": 0, "delta": delta, "logprobs": null, "finish_reason": finish}]);
    assert_eq!(*choices[0], delta(json!({"role": "assistant", "content": ""}), Value::Null));
    assert_eq!(*choices[1], delta(json!({"content": "h"}), Value::Null));
    assert_eq!(*choices[2], delta(json!({"content": "i"}), Value::Null));
    assert_eq!(*choices[3], delta(json!({"content": ""}), json!("stop")));
    assert_eq!(*choices[4], json!([]));
    let usage = json!({"prompt_tokens": 29, "total_tokens": 32, "completion_tokens": 3});
    assert_eq!(events[4]["usage"], usage);
    assert_eq!(events.len(), 5);
}

#[tokio::test]
async fn every_choice_has_its_own_beginning_and_end() {
    let client = Client::new(&ScriptedEngine::says("hi"));
    let request = json!({"messages": messages(), "stream": true, "n": 3, "stop": "i"});
    let events = client.events(PATH, request).await;
    for index in 0..3 {
        let own: Vec<&Value> = events
            .iter()
            .map(|event| &event["choices"][0])
            .filter(|choice| choice["index"] == index)
            .collect();
        assert_eq!(own[0]["delta"]["role"], "assistant");
        let last = own.last().expect("events");
        assert_eq!((&last["finish_reason"], &last["stop_reason"]), (&json!("stop"), &json!("i")));
        let text: String =
            own.iter().filter_map(|choice| choice["delta"]["content"].as_str()).collect();
        assert_eq!(text, "h");
    }
}

#[tokio::test]
async fn logprobs_tell_tokens_and_bytes() {
    let client = Client::new(&ScriptedEngine::says("é"));
    let request =
        json!({"messages": messages(), "logprobs": true, "top_logprobs": 2, "max_tokens": 1});
    let whole = client.ok(PATH, request).await;
    let expected = json!({"content": [{
        "token": "\u{fffd}",
        "logprob": -0.5,
        "bytes": [195],
        "top_logprobs": [
            {"token": "\u{fffd}", "logprob": -0.5, "bytes": [195]},
            {"token": "\u{fffd}", "logprob": -1.5, "bytes": [196]},
        ],
    }]});
    assert_eq!(whole["choices"][0]["logprobs"], expected);
    let request =
        json!({"messages": messages(), "logprobs": true, "max_tokens": 2, "stream": true});
    let events = client.events(PATH, request).await;
    assert_eq!(events[0]["choices"][0]["logprobs"], Value::Null);
    for event in &events[1..] {
        let content = event["choices"][0]["logprobs"]["content"].as_array().expect("a list");
        assert_eq!(content.len(), 1);
        assert_eq!(content[0]["top_logprobs"], json!([]));
    }
}

#[tokio::test]
async fn contents_come_in_several_shapes() {
    let engine = ScriptedEngine::says("x");
    let client = Client::new(&engine);
    let request = json!({"messages": [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": null, "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "1", "content": "42", "name": null},
    ], "chat_template_kwargs": {"extra": "E"}, "tool_choice": "none", "functions": null});
    client.ok(PATH, request).await;
    assert_eq!(prompt_text(&engine), "user: a+b\nassistant: \ntool: 42\nEassistant: ");
}

#[tokio::test]
async fn the_last_message_can_be_continued() {
    let engine = ScriptedEngine::says("!");
    let client = Client::new(&engine);
    let messages = json!([{"role": "user", "content": "u"}, {"role": "poet", "content": "Oh"}]);
    let request = json!({
        "messages": messages, "continue_final_message": true, "add_generation_prompt": false,
        "echo": true,
    });
    let whole = client.ok(PATH, request.clone()).await;
    assert_eq!(whole["choices"][0]["message"], json!({"role": "poet", "content": "Oh!"}));
    assert_eq!(prompt_text(&engine), "user: u\npoet: Oh");
    let mut request = request;
    request["stream"] = json!(true);
    let events = client.events(PATH, request).await;
    let deltas: Vec<&Value> = events.iter().map(|event| &event["choices"][0]["delta"]).collect();
    assert_eq!(deltas[0]["role"], "poet");
    assert_eq!(deltas[1]["content"], "Oh");
    assert_eq!(deltas[2]["content"], "!");
}

#[tokio::test]
async fn limits_of_tokens_have_two_names() {
    let engine = ScriptedEngine::says("hello");
    let client = Client::new(&engine);
    let request = json!({"messages": messages(), "max_tokens": 5, "max_completion_tokens": 2});
    let whole = client.ok(PATH, request).await;
    let choice = &whole["choices"][0];
    assert_eq!(
        (&choice["message"]["content"], &choice["finish_reason"]),
        (&json!("he"), &json!("length"))
    );
}

#[tokio::test]
async fn ids_and_prompt_logprobs() {
    let client = Client::new(&ScriptedEngine::says("h"));
    let request = json!({
        "messages": [{"role": "u", "content": ""}], "add_generation_prompt": false,
        "return_token_ids": true, "prompt_logprobs": 0, "max_tokens": 1,
    });
    let whole = client.ok(PATH, request.clone()).await;
    assert_eq!(whole["prompt_token_ids"], json!([117, 58, 32, 10]));
    assert_eq!(whole["choices"][0]["token_ids"], json!([104]));
    let entry = json!({"58": {"logprob": -0.5, "rank": null, "decoded_token": ":"}});
    assert_eq!(whole["prompt_logprobs"][1], entry);
    let mut request = request;
    request["stream"] = json!(true);
    request["prompt_logprobs"] = Value::Null;
    let events = client.events(PATH, request).await;
    assert_eq!(events[0]["prompt_token_ids"], json!([117, 58, 32, 10]));
    assert_eq!(events[1]["choices"][0]["token_ids"], json!([104]));
}

#[tokio::test]
async fn the_clients_id_is_kept() {
    let client = Client::with(
        &ScriptedEngine::says("h"),
        AppOptions { request_id_headers: true, ..AppOptions::default() },
    );
    let whole = client.ok(PATH, json!({"messages": messages(), "request_id": "mine"})).await;
    assert_eq!(whole["id"], "chatcmpl-mine");
    let whole = client.ok(PATH, json!({"messages": messages(), "request_id": "not\nmine"})).await;
    assert!(!whole["id"].as_str().expect("an id").contains("mine"));
    let mut request = crate::api::testing::post(PATH, &json!({"messages": messages()}));
    request.headers_mut().insert("x-request-id", "theirs".parse().expect("a value"));
    let response = client.send(request).await;
    assert_eq!(response.headers()["x-request-id"], "theirs");
}
