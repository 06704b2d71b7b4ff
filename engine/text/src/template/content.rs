//! Message contents: texts, or lists of parts.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use minijinja::value::{Enumerator, Object, ObjectRepr, Value};
use serde_json::Value as Json;

use super::{ChatInput, ChatTemplate};
use crate::error::{TemplateError, shorten};

/// Messages as the template gets them.
pub(super) fn prepare(messages: &Json, iterates_parts: bool) -> Result<Json, TemplateError> {
    let list = messages
        .as_array()
        .ok_or_else(|| TemplateError::Messages("messages must be a list of objects".to_owned()))?;
    let prepare = |message: &Json| {
        if !message.is_object() {
            return Err(TemplateError::Messages("each message must be an object".to_owned()));
        }
        let mut message = message.clone();
        if let (Some(Json::Array(parts)), false) = (message.get("content"), iterates_parts) {
            message["content"] = join_parts(parts)?.into();
        }
        Ok(message)
    };
    list.iter().map(prepare).collect::<Result<Vec<_>, _>>().map(Json::Array)
}

fn join_parts(parts: &[Json]) -> Result<String, TemplateError> {
    let text = |part: &Json| match part {
        Json::String(text) => Ok(text.clone()),
        object => object["text"].as_str().map(str::to_owned).ok_or_else(|| {
            let kind = object["type"].as_str().unwrap_or("without a type");
            TemplateError::Messages(format!(
                "a content part of type {} is not supported by this model, only text",
                shorten(kind)
            ))
        }),
    };
    Ok(parts.iter().map(text).collect::<Result<Vec<_>, _>>()?.join("\n"))
}

/// Whether a template goes through the parts of a content, found out by letting it try.
pub(super) fn iterates_parts(template: &ChatTemplate) -> bool {
    let iterated = Arc::new(AtomicBool::new(false));
    let messages = Json::Array(Vec::new());
    for roles in [&["user"][..], &["system", "user"]] {
        let message = |role: &&str| {
            let content = Value::from_object(Probe { iterated: Arc::clone(&iterated) });
            Value::from_iter([("role", Value::from(*role)), ("content", content)])
        };
        let probes: Vec<Value> = roles.iter().map(message).collect();
        let context = template.context(&ChatInput::new(&messages), Value::from(probes));
        // A template that takes no lists may well fail here: that is an answer, too.
        if matches!(template.render_context(false, context), Err(TemplateError::Limit(_))) {
            break;
        }
    }
    iterated.load(Ordering::Relaxed)
}

/// A list with one text part that remembers whether someone went through it.
#[derive(Debug)]
struct Probe {
    iterated: Arc<AtomicBool>,
}

impl Object for Probe {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Seq
    }

    fn get_value(self: &Arc<Self>, index: &Value) -> Option<Value> {
        (index.as_usize() == Some(0)).then(|| {
            self.iterated.store(true, Ordering::Relaxed);
            Value::from_iter([("type", Value::from("text")), ("text", Value::from("text"))])
        })
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Seq(1)
    }

    fn render(self: &Arc<Self>, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Printed as a whole: the template takes it for a text.
        f.write_str("text")
    }
}

/// Whether a value is the probe, which our own checks must not go through.
pub(super) fn is_probe(value: &Value) -> bool {
    value.downcast_object_ref::<Probe>().is_some()
}

/// Ends the prompt with the last message's text, whatever the template has put after it.
pub(super) fn cut_after_final_message(
    mut rendered: String,
    messages: &Json,
) -> Result<String, TemplateError> {
    let content = messages.as_array().and_then(|list| list.last()).map(|last| &last["content"]);
    let text = match content {
        Some(Json::String(text)) => Some(text.as_str()),
        Some(Json::Array(parts)) => parts.iter().rev().find_map(|part| part["text"].as_str()),
        _ => None,
    };
    let text = text.ok_or_else(|| {
        TemplateError::Messages(
            "continue_final_message needs a last message with a text".to_owned(),
        )
    })?;
    let (body, with_trailing) = (text.trim(), text.trim_start());
    let start = rendered.rfind(body).ok_or_else(|| {
        TemplateError::Messages(
            "continue_final_message: the chat template does not show the last message".to_owned(),
        )
    })?;
    let kept = if rendered[start..].starts_with(with_trailing) { with_trailing } else { body };
    rendered.truncate(start + kept.len());
    Ok(rendered)
}
