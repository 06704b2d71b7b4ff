//! `halyard bench MODEL`: how fast prompts are processed and tokens generated, without a server.

use std::{
    ffi::OsString,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use halyard_engine::{
    EngineEvent, EngineHandle, EngineRequest, FinishReason, RequestHandle, SamplingParams,
};
use serde::Serialize;

use super::{
    limits::Limits,
    random::Random,
    stats::{Spread, bytes_to_f64, to_f64},
    work::Work,
};
use crate::{
    cli::BenchCommand,
    commands::model::{self, Loaded},
    ui::{self, Unit},
};

/// What was measured.
#[derive(Debug, Serialize)]
struct Report {
    model: String,
    device: String,
    /// Devices that shared the model.
    tensor_parallel_size: usize,
    dtype: String,
    weight_bytes: u64,
    /// Microseconds that the launches of a step take without any work in them.
    dispatch_us: Option<f64>,
    threads: usize,
    /// Of this machine, measured in the same run; of the host's processor only.
    limits: Option<Limits>,
    results: Vec<Row>,
}

/// One measurement.
#[derive(Debug, Serialize)]
struct Row {
    /// `pp512` or `tg128`, as llama-bench names them.
    test: String,
    batch: usize,
    tokens: usize,
    /// The median.
    tokens_per_second: f64,
    /// Half the distance between the slowest and the fastest repetition.
    spread: f64,
    repetitions: usize,
    /// Share of the memory's bandwidth that reading the weights took.
    memory_share: Option<f64>,
    /// Share of the multiplications and additions that the processors could do.
    compute_share: Option<f64>,
    /// Share of the time that went into launching kernels: the boundary, the checks before and behind it.
    dispatch_share: Option<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Test {
    Prompt(usize),
    Generate(usize),
}

pub(super) fn run(command: &BenchCommand, line: &[OsString]) -> anyhow::Result<()> {
    let bench = &command.bench;
    if bench.repetitions == 0 || bench.batch.contains(&0) {
        bail!("--repetitions and --batch must be at least 1");
    }
    let tests: Vec<Test> = bench
        .prompt_tokens
        .iter()
        .map(|&tokens| Test::Prompt(tokens))
        .chain(bench.generate_tokens.iter().map(|&tokens| Test::Generate(tokens)))
        .filter(|test| test.tokens() > 0)
        .collect();
    let mut options = model::options(&command.model, &command.engine);
    options.measure_dispatch = true;
    let loaded = model::load(&command.model, &command.device, (&options, line), |_| Box::new(()))?;
    let threads = command
        .device
        .threads
        .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get));
    // The limits of another device's memory cannot be measured from here.
    let limits = loaded.on_host.then(|| Limits::measure(threads));

    let steps = tests.len() * bench.batch.len() * (bench.repetitions + 1);
    let bar = ui::progress("measuring", u64::try_from(steps).unwrap_or(0), Unit::Items);
    let mut bencher = Bencher { engine: &loaded.engine, random: Random::new(0), salt: 0 };
    let mut results = Vec::new();
    for &batch in &bench.batch {
        for &test in &tests {
            let mut speeds = Vec::with_capacity(bench.repetitions);
            for repetition in 0..=bench.repetitions {
                let took = bencher.measure(test, batch)?;
                bar.inc(1);
                // The first one wakes threads and fills caches.
                if repetition > 0 {
                    speeds.push(to_f64(batch * test.tokens()) / took.as_secs_f64());
                }
            }
            results.push(row(test, batch, &speeds, &loaded, limits));
        }
    }
    bar.finish_and_clear();
    let info = loaded.engine.info();
    let report = Report {
        model: loaded.root.clone(),
        device: info.device.clone(),
        tensor_parallel_size: info.tensor_parallel_size,
        dtype: info.dtype.clone(),
        weight_bytes: info.weight_bytes,
        dispatch_us: info.dispatch.map(|time| time.as_secs_f64() * 1e6),
        threads,
        limits,
        results,
    };
    loaded.engine.shutdown();
    if bench.json {
        ui::json(&report)?;
    } else {
        ui::line(format_args!("{}", table(&report)))?;
    }
    Ok(())
}

impl Test {
    fn tokens(self) -> usize {
        match self {
            Self::Prompt(tokens) | Self::Generate(tokens) => tokens,
        }
    }

    fn name(self) -> String {
        match self {
            Self::Prompt(tokens) => format!("pp{tokens}"),
            Self::Generate(tokens) => format!("tg{tokens}"),
        }
    }
}

/// Gives the engine work and takes the time.
struct Bencher<'a> {
    engine: &'a EngineHandle,
    random: Random,
    salt: u64,
}

