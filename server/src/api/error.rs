//! Every error response, in the one shape that OpenAI clients read.

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use halyard_engine::{RequestError, SubmitError};

use crate::wire::{ErrorBody, ErrorObject};

/// Longest message a client gets. Messages may hold what the client sent, so an unbounded one would
/// let a small body buy a large reply.
const MAX_MESSAGE_CHARS: usize = 1000;

/// Longest piece of a client's own input inside a message.
const MAX_ECHO_CHARS: usize = 200;

/// An error as the client sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    status: StatusCode,
    kind: &'static str,
    param: Option<String>,
    message: String,
    retry_after: Option<u32>,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        let message = bounded(&message.into(), MAX_MESSAGE_CHARS);
        Self { status, kind, param: None, message, retry_after: None }
    }

    /// 400 for a field whose value is out of range or not supported.
    pub(crate) fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        let param = Some(bounded(&param.into(), MAX_ECHO_CHARS));
        Self { param, ..Self::new(StatusCode::BAD_REQUEST, "BadRequestError", message) }
    }

    /// 400 for a field that the API has and this server does not support.
    pub(crate) fn unsupported(param: &str, supported: &str) -> Self {
        Self::invalid(param, format!("`{param}` is not supported yet; {supported}"))
    }

    /// 400 for a body that is no JSON, or whose types are wrong; `param` is the place.
    pub(crate) fn malformed(param: impl Into<String>, message: &str) -> Self {
        let param = Some(bounded(&param.into(), MAX_ECHO_CHARS));
        let message = bounded(message, MAX_ECHO_CHARS);
        Self { param, ..Self::new(StatusCode::BAD_REQUEST, "Bad Request", message) }
    }

    pub(crate) fn model_not_found(model: &str) -> Self {
        let model = bounded(model, MAX_ECHO_CHARS);
        let message = format!("The model `{model}` does not exist.");
        Self {
            param: Some("model".into()),
            ..Self::new(StatusCode::NOT_FOUND, "NotFoundError", message)
        }
    }

    pub(crate) fn path_not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, "NotFoundError", "There is nothing at this path.")
    }

    pub(crate) fn method_not_allowed() -> Self {
        let message = "This path does not take this method.";
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", message)
    }

    pub(crate) fn unauthorized() -> Self {
        let message = "Missing or wrong API key: send `Authorization: Bearer KEY`.";
        Self::new(StatusCode::UNAUTHORIZED, "Unauthorized", message)
    }

    pub(crate) fn unsupported_media_type() -> Self {
        let message = "Unsupported Media Type: only `application/json` is allowed.";
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "Unsupported Media Type", message)
    }

    pub(crate) fn body_too_large(limit_bytes: usize) -> Self {
        let message = format!("The request's body is larger than {limit_bytes} bytes.");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "Payload Too Large", message)
    }

    pub(crate) fn body_too_slow() -> Self {
        let message = "The request's body took too long to arrive.";
        Self::new(StatusCode::REQUEST_TIMEOUT, "Request Timeout", message)
    }

    pub(crate) fn body_unreadable() -> Self {
        Self::malformed("body", "the request's body could not be read to its end")
    }

    /// 500; the cause goes to the log, not to the client.
    pub(crate) fn internal() -> Self {
        let message = "The server failed to answer this request.";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalServerError", message)
    }

    /// 500: the model's chat template is wrong.
    pub(crate) fn template_failed() -> Self {
        let message = "The model's chat template failed on this conversation.";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalServerError", message)
    }

    fn engine_failed(message: String) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalServerError", message)
    }

    /// 503 of `/health`.
    pub(crate) fn unhealthy(cause: &str) -> Self {
        Self::unavailable(format!("The engine is not healthy: {cause}"), 10)
    }

    fn unavailable(message: String, retry_after: u32) -> Self {
        Self {
            retry_after: Some(retry_after),
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, "Service Unavailable", message)
        }
    }

    /// The body, also used for the `error` event of a stream.
    pub(crate) fn body(&self) -> ErrorBody {
        ErrorBody {
            error: ErrorObject {
                message: self.message.clone(),
                r#type: self.kind,
                param: self.param.clone(),
                code: self.status.as_u16(),
            },
        }
    }
}

impl From<SubmitError> for ApiError {
    fn from(error: SubmitError) -> Self {
        let message = error.to_string();
        match error {
            SubmitError::Invalid { param, message } => Self::invalid(param, message),
            SubmitError::QueueFull { .. } => Self::unavailable(message, 1),
            SubmitError::ShuttingDown | SubmitError::EngineDead(_) => {
                Self::unavailable(message, 10)
            }
            _ => Self::engine_failed(message),
        }
    }
}

impl From<RequestError> for ApiError {
    fn from(error: RequestError) -> Self {
        Self::engine_failed(error.to_string())
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            let scheme = HeaderValue::from_static("Bearer");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
        }
        response
    }
}

/// `text` cut to `max_chars` code points, with an ellipsis if something was cut.
pub(crate) fn bounded(text: &str, max_chars: usize) -> String {
    match text.char_indices().nth(max_chars) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn echo_of_input_is_bounded() {
        let error = ApiError::model_not_found(&"x".repeat(100_000));
        assert!(error.body().error.message.len() < 300);
        let error = ApiError::malformed("p".repeat(100_000), &"é".repeat(100_000));
        assert!(error.body().error.message.chars().count() == 201);
        assert!(error.body().error.param.expect("set").chars().count() == 201);
    }

    #[test]
    fn a_full_queue_says_when_to_come_back() {
        let error = ApiError::from(SubmitError::QueueFull { waiting: 3, limit: 3 });
        let response = error.into_response();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers()[header::RETRY_AFTER], "1");
    }
}
