//! The `halyard` command: serves a model over the OpenAI API, runs batches, measures, verifies.
//!
//! | module | what it holds |
//! |---|---|
//! | [`cli`] | flags, their spellings and files |
//! | [`commands`] | one command a file |
//! | [`api`] | the HTTP endpoints, one a file |
//! | [`wire`] | requests and responses as serde types |
//! | [`generation`] | from a checked request to pieces of text |
//! | [`engine`], [`text`] | the seams to the engine and to the tokenizer |
//! | [`http`] | connections, and how they end |
//! | [`metrics`] | Prometheus series |
//! | [`ui`], [`logging`] | the terminal and the log |

pub mod api;
pub mod cli;
pub mod commands;
pub mod engine;
pub mod generation;
pub mod http;
pub mod logging;
pub mod metrics;
pub mod text;
pub mod ui;
pub mod wire;
