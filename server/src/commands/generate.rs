//! `halyard generate`: a file of prompts in, a file of answers out.
//!
//! Each prompt is a request to the server's own API, in this process: what a field means is said once.

use std::{
    ffi::OsString,
    fs::File,
    io::{self, BufRead, BufReader, BufWriter, Write},
    path::Path,
    sync::Arc,
};

use anyhow::{Context, bail};
use axum::{
    Router,
    body::Body,
    http::{Request, header},
};
use futures_util::{StreamExt, stream};
use http_body_util::BodyExt;
use serde_json::{Map, Value, json};
use tower::ServiceExt;

use super::model;
use crate::{
    api::{App, AppOptions, router},
    cli::{GenerateCommand, SamplingArgs, values::SchedulingPolicy},
    engine::Engine,
    metrics::Metrics,
    ui::{self, Unit},
};

pub(super) fn run(command: &GenerateCommand, line: &[OsString]) -> anyhow::Result<()> {
    let input = &command.batch.input;
    let lines = read_lines(input)
        .with_context(|| format!("cannot read the prompts of {}", input.display()))?;
    if lines.is_empty() {
        bail!("{} holds no prompts", input.display());
    }
    let options = model::options(&command.model, &command.engine);
    let loaded = model::load(&command.model, &command.device, (&options, line), |_| Box::new(()))?;
    let options = AppOptions {
        model_names: vec![loaded.root.clone()],
        model_root: loaded.root,
        response_role: "assistant".into(),
        defaults: loaded.defaults,
        priority_allowed: command.engine.scheduling_policy == SchedulingPolicy::Priority,
        ..AppOptions::default()
    };
    let metrics = Arc::new(Metrics::new("", loaded.engine.info(), Vec::new()));
    // Enough to keep every step full and the queue short.
    let at_once = loaded.engine.info().max_num_seqs * 2;
    let engine: Arc<dyn Engine> = Arc::new(loaded.engine);
    let router = router(Arc::new(App::new(Arc::clone(&engine), loaded.text, metrics, options)));

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let failed = runtime.block_on(answer_all(command, router, lines, at_once))?;
    engine.shutdown();
    if failed > 0 {
        bail!("{failed} prompts failed; their lines in the output say why");
    }
    Ok(())
}

fn read_lines(path: &Path) -> io::Result<Vec<String>> {
    let reader: Box<dyn BufRead> = if path == Path::new("-") {
        Box::new(io::stdin().lock())
    } else {
        Box::new(BufReader::new(File::open(path)?))
    };
    let mut lines = reader.lines().collect::<io::Result<Vec<_>>>()?;
    lines.retain(|line| !line.trim().is_empty());
    Ok(lines)
}

/// Writes an answer a prompt, in order; how many failed.
async fn answer_all(
    command: &GenerateCommand,
    router: Router,
    lines: Vec<String>,
    at_once: usize,
) -> anyhow::Result<usize> {
    let output = &command.batch.output;
    let mut out: Box<dyn Write> = if output == Path::new("-") {
        Box::new(BufWriter::new(io::stdout()))
    } else {
        let file = File::create(output);
        Box::new(BufWriter::new(
            file.with_context(|| format!("cannot write {}", output.display()))?,
        ))
    };
    let bar = if command.batch.quiet {
        indicatif::ProgressBar::hidden()
    } else {
        ui::progress("prompts", u64::try_from(lines.len()).unwrap_or(0), Unit::Items)
    };
    let answers = lines.iter().enumerate().map(|(index, line)| {
        let request = request(line, command.batch.chat, &command.sampling);
        answer(router.clone(), index, request)
    });
    let mut answers = stream::iter(answers).buffered(at_once);
    let mut failed = 0;
    while let Some(answer) = answers.next().await {
        failed += usize::from(answer.contains_key("error"));
        serde_json::to_writer(&mut out, &answer)?;
        out.write_all(b"\n")?;
        bar.inc(1);
    }
    out.flush()?;
    bar.finish_and_clear();
    Ok(failed)
}

/// A line as a request; a line that is no request, as its error.
fn request(line: &str, chat: bool, sampling: &SamplingArgs) -> Result<Map<String, Value>, String> {
    let mut request = if line.trim_start().starts_with('{') {
        serde_json::from_str::<Map<String, Value>>(line)
            .map_err(|error| format!("the line is no JSON object: {error}"))?
    } else if chat {
        let messages = json!([{"role": "user", "content": line}]);
        Map::from_iter([("messages".to_owned(), messages)])
    } else {
        Map::from_iter([("prompt".to_owned(), line.into())])
    };
    if !request.contains_key("prompt") && !request.contains_key("messages") {
        return Err("the line has neither `prompt` nor `messages`".into());
    }
    // A stream would be read to its end anyway, and the name is that of another server.
    for field in ["stream", "stream_options", "model"] {
        request.remove(field);
    }
    for (field, value) in of_flags(sampling) {
        if !value.is_null() && request.get(field).is_none_or(Value::is_null) {
            request.insert(field.to_owned(), value);
        }
    }
    Ok(request)
}

