//! Chat templates: Jinja as Hugging Face's `apply_chat_template` runs it.

mod budget;
mod content;
mod environment;
mod instrument;
mod json;
mod sources;
mod strftime;

use minijinja::Environment;
use minijinja::value::Value;
use serde_json::{Map, Value as Json};

pub use sources::TemplateSources;

use crate::error::TemplateError;
use crate::tokenizer::SpecialTokens;

/// A model's chat template, ready to render.
///
/// The dialect is that of `transformers`: blocks are trimmed, Python's string and dict methods work, `raise_exception`,
/// `strftime_now` (in UTC) and a `tojson` that writes like Python's `json.dumps` are there, `{% generation %}` marks
/// are accepted and mean nothing.
///
/// A template is a program from a downloaded file, so it runs within limits: so many instructions, so much text, so
/// much nesting. Within them it can neither hang nor fill the memory.
#[derive(Debug)]
pub struct ChatTemplate {
    env: Result<Environment<'static>, String>,
    has_tool_template: bool,
    special: SpecialTokens,
    iterates_parts: bool,
}

/// What a template is rendered from.
#[derive(Debug, Clone, Copy)]
pub struct ChatInput<'a> {
    /// A list of objects with `role` and `content`.
    pub messages: &'a Json,
    /// Tools that the model may call, as JSON schemas.
    pub tools: Option<&'a Json>,
    /// Documents for retrieval-augmented generation.
    pub documents: Option<&'a Json>,
    /// Whether the prompt ends with the beginning of an answer.
    pub add_generation_prompt: bool,
    /// Whether the prompt ends within the last message, so that the model goes on with it.
    pub continue_final_message: bool,
    /// Further variables for the template (`chat_template_kwargs`), e.g. `enable_thinking`.
    pub kwargs: Option<&'a Map<String, Json>>,
}

impl<'a> ChatInput<'a> {
    /// Messages alone, to be answered.
    #[must_use]
    pub fn new(messages: &'a Json) -> Self {
        Self {
            messages,
            tools: None,
            documents: None,
            add_generation_prompt: true,
            continue_final_message: false,
            kwargs: None,
        }
    }
}

const DEFAULT: &str = "chat";
const WITH_TOOLS: &str = "tool_use";

impl ChatTemplate {
    /// Compiles a template. A mistake in it is kept and is the error of every [`ChatTemplate::render`]; see
    /// [`ChatTemplate::check`].
    #[must_use]
    pub fn new(sources: TemplateSources, special: &SpecialTokens) -> Self {
        let has_tool_template = sources.tool_use.is_some();
        let templates =
            [(DEFAULT, Some(sources.default)), (WITH_TOOLS, sources.tool_use)].into_iter();
        let templates = templates.filter_map(|(name, source)| Some((name, source?)));
        let env = environment::compile(templates);
        let mut template =
            Self { env, has_tool_template, special: special.clone(), iterates_parts: false };
        template.iterates_parts = content::iterates_parts(&template);
        template
    }

    /// Whether the template compiles.
    ///
    /// # Errors
    /// [`TemplateError::Syntax`] if not.
    pub fn check(&self) -> Result<(), TemplateError> {
        self.env().map(|_| ())
    }

    /// The prompt for a conversation.
    ///
    /// A message whose content is a list of text parts is passed on as it is if the template goes through such parts,
    /// else the parts are joined by newlines.
    ///
    /// # Errors
    /// See [`TemplateError`]; [`TemplateError::is_client_error`] tells whose fault it is.
    pub fn render(&self, input: &ChatInput<'_>) -> Result<String, TemplateError> {
        if input.add_generation_prompt && input.continue_final_message {
            return Err(TemplateError::Messages(
                "add_generation_prompt and continue_final_message can't both be true".to_owned(),
            ));
        }
        let messages = content::prepare(input.messages, self.iterates_parts)?;
        let context = self.context(input, Value::from_serialize(&messages));
        let rendered = self.render_context(input.tools.is_some(), context)?;
        if input.continue_final_message {
            return content::cut_after_final_message(rendered, &messages);
        }
        Ok(rendered)
    }

    fn context(&self, input: &ChatInput<'_>, messages: Value) -> Value {
        let json = |value: Option<&Json>| value.map_or(Value::from(()), Value::from_serialize);
        let mut entries = vec![
            ("messages".to_owned(), messages),
            ("tools".to_owned(), json(input.tools)),
            ("documents".to_owned(), json(input.documents)),
            ("add_generation_prompt".to_owned(), Value::from(input.add_generation_prompt)),
        ];
        let special = [
            ("bos_token", &self.special.bos_token),
            ("eos_token", &self.special.eos_token),
            ("unk_token", &self.special.unk_token),
            ("pad_token", &self.special.pad_token),
        ];
        entries.extend(
            special.into_iter().filter_map(|(name, token)| {
                Some((name.to_owned(), Value::from(token.as_deref()?)))
            }),
        );
        // Later entries win: a request may set what it likes, except the conversation itself.
        for (name, value) in input.kwargs.into_iter().flatten() {
            // The checks that hold a template back have names that are no identifiers.
            let is_name = name.chars().all(|c| c.is_alphanumeric() || c == '_');
            if name != "messages" && is_name {
                entries.push((name.clone(), Value::from_serialize(value)));
            }
        }
        Value::from_iter(entries)
    }

    fn render_context(&self, with_tools: bool, context: Value) -> Result<String, TemplateError> {
        let name = if with_tools && self.has_tool_template { WITH_TOOLS } else { DEFAULT };
        budget::render(self.env()?, name, context)
    }

    fn env(&self) -> Result<&Environment<'static>, TemplateError> {
        self.env.as_ref().map_err(|message| TemplateError::Syntax(message.clone()))
    }
}
