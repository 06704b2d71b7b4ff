//! Rendering within limits.

use std::fmt::{self, Write as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use minijinja::machinery::{Vm, make_string_output};
use minijinja::value::{Object, Rest, Value, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Output, State};

use super::content;
use super::environment::{Raised, describe};
use super::instrument::{CHECK, CHECK_ATTRIBUTE, CONCAT, Instrumented};
use super::json;
use crate::error::TemplateError;

/// The longest text that a template may make.
pub(super) const MAX_TEXT_BYTES: usize = 16 << 20;
/// All texts that one rendering makes, intermediate ones included.
const MAX_TOTAL_BYTES: usize = 128 << 20;
/// The most values in one structure, and how deep they may lie.
const MAX_NODES: usize = 1 << 17;
const MAX_DEPTH: usize = 100;
/// All values looked at in one rendering.
const MAX_TOTAL_NODES: usize = 1 << 24;
/// A rendering takes microseconds; one that takes this long will not end well.
const MAX_TIME: Duration = Duration::from_secs(10);

/// Renders a template of `env`, which [`install`] has prepared.
pub(super) fn render(
    env: &Environment<'_>,
    name: &str,
    context: Value,
) -> Result<String, TemplateError> {
    // minijinja's filters panic on some absurd arguments; a template must not take a request's thread with it.
    let run = AssertUnwindSafe(|| {
        let template = Instrumented::new(env, name)?;
        let mut text = String::new();
        Vm::new(env).eval(
            &template.root,
            context,
            &template.blocks,
            &mut make_string_output(&mut text),
            AutoEscape::None,
        )?;
        Ok(text)
    });
    match catch_unwind(run) {
        Ok(result) => result.map_err(|error: Error| classify(&error)),
        Err(_) => Err(TemplateError::Render("the template engine panicked".to_owned())),
    }
}

/// Adds what keeps a rendering within its limits.
pub(super) fn install(env: &mut Environment<'_>) {
    env.add_function(CHECK, |state: &State<'_, '_>, value: Value| {
        Budget::of(state).charge(&value)?;
        Ok(value)
    });
    env.add_function(CONCAT, |state: &State<'_, '_>, left: &Value, right: &Value| {
        let budget = Budget::of(state);
        Ok::<_, Error>(Value::from(budget.text_of(left)? + &budget.text_of(right)?))
    });
    env.add_function(CHECK_ATTRIBUTE, |state: &State<'_, '_>, value: Value| {
        if is_namespace(&value) {
            return Err(exceeded("nesting"));
        }
        Budget::of(state).charge(&value)?;
        Ok(value)
    });
    env.set_formatter(|out, state, value| Budget::of(state).emit(out, value));
    env.add_filter("join", join);
    env.add_filter("replace", replace);
    env.add_filter("indent", indent);
    env.add_filter("string", |state: &State<'_, '_>, value: &Value| match value.as_str() {
        Some(_) => Ok(value.clone()),
        None => Budget::of(state).text_of(value).map(Value::from),
    });
    env.set_unknown_method_callback(|state, value, method, args| {
        match (value.as_str(), method, args) {
            (Some(text), "replace", [from, to, rest @ ..]) => {
                let (from, to) = (string_argument(from)?, string_argument(to)?);
                let limit = rest.first().map(|n| i64::try_from(n.clone())).transpose()?;
                replaced(text, from, to, limit.and_then(|n| usize::try_from(n).ok()))
            }
            (Some(joiner), "join", [list]) => join(state, list, Some(joiner.to_owned())),
            (Some(text), "format", _) if has_wide_field(text) => Err(exceeded("text")),
            _ => minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args),
        }
    });
    // None of these is of use in a prompt, and each can be asked for any amount of memory.
    for filter in ["batch", "chain", "format", "lines", "pprint", "slice", "urlencode", "zip"] {
        env.remove_filter(filter);
    }
    env.remove_global("debug");
}

/// What one rendering has used up. Macros share it with their caller.
#[derive(Debug)]
struct Budget {
    bytes: AtomicUsize,
    nodes: AtomicUsize,
    deadline: Instant,
}