impl Bencher<'_> {
    /// From the submission of `batch` sequences to the last token of all.
    fn measure(&mut self, test: Test, batch: usize) -> anyhow::Result<Duration> {
        // A prompt's processing ends with the choice of one token, generation begins with one of prompt.
        let (prompt_tokens, new_tokens) = match test {
            Test::Prompt(tokens) => (tokens, 1),
            Test::Generate(tokens) => (1, tokens),
        };
        let longest = self.engine.info().max_model_len;
        if prompt_tokens + new_tokens > longest {
            bail!("{} does not fit: the longest sequence has {longest} tokens", test.name());
        }
        let requests: Vec<EngineRequest> =
            (0..batch).map(|_| self.request(prompt_tokens, new_tokens)).collect();
        let begun = Instant::now();
        let mut running = Vec::with_capacity(batch);
        for request in requests {
            running.push(self.engine.submit(request).context("the engine refused a request")?);
        }
        for handle in &mut running {
            finish(handle, new_tokens)?;
        }
        Ok(begun.elapsed())
    }

    fn request(&mut self, prompt_tokens: usize, new_tokens: usize) -> EngineRequest {
        let vocab_size = self.engine.info().vocab_size;
        let mut draw = || u32::try_from(self.random.below(vocab_size)).unwrap_or(0);
        let prompt = (0..prompt_tokens).map(|_| draw()).collect();
        // Each request has a salt of its own: nothing may come from the prefix cache.
        self.salt += 1;
        EngineRequest {
            prompt,
            params: SamplingParams {
                temperature: 0.0,
                max_tokens: u32::try_from(new_tokens).unwrap_or(u32::MAX),
                ignore_eos: true,
                ..SamplingParams::default()
            },
            cache_salt: Some(self.salt),
            priority: 0,
            arrival: Instant::now(),
        }
    }
}

fn finish(handle: &mut RequestHandle, new_tokens: usize) -> anyhow::Result<()> {
    let mut tokens = 0;
    while let Some(event) = handle.blocking_next() {
        match event {
            EngineEvent::Prompt(_) => {}
            EngineEvent::Token(_) => tokens += 1,
            EngineEvent::Finished(FinishReason::Length) if tokens == new_tokens => return Ok(()),
            EngineEvent::Finished(reason) => {
                bail!("a sequence ended early, after {tokens} tokens: {reason:?}")
            }
            EngineEvent::Failed(error) => return Err(error.into()),
        }
    }
    bail!("the engine let go of a request")
}

fn row(test: Test, batch: usize, speeds: &[f64], loaded: &Loaded, limits: Option<Limits>) -> Row {
    let Spread { median, half_range } = Spread::of(speeds);
    let work = Work::of(&loaded.config, loaded.engine.info().weight_bytes);
    let info = loaded.engine.info();
    let (tokens_per_step, bytes_per_token, flops_per_token) = match test {
        // The weights are read once a step; how many steps a prompt takes is the scheduler's to say.
        Test::Prompt(tokens) => {
            let step = info.max_num_batched_tokens;
            let steps = (batch * tokens).div_ceil(step.max(1));
            let bytes = work.bytes_per_step(tokens.min(step)) * to_f64(steps);
            let all = to_f64(batch * tokens);
            (all / to_f64(steps), bytes / all, work.prompt_flops(tokens) / to_f64(tokens))
        }
        Test::Generate(tokens) => {
            let bytes = work.bytes_per_step(batch) / to_f64(batch);
            (to_f64(batch), bytes, work.generation_flops(tokens) / to_f64(tokens))
        }
    };
    let steps_per_second = median / tokens_per_step;
    Row {
        test: test.name(),
        batch,
        tokens: test.tokens(),
        tokens_per_second: median,
        spread: half_range,
        repetitions: speeds.len(),
        memory_share: limits.map(|limits| median * bytes_per_token / limits.memory_bytes_per_s),
        compute_share: limits.map(|limits| median * flops_per_token / limits.f32_flops),
        dispatch_share: info.dispatch.map(|time| time.as_secs_f64() * steps_per_second),
    }
}

fn table(report: &Report) -> String {
    let percent = |share: Option<f64>| {
        share.map_or("-".to_owned(), |share| format!("{:.1} %", share * 100.0))
    };
    let cells = |row: &Row| {
        vec![
            row.test.clone(),
            row.batch.to_string(),
            format!("{:.1} ± {:.1}", row.tokens_per_second, row.spread),
            percent(row.memory_share),
            percent(row.compute_share),
            percent(row.dispatch_share),
        ]
    };
    let rows: Vec<Vec<String>> = report.results.iter().map(cells).collect();
    let headings =
        ["TEST", "BATCH", "TOKENS/S", "OF MEMORY BANDWIDTH", "OF F32 COMPUTE", "DISPATCH"];
    let limits = report.limits.map_or(String::new(), |limits| {
        format!(
            "limits with {} threads: memory {:.1} GB/s read, f32 multiply-add {:.0} GFLOP/s\n",
            report.threads,
            limits.memory_bytes_per_s / 1e9,
            limits.f32_flops / 1e9
        )
    });
    let ranks = match report.tensor_parallel_size {
        1 => String::new(),
        ranks => format!(" tensor parallel {ranks},"),
    };
    format!(
        "{} on {},{ranks} {}, weights {:.1} MB\n{limits}{}",
        report.model,
        report.device,
        report.dtype,
        bytes_to_f64(report.weight_bytes) / 1e6,
        ui::table(&headings, &rows)
    )
}