fn of_flags(sampling: &SamplingArgs) -> [(&'static str, Value); 11] {
    let SamplingArgs {
        max_tokens,
        temperature,
        top_p,
        top_k,
        min_p,
        presence_penalty,
        frequency_penalty,
        repetition_penalty,
        n,
        stop,
        ignore_eos,
    } = sampling;
    [
        ("max_tokens", json!(max_tokens)),
        ("temperature", json!(temperature)),
        ("top_p", json!(top_p)),
        ("top_k", json!(top_k)),
        ("min_p", json!(min_p)),
        ("presence_penalty", json!(presence_penalty)),
        ("frequency_penalty", json!(frequency_penalty)),
        ("repetition_penalty", json!(repetition_penalty)),
        ("n", json!(n)),
        ("stop", if stop.is_empty() { Value::Null } else { json!(stop) }),
        ("ignore_eos", if *ignore_eos { json!(true) } else { Value::Null }),
    ]
}

/// A line of the output: the choices and their usage, or the error; with the prompt's number and, if it
/// had one, its own name.
async fn answer(
    router: Router,
    index: usize,
    request: Result<Map<String, Value>, String>,
) -> Map<String, Value> {
    let mut line = Map::from_iter([("index".to_owned(), index.into())]);
    let mut request = match request {
        Ok(request) => request,
        Err(message) => {
            line.insert("error".into(), json!({ "message": message }));
            return line;
        }
    };
    line.extend(request.remove_entry("custom_id"));
    let path =
        if request.contains_key("messages") { "/v1/chat/completions" } else { "/v1/completions" };
    let body = match post(router, path, request).await {
        Ok(body) => body,
        Err(error) => Map::from_iter([("error".to_owned(), json!({"message": error.to_string()}))]),
    };
    for (name, value) in body {
        if ["choices", "usage", "prompt_logprobs", "error"].contains(&name.as_str()) {
            line.insert(name, value);
        }
    }
    line
}

async fn post(
    router: Router,
    path: &str,
    request: Map<String, Value>,
) -> anyhow::Result<Map<String, Value>> {
    let body = Body::from(serde_json::to_vec(&request)?);
    let request =
        Request::post(path).header(header::CONTENT_TYPE, "application/json").body(body)?;
    let response = router.oneshot(request).await?;
    let body = response.into_body().collect().await?.to_bytes();
    Ok(serde_json::from_slice(&body)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::testing::{Client, ScriptedEngine};

    fn sampling(max_tokens: u32) -> SamplingArgs {
        SamplingArgs {
            max_tokens: Some(max_tokens),
            temperature: None,
            top_p: None,
            top_k: None,
            min_p: None,
            presence_penalty: None,
            frequency_penalty: None,
            repetition_penalty: None,
            n: None,
            stop: Vec::new(),
            ignore_eos: false,
        }
    }

    async fn line(text: &str, chat: bool) -> Value {
        let router = Client::new(&ScriptedEngine::says("hello")).router;
        Value::Object(answer(router, 7, request(text, chat, &sampling(2))).await)
    }

    #[tokio::test]
    async fn lines_of_every_kind() {
        let plain = line("once", false).await;
        assert_eq!((&plain["index"], &plain["choices"][0]["text"]), (&json!(7), &json!("he")));
        assert_eq!(plain["usage"]["completion_tokens"], 2);
        let chat = line("once", true).await;
        assert_eq!(chat["choices"][0]["message"]["content"], "he");
        let own =
            line(r#"{"prompt": "a", "max_tokens": 3, "custom_id": "x", "stream": true}"#, true);
        let own = own.await;
        assert_eq!((&own["custom_id"], &own["choices"][0]["text"]), (&json!("x"), &json!("hel")));
        let messages = line(r#"{"messages": [{"role": "user", "content": "a"}]}"#, false).await;
        assert_eq!(messages["choices"][0]["message"]["content"], "he");
    }

    #[tokio::test]
    async fn wrong_lines_say_why() {
        for wrong in ["{", r#"{"a": 1}"#, r#"{"prompt": "a", "temperature": -1}"#] {
            let answer = line(wrong, false).await;
            assert!(answer["error"]["message"].is_string(), "{answer}");
            assert_eq!(answer["index"], 7);
        }
    }
}
