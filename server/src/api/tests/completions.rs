//! `/v1/completions`.

use serde_json::{Value, json};

use crate::api::{
    AppOptions,
    testing::{BOS, Client, ScriptedEngine, answer},
};

const PATH: &str = "/v1/completions";

fn text_of(events: &[Value], index: usize) -> String {
    let choices = events.iter().flat_map(|event| event["choices"].as_array().expect("choices"));
    choices
        .filter(|choice| choice["index"] == index)
        .map(|choice| choice["text"].as_str().expect("text"))
        .collect()
}

#[tokio::test]
async fn a_plain_completion() {
    let engine = ScriptedEngine::says("hello");
    let client = Client::new(&engine);
    let mut answer = client.ok(PATH, json!({"model": "tiny", "prompt": "ab"})).await;
    let id = answer["id"].take();
    assert!(id.as_str().expect("an id").starts_with("cmpl-"));
    assert!(answer["created"].take().as_u64().expect("seconds") > 1_700_000_000);
    let expected = json!({
        "id": null,
        "object": "text_completion",
        "created": null,
        "model": "tiny",
        "choices": [{
            "index": 0,
            "text": "hello",
            "logprobs": null,
            "finish_reason": "stop",
            "stop_reason": null,
        }],
        "usage": {"prompt_tokens": 3, "total_tokens": 9, "completion_tokens": 6},
        "system_fingerprint": format!("halyard-{}-float32", env!("CARGO_PKG_VERSION")),
    });
    assert_eq!(answer, expected);
    let requests = engine.requests.lock().expect("unpoisoned");
    assert_eq!(requests[0].prompt, [BOS, 97, 98]);
    assert_eq!(requests[0].params.max_tokens, 16);
}

#[tokio::test]
async fn parameters_reach_the_engine() {
    let engine = ScriptedEngine::says("x");
    let client = Client::new(&engine);
    let request = json!({
        "prompt": [1, 2], "max_tokens": 7, "temperature": 0.5, "top_p": 0.9, "top_k": -1,
        "min_p": 0.1, "presence_penalty": 1, "frequency_penalty": -2, "repetition_penalty": 1.5,
        "seed": -1, "stop_token_ids": [5, 9_999_999], "ignore_eos": true, "min_tokens": 2,
        "logit_bias": {"7": 200.0, "8": -1}, "allowed_token_ids": [7, 8, 120], "logprobs": 2,
        "cache_salt": "s", "user": "me", "unknown": {"a": [1]}, "stop": null, "stream": null,
    });
    client.ok(PATH, request).await;
    let requests = engine.requests.lock().expect("unpoisoned");
    let expected = halyard_engine::SamplingParams {
        temperature: 0.5,
        top_k: 0,
        top_p: 0.9,
        min_p: 0.1,
        repetition_penalty: 1.5,
        presence_penalty: 1.0,
        frequency_penalty: -2.0,
        seed: Some(u64::MAX),
        logit_bias: vec![(7, 100.0), (8, -1.0)],
        allowed_token_ids: Some(vec![7, 8, 120]),
        max_tokens: 7,
        min_tokens: 2,
        stop_token_ids: vec![5],
        ignore_eos: true,
        logprobs: Some(2),
        prompt_logprobs: None,
    };
    assert_eq!(requests[0].params, expected);
    assert_eq!(requests[0].prompt, [1, 2]);
    assert!(requests[0].cache_salt.is_some());
}

#[tokio::test]
async fn defaults_fill_what_is_left_out() {
    let engine = ScriptedEngine::says("x");
    let defaults = crate::generation::Defaults {
        temperature: Some(0.25),
        top_k: Some(5),
        max_new_tokens: Some(3),
        ..Default::default()
    };
    let client = Client::with(&engine, AppOptions { defaults, ..AppOptions::default() });
    client.ok(PATH, json!({"prompt": "a", "top_k": 7})).await;
    let requests = engine.requests.lock().expect("unpoisoned");
    let params = &requests[0].params;
    assert_eq!((params.temperature, params.top_k, params.max_tokens), (0.25, 7, 3));
}

