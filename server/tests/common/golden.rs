//! What an independent implementation says of the golden models, and whether a server says the same.

use std::{fs, time::Duration};

use safetensors::SafeTensors;
use serde_json::{Value, json};

use super::{Client, MODELS, Server, value};

pub(crate) const PLAIN: &str = "/v1/completions";

/// A prompt, and what follows it where the likeliest token is always taken.
pub(crate) struct Prompt {
    /// None for models that share another's tokenizer.
    pub(crate) text: Option<String>,
    pub(crate) ids: Vec<u32>,
    pub(crate) generated: Vec<u32>,
}

/// Of `golden.json`, or of `golden.tensors` where there is none.
pub(crate) fn prompts(model: &str) -> Vec<Prompt> {
    let folder = format!("{MODELS}/{model}");
    match fs::read_to_string(format!("{folder}/golden.json")) {
        Ok(text) => of_text(&text),
        Err(_) => of_tensors(&fs::read(format!("{folder}/golden.tensors")).expect("a golden file")),
    }
}

fn of_text(text: &str) -> Vec<Prompt> {
    let golden: Value = serde_json::from_str(text).expect("JSON");
    let ids = |of: &Value| serde_json::from_value(of.clone()).expect("ids");
    let prompts = golden["prompts"].as_array().expect("prompts");
    let prompt = |prompt: &Value| Prompt {
        text: prompt["text"].as_str().map(str::to_owned),
        ids: ids(&prompt["input_ids"]),
        generated: ids(&prompt["generated"]),
    };
    prompts.iter().map(prompt).collect()
}

fn of_tensors(bytes: &[u8]) -> Vec<Prompt> {
    let tensors = SafeTensors::deserialize(bytes).expect("a golden file");
    let ids = |name: String| {
        let tensor = tensors.tensor(&name).expect("three prompts");
        let words = tensor.data().chunks_exact(4);
        words.map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    };
    let prompt = |k| Prompt {
        text: None,
        ids: ids(format!("p{k}.input_ids")),
        generated: ids(format!("p{k}.generated")),
    };
    (0..3).map(prompt).collect()
}

/// A request for the likeliest tokens and their ids.
pub(crate) fn greedy(prompt: &Value, max_tokens: usize) -> Value {
    json!({
        "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": true,
        "return_token_ids": true,
    })
}

/// Every prompt, as text and as ids, is answered with the golden tokens.
pub(crate) fn answers_golden(client: Client<'_>, model: &str) {
    for Prompt { text, ids, generated } in prompts(model) {
        for given in text.map(Value::from).into_iter().chain([json!(ids)]) {
            let answer = client.post(PLAIN, &greedy(&given, generated.len()));
            let choice = &answer["choices"][0];
            assert_eq!(choice["prompt_token_ids"], json!(ids), "{model}");
            assert_eq!(choice["token_ids"], json!(generated), "{model}");
        }
    }
}

/// The same, and the server ends as it is told.
pub(crate) fn answers_golden_to_the_end(mut server: Server, model: &str) {
    answers_golden(server.client(), model);
    assert_eq!(server.client().get("/health"), "", "{model}");
    server.signal("TERM");
    assert_eq!(server.wait(Duration::from_secs(20)).code(), Some(0), "{model}");
}

/// So many requests at a time get what each gets alone.
pub(crate) fn answers_golden_at_once(client: Client<'_>, model: &str, requests: usize) {
    let prompts = prompts(model);
    std::thread::scope(|scope| {
        for prompt in prompts.iter().cycle().take(requests) {
            scope.spawn(move || {
                let request = greedy(&json!(prompt.ids), prompt.generated.len());
                let answer = client.post(PLAIN, &request);
                assert_eq!(answer["choices"][0]["token_ids"], json!(prompt.generated));
            });
        }
    });
}

/// The same answers from ranks on devices of their own, each of which has its part of the model.
pub(crate) fn answers_golden_from_ranks(server: &Server, model: &str, kind: &str, ranks: u32) {
    answers_golden(server.client(), model);
    let metrics = server.client().get("/metrics");
    assert_eq!(value(&metrics, "halyard:tensor_parallel_size", ""), Some(f64::from(ranks)));
    for rank in 0..ranks {
        let labels = format!("device=\"{kind}:{rank}\",rank=\"{rank}\"");
        let used = value(&metrics, "halyard:device_memory_allocated_bytes", &labels);
        assert!(used.is_some_and(|bytes| bytes > 1e6), "{labels}: {metrics}");
    }
}
