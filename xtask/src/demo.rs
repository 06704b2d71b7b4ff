//! `cargo xtask demo`: from nothing to a streamed answer.

use std::{
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    path::PathBuf,
    process::{Child, Command},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::{model, tool};

/// Flags of `cargo xtask demo`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What to ask
    #[arg(long, default_value = "What is the capital of France?")]
    prompt: String,
    /// Serve this GGUF file or model folder instead of the demo model
    #[arg(long)]
    model: Option<PathBuf>,
    /// Listen here; 0 takes a free port
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// Stop after the answer instead of serving on
    #[arg(long)]
    once: bool,
}

/// Fetches, builds, serves, asks.
pub(crate) fn demo(args: &Args) -> Result<()> {
    let model = match &args.model {
        Some(path) => path.canonicalize().with_context(|| path.display().to_string())?,
        None => model::fetch()?,
    };
    println!("Building halyard ...");
    let halyard = tool::build_halyard()?;
    let port = match args.port {
        0 => TcpListener::bind("127.0.0.1:0")?.local_addr()?.port(),
        port => port,
    };
    let mut serve = Command::new(halyard);
    serve.arg("serve").arg(&model);
    serve.args(["--host", "127.0.0.1", "--served-model-name", "demo", "--port"]);
    let mut server = Server(serve.arg(port.to_string()).spawn().context("cannot start halyard")?);
    let url = format!("http://127.0.0.1:{port}");
    wait_until_ready(&mut server.0, &url)?;

    println!("\n> {}\n", args.prompt);
    ask(&url, &args.prompt)?;
    println!("\n\nGo on with:\n");
    println!("  curl {url}/v1/chat/completions -H 'Content-Type: application/json' \\");
    println!(
        "    -d '{{\"model\": \"demo\", \"messages\": [{{\"role\": \"user\", \"content\": \"Hello!\"}}]}}'\n"
    );
    if args.once {
        return Ok(());
    }
    println!("Serving at {url}/v1 (Ctrl-C stops it).");
    let status = server.0.wait()?;
    if !status.success() {
        bail!("halyard ended with {status}");
    }
    Ok(())
}

/// The server's process; ends with this.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already, which is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn wait_until_ready(server: &mut Child, url: &str) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(300);
    let health = format!("{url}/health");
    while ureq::get(&health).call().is_err() {
        if let Some(status) = server.try_wait()? {
            bail!("halyard ended with {status} before it was ready");
        }
        if Instant::now() > deadline {
            bail!("halyard was not ready after five minutes");
        }
        sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Streams one answer to the terminal.
fn ask(url: &str, prompt: &str) -> Result<()> {
    let body = json!({
        "model": "demo",
        "messages": [{"role": "user", "content": prompt}],
        "stream": true,
        "temperature": 0,
        "max_tokens": 128,
    });
    let mut response = ureq::post(format!("{url}/v1/chat/completions"))
        .header("Content-Type", "application/json")
        .send(body.to_string())?;
    let mut out = std::io::stdout().lock();
    for line in BufReader::new(response.body_mut().as_reader()).lines() {
        let line = line?;
        let Some(data) = line.strip_prefix("data: ").filter(|d| *d != "[DONE]") else { continue };
        let chunk: Value = serde_json::from_str(data)?;
        if let Some(error) = chunk.get("error") {
            bail!("the server answered {error}");
        }
        if let Some(text) = chunk["choices"][0]["delta"]["content"].as_str() {
            write!(out, "{text}")?;
            out.flush()?;
        }
    }
    Ok(())
}
