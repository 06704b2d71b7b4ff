//! `halyard bench serve`: loads a running server and measures what its clients see.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, bail};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::{
    sync::Semaphore,
    task::JoinSet,
    time::{Instant, sleep_until},
};

use super::{
    client::{Endpoint, Timing},
    random::Random,
    stats::{Latencies, to_f64},
};
use crate::{
    cli::BenchServeArgs,
    ui::{self, Unit},
};

/// Text whose tokens the prompts are drawn from: ordinary words of any vocabulary.
const WORDS: &str = "the of and to in is that for it as was with be by on not he his but at are this \
    have from or had an they which one you were all her she there would their we him been has when \
    who will no more if out so up said what its about than into them can only other time new some \
    could these two may first then do any like my now over such our man me even most made after";

/// What was measured.
#[derive(Debug, Serialize)]
struct Report {
    url: String,
    model: String,
    max_concurrency: usize,
    request_rate: Option<f64>,
    completed: usize,
    failed: usize,
    duration_s: f64,
    requests_per_s: f64,
    prompt_tokens: u64,
    completion_tokens: u64,
    output_tokens_per_s: f64,
    total_tokens_per_s: f64,
    /// Milliseconds, each.
    time_to_first_token: Latencies,
    time_per_output_token: Latencies,
    inter_token_latency: Latencies,
    end_to_end: Latencies,
}

pub(super) async fn run(args: &BenchServeArgs) -> anyhow::Result<()> {
    if args.num_prompts == 0 || args.max_concurrency == 0 || args.output_len == 0 {
        bail!("--num-prompts, --max-concurrency and --output-len must be at least 1");
    }
    if args.request_rate.is_some_and(|rate| !rate.is_finite() || rate <= 0.0) {
        bail!("--request-rate must be above 0");
    }
    let endpoint = Endpoint::new(&args.url, args.api_key.clone())?;
    let model = match &args.model {
        Some(model) => model.clone(),
        None => first_model(&endpoint).await?,
    };
    let prompts = prompts(&endpoint, &model, args).await?;
    // One that does not count: it opens files and warms caches.
    endpoint
        .timed("/v1/completions", &request(&model, &prompts[0], 1))
        .await
        .context("the server does not complete a prompt")?;

    let begun = Instant::now();
    let results = load(&endpoint, &model, prompts, args).await;
    let report = report(args, model, begun.elapsed(), &results);
    if args.json {
        ui::json(&report)?;
    } else {
        ui::line(format_args!("{}", table(&report)))?;
    }
    if report.failed > 0 {
        bail!("{} of {} requests failed", report.failed, results.len());
    }
    Ok(())
}

async fn first_model(endpoint: &Endpoint) -> anyhow::Result<String> {
    let list = endpoint.json("/v1/models", None).await?;
    let name = list["data"][0]["id"].as_str();
    Ok(name.context("the server lists no model; give --model")?.to_owned())
}

/// Prompts of exactly so many tokens, as ids; or, from a server that does not tokenize, as words.
async fn prompts(
    endpoint: &Endpoint,
    model: &str,
    args: &BenchServeArgs,
) -> anyhow::Result<Vec<Value>> {
    let body = json!({"model": model, "prompt": WORDS, "add_special_tokens": false});
    let ids = endpoint.json("/tokenize", Some(&body)).await.ok();
    let ids = ids.and_then(|answer| answer["tokens"].as_array().cloned()).unwrap_or_default();
    let words: Vec<Value> = WORDS.split_whitespace().map(Value::from).collect();
    let are_ids = !ids.is_empty();
    if !are_ids {
        tracing::warn!("the server has no /tokenize: prompts are words, their lengths not exact");
    }
    let pool = if are_ids { ids } else { words };
    let mut random = Random::new(args.seed);
    let mut draw = |count: usize| -> Vec<Value> {
        (0..count).map(|_| pool[random.below(pool.len())].clone()).collect()
    };
    let prefix = draw(args.prefix_len);
    let mut prompt = || {
        let tokens: Vec<Value> =
            prefix.iter().cloned().chain(draw(args.input_len.max(1))).collect();
        if are_ids {
            return Value::Array(tokens);
        }
        let words: Vec<&str> = tokens.iter().filter_map(Value::as_str).collect();
        Value::String(words.join(" "))
    };
    Ok((0..args.num_prompts).map(|_| prompt()).collect())
}