#[tokio::test]
async fn a_stream_has_one_event_a_token() {
    let client = Client::new(&ScriptedEngine::says("hé!"));
    let request = json!({
        "prompt": "ab", "stream": true,
        "stream_options": {"include_usage": true, "continuous_usage_stats": false},
    });
    let events = client.events(PATH, request).await;
    // Four bytes and the end of the sequence, then the usage.
    assert_eq!(events.len(), 6);
    let texts: Vec<&str> =
        events[..5].iter().map(|e| e["choices"][0]["text"].as_str().expect("text")).collect();
    assert_eq!(texts, ["h", "", "é", "!", ""]);
    for event in &events[..4] {
        assert_eq!(event["choices"][0]["finish_reason"], Value::Null);
        assert_eq!(event.get("usage"), None);
        assert_eq!(event["id"], events[5]["id"]);
    }
    assert_eq!(events[4]["choices"][0]["finish_reason"], "stop");
    assert_eq!(events[5]["choices"], json!([]));
    let usage = json!({"prompt_tokens": 3, "total_tokens": 8, "completion_tokens": 5});
    assert_eq!(events[5]["usage"], usage);
}

#[tokio::test]
async fn usage_can_be_in_every_event() {
    let client = Client::new(&ScriptedEngine::says("ab"));
    let options = json!({"include_usage": true, "continuous_usage_stats": true});
    let request = json!({"prompt": "a", "stream": true, "stream_options": options});
    let events = client.events(PATH, request).await;
    let counts: Vec<u64> = events
        .iter()
        .map(|event| event["usage"]["completion_tokens"].as_u64().expect("a count"))
        .collect();
    assert_eq!(counts, [1, 2, 3, 3]);
}

#[tokio::test]
async fn unfinished_bytes_become_a_replacement() {
    let engine = ScriptedEngine::new(|request, _| answer(request, b"a\xc3"));
    let client = Client::new(&engine);
    let whole = client.ok(PATH, json!({"prompt": "a"})).await;
    assert_eq!(whole["choices"][0]["text"], "a\u{fffd}");
    let events = client.events(PATH, json!({"prompt": "a", "stream": true})).await;
    assert_eq!(text_of(&events, 0), "a\u{fffd}");
}