impl Object for Budget {}

impl Budget {
    fn of(state: &State<'_, '_>) -> Arc<Self> {
        state.get_or_set_temp_object("\0budget", || Self {
            bytes: AtomicUsize::new(0),
            nodes: AtomicUsize::new(0),
            deadline: Instant::now() + MAX_TIME,
        })
    }

    /// Accounts for a new value and refuses one that is too large.
    fn charge(&self, value: &Value) -> Result<(), Error> {
        if Instant::now() > self.deadline {
            return Err(exceeded("time"));
        }
        if let Some(text) = value.as_str() {
            return self.charge_bytes(text.len());
        }
        let nodes = count_nodes(value)?;
        if self.nodes.fetch_add(nodes, Ordering::Relaxed) > MAX_TOTAL_NODES {
            return Err(exceeded("values"));
        }
        Ok(())
    }

    fn charge_bytes(&self, num_bytes: usize) -> Result<(), Error> {
        let before = self.bytes.fetch_add(num_bytes, Ordering::Relaxed);
        if num_bytes > MAX_TEXT_BYTES || before > MAX_TOTAL_BYTES {
            return Err(exceeded("text"));
        }
        Ok(())
    }

    /// `{{ value }}`.
    fn emit(&self, out: &mut Output<'_>, value: &Value) -> Result<(), Error> {
        if let Some(text) = value.as_str() {
            self.charge(value)?;
            return out.write_str(text).map_err(Error::from);
        }
        let text = self.text_of(value)?;
        out.write_str(&text).map_err(Error::from)
    }

    /// The text of any value as Python writes it, within the limits.
    fn text_of(&self, value: &Value) -> Result<String, Error> {
        self.charge(value)?;
        if let Some(text) = value.as_str() {
            return Ok(text.to_owned());
        }
        let container = matches!(value.kind(), ValueKind::Seq | ValueKind::Map);
        let text = if container && !content::is_probe(value) {
            json::repr(value)?
        } else {
            let mut text = Limited(String::new());
            write!(text, "{value}").map_err(|fmt::Error| exceeded("text"))?;
            text.0
        };
        self.charge_bytes(text.len())?;
        Ok(text)
    }
}

/// A text that refuses to grow beyond the limit.
struct Limited(String);

impl fmt::Write for Limited {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.0.len() + text.len() > MAX_TEXT_BYTES {
            return Err(fmt::Error);
        }
        self.0.push_str(text);
        Ok(())
    }
}

/// How many values a structure holds, counting shared ones as often as they occur.
fn count_nodes(value: &Value) -> Result<usize, Error> {
    let mut nodes = 0;
    let mut open = vec![(value.clone(), 0)];
    while let Some((value, depth)) = open.pop() {
        nodes += 1;
        if nodes > MAX_NODES {
            return Err(exceeded("values"));
        }
        // A namespace within a structure could come to hold that structure.
        if depth > MAX_DEPTH || (depth > 0 && is_namespace(&value)) {
            return Err(exceeded("nesting"));
        }
        if content::is_probe(&value) {
            continue;
        }
        let is_map = value.kind() == ValueKind::Map;
        if !is_map && !matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable) {
            continue;
        }
        // `[1] * 10 ** 11` is lazy, but going through it is not.
        if value.len().is_some_and(|len| len > MAX_NODES) {
            return Err(exceeded("values"));
        }
        for item in value.try_iter()? {
            let item = if is_map { value.get_item(&item)? } else { item };
            if open.len() > MAX_NODES {
                return Err(exceeded("values"));
            }
            open.push((item, depth + 1));
        }
    }
    Ok(nodes)
}

fn is_namespace(value: &Value) -> bool {
    value.as_object().is_some_and(|object| object.type_name().ends_with("::Namespace"))
}

