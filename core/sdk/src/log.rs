//! The bridge from this library's `tracing` to the host's log.
//!
//! A shared library has its own copy of `tracing`'s globals, so without it a backend's events are lost.

use core::fmt::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};

use halyard_abi::HostApiRef;
use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    span,
    subscriber::Interest,
};

/// Sends this library's events to `host` from now on.
pub(crate) fn install(host: HostApiRef) {
    // Fails only if the backend installed a subscriber of its own, which then is what it wants.
    let _ = tracing::subscriber::set_global_default(Bridge { host, next_span: AtomicU64::new(1) });
}

struct Bridge {
    host: HostApiRef,
    next_span: AtomicU64,
}

fn number(level: Level) -> u32 {
    match level {
        Level::ERROR => 1,
        Level::WARN => 2,
        Level::INFO => 3,
        Level::DEBUG => 4,
        _ => 5,
    }
}

impl Subscriber for Bridge {
    fn register_callsite(&self, _: &'static Metadata<'static>) -> Interest {
        // The default would cache the first answer and so hide a level that is raised later.
        Interest::sometimes()
    }

    fn enabled(&self, m: &Metadata<'_>) -> bool {
        self.host.log_enabled()(self.host.ctx(), number(*m.level()), m.target().into())
    }

    fn event(&self, event: &Event<'_>) {
        let mut text = Text { message: String::new(), fields: String::from("{") };
        event.record(&mut text);
        text.fields.push('}');
        let m = event.metadata();
        self.host.log()(
            self.host.ctx(),
            number(*m.level()),
            m.target().into(),
            text.message.as_str().into(),
            text.fields.as_str().into(),
        );
    }

    // Spans do not cross the boundary: the host has its own around every call.
    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(self.next_span.fetch_add(1, Ordering::Relaxed))
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

/// An event's message, and its other fields as the inside of a JSON object.
struct Text {
    message: String,
    fields: String,
}

impl Text {
    fn field(&mut self, name: &str, json: fmt::Arguments<'_>) {
        let comma = if self.fields.len() > 1 { "," } else { "" };
        // Writing to a String cannot fail.
        let _ = write!(self.fields, "{comma}\"{name}\":{json}");
    }
}

impl Visit for Text {
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.field(field.name(), format_args!("{value}"));
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.field(field.name(), format_args!("{value}"));
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.field(field.name(), format_args!("{value}"));
    }
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            let _ = write!(self.message, "{value:?}");
        } else {
            let text = escape(&format!("{value:?}"));
            self.field(field.name(), format_args!("\"{text}\""));
        }
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        let text = escape(value);
        self.field(field.name(), format_args!("\"{text}\""));
    }
}

/// The inside of a JSON string.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c < ' ' => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #[test]
    fn escapes_what_json_forbids() {
        assert_eq!(super::escape("a\"b\\c\n\u{1}é"), "a\\\"b\\\\c\\u000a\\u0001é");
    }
}
