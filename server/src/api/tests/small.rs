//! The small endpoints.

use axum::{
    body::Body,
    http::{Method, Request, StatusCode},
};
use serde_json::{Value, json};
use std::sync::atomic::Ordering;

use crate::api::{
    ApiKeys, AppOptions,
    testing::{Client, ScriptedEngine, post},
};

fn json_of(text: &str) -> Value {
    serde_json::from_str(text).expect("JSON")
}

#[tokio::test]
async fn models_are_listed_and_found() {
    let client = Client::new(&ScriptedEngine::says("x"));
    let (status, text) = client.get("/v1/models").await;
    assert_eq!(status, StatusCode::OK);
    let list = json_of(&text);
    assert_eq!(list["object"], "list");
    assert_eq!(list["data"].as_array().expect("a list").len(), 2);
    let card = &list["data"][1];
    assert_eq!((&card["id"], &card["object"]), (&json!("org/tiny"), &json!("model")));
    assert_eq!((&card["root"], &card["max_model_len"]), (&json!("models/tiny"), &json!(256)));
    assert_eq!(card["parent"], Value::Null);
    let (status, text) = client.get("/v1/models/org/tiny").await;
    assert_eq!((status, json_of(&text)), (StatusCode::OK, card.clone()));
    let (status, text) = client.get("/v1/models/none/such").await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert_eq!(json_of(&text)["error"]["param"], "model");
}

#[tokio::test]
async fn text_to_ids_and_back() {
    let client = Client::new(&ScriptedEngine::says("x"));
    let answer = client.ok("/tokenize", json!({"prompt": "hé", "return_token_strs": true})).await;
    let expected = json!({
        "count": 4, "max_model_len": 256, "tokens": [257, 104, 195, 169],
        "token_strs": ["<s>", "h", "\u{fffd}", "\u{fffd}"],
    });
    assert_eq!(answer, expected);
    let request = json!({"messages": [{"role": "u", "content": "x"}]});
    let answer = client.ok("/tokenize", request).await;
    assert_eq!(answer["count"], 16);
    assert_eq!(answer["token_strs"], Value::Null);
    let answer = client.ok("/detokenize", json!({"tokens": [104, 195, 169]})).await;
    assert_eq!(answer, json!({"prompt": "hé"}));
    let (param, _) = client.refused("/detokenize", json!({"tokens": [258]})).await;
    assert_eq!(param, "tokens");
    let (param, _) = client.refused("/tokenize", json!({})).await;
    assert_eq!(param, "prompt");
}

#[tokio::test]
async fn state_of_the_server() {
    let engine = ScriptedEngine::says("x");
    let client = Client::new(&engine);
    assert_eq!(client.get("/health").await, (StatusCode::OK, String::new()));
    assert_eq!(client.get("/ping").await.0, StatusCode::OK);
    assert_eq!(client.post_text("/ping", &json!({})).await.0, StatusCode::OK);
    let (_, text) = client.get("/version").await;
    assert_eq!(json_of(&text), json!({"version": env!("CARGO_PKG_VERSION")}));
    let (_, text) = client.get("/load").await;
    assert_eq!(json_of(&text), json!({"server_load": 0}));
    engine.dead.store(true, Ordering::SeqCst);
    let (status, text) = client.get("/health").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(text.contains("scripted death"), "{text}");
}

#[tokio::test]
async fn metrics_count() {
    let client = Client::new(&ScriptedEngine::says("x"));
    client.ok("/v1/completions", json!({"prompt": "a"})).await;
    client.refused("/v1/completions", json!({"prompt": "a", "n": 0})).await;
    client.get("/no/such/path").await;
    let (status, text) = client.get("/metrics").await;
    assert_eq!(status, StatusCode::OK);
    for line in [
        r#"halyard:request_success_total{model_name="tiny",engine="0",finished_reason="stop"} 1"#,
        r#"halyard:request_params_n_count{model_name="tiny",engine="0"} 1"#,
        r#"halyard:num_requests_running{model_name="tiny",engine="0"} 0"#,
        r#"http_requests_total{method="POST",handler="/v1/completions",status="4xx"} 1"#,
        r#"http_requests_total{method="GET",handler="none",status="4xx"} 1"#,
        "process_resident_memory_bytes ",
        "# EOF",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
}

#[tokio::test]
async fn keys_guard_v1_and_nothing_else() {
    let options =
        AppOptions { api_keys: ApiKeys::new(["secret", "other"]), ..AppOptions::default() };
    let client = Client::with(&ScriptedEngine::says("x"), options);
    for open in ["/health", "/ping", "/version", "/load", "/metrics"] {
        assert_eq!(client.get(open).await.0, StatusCode::OK, "{open}");
    }
    assert_eq!(client.post_text("/tokenize", &json!({"prompt": "a"})).await.0, StatusCode::OK);
    for guarded in ["/v1/models", "/v1/models/tiny", "/v1/completions", "/v1/none", "/v1"] {
        let (status, text) = client.get(guarded).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED, "{guarded}");
        let error = &json_of(&text)["error"];
        assert_eq!((&error["code"], &error["type"]), (&json!(401), &json!("Unauthorized")));
    }
    let mut request = post("/v1/completions", &json!({"prompt": "a"}));
    request.headers_mut().insert("authorization", "Bearer other".parse().expect("a value"));
    assert_eq!(client.send(request).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn browsers_may_call_from_allowed_origins_only() {
    let preflight = || {
        Request::builder()
            .method(Method::OPTIONS)
            .uri("/v1/chat/completions")
            .header("origin", "http://ui.example")
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", "authorization,content-type")
            .body(Body::empty())
            .expect("a request")
    };
    let allow = |origins: &[&str]| {
        let allowed_origins = origins.iter().map(|origin| (*origin).to_owned()).collect();
        let api_keys = ApiKeys::new(["secret"]);
        let options = AppOptions { allowed_origins, api_keys, ..AppOptions::default() };
        Client::with(&ScriptedEngine::says("x"), options)
    };
    let header = "access-control-allow-origin";
    let response = allow(&["http://ui.example"]).send(preflight()).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()[header], "http://ui.example");
    let response = allow(&["*"]).send(preflight()).await;
    assert_eq!(response.headers()[header], "*");
    for none in [allow(&[]), allow(&["http://other.example"])] {
        let response = none.send(preflight()).await;
        assert!(!response.headers().contains_key(header));
    }
}
