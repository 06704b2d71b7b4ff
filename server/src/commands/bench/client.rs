//! A plain HTTP client for one server, with its clock on the wire.

use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use http_body_util::{BodyExt, Full};
use hyper::{
    Method, Request, Response, Uri,
    body::{Bytes, Incoming},
    client::conn::http1,
    header,
};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

/// A server's address.
#[derive(Clone, Debug)]
pub(super) struct Endpoint {
    host: String,
    port: u16,
    /// Before every path; without a slash at the end.
    base: String,
    key: Option<String>,
}

/// What one streamed answer looked like from here.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Timing {
    pub(super) first_token: Duration,
    /// Between one event with text and the next.
    pub(super) between_tokens: Vec<Duration>,
    pub(super) end: Duration,
    pub(super) prompt_tokens: u64,
    pub(super) completion_tokens: u64,
}

impl Endpoint {
    pub(super) fn new(url: &str, key: Option<String>) -> anyhow::Result<Self> {
        let uri: Uri = url.parse().with_context(|| format!("`{url}` is no URL"))?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => bail!("TLS is not supported: give an http:// URL"),
            _ => bail!("`{url}` must begin with http://"),
        }
        let host = uri.host().ok_or_else(|| anyhow!("`{url}` names no host"))?;
        let base = uri.path().trim_end_matches('/');
        // Clients of the API are given a base that ends in /v1; so take that too.
        let base = base.strip_suffix("/v1").unwrap_or(base).to_owned();
        let host = host.trim_matches(['[', ']']).to_owned();
        Ok(Self { host, port: uri.port_u16().unwrap_or(80), base, key })
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<Response<Incoming>> {
        let Self { host, port, .. } = self;
        let stream = TcpStream::connect((host.as_str(), *port))
            .await
            .with_context(|| format!("cannot connect to {host}:{port}"))?;
        stream.set_nodelay(true)?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "the connection ended early");
            }
        });
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base))
            .header(header::HOST, format!("{host}:{port}"))
            .header(header::CONNECTION, "close");
        if let Some(key) = &self.key {
            request = request.header(header::AUTHORIZATION, format!("Bearer {key}"));
        }
        let body = match body {
            None => Bytes::new(),
            Some(body) => {
                request = request.header(header::CONTENT_TYPE, "application/json");
                Bytes::from(body.to_string())
            }
        };
        Ok(sender.send_request(request.body(Full::new(body))?).await?)
    }

    /// Asks for JSON.
    pub(super) async fn json(&self, path: &str, body: Option<&Value>) -> anyhow::Result<Value> {
        let method = if body.is_some() { Method::POST } else { Method::GET };
        let response = self.send(method, path, body).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        if !status.is_success() {
            bail!("{path} answered {status}: {}", shown(&body));
        }
        serde_json::from_slice(&body).with_context(|| format!("{path} answered no JSON"))
    }

    /// Asks for a stream of completions and times it.
    pub(super) async fn timed(&self, path: &str, body: &Value) -> anyhow::Result<Timing> {
        let begun = Instant::now();
        let response = self.send(Method::POST, path, Some(body)).await?;
        let status = response.status();
        let mut body = response.into_body();
        if !status.is_success() {
            let body = body.collect().await?.to_bytes();
            bail!("{path} answered {status}: {}", shown(&body));
        }
        let mut reader = Reader::new(begun);
        while let Some(frame) = body.frame().await {
            if let Ok(data) = frame?.into_data() {
                reader.push(&data, Instant::now())?;
            }
        }
        reader.finish(Instant::now())
    }
}

fn shown(body: &[u8]) -> String {
    crate::api::bounded(&String::from_utf8_lossy(body), 300)
}

/// Reads events as their bytes come in.
struct Reader {
    begun: Instant,
    buffer: Vec<u8>,
    last_token: Option<Instant>,
    events_with_text: u64,
    is_done: bool,
    timing: Timing,
}

impl Reader {
    fn new(begun: Instant) -> Self {
        Self {
            begun,
            buffer: Vec::new(),
            last_token: None,
            events_with_text: 0,
            is_done: false,
            timing: Timing::default(),
        }
    }

