//! Bytes on a connection: the server answers or hangs up, and never fails.
#![no_main]

use std::{cell::OnceCell, time::Duration};

use axum::Router;
use halyard_server::http::connection;
use halyard_server_fuzz::api;
use libfuzzer_sys::fuzz_target;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, duplex},
    runtime::{Builder, Runtime},
    time::timeout,
};

thread_local! {
    static SERVER: OnceCell<(Runtime, Router)> = const { OnceCell::new() };
}

fuzz_target!(|input: &[u8]| {
    SERVER.with(|server| {
        let (runtime, router) = server.get_or_init(|| {
            (Builder::new_current_thread().enable_all().build().expect("a runtime"), api())
        });
        runtime.block_on(async {
            let (mut client, stream) = duplex(1 << 20);
            let (_, answer) = tokio::join!(connection(stream, router.clone()), async {
                client.write_all(input).await.ok();
                // The end of the input is the end of the connection, but answers are read first.
                let mut answer = vec![0; 1 << 16];
                let read = timeout(Duration::from_millis(20), client.read(&mut answer)).await;
                answer.truncate(read.ok().and_then(Result::ok).unwrap_or(0));
                drop(client);
                answer
            });
            assert!(!answer.starts_with(b"HTTP/1.1 5"), "{}", String::from_utf8_lossy(&answer));
        });
    });
});
