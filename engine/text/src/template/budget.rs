//! Rendering within limits.

use minijinja::value::Value;
use minijinja::{Environment, Error, ErrorKind};

use super::environment::{Raised, describe};
use crate::error::TemplateError;

/// The longest text that a template may make.
pub(super) const MAX_TEXT_BYTES: usize = 64 << 20;

pub(super) fn render(
    env: &Environment<'_>,
    name: &str,
    context: Value,
) -> Result<String, TemplateError> {
    let template = env.get_template(name).map_err(|error| classify(&error))?;
    template.render(context).map_err(|error| classify(&error))
}

fn classify(error: &Error) -> TemplateError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(current) = cause {
        if let Some(Raised(message)) = current.downcast_ref() {
            return TemplateError::Raised(message.clone());
        }
        if current.downcast_ref::<Error>().is_some_and(|e| e.kind() == ErrorKind::OutOfFuel) {
            return TemplateError::Limit("instructions");
        }
        cause = current.source();
    }
    TemplateError::Render(describe(error))
}
