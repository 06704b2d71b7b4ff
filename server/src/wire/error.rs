//! The error object that every OpenAI client reads.

use serde::Serialize;

/// The body of an error response, and of the `error` event in a stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ErrorBody {
    /// The error.
    pub error: ErrorObject,
}

/// What went wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ErrorObject {
    /// For people.
    pub message: String,
    /// A class of errors, such as `BadRequestError`.
    pub r#type: &'static str,
    /// The field at fault.
    pub param: Option<String>,
    /// The HTTP status.
    pub code: u16,
}