#[tokio::test]
async fn stop_strings_end_the_text() {
    let engine = ScriptedEngine::says("one END two");
    let client = Client::new(&engine);
    for (include, expected) in [(false, "one "), (true, "one END")] {
        let request = json!({
            "prompt": "a", "max_tokens": 50, "stop": ["END", "never"],
            "include_stop_str_in_output": include,
        });
        let whole = client.ok(PATH, request.clone()).await;
        let choice = &whole["choices"][0];
        assert_eq!(choice["text"], expected);
        assert_eq!(choice["finish_reason"], "stop");
        assert_eq!(choice["stop_reason"], "END");
        assert_eq!(whole["usage"]["completion_tokens"], 7);

        let mut request = request;
        request["stream"] = json!(true);
        let events = client.events(PATH, request).await;
        assert_eq!(text_of(&events, 0), expected);
        let last = &events.last().expect("events")["choices"][0];
        assert_eq!((&last["finish_reason"], &last["stop_reason"]), (&json!("stop"), &json!("END")));
        // Nothing of the stop string got out before it was whole.
        assert_eq!(text_of(&events[..6], 0), "one ");
    }
    assert_eq!(engine.active.load(std::sync::atomic::Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_beginning_of_a_stop_string_is_given_at_the_end() {
    let client = Client::new(&ScriptedEngine::says("one EN"));
    let request = json!({"prompt": "a", "max_tokens": 50, "stop": "END"});
    let whole = client.ok(PATH, request).await;
    assert_eq!(whole["choices"][0]["text"], "one EN");
    let request = json!({"prompt": "a", "max_tokens": 6, "stop": "END", "stream": true});
    let events = client.events(PATH, request).await;
    assert_eq!(text_of(&events, 0), "one EN");
    assert_eq!(events[5]["choices"][0]["finish_reason"], "length");
}

#[tokio::test]
async fn stop_strings_wait_for_min_tokens() {
    let client = Client::new(&ScriptedEngine::says("a,b,c,d"));
    let request = json!({"prompt": "a", "stop": ",", "min_tokens": 4});
    let whole = client.ok(PATH, request).await;
    assert_eq!(whole["choices"][0]["text"], "a,b,c");
    let request = json!({"prompt": "a", "stop": ",", "min_tokens": 3});
    let whole = client.ok(PATH, request).await;
    assert_eq!(whole["choices"][0]["text"], "a,b");
}

#[tokio::test]
async fn stop_tokens_end_the_text() {
    let client = Client::new(&ScriptedEngine::says("a.b"));
    let request = json!({"prompt": "a", "stop_token_ids": [46]});
    let whole = client.ok(PATH, request).await;
    let choice = &whole["choices"][0];
    assert_eq!((&choice["text"], &choice["stop_reason"]), (&json!("a"), &json!(46)));
    let request = json!({
        "prompt": "a", "stop_token_ids": [46], "include_stop_str_in_output": true,
    });
    let whole = client.ok(PATH, request).await;
    assert_eq!(whole["choices"][0]["text"], "a.");
}

#[tokio::test]
async fn several_prompts_and_choices() {
    let engine = ScriptedEngine::new(|request, number| {
        let prompt = char::from(u8::try_from(request.prompt[1]).expect("a byte"));
        answer(request, format!("{prompt}{number}").as_bytes())
    });
    let options = AppOptions { prompt_tokens_details: true, ..AppOptions::default() };
    let client = Client::with(&engine, options);
    let request = json!({"prompt": ["a", "b"], "n": 2, "seed": 7});
    let whole = client.ok(PATH, request).await;
    let texts: Vec<&Value> =
        whole["choices"].as_array().expect("choices").iter().map(|c| &c["text"]).collect();
    assert_eq!(texts, ["a0", "a1", "b2", "b3"]);
    let usage = json!({
        "prompt_tokens": 4, "total_tokens": 16, "completion_tokens": 12,
        "prompt_tokens_details": {"cached_tokens": 8},
    });
    assert_eq!(whole["usage"], usage);
    let seeds: Vec<_> = {
        let requests = engine.requests.lock().expect("unpoisoned");
        requests.iter().map(|request| request.params.seed).collect()
    };
    assert_eq!(seeds, [Some(7), Some(8), Some(7), Some(8)]);

    let request = json!({"prompt": ["a", "b"], "n": 2, "stream": true});
    let events = client.events(PATH, request).await;
    let texts: Vec<String> = (0..4).map(|index| text_of(&events, index)).collect();
    assert_eq!(texts, ["a4", "a5", "b6", "b7"]);
    let finished = events.iter().filter(|e| e["choices"][0]["finish_reason"] == "stop");
    assert_eq!(finished.count(), 4);
}

#[tokio::test]
async fn the_best_of_several() {
    let engine = ScriptedEngine::new(|request, number| {
        let mut steps = answer(request, b"x");
        for step in &mut steps {
            use crate::api::testing::Step;
            if let Step::Event(halyard_engine::EngineEvent::Token(token)) = step {
                let logprobs = token.logprobs.as_mut().expect("asked for to rank by");
                logprobs.logprob = if number == 1 { -0.1 } else { -0.9 };
                token.id = if token.id < 256 {
                    48 + u32::try_from(number).expect("few")
                } else {
                    token.id
                };
            }
        }
        steps
    });
    let client = Client::new(&engine);
    let whole = client.ok(PATH, json!({"prompt": "a", "best_of": 3})).await;
    assert_eq!(whole["choices"].as_array().expect("choices").len(), 1);
    assert_eq!(whole["choices"][0]["text"], "1");
    assert_eq!(whole["choices"][0]["logprobs"], Value::Null);
    assert_eq!(whole["usage"]["completion_tokens"], 6);
}

#[tokio::test]
async fn logprobs_are_four_lists() {
    let client = Client::new(&ScriptedEngine::says("hé"));
    let whole = client.ok(PATH, json!({"prompt": "a", "logprobs": 2, "max_tokens": 3})).await;
    let expected = json!({
        "text_offset": [0, 1, 2],
        "token_logprobs": [-0.5, -0.5, -0.5],
        "tokens": ["h", "\u{fffd}", "\u{fffd}"],
        // Two ids with one text are one entry, the likelier.
        "top_logprobs": [{"h": -0.5, "i": -1.5}, {"\u{fffd}": -0.5}, {"\u{fffd}": -0.5}],
    });
    assert_eq!(whole["choices"][0]["logprobs"], expected);
    let request = json!({
        "prompt": "a", "logprobs": 0, "max_tokens": 2, "return_tokens_as_token_ids": true,
    });
    let whole = client.ok(PATH, request).await;
    let logprobs = &whole["choices"][0]["logprobs"];
    assert_eq!(logprobs["tokens"], json!(["token_id:104", "token_id:195"]));
    assert_eq!(logprobs["top_logprobs"][0], json!({"token_id:104": -0.5}));
}

#[tokio::test]
async fn offsets_go_on_through_a_stream() {
    let client = Client::new(&ScriptedEngine::says("abc"));
    let request =
        json!({"prompt": "xy", "logprobs": 0, "stream": true, "echo": true, "max_tokens": 2});
    let events = client.events(PATH, request).await;
    let offsets: Vec<&Value> =
        events.iter().map(|event| &event["choices"][0]["logprobs"]["text_offset"]).collect();
    assert_eq!(offsets, [&json!([0, 3, 4]), &json!([5]), &json!([6])]);
    assert_eq!(text_of(&events, 0), "xyab");
}

#[tokio::test]
async fn echo_scores_a_prompt() {
    let client = Client::new(&ScriptedEngine::says("z"));
    let request = json!({"prompt": [97, 98], "echo": true, "max_tokens": 0, "logprobs": 1});
    let whole = client.ok(PATH, request).await;
    let choice = &whole["choices"][0];
    assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!("ab"), &json!("length")));
    let expected = json!({
        "text_offset": [0, 1],
        "token_logprobs": [null, -0.5],
        "tokens": ["a", "b"],
        "top_logprobs": [null, {"b": -0.5}],
    });
    assert_eq!(choice["logprobs"], expected);
    assert_eq!(whole["usage"]["completion_tokens"], 0);
    let request = json!({"prompt": "ab", "echo": true, "max_tokens": 1});
    let whole = client.ok(PATH, request).await;
    assert_eq!(whole["choices"][0]["text"], "abz");
}

#[tokio::test]
async fn prompt_logprobs_and_ids() {
    let client = Client::new(&ScriptedEngine::says("z"));
    let request = json!({
        "prompt": [97, 98], "prompt_logprobs": 2, "return_token_ids": true, "max_tokens": 1,
    });
    let whole = client.ok(PATH, request).await;
    let choice = &whole["choices"][0];
    let expected = json!([null, {
        "98": {"logprob": -0.5, "rank": 1, "decoded_token": "b"},
        "99": {"logprob": -1.5, "rank": 2, "decoded_token": "c"},
    }]);
    assert_eq!(choice["prompt_logprobs"], expected);
    assert_eq!(choice["prompt_token_ids"], json!([97, 98]));
    assert_eq!(choice["token_ids"], json!([122]));
}

#[tokio::test]
async fn prompts_are_cut_when_asked() {
    let engine = ScriptedEngine::says("z");
    let client = Client::new(&engine);
    client.ok(PATH, json!({"prompt": "abcdef", "truncate_prompt_tokens": 2})).await;
    let long = "x".repeat(100_000);
    let request = json!({"prompt": long, "truncate_prompt_tokens": -1, "max_tokens": 6});
    client.ok(PATH, request).await;
    let requests = engine.requests.lock().expect("unpoisoned");
    assert_eq!(requests[0].prompt, [101, 102]);
    assert_eq!(requests[1].prompt.len(), 250);
}

#[tokio::test]
async fn special_tokens_can_be_shown() {
    let client = Client::new(&ScriptedEngine::says("z"));
    let request =
        json!({"prompt": "a", "ignore_eos": true, "max_tokens": 2, "skip_special_tokens": false});
    let whole = client.ok(PATH, request).await;
    assert_eq!(whole["choices"][0]["text"], "z</s>");
    let request = json!({"prompt": "a", "ignore_eos": true, "max_tokens": 2});
    let whole = client.ok(PATH, request).await;
    assert_eq!(whole["choices"][0]["text"], "z");
}
