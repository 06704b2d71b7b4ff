//! For backend authors: panic guard, log bridge, op parsers, export macro.