fn join(state: &State<'_, '_>, list: &Value, joiner: Option<String>) -> Result<Value, Error> {
    let budget = Budget::of(state);
    let joiner = joiner.unwrap_or_default();
    let mut text = Limited(String::new());
    for (index, item) in list.try_iter()?.enumerate() {
        let item = budget.text_of(&item)?;
        let separator = if index == 0 { "" } else { &joiner };
        text.write_str(separator)
            .and_then(|()| text.write_str(&item))
            .map_err(|fmt::Error| exceeded("text"))?;
    }
    Ok(text.0.into())
}

#[expect(clippy::needless_pass_by_value, reason = "the form of a filter")]
fn replace(text: &Value, from: &Value, to: &Value, rest: Rest<Value>) -> Result<Value, Error> {
    let limit = rest.0.first().map(|n| usize::try_from(n.clone())).transpose()?;
    replaced(&text.to_string(), string_argument(from)?, string_argument(to)?, limit)
}

fn replaced(text: &str, from: &str, to: &str, limit: Option<usize>) -> Result<Value, Error> {
    let limit = limit.unwrap_or(usize::MAX);
    let count = text.matches(from).take(limit).count();
    let added = count.saturating_mul(to.len());
    if text.len().saturating_add(added) > MAX_TEXT_BYTES {
        return Err(exceeded("text"));
    }
    Ok(text.replacen(from, to, limit).into())
}

#[expect(clippy::needless_pass_by_value, reason = "the form of a filter")]
fn indent(
    text: String,
    width: Option<usize>,
    first: Option<bool>,
    blank: Option<bool>,
    kwargs: minijinja::value::Kwargs,
) -> Result<String, Error> {
    let width = width.map_or_else(|| kwargs.get::<Option<usize>>("width"), |w| Ok(Some(w)))?;
    let first = first.map_or_else(|| kwargs.get::<Option<bool>>("first"), |f| Ok(Some(f)))?;
    let blank = blank.map_or_else(|| kwargs.get::<Option<bool>>("blank"), |b| Ok(Some(b)))?;
    kwargs.assert_all_used()?;
    let width = width.unwrap_or(4);
    let lines = text.split('\n').count();
    if width.saturating_mul(lines).saturating_add(text.len()) > MAX_TEXT_BYTES {
        return Err(exceeded("text"));
    }
    let margin = " ".repeat(width);
    let mut result = String::with_capacity(text.len() + width * lines);
    for (index, line) in text.split('\n').enumerate() {
        if index > 0 {
            result.push('\n');
        }
        let wanted =
            if index == 0 { first } else { Some(!line.is_empty()).filter(|w| *w).or(blank) };
        if wanted.unwrap_or(false) {
            result.push_str(&margin);
        }
        result.push_str(line);
    }
    Ok(result)
}

/// Whether a format string asks for a width or precision of five digits or one taken from the arguments.
fn has_wide_field(format: &str) -> bool {
    let digits = |part: &str| part.len() >= 5;
    format.contains('*')
        || format.contains(":{")
        || format.split(|c: char| !c.is_ascii_digit()).any(digits)
}

fn string_argument(value: &Value) -> Result<&str, Error> {
    value.as_str().ok_or_else(|| {
        Error::new(ErrorKind::InvalidOperation, format!("expected a string, not {}", value.kind()))
    })
}

/// Marks an error that is a limit's.
#[derive(Debug, thiserror::Error)]
#[error("limit of {0}")]
struct Exceeded(&'static str);

pub(super) fn exceeded(limit: &'static str) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("limit of {limit} exceeded"))
        .with_source(Exceeded(limit))
}

fn classify(error: &Error) -> TemplateError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(current) = cause {
        if let Some(Raised(message)) = current.downcast_ref() {
            return TemplateError::Raised(message.clone());
        }
        if let Some(Exceeded(limit)) = current.downcast_ref() {
            return TemplateError::Limit(limit);
        }
        if current.downcast_ref::<Error>().is_some_and(|e| e.kind() == ErrorKind::OutOfFuel) {
            return TemplateError::Limit("instructions");
        }
        cause = current.source();
    }
    TemplateError::Render(describe(error))
}
