//! The real binary as a server, and a client of plain sockets.
#![allow(dead_code, reason = "each test binary uses a part")]

pub(crate) mod failure;
pub(crate) mod golden;
pub(crate) mod gpu;
pub(crate) mod npu;

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::{Child, ChildStderr, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;

/// A folder of golden models.
pub(crate) const MODELS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../testdata/models");

/// A running `halyard serve`; killed when dropped.
pub(crate) struct Server {
    process: Child,
    address: String,
    /// Keeps the pipe open, so that the server can go on logging.
    log: BufReader<ChildStderr>,
}

/// `halyard` with a command, as users have it: nothing of this shell's settings.
pub(crate) fn halyard(command: &str) -> Command {
    let mut halyard = Command::new(env!("CARGO_BIN_EXE_halyard"));
    halyard.arg(command).env_remove("RUST_LOG").env_remove("HALYARD_BACKEND_PATH");
    halyard
}

/// The flags of every server here.
pub(crate) const SERVE: [&str; 7] = [
    "--host",
    "127.0.0.1",
    "--port",
    "0",
    "--served-model-name",
    "tiny",
    "--disable-uvicorn-access-log",
];

impl Server {
    /// On the processor.
    pub(crate) fn start(model: &str, flags: &[&str]) -> Self {
        let mut serve = halyard("serve");
        serve.arg(format!("{MODELS}/{model}")).args(SERVE);
        Self::run(serve.args(["--device", "cpu", "--dtype", "float32"]).args(flags))
    }

    /// Waits until it serves.
    pub(crate) fn run(command: &mut Command) -> Self {
        let mut process = command.stderr(Stdio::piped()).spawn().expect("the binary starts");
        let log = BufReader::new(process.stderr.take().expect("piped"));
        let mut server = Self { process, address: String::new(), log };
        let mut all = String::new();
        while server.address.is_empty() {
            let from = all.len();
            let read = server.log.read_line(&mut all).expect("UTF-8");
            assert!(read > 0, "the server did not start:\n{all}");
            if let Some((_, address)) = all[from..].split_once("http://") {
                address.trim().clone_into(&mut server.address);
            }
        }
        server
    }

    pub(crate) fn client(&self) -> Client<'_> {
        Client { address: &self.address }
    }

    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    pub(crate) fn signal(&self, name: &str) {
        let id = self.process.id().to_string();
        let status = Command::new("kill").args([&format!("-{name}"), &id]).status();
        assert!(status.expect("kill runs").success());
    }

    /// How it ended, within `limit`.
    pub(crate) fn wait(&mut self, limit: Duration) -> ExitStatus {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.process.try_wait().expect("our child") {
                return status;
            }
            assert!(Instant::now() < deadline, "the server did not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Server {
    /// What it logged since it served, once it has ended.
    pub(crate) fn rest_of_log(&mut self) -> String {
        let mut text = String::new();
        self.log.read_to_string(&mut text).expect("UTF-8");
        text
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[derive(Clone, Copy)]
pub(crate) struct Client<'a> {
    address: &'a str,
}

impl Client<'_> {
    pub(crate) fn connect(self) -> TcpStream {
        TcpStream::connect(self.address).expect("a connection")
    }

    /// Sends a request and returns the socket its answer comes from.
    pub(crate) fn send(self, path: &str, body: &Value) -> TcpStream {
        let body = body.to_string();
        let mut socket = self.connect();
        let head = format!(
            "POST {path} HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        socket.write_all(head.as_bytes()).expect("sent");
        socket.write_all(body.as_bytes()).expect("sent");
        socket
    }

    /// Asks for a path and returns the socket its answer comes from.
    pub(crate) fn ask(self, path: &str) -> TcpStream {
        let mut socket = self.connect();
        socket.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).expect("sent");
        socket
    }

    pub(crate) fn get(self, path: &str) -> String {
        body_of(self.ask(path), 200)
    }

    /// The status alone.
    pub(crate) fn status(self, path: &str) -> u16 {
        let mut head = String::new();
        BufReader::new(self.ask(path)).read_line(&mut head).expect("UTF-8");
        head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status")
    }

    pub(crate) fn post(self, path: &str, body: &Value) -> Value {
        serde_json::from_str(&body_of(self.send(path, body), 200)).expect("JSON")
    }

    /// The events of a stream, without `[DONE]`.
    pub(crate) fn events(self, path: &str, body: &Value) -> Vec<Value> {
        let text = body_of(self.send(path, body), 200);
        let mut events: Vec<&str> = text
            .split_terminator("\n\n")
            .map(|event| event.strip_prefix("data: ").expect("exactly `data: `"))
            .collect();
        assert_eq!(events.pop(), Some("[DONE]"), "{text}");
        events.iter().map(|event| serde_json::from_str(event).expect("JSON")).collect()
    }
}

/// Reads an answer to its end. HTTP/1.0 has no chunks: the body ends with the connection.
pub(crate) fn body_of(mut socket: TcpStream, status: u16) -> String {
    let mut text = String::new();
    socket.read_to_string(&mut text).expect("UTF-8 to the end");
    let (head, body) = text.split_once("\r\n\r\n").expect("a head");
    assert_eq!(head.split(' ').nth(1), Some(status.to_string().as_str()), "{text}");
    body.to_owned()
}

/// The value of the series with such labels.
pub(crate) fn value(metrics: &str, name: &str, labels: &str) -> Option<f64> {
    let is_it = |line: &&str| {
        line.strip_prefix(name).is_some_and(|rest| rest.starts_with('{') && rest.contains(labels))
    };
    metrics.lines().find(is_it)?.rsplit(' ').next()?.parse().ok()
}

/// What a command that succeeds prints.
pub(crate) fn printed(command: &mut Command) -> String {
    let output = command.output().expect("the binary starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}
