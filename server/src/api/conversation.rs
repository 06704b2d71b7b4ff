//! From messages to the prompt that the model's chat template makes of them.

use serde_json::{Map, Value, json};

use super::{ApiError, App};
use crate::{
    text::{Chat, ChatError},
    wire::{Content, ContentPart, Message},
};

/// How a conversation is to be rendered.
#[derive(Debug, Default)]
pub(super) struct ChatOptions {
    pub(super) add_generation_prompt: Option<bool>,
    pub(super) continue_final_message: Option<bool>,
    pub(super) kwargs: Map<String, Value>,
    pub(super) tools: Option<Value>,
    pub(super) documents: Option<Value>,
}

/// A rendered conversation.
#[derive(Debug)]
pub(super) struct Rendered {
    pub(super) prompt: String,
    /// Role of the answer.
    pub(super) role: String,
    /// Text of the last message, if it has the answer's role.
    pub(super) last: Option<String>,
}

/// Renders a conversation.
pub(super) fn render(
    app: &App,
    messages: Vec<Message>,
    options: ChatOptions,
) -> Result<Rendered, ApiError> {
    if messages.is_empty() {
        return Err(ApiError::invalid("messages", "messages must hold at least one message."));
    }
    let continue_final_message = options.continue_final_message.unwrap_or(false);
    let add_generation_prompt = options.add_generation_prompt.unwrap_or(!continue_final_message);
    if continue_final_message && add_generation_prompt {
        let message =
            "Cannot set both `continue_final_message` and `add_generation_prompt` to true.";
        return Err(ApiError::invalid("continue_final_message", message));
    }
    let role = match messages.last() {
        Some(last) if !add_generation_prompt => last.role.clone(),
        _ => app.options.response_role.clone(),
    };
    let last = messages.last().filter(|last| last.role == role);
    let last = last.and_then(|last| match &last.content {
        Some(Content::Text(text)) => Some(text.clone()),
        _ => None,
    });
    let messages = messages.into_iter().enumerate().map(for_template).collect::<Result<_, _>>()?;
    let messages = Value::Array(messages);

    let mut kwargs = app.options.template_kwargs.clone();
    kwargs.extend(options.kwargs);
    let chat = Chat {
        messages: &messages,
        tools: options.tools.as_ref(),
        documents: options.documents.as_ref(),
        add_generation_prompt,
        continue_final_message,
        kwargs,
    };
    let prompt = app.text.chat(&chat).map_err(|error| match error {
        ChatError::Messages(cause) => ApiError::invalid("messages", cause),
        ChatError::Template(cause) => {
            tracing::error!(cause, "the chat template failed");
            ApiError::template_failed()
        }
    })?;
    Ok(Rendered { prompt, role, last })
}

/// A message as templates expect it: text as content, arguments of tool calls as objects, and the
/// reasoning under both of its names.
fn for_template((i, message): (usize, Message)) -> Result<Value, ApiError> {
    let Message { role, content, mut extra } = message;
    let mut object = Map::with_capacity(extra.len() + 2);
    object.insert("role".into(), role.into());
    object.insert("content".into(), content_value(i, content)?);
    if let Some(Value::Array(calls)) = extra.get_mut("tool_calls") {
        calls.iter_mut().for_each(parse_arguments);
    }
    let reasoning = ["reasoning_content", "reasoning"]
        .into_iter()
        .find_map(|name| extra.get(name).filter(|value| !value.is_null()).cloned());
    if let Some(reasoning) = reasoning {
        extra.insert("reasoning_content".into(), reasoning.clone());
        extra.insert("reasoning".into(), reasoning);
    }
    extra.retain(|_, value| !value.is_null());
    object.extend(extra);
    Ok(Value::Object(object))
}

/// Whether the parts stay a list or become one string is the template's to say.
fn content_value(i: usize, content: Option<Content>) -> Result<Value, ApiError> {
    let parts = match content {
        None => return Ok("".into()),
        Some(Content::Text(text)) => return Ok(text.into()),
        Some(Content::Parts(parts)) => parts,
    };
    let parts = parts.into_iter().enumerate().map(|(j, part)| match part {
        ContentPart::Text(text) => Ok(json!({"type": "text", "text": text})),
        ContentPart::Typed { r#type, text } => match (r#type.as_str(), text) {
            ("text" | "input_text" | "output_text", Some(text)) => {
                Ok(json!({"type": "text", "text": text}))
            }
            ("text" | "input_text" | "output_text", None) => {
                let place = format!("messages[{i}].content[{j}].text");
                Err(ApiError::invalid(place, "A part of type text must have a text."))
            }
            (other, _) => {
                let place = format!("messages[{i}].content[{j}].type");
                let other = super::bounded(other, 40);
                let message = format!("Parts of type `{other}` are not supported; only `text` is.");
                Err(ApiError::invalid(place, message))
            }
        },
    });
    Ok(Value::Array(parts.collect::<Result<_, _>>()?))
}

/// The API has arguments as a string of JSON; templates want the object.
fn parse_arguments(call: &mut Value) {
    let Some(arguments) = call.pointer_mut("/function/arguments") else { return };
    if let Value::String(text) = arguments
        && let Ok(parsed) = serde_json::from_str(text)
    {
        *arguments = parsed;
    }
}