    fn push(&mut self, data: &[u8], now: Instant) -> anyhow::Result<()> {
        self.buffer.extend_from_slice(data);
        while let Some(end) = self.buffer.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = self.buffer.drain(..=end).collect();
            if let Some(event) = line.strip_prefix(b"data:") {
                self.event(event.trim_ascii(), now)?;
            }
        }
        Ok(())
    }

    fn event(&mut self, event: &[u8], now: Instant) -> anyhow::Result<()> {
        if event == b"[DONE]" {
            self.is_done = true;
            return Ok(());
        }
        let event: Value = serde_json::from_slice(event).context("an event is no JSON")?;
        if let Some(error) = event.get("error") {
            bail!("the stream ended with an error: {}", shown(error.to_string().as_bytes()));
        }
        if let Some(usage) = event.get("usage").filter(|usage| !usage.is_null()) {
            let count = |name: &str| usage[name].as_u64().unwrap_or(0);
            self.timing.prompt_tokens = count("prompt_tokens");
            self.timing.completion_tokens = count("completion_tokens");
        }
        if event["choices"].get(0).is_none() {
            return Ok(());
        }
        self.events_with_text += 1;
        match self.last_token {
            None => self.timing.first_token = now - self.begun,
            Some(last) => self.timing.between_tokens.push(now - last),
        }
        self.last_token = Some(now);
        Ok(())
    }

    fn finish(mut self, now: Instant) -> anyhow::Result<Timing> {
        if !self.is_done {
            bail!("the stream broke off before [DONE]");
        }
        if self.last_token.is_none() {
            bail!("the stream held no text");
        }
        self.timing.end = now - self.begun;
        if self.timing.completion_tokens == 0 {
            self.timing.completion_tokens = self.events_with_text;
        }
        Ok(self.timing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_servers() {
        let endpoint = Endpoint::new("http://127.0.0.1:8000/v1/", None).expect("good");
        assert_eq!((endpoint.host.as_str(), endpoint.port), ("127.0.0.1", 8000));
        assert_eq!(endpoint.base, "");
        let endpoint = Endpoint::new("http://[::1]/prefix", None).expect("good");
        assert_eq!((endpoint.host.as_str(), endpoint.port), ("::1", 80));
        assert_eq!(endpoint.base, "/prefix");
        for wrong in ["https://x", "x", "", "ftp://x", "http://"] {
            assert!(Endpoint::new(wrong, None).is_err(), "{wrong}");
        }
    }

    #[test]
    fn events_are_timed_whatever_their_pieces() {
        let text = "data: {\"choices\":[{\"text\":\"a\"}]}\n\ndata: {\"choices\":[{\"text\":\"b\"}]}\n\n\
                    data: {\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":2}}\n\ndata: [DONE]\n\n";
        let begun = Instant::now();
        let mut reader = Reader::new(begun);
        for (i, byte) in text.bytes().enumerate() {
            let at = begun + Duration::from_millis(u64::try_from(i).expect("short"));
            reader.push(&[byte], at).expect("good");
        }
        let timing = reader.finish(begun + Duration::from_secs(1)).expect("whole");
        assert_eq!(timing.between_tokens.len(), 1);
        assert_eq!((timing.prompt_tokens, timing.completion_tokens), (3, 2));
        assert!(timing.first_token < timing.end);
    }

    #[test]
    fn broken_streams_are_failures() {
        let read = |text: &str| {
            let mut reader = Reader::new(Instant::now());
            reader.push(text.as_bytes(), Instant::now())?;
            reader.finish(Instant::now())
        };
        for broken in [
            "data: {\"choices\":[{\"text\":\"a\"}]}\n\n",
            "data: [DONE]\n\n",
            "data: {\n\n",
            "data: {\"error\":{\"message\":\"x\"}}\n\ndata: [DONE]\n\n",
        ] {
            assert!(read(broken).is_err(), "{broken}");
        }
    }
}
