//! Text on its way to and from token ids: tokenizers, chat templates, incremental detokenisation, stop strings.
//!
//! [`Tokenizer`] comes from `tokenizer.json` or from the vocabulary inside a GGUF; [`ChatTemplate`] renders messages
//! as the model was trained to see them; [`StreamDecoder`] turns generated ids into text without ever cutting a
//! character, and [`StopMatcher`] ends it at a stop string without ever showing a part of one.
//!
//! ```no_run
//! use halyard_text::{ChatInput, StreamDecoder, load};
//! use halyard_weights::Checkpoint;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let checkpoint = Checkpoint::open("models/llama".as_ref())?;
//! let (tokenizer, template) = load(&checkpoint)?;
//! let messages = serde_json::json!([{"role": "user", "content": "What is 2 + 2?"}]);
//! let template = template.ok_or("the model has no chat template")?;
//! let prompt = template.render(&ChatInput::new(&messages))?;
//! let ids = tokenizer.encode(&prompt, false)?;
//!
//! let mut decoder = StreamDecoder::new(true);
//! for id in ids {
//!     if let Some(text) = decoder.push(&tokenizer, id) {
//!         print!("{text}");
//!     }
//! }
//! # Ok(()) }
//! ```

mod detok;
mod error;
mod load;
mod stop;
mod template;
mod tokenizer;

pub use detok::StreamDecoder;
pub use error::{TemplateError, TokenizerError};
pub use load::load;
pub use stop::{EmptyStopString, StopMatcher, StopOutput};
pub use template::{ChatInput, ChatTemplate, TemplateSources};
pub use tokenizer::{SpecialTokens, Tokenizer};
