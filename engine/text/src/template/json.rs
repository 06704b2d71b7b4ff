//! Values as Python writes them, by `json.dumps` or by `repr`: models were trained on its spaces and quotes.

use minijinja::value::{Value, ValueKind};
use minijinja::{Error, ErrorKind};

use super::budget::{MAX_TEXT_BYTES, exceeded};

const MAX_DEPTH: usize = 128;

/// The keyword arguments of `tojson`.
pub(super) struct Style {
    indent: Option<usize>,
    between_items: String,
    after_key: String,
    sort_keys: bool,
    ensure_ascii: bool,
    python: bool,
}

impl Style {
    pub(super) fn new(
        indent: Option<usize>,
        separators: Option<&[String]>,
        sort_keys: bool,
        ensure_ascii: bool,
    ) -> Result<Self, Error> {
        let (between_items, after_key) = match separators {
            None if indent.is_some() => (",".to_owned(), ": ".to_owned()),
            None => (", ".to_owned(), ": ".to_owned()),
            Some([items, key]) => (items.clone(), key.clone()),
            Some(_) => return Err(invalid("separators must be two strings")),
        };
        Ok(Self { indent, between_items, after_key, sort_keys, ensure_ascii, python: false })
    }
}

pub(super) fn dumps(value: &Value, style: &Style) -> Result<String, Error> {
    let mut writer = Writer { style, out: String::new() };
    writer.value(value, 0)?;
    Ok(writer.out)
}

/// A list or dict as Python prints it.
pub(super) fn repr(value: &Value) -> Result<String, Error> {
    dumps(value, &Style { python: true, ..Style::new(None, None, false, false)? })
}

struct Writer<'a> {
    style: &'a Style,
    out: String,
}

impl Writer<'_> {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > MAX_DEPTH || self.out.len() > MAX_TEXT_BYTES {
            return Err(exceeded("text"));
        }
        let python = self.style.python;
        match value.kind() {
            ValueKind::None => self.out.push_str(if python { "None" } else { "null" }),
            ValueKind::Bool if python => {
                self.out.push_str(if value.is_true() { "True" } else { "False" });
            }
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.number(value),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => return self.list(value, depth),
            ValueKind::Map => return self.map(value, depth),
            _ if python => self.out.push_str(&value.to_string()),
            other => return Err(invalid(&format!("{other} can't be written as JSON"))),
        }
        Ok(())
    }

    fn list(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        self.out.push('[');
        let mut empty = true;
        for item in value.try_iter()? {
            self.begin_item(&mut empty, depth);
            self.value(&item, depth + 1)?;
        }
        self.end_items(empty, depth);
        self.out.push(']');
        Ok(())
    }

    fn map(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        let mut keys: Vec<Value> = value.try_iter()?.collect();
        if self.style.sort_keys {
            keys.sort();
        }
        self.out.push('{');
        let mut empty = true;
        for key in keys {
            self.begin_item(&mut empty, depth);
            match key.as_str() {
                Some(text) => self.string(text),
                None if self.style.python => self.value(&key, depth + 1)?,
                None => self.string(&key_text(&key)),
            }
            self.out.push_str(&self.style.after_key);
            self.value(&value.get_item(&key)?, depth + 1)?;
        }
        self.end_items(empty, depth);
        self.out.push('}');
        Ok(())
    }

    fn begin_item(&mut self, empty: &mut bool, depth: usize) {
        if !std::mem::replace(empty, false) {
            self.out.push_str(&self.style.between_items);
        }
        self.line(depth + 1);
    }

    fn end_items(&mut self, empty: bool, depth: usize) {
        if !empty {
            self.line(depth);
        }
    }

    fn line(&mut self, depth: usize) {
        if let Some(indent) = self.style.indent {
            self.out.push('\n');
            let width = indent.min(64) * depth;
            self.out.extend(std::iter::repeat_n(' ', width));
        }
    }

    fn number(&mut self, value: &Value) {
        if value.is_integer() {
            self.out.push_str(&value.to_string());
        } else {
            self.out.push_str(&float(f64::try_from(value.clone()).unwrap_or(f64::NAN)));
        }
    }

    fn string(&mut self, text: &str) {
        // Python prefers single quotes unless there are some in the text and no double ones.
        let single = self.style.python && (!text.contains('\'') || text.contains('"'));
        let quote = if single { '\'' } else { '"' };
        self.out.push(quote);
        for c in text.chars() {
            match c {
                c if c == quote => self.out.extend(['\\', quote]),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\0'..' ' if self.style.python => {
                    self.out.push_str(&format!("\\x{:02x}", u32::from(c)));
                }
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                c if c < ' ' || (self.style.ensure_ascii && !(' '..='~').contains(&c)) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        self.out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                c => self.out.push(c),
            }
        }
        self.out.push(quote);
    }
}

/// Python writes keys that are not strings as their JSON text.
fn key_text(key: &Value) -> String {
    match key.kind() {
        ValueKind::None => "null".to_owned(),
        ValueKind::Bool => key.is_true().to_string(),
        ValueKind::Number if !key.is_integer() => {
            float(f64::try_from(key.clone()).unwrap_or(f64::NAN))
        }
        _ => key.to_string(),
    }
}

/// Python's `repr` of a float: shortest digits, an exponent below 1e-4 and from 1e16 on.
fn float(value: f64) -> String {
    if value.is_nan() {
        return "NaN".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "Infinity" } else { "-Infinity" }.to_owned();
    }
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        let text = value.to_string();
        return if text.contains('.') { text } else { text + ".0" };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

fn invalid(message: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_as_python_writes_them() {
        for (value, text) in [
            (1.0, "1.0"),
            (0.1, "0.1"),
            (-2.5, "-2.5"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e22, "1.5e+22"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (1e-300, "1e-300"),
            (f64::INFINITY, "Infinity"),
        ] {
            assert_eq!(float(value), text);
        }
    }

    #[test]
    fn lists_and_dicts_as_python_prints_them() {
        let json = r#"{"a": [1, 2.0, null, true], "b'": "it's \"x\"\n\u0001é", "c": "it's"}"#;
        let value = Value::from_serialize(serde_json::from_str::<serde_json::Value>(json).unwrap());
        let expected =
            "{'a': [1, 2.0, None, True], \"b'\": 'it\\'s \"x\"\\n\\x01é', 'c': \"it's\"}";
        assert_eq!(repr(&value).unwrap(), expected);
    }

    #[test]
    fn spaces_and_escapes_as_python_writes_them() {
        let json: serde_json::Value =
            serde_json::from_str(r#"{"b":[1,2.0,null,true],"a":"é\"\n\u0001<","c":{}}"#).unwrap();
        let value = Value::from_serialize(&json);
        let style = |indent, sort, ascii| Style::new(indent, None, sort, ascii).unwrap();
        assert_eq!(
            dumps(&value, &style(None, false, false)).unwrap(),
            "{\"b\": [1, 2.0, null, true], \"a\": \"é\\\"\\n\\u0001<\", \"c\": {}}"
        );
        assert_eq!(
            dumps(&value, &style(Some(2), true, true)).unwrap(),
            "{\n  \"a\": \"\\u00e9\\\"\\n\\u0001<\",\n  \"b\": [\n    1,\n    2.0,\n    null,\n    true\n  ],\n  \"c\": {}\n}"
        );
    }
}
