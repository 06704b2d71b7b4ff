//! The Jinja environment that Hugging Face's templates expect.

use minijinja::machinery::{Token, tokenize};
use minijinja::value::{Kwargs, Value};
use minijinja::{Environment, Error, ErrorKind};

use super::{budget, json, strftime};

/// Instructions that one rendering may execute: a conversation of thousands of messages needs a few hundred thousand.
const MAX_INSTRUCTIONS: u64 = 4_000_000;
const MAX_RECURSION: usize = 64;

/// Marks an error that the template raised itself.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Raised(pub(super) String);

/// An environment with the given templates, or what is wrong with them.
pub(super) fn compile(
    templates: impl Iterator<Item = (&'static str, String)>,
) -> Result<Environment<'static>, String> {
    let mut env = Environment::new();
    env.set_trim_blocks(true);
    env.set_lstrip_blocks(true);
    env.set_fuel(Some(MAX_INSTRUCTIONS));
    env.set_recursion_limit(MAX_RECURSION);
    // Prompts are not HTML.
    env.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    budget::install(&mut env);
    env.add_function("raise_exception", raise_exception);
    env.add_function("strftime_now", strftime::now);
    env.add_filter("tojson", tojson);
    for (name, source) in templates {
        let source = without_generation_tags(&source);
        refuse_large_constants(&source)?;
        env.add_template_owned(name, source).map_err(|error| describe(&error))?;
    }
    Ok(env)
}

/// The compiler computes what is constant, so `'x' * 99999999` takes its memory before any limit can see it.
/// Prompts have no use for such products.
fn refuse_large_constants(source: &str) -> Result<(), String> {
    const MOST_PRODUCTS: usize = 8;
    const LARGEST_FACTOR: u64 = 4096;
    let is_large = |token: &Token<'_>| match token {
        Token::Int(value) => *value > LARGEST_FACTOR,
        Token::Int128(_) => true,
        _ => false,
    };
    let (mut products, mut after_large, mut after_product) = (0, false, false);
    // A source that is no sequence of tokens is left to the compiler's error; the lexer repeats its own for ever.
    let tokens = tokenize(source, false, Default::default(), Default::default());
    for (token, _) in tokens.map_while(Result::ok) {
        let (product, large) = (matches!(token, Token::Mul), is_large(&token));
        products += usize::from(product);
        if (product && after_large) || (large && after_product) || products > MOST_PRODUCTS {
            return Err(format!(
                "more than {MOST_PRODUCTS} products, or one with a factor above {LARGEST_FACTOR}"
            ));
        }
        (after_product, after_large) = (product, large);
    }
    Ok(())
}

/// An error with its place, without the source around it.
pub(super) fn describe(error: &Error) -> String {
    crate::error::shorten(&error.to_string())
}

fn raise_exception(message: String) -> Result<Value, Error> {
    let raised = Raised(message.clone());
    Err(Error::new(ErrorKind::InvalidOperation, message).with_source(raised))
}

#[expect(clippy::needless_pass_by_value, reason = "the form of a filter")]
fn tojson(value: &Value, kwargs: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = kwargs.get("indent")?;
    let sort_keys = kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    let ensure_ascii = kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    let separators: Option<Vec<String>> = kwargs.get("separators")?;
    kwargs.assert_all_used()?;
    let style = json::Style::new(indent, separators.as_deref(), sort_keys, ensure_ascii)?;
    json::dumps(value, &style).map(Value::from_safe_string)
}

/// `{% generation %}` marks the assistant's text for training; here both marks become blocks that do nothing.
fn without_generation_tags(source: &str) -> String {
    let mut result = String::with_capacity(source.len());
    let mut rest = source;
    while let Some((before, after)) = rest.split_once("{%") {
        let Some((inner, after)) = after.split_once("%}") else { break };
        let word = inner.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+');
        let inner = match word {
            "generation" => inner.replacen(word, "if true", 1),
            "endgeneration" => inner.replacen(word, "endif", 1),
            _ => inner.to_owned(),
        };
        result.extend([before, "{%", &inner, "%}"]);
        rest = after;
    }
    result.push_str(rest);
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generation_tags_become_harmless() {
        let source = "a{%- generation -%}b{% endgeneration %}c{% if x %}{%}{%%}{%";
        let expected = "a{%- if true -%}b{% endif %}c{% if x %}{%}{%%}{%";
        assert_eq!(without_generation_tags(source), expected);
    }
}
