//! Bodies of requests through the whole API: an answer or a refusal, never a failure of the server.
#![no_main]

use std::cell::OnceCell;

use axum::{
    Router,
    body::{Body, to_bytes},
    http::Request,
};
use halyard_server_fuzz::api;
use libfuzzer_sys::fuzz_target;
use tokio::runtime::{Builder, Runtime};
use tower::ServiceExt;

const PATHS: [&str; 4] = ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"];

thread_local! {
    static SERVER: OnceCell<(Runtime, Router)> = const { OnceCell::new() };
}

fuzz_target!(|input: (u8, &[u8])| {
    let (path, body) = input;
    SERVER.with(|server| {
        let (runtime, router) = server.get_or_init(|| {
            (Builder::new_current_thread().enable_all().build().expect("a runtime"), api())
        });
        runtime.block_on(async {
            let request = Request::post(PATHS[usize::from(path) % PATHS.len()])
                .header("content-type", "application/json")
                .body(Body::from(body.to_vec()))
                .expect("a request");
            let response = router.clone().oneshot(request).await.expect("infallible");
            assert!(!response.status().is_server_error(), "{}", response.status());
            let sent = to_bytes(response.into_body(), usize::MAX).await.expect("a whole body");
            // A small body must not buy a large reply: a chunk a token is the most there is.
            assert!(sent.len() < 64 * 1024 * 1024);
        });
    });
});