fn request(model: &str, prompt: &Value, max_tokens: usize) -> Value {
    json!({
        "model": model,
        "prompt": prompt,
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": true,
        "stream": true,
        "stream_options": {"include_usage": true},
    })
}

/// Sends every prompt at its time, as many at once as allowed.
async fn load(
    endpoint: &Endpoint,
    model: &str,
    prompts: Vec<Value>,
    args: &BenchServeArgs,
) -> Vec<anyhow::Result<Timing>> {
    let places = Arc::new(Semaphore::new(args.max_concurrency));
    let bar = ui::progress("requests", u64::try_from(prompts.len()).unwrap_or(0), Unit::Items);
    let mut random = Random::new(args.seed ^ 0x9e37_79b9);
    let mut arrival = Instant::now();
    let mut requests = JoinSet::new();
    for prompt in prompts {
        if let Some(rate) = args.request_rate {
            arrival += Duration::from_secs_f64(random.exponential() / rate);
            sleep_until(arrival).await;
        }
        let (endpoint, bar, places) = (endpoint.clone(), bar.clone(), Arc::clone(&places));
        let body = request(model, &prompt, args.output_len);
        requests.spawn(async move {
            // Within the task, so that a full server does not slow the arrivals down.
            let _place = places.acquire().await;
            let result = endpoint.timed("/v1/completions", &body).await;
            bar.inc(1);
            result
        });
    }
    let mut results = Vec::new();
    while let Some(joined) = requests.join_next().await {
        let result = joined.context("a request's task panicked").and_then(|result| result);
        if let Err(error) = &result {
            tracing::warn!("a request failed: {error:#}");
        }
        results.push(result);
    }
    bar.finish_and_clear();
    results
}

fn report(
    args: &BenchServeArgs,
    model: String,
    duration: Duration,
    results: &[anyhow::Result<Timing>],
) -> Report {
    let timings: Vec<&Timing> = results.iter().filter_map(|result| result.as_ref().ok()).collect();
    let prompt_tokens: u64 = timings.iter().map(|timing| timing.prompt_tokens).sum();
    let completion_tokens: u64 = timings.iter().map(|timing| timing.completion_tokens).sum();
    let duration_s = duration.as_secs_f64();
    let per_s = |count: u64| to_f64(usize::try_from(count).unwrap_or(usize::MAX)) / duration_s;
    let per_token = timings.iter().filter(|timing| timing.completion_tokens > 1).map(|timing| {
        let after_first = u32::try_from(timing.completion_tokens - 1).unwrap_or(u32::MAX);
        timing.end.saturating_sub(timing.first_token) / after_first
    });
    Report {
        url: args.url.clone(),
        model,
        max_concurrency: args.max_concurrency,
        request_rate: args.request_rate,
        completed: timings.len(),
        failed: results.len() - timings.len(),
        duration_s,
        requests_per_s: to_f64(timings.len()) / duration_s,
        prompt_tokens,
        completion_tokens,
        output_tokens_per_s: per_s(completion_tokens),
        total_tokens_per_s: per_s(prompt_tokens + completion_tokens),
        time_to_first_token: Latencies::of(timings.iter().map(|timing| timing.first_token)),
        time_per_output_token: Latencies::of(per_token),
        inter_token_latency: Latencies::of(
            timings.iter().flat_map(|timing| timing.between_tokens.iter().copied()),
        ),
        end_to_end: Latencies::of(timings.iter().map(|timing| timing.end)),
    }
}

fn table(report: &Report) -> String {
    let row = |name: &str, l: &Latencies| {
        let values = [l.mean, l.p50, l.p90, l.p99, l.max].map(|value| format!("{value:.2}"));
        std::iter::once(name.to_owned()).chain(values).collect::<Vec<_>>()
    };
    let latencies = ui::table(
        &["latency, ms", "mean", "p50", "p90", "p99", "max"],
        &[
            row("time to first token", &report.time_to_first_token),
            row("time per output token", &report.time_per_output_token),
            row("inter-token latency", &report.inter_token_latency),
            row("end to end", &report.end_to_end),
        ],
    );
    let Report { completed, failed, duration_s, max_concurrency, .. } = report;
    format!(
        "{completed} requests in {duration_s:.2} s, {failed} failed, {max_concurrency} at once: \
         {:.2} requests/s, {:.1} output tokens/s, {:.1} tokens/s in all\n{latencies}",
        report.requests_per_s, report.output_tokens_per_s, report.total_tokens_per_s
    )
}
