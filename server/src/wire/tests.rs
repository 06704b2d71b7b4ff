//! The shapes on the wire, pinned by files: `golden/*.json`.

use serde::Serialize;
use serde_json::{Value, json};

use super::*;

fn pinned<T: Serialize>(value: &T, golden: &str) {
    let golden: Value = serde_json::from_str(golden).expect("JSON");
    let ours = serde_json::to_string_pretty(value).expect("JSON");
    let golden = serde_json::to_string_pretty(&golden).expect("JSON");
    assert_eq!(ours, golden, "also the order of the fields counts");
}

fn usage() -> Usage {
    Usage {
        prompt_tokens: 9,
        total_tokens: 12,
        completion_tokens: 3,
        prompt_tokens_details: Some(PromptTokensDetails { cached_tokens: 8 }),
    }
}

#[test]
fn completion() {
    let choice = CompletionChoice {
        index: 0,
        text: "a b".into(),
        logprobs: Some(CompletionLogprobs {
            text_offset: vec![0, 1],
            token_logprobs: vec![None, Some(-0.5)],
            tokens: vec!["a".into(), " b".into()],
            top_logprobs: vec![None, Some(Ordered(vec![(" b".into(), -0.5), (" c".into(), -1.5)]))],
        }),
        finish_reason: Some("stop"),
        stop_reason: Some(StopReason::Text("END".into())),
        prompt_logprobs: None,
        token_ids: Some(vec![1, 2]),
        prompt_token_ids: Some(vec![3]),
    };
    let whole = Completion {
        id: "cmpl-1".into(),
        object: "text_completion",
        created: 1_700_000_000,
        model: "m".into(),
        choices: vec![choice],
        usage: usage(),
        system_fingerprint: "fp".into(),
    };
    pinned(&whole, include_str!("golden/completion.json"));
}

#[test]
fn chat_completion() {
    let top = TopLogprob { token: "é".into(), logprob: -0.25, bytes: vec![195, 169] };
    let logprob = ChatLogprob {
        token: "é".into(),
        logprob: -0.25,
        bytes: vec![195, 169],
        top_logprobs: vec![top],
    };
    let choice = ChatChoice {
        index: 0,
        message: ResponseMessage { role: "assistant".into(), content: "é".into() },
        logprobs: Some(ChatLogprobs { content: vec![logprob] }),
        finish_reason: Some("stop"),
        stop_reason: Some(StopReason::Id(7)),
        token_ids: None,
    };
    let whole = ChatCompletion {
        id: "chatcmpl-1".into(),
        object: "chat.completion",
        created: 1_700_000_000,
        model: "m".into(),
        choices: vec![choice],
        usage: Usage { prompt_tokens_details: None, ..usage() },
        system_fingerprint: "fp".into(),
        prompt_logprobs: None,
        prompt_token_ids: None,
    };
    pinned(&whole, include_str!("golden/chat_completion.json"));
}

#[test]
fn chat_chunks() {
    let chunk = |choices, usage| ChatChunk {
        id: "chatcmpl-1".into(),
        object: "chat.completion.chunk",
        created: 1_700_000_000,
        model: "m".into(),
        choices,
        usage,
        system_fingerprint: "fp".into(),
        prompt_token_ids: None,
    };
    let part = |role: Option<&str>, content: &str, finish_reason| ChatChunkChoice {
        index: 0,
        delta: Delta { role: role.map(Into::into), content: Some(content.into()) },
        logprobs: None,
        finish_reason,
        stop_reason: None,
        token_ids: None,
    };
    let chunks = [
        chunk(vec![part(Some("assistant"), "", None)], None),
        chunk(vec![part(None, "hi", Some("length"))], None),
        chunk(Vec::new(), Some(Usage { prompt_tokens_details: None, ..usage() })),
    ];
    pinned(&chunks, include_str!("golden/chat_chunks.json"));
}

#[test]
fn error() {
    let error = ErrorObject {
        message: "n must be at least 1".into(),
        r#type: "BadRequestError",
        param: Some("n".into()),
        code: 400,
    };
    pinned(&ErrorBody { error }, include_str!("golden/error.json"));
}

#[test]
fn requests_take_every_field() {
    let mut chat: ChatRequest =
        serde_json::from_str(include_str!("golden/chat_request.json")).expect("a request");
    assert_eq!(chat.max_completion_tokens, Some(5));
    let messages = chat.messages.as_ref().expect("messages");
    assert_eq!((messages[0].role.as_str(), messages.len()), ("system", 3));
    assert_eq!(messages[2].extra["tool_call_id"], "call_1");
    let common = chat.take_common();
    assert_eq!(common.seed, Some(-1));
    assert_eq!(common.stop.expect("stops").into_vec(), ["a", "b"]);
    assert!(common.stream && !common.skip_special_tokens);
    assert!(common.logit_bias.expect("a bias")["5"] < 0.0);
    assert!(common.unsupported.guided_json.is_some());
    let options = common.stream_options.expect("options");
    assert_eq!((options.include_usage, options.continuous_usage_stats), (Some(true), None));

    let completion: CompletionRequest =
        serde_json::from_str(include_str!("golden/completion_request.json")).expect("a request");
    assert_eq!(completion.prompt, Some(Prompt::IdLists(vec![vec![1, 2], vec![3]])));
    assert_eq!((completion.logprobs, completion.echo), (Some(3), Some(true)));
}

#[test]
fn null_is_not_given() {
    let fields = [
        "model",
        "messages",
        "max_tokens",
        "temperature",
        "stop",
        "stream",
        "stream_options",
        "logit_bias",
        "tools",
        "response_format",
        "seed",
        "n",
        "logprobs",
        "top_logprobs",
    ];
    let request: Value = fields.iter().map(|field| ((*field).to_owned(), Value::Null)).collect();
    let request: ChatRequest = serde_json::from_value(request).expect("a request");
    assert!(request.tools.is_none() && request.messages.is_none());
    let message: Message =
        serde_json::from_value(json!({"role": "u", "content": null})).expect("one");
    assert!(message.content.is_none());
}
