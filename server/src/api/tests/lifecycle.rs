//! Clients that go away and servers that end, over real sockets.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::oneshot,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

use crate::{
    api::testing::{Client, ScriptedEngine, Step, answer, events},
    engine::Engine,
    http,
};

struct Server {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    ended: JoinHandle<()>,
}

async fn start(engine: &Arc<ScriptedEngine>, drain: Duration) -> Server {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
    let address = listener.local_addr().expect("an address");
    let router = Client::new(engine).router;
    let (stop, stopped) = oneshot::channel::<()>();
    let engine: Arc<dyn Engine> = Arc::clone(engine) as _;
    let ended = tokio::spawn(http::serve(listener, router, engine, drain, async {
        let _ = stopped.await;
    }));
    Server { address, stop, ended }
}

async fn send(address: SocketAddr, body: &str) -> TcpStream {
    let mut socket = TcpStream::connect(address).await.expect("a connection");
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n\
         Connection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    socket.write_all(head.as_bytes()).await.expect("sent");
    socket.write_all(body.as_bytes()).await.expect("sent");
    socket
}

async fn read_all(mut socket: TcpStream) -> String {
    let mut text = String::new();
    socket.read_to_string(&mut text).await.expect("UTF-8 to the end");
    text
}

/// The content of a chunked body.
fn unchunked(response: &str) -> String {
    let (_, mut body) = response.split_once("\r\n\r\n").expect("a head");
    let mut text = String::new();
    loop {
        let (size, rest) = body.split_once("\r\n").expect("a chunk");
        let size = usize::from_str_radix(size, 16).expect("a size");
        if size == 0 {
            return text;
        }
        text.push_str(&rest[..size]);
        body = &rest[size + 2..];
    }
}

async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not happen");
        sleep(Duration::from_millis(2)).await;
    }
}

/// Says one letter and then nothing for ever.
fn hanging() -> Arc<ScriptedEngine> {
    ScriptedEngine::new(|request, _| {
        let mut steps = answer(request, b"abc");
        steps.truncate(2);
        steps.push(Step::Hang);
        steps
    })
}

#[tokio::test]
async fn a_stream_goes_over_a_socket_as_it_comes() {
    let engine = ScriptedEngine::new(|request, _| {
        let mut steps = answer(request, b"abc");
        steps.insert(2, Step::Sleep(Duration::from_millis(300)));
        steps
    });
    let server = start(&engine, Duration::ZERO).await;
    let mut socket = send(server.address, r#"{"prompt": "a", "stream": true}"#).await;
    let mut head = vec![0; 4096];
    let begun = Instant::now();
    let mut read = 0;
    while !String::from_utf8_lossy(&head[..read]).contains("\"text\":\"a\"") {
        read += socket.read(&mut head[read..]).await.expect("bytes");
    }
    assert!(begun.elapsed() < Duration::from_millis(250), "the first event was held back");
    let rest = read_all(socket).await;
    let whole = format!("{}{rest}", String::from_utf8_lossy(&head[..read]));
    assert!(whole.to_ascii_lowercase().contains("content-type: text/event-stream"), "{whole}");
    assert_eq!(events(&unchunked(&whole)).len(), 4);
}

#[tokio::test]
async fn a_client_that_goes_away_frees_its_request() {
    let engine = hanging();
    let server = start(&engine, Duration::ZERO).await;
    for body in [
        r#"{"prompt": "a"}"#,
        r#"{"prompt": "a", "stream": true}"#,
        r#"{"prompt": ["a", "b"], "n": 2, "stream": true}"#,
    ] {
        let socket = send(server.address, body).await;
        eventually("the request", || engine.active.load(Ordering::SeqCst) > 0).await;
        drop(socket);
        eventually("its end", || engine.active.load(Ordering::SeqCst) == 0).await;
    }
}

#[tokio::test]
async fn a_drain_lets_requests_finish() {
    let engine = ScriptedEngine::new(|request, _| {
        let mut steps = answer(request, b"abc");
        steps.insert(2, Step::Sleep(Duration::from_millis(200)));
        steps
    });
    let server = start(&engine, Duration::from_secs(10)).await;
    let socket = send(server.address, r#"{"prompt": "a"}"#).await;
    eventually("the request", || engine.active.load(Ordering::SeqCst) == 1).await;
    server.stop.send(()).expect("running");
    eventually("the drain", || engine.draining.load(Ordering::SeqCst)).await;
    assert!(TcpStream::connect(server.address).await.is_err(), "still accepting");
    let text = read_all(socket).await;
    assert!(text.contains("\"text\":\"abc\""), "{text}");
    timeout(Duration::from_secs(5), server.ended).await.expect("ended").expect("no panic");
    assert!(engine.dead.load(Ordering::SeqCst));
}

#[tokio::test]
async fn a_drain_ends_what_takes_too_long() {
    for drain in [Duration::ZERO, Duration::from_millis(100)] {
        let engine = hanging();
        let server = start(&engine, drain).await;
        let socket = send(server.address, r#"{"prompt": "a"}"#).await;
        eventually("the request", || engine.active.load(Ordering::SeqCst) == 1).await;
        server.stop.send(()).expect("running");
        timeout(Duration::from_secs(5), server.ended).await.expect("ended").expect("no panic");
        assert!(engine.dead.load(Ordering::SeqCst));
        drop(socket);
    }
}

#[tokio::test]
async fn what_is_no_http_is_refused() {
    let engine = ScriptedEngine::says("x");
    let server = start(&engine, Duration::ZERO).await;
    for garbage in [
        &b"\x00\x01\x02\r\n\r\n"[..],
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Type: application/json\r\n\r\nzz\r\n",
    ] {
        let mut socket = TcpStream::connect(server.address).await.expect("a connection");
        socket.write_all(garbage).await.expect("sent");
        let mut answer = Vec::new();
        timeout(Duration::from_secs(5), socket.read_to_end(&mut answer))
            .await
            .expect("an end")
            .expect("bytes");
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
    let socket = send(server.address, r#"{"prompt": "a"}"#).await;
    assert!(read_all(socket).await.starts_with("HTTP/1.1 200"));
}
