//! `halyard serve`.

use std::{
    env,
    ffi::OsString,
    net::SocketAddr,
    sync::{Arc, OnceLock},
};

use anyhow::Context;
use serde_json::{Map, Value};
use tokio::{
    net::TcpListener,
    signal::unix::{Signal, SignalKind, signal},
};

use super::model;
use crate::{
    api::{ApiKeys, App, AppOptions, router},
    cli::{ServeCommand, args::ServerArgs, values::SchedulingPolicy},
    engine::Engine,
    http,
    metrics::Metrics,
};

pub(super) fn run(command: &ServeCommand, line: &[OsString]) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("http")
        .build()
        .context("cannot start the threads of the server")?;
    let result = runtime.block_on(serve(command, line));
    // A model that is still loading is not waited for.
    runtime.shutdown_background();
    result
}

async fn serve(command: &ServeCommand, line: &[OsString]) -> anyhow::Result<()> {
    let options = options(command)?;
    // The port first: that it is taken should be known before a model is loaded.
    let address = (command.server.host.as_str(), command.server.port);
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {}:{}", address.0, address.1))?;
    let address = listener.local_addr()?;
    let mut signals = Signals::new()?;

    let metrics = Arc::new(OnceLock::new());
    let (command, line, for_engine) = (command.clone(), line.to_vec(), Arc::clone(&metrics));
    let name = options.model_names.first().cloned().unwrap_or_default();
    let loading = tokio::task::spawn_blocking(move || {
        let engine = model::options(&command.model, &command.engine);
        model::load(&command.model, &command.device, (&engine, &line), |plan| {
            let metrics = || Metrics::new(&name, plan.info(), plan.rank_devices());
            Box::new(for_engine.get_or_init(|| Arc::new(metrics())).observer())
        })
    });
    let loaded = tokio::select! {
        loaded = loading => loaded.context("loading the model panicked")??,
        () = signals.next() => {
            tracing::info!("stopped while the model was loading");
            return Ok(());
        }
    };

    let metrics = metrics.get().context("the engine was loaded without metrics")?;
    let drain = options.drain;
    let app_options = AppOptions { defaults: loaded.defaults, ..options.app };
    let engine: Arc<dyn Engine> = Arc::new(loaded.engine);
    let app = App::new(Arc::clone(&engine), loaded.text, Arc::clone(metrics), app_options);
    tracing::info!("serving {} on {}", options.model_names.join(", "), url(address));

    let stop = async {
        signals.next().await;
        tracing::info!("stopping; a second signal ends at once");
        tokio::spawn(async move {
            signals.next().await;
            tracing::warn!("ended at once");
            std::process::exit(130);
        });
    };
    http::serve(listener, router(Arc::new(app)), engine, drain, stop).await;
    Ok(())
}

/// What a browser on this machine would be given.
fn url(address: SocketAddr) -> String {
    format!("http://{address}")
}

/// SIGINT and SIGTERM.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

struct Options {
    app: AppOptions,
    model_names: Vec<String>,
    drain: std::time::Duration,
}

fn options(command: &ServeCommand) -> anyhow::Result<Options> {
    let server = &command.server;
    let root = command.model.path().context("name a model: a GGUF file or a folder")?.to_owned();
    let model_names = if server.served_model_name.is_empty() {
        vec![root.clone()]
    } else {
        server.served_model_name.clone()
    };
    let app = AppOptions {
        model_names: model_names.clone(),
        model_root: root,
        api_keys: api_keys(server),
        allowed_origins: allowed_origins(server)?,
        template_kwargs: template_kwargs(server)?,
        response_role: server.response_role.clone(),
        priority_allowed: command.engine.scheduling_policy == SchedulingPolicy::Priority,
        prompt_tokens_details: server.enable_prompt_tokens_details,
        force_include_usage: server.enable_force_include_usage,
        tokens_as_ids: server.return_tokens_as_token_ids,
        request_id_headers: server.enable_request_id_headers,
        access_log: !server.disable_uvicorn_access_log,
        log_requests: server.enable_log_requests,
        ..AppOptions::default()
    };
    Ok(Options { app, model_names, drain: server.drain() })
}

/// The flag's, or else the environment's.
fn api_keys(server: &ServerArgs) -> ApiKeys {
    if !server.api_key.is_empty() {
        return ApiKeys::new(&server.api_key);
    }
    let of_environment = ["HALYARD_API_KEY", "VLLM_API_KEY"];
    ApiKeys::new(of_environment.into_iter().filter_map(|name| env::var(name).ok()).take(1))
}

fn allowed_origins(server: &ServerArgs) -> anyhow::Result<Vec<String>> {
    let mut origins = Vec::new();
    for given in &server.allowed_origins {
        if given.starts_with('[') {
            let list: Vec<String> = serde_json::from_str(given)
                .with_context(|| format!("--allowed-origins `{given}` is no list of strings"))?;
            origins.extend(list);
        } else {
            origins.push(given.clone());
        }
    }
    Ok(origins)
}

fn template_kwargs(server: &ServerArgs) -> anyhow::Result<Map<String, Value>> {
    let Some(json) = &server.default_chat_template_kwargs else { return Ok(Map::new()) };
    serde_json::from_str(json)
        .with_context(|| format!("--default-chat-template-kwargs `{json}` is no JSON object"))
}
