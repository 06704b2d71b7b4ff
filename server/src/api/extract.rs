//! Reading a request's body: size, content type, JSON, types, each with its own error.

use std::time::Duration;

use axum::{
    body::{Body, Bytes},
    extract::{FromRequest, Request},
    http::{HeaderMap, header},
};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use super::error::ApiError;

/// Longest body. A million tokens of text fit many times over.
pub(crate) const MAX_BODY_BYTES: usize = 16 << 20;

/// How long a client may take to send a body.
const BODY_TIMEOUT: Duration = Duration::from_secs(120);

/// A body of JSON.
#[derive(Debug)]
pub(crate) struct JsonBody<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Sync> FromRequest<S> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        if !is_json(request.headers()) {
            return Err(ApiError::unsupported_media_type());
        }
        parse_json(&read_body(request.into_body()).await?).map(Self)
    }
}

/// Browsers send other types across origins without asking first; so only JSON's own type is taken.
fn is_json(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok())
    else {
        return false;
    };
    let media_type = value.split(';').next().unwrap_or_default().trim();
    media_type.eq_ignore_ascii_case("application/json")
}

async fn read_body(body: Body) -> Result<Bytes, ApiError> {
    match timeout(BODY_TIMEOUT, Limited::new(body, MAX_BODY_BYTES).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            Err(ApiError::body_too_large(MAX_BODY_BYTES))
        }
        Ok(Err(_)) => Err(ApiError::body_unreadable()),
        Err(_) => Err(ApiError::body_too_slow()),
    }
}

/// Parses a request's body; the error names the field and the place.
///
/// # Errors
/// 400 with the path of the field in `param`.
pub fn parse_json<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        let place = if path == "." { "body".to_owned() } else { format!("body.{path}") };
        malformed(&place, error.inner())
    })?;
    deserializer.end().map_err(|error| malformed("body", &error))?;
    Ok(value)
}

/// The place goes before the cause: the cause may hold the client's input and is cut at its end.
fn malformed(place: &str, error: &serde_json::Error) -> ApiError {
    let place = super::bounded(place, 80);
    let (line, column) = (error.line(), error.column());
    let cause = error.to_string();
    let suffix = format!(" at line {line} column {column}");
    let cause = cause.strip_suffix(&suffix).unwrap_or(&cause);
    let message = format!("{place}, line {line}, column {column}: {cause}");
    ApiError::malformed(place, &message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{ChatRequest, CompletionRequest, Prompt};

    fn failure<T: DeserializeOwned>(body: &[u8]) -> (String, String) {
        let Err(error) = parse_json::<T>(body) else { panic!("accepted") };
        let error = error.body().error;
        assert_eq!((error.code, error.r#type), (400, "Bad Request"));
        (error.param.expect("a place"), error.message)
    }

    #[test]
    fn bad_json_is_named_with_its_place() {
        let (param, message) = failure::<CompletionRequest>(b"{\"prompt\": }");
        assert_eq!(param, "body.prompt");
        assert!(message.contains("line 1, column 12: expected value"), "{message}");
        let (param, _) = failure::<CompletionRequest>(b"{} x");
        assert_eq!(param, "body");
        let (_, message) = failure::<CompletionRequest>(b"{\"prompt\": \"\xff\"}");
        assert!(message.contains("invalid unicode"), "{message}");
        let (_, message) = failure::<CompletionRequest>(b"");
        assert!(message.contains("EOF"), "{message}");
        let deep = "[".repeat(1_000_000);
        let (_, message) = failure::<ChatRequest>(format!("{{\"tools\": {deep}").as_bytes());
        assert!(message.contains("recursion limit"), "{message}");
    }

    #[test]
    fn wrong_types_are_named_with_their_field() {
        let (param, message) = failure::<CompletionRequest>(br#"{"temperature": "hot"}"#);
        assert_eq!(param, "body.temperature");
        assert!(message.contains("invalid type: string \"hot\", expected f32"), "{message}");
        let (param, _) = failure::<CompletionRequest>(br#"{"logit_bias": {"5": "x"}}"#);
        assert_eq!(param, "body.logit_bias.5");
        let (param, message) = failure::<ChatRequest>(br#"{"messages": [{"content": "x"}]}"#);
        assert_eq!(param, "body.messages[0]");
        assert!(message.contains("missing field `role`"), "{message}");
        let long = format!("{{\"temperature\": \"{}\"}}", "x".repeat(10_000));
        let (_, message) = failure::<CompletionRequest>(long.as_bytes());
        assert!(message.len() < 250, "{}", message.len());
    }

    #[test]
    fn prompts_take_four_forms() {
        let prompt =
            |json: &str| parse_json::<CompletionRequest>(json.as_bytes()).map(|r| r.prompt);
        assert_eq!(prompt(r#"{"prompt": "a"}"#), Ok(Some(Prompt::Text("a".into()))));
        assert_eq!(
            prompt(r#"{"prompt": ["a", "b"]}"#),
            Ok(Some(Prompt::Texts(vec!["a".into(), "b".into()])))
        );
        assert_eq!(prompt(r#"{"prompt": [1, 2]}"#), Ok(Some(Prompt::Ids(vec![1, 2]))));
        assert_eq!(
            prompt(r#"{"prompt": [[1], [2, 3]]}"#),
            Ok(Some(Prompt::IdLists(vec![vec![1], vec![2, 3]])))
        );
        assert_eq!(prompt(r#"{"prompt": []}"#), Ok(Some(Prompt::Texts(vec![]))));
        assert_eq!(prompt(r#"{"prompt": null, "top_p": null, "unknown": [{}]}"#), Ok(None));
        for bad in [r#"{"prompt": [1, "a"]}"#, r#"{"prompt": [-1]}"#, r#"{"prompt": {"a": 1}}"#] {
            assert!(prompt(bad).is_err(), "{bad}");
        }
    }
}
