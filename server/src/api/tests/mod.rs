//! The API over a scripted engine.

mod chat;
mod completions;
mod errors;
mod lifecycle;
mod small;
