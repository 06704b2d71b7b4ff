//! What a failure is told with: one clear message.

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{
    Server, body_of,
    golden::{PLAIN, greedy},
};

/// The one line that a start which fails ends with; it has to have all the words.
pub(crate) fn refused(command: &mut Command, words: &[&str]) {
    refused_after(command, |_| (), words);
}

/// The same of a start that `meddle` sees the process of.
pub(crate) fn refused_after(command: &mut Command, meddle: impl Fn(u32), words: &[&str]) {
    let mut process = command.stderr(Stdio::piped()).spawn().expect("the binary starts");
    meddle(process.id());
    let mut log = String::new();
    let mut pipe = BufReader::new(process.stderr.take().expect("piped"));
    while pipe.read_line(&mut log).expect("UTF-8") > 0 {
        if log.contains(" serving ") {
            process.kill().expect("our child");
        }
    }
    assert_eq!(process.wait().expect("our child").code(), Some(1), "{log}");
    let errors: Vec<&str> = log.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 1, "{log}");
    assert!(!log.contains("panicked"), "{log}");
    for word in words {
        assert!(errors[0].contains(word), "`{word}` is not in: {}", errors[0]);
    }
}

/// A device that is lost while it serves: who waits is told why, and so is everybody who comes later.
pub(crate) fn lost(mut server: Server, device: &str, words: &[&str]) {
    let client = server.client();
    let mut request = greedy(&json!("a"), 200);
    request["stream"] = json!(true);
    let streams = client.send(PLAIN, &request);
    request["stream"] = json!(false);
    let answer = client.send(PLAIN, &request);

    says(&error(&body_of(answer, 500)), words);
    let text = body_of(streams, 200);
    let events: Vec<&str> = text.split_terminator("\n\n").collect();
    assert_eq!(events.last(), Some(&"data: [DONE]"), "{text}");
    let last = events[events.len() - 2].strip_prefix("data: ").expect("an event");
    says(&error(last), words);

    let deadline = Instant::now() + Duration::from_secs(20);
    while client.status("/health") == 200 {
        assert!(Instant::now() < deadline, "still healthy");
    }
    let health = body_of(client.ask("/health"), 503);
    let is_lost = format!("the device is lost: {device}");
    says(&error(&health), &[words, &[&is_lost]].concat());
    says(&error(&body_of(client.send(PLAIN, &request), 503)), words);
    assert!(client.get("/metrics").contains("halyard:num_requests_running{"));
    assert!(client.get("/v1/models").contains("tiny"));
    server.signal("TERM");
    assert_eq!(server.wait(Duration::from_secs(20)).code(), Some(0));
    let log = server.rest_of_log();
    assert!(!log.contains("panicked") && !log.contains("WARN could not"), "{log}");
}

/// The message of an error, which is one line.
pub(crate) fn error(body: &str) -> String {
    let body: Value = serde_json::from_str(body).expect("JSON");
    let message = body["error"]["message"].as_str().expect("an error");
    assert!(!message.contains('\n'), "{message}");
    message.to_owned()
}

pub(crate) fn says(message: &str, words: &[&str]) {
    for word in words {
        assert!(message.contains(word), "`{word}` is not in: {message}");
    }
}
