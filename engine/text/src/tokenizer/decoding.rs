//! What a token's spelling in the vocabulary stands for.

use serde_json::Value;

use crate::error::TokenizerError;

/// How tokens become text. Two kinds cover the models served here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Decoding {
    /// GPT-2's: each character of a token stands for one byte.
    ByteLevel,
    /// SentencePiece's: tokens are text with a replacement for spaces.
    Pieces {
        /// Applied to each token in turn.
        replace: Vec<(String, String)>,
        /// Whether `<0x0A>` stands for a byte.
        byte_fallback: bool,
        /// Taken from the beginning of the whole text.
        strip: Option<Strip>,
    },
}

/// Up to `count` leading characters that are not part of the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Strip {
    pub(crate) content: char,
    pub(crate) count: usize,
}

/// What one token stands for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    /// Bytes of a byte-level token, perhaps parts of characters.
    Bytes(Vec<u8>),
    /// One byte of a character that the vocabulary lacks.
    Byte(u8),
    /// Text.
    Text(String),
}

const SUPPORTED: &str = "ByteLevel, Metaspace, or a Sequence of Replace (with a string), ByteFallback, Fuse, Strip (start only)";

impl Decoding {
    /// From the `decoder` of a `tokenizer.json`.
    pub(super) fn from_json(decoder: &Value) -> Result<Self, TokenizerError> {
        let steps = match kind(decoder) {
            "Sequence" => decoder["decoders"].as_array().map_or(&[][..], Vec::as_slice),
            _ => std::slice::from_ref(decoder),
        };
        if let [only] = steps {
            match kind(only) {
                "ByteLevel" => return Ok(Self::ByteLevel),
                "Metaspace" => return metaspace(only),
                _ => {}
            }
        }
        let (mut replace, mut byte_fallback, mut fused, mut strip) =
            (Vec::new(), false, false, None);
        for step in steps {
            match kind(step) {
                "Replace" if !byte_fallback && !fused => replace.push(replacement(step)?),
                "ByteFallback" if !fused => byte_fallback = true,
                "Fuse" => fused = true,
                "Strip" if fused && strip.is_none() => strip = Some(strip_start(step)?),
                _ => return Err(unsupported(decoder)),
            }
        }
        if steps.is_empty() {
            return Err(unsupported(decoder));
        }
        Ok(Self::Pieces { replace, byte_fallback, strip })
    }

    /// SentencePiece's decoder, with or without the space before the first word.
    pub(super) fn sentence_piece(space_prefix: bool) -> Self {
        Self::Pieces {
            replace: vec![("▁".to_owned(), " ".to_owned())],
            byte_fallback: true,
            strip: space_prefix.then_some(Strip { content: ' ', count: 1 }),
        }
    }

    pub(super) fn piece(&self, token: String) -> Piece {
        let (replace, byte_fallback) = match self {
            Self::ByteLevel => return Piece::Bytes(bytes_of(&token)),
            Self::Pieces { replace, byte_fallback, .. } => (replace, *byte_fallback),
        };
        if let Some(byte) = byte_token(&token).filter(|_| byte_fallback) {
            return Piece::Byte(byte);
        }
        let apply = |text: String, (from, to): &(String, String)| text.replace(from.as_str(), to);
        Piece::Text(replace.iter().fold(token, apply))
    }
}

fn kind(step: &Value) -> &str {
    step["type"].as_str().unwrap_or_default()
}

fn unsupported(decoder: &Value) -> TokenizerError {
    TokenizerError::unsupported("tokenizer.json decoder", &decoder.to_string(), SUPPORTED)
}

fn replacement(step: &Value) -> Result<(String, String), TokenizerError> {
    match (step["pattern"]["String"].as_str(), step["content"].as_str()) {
        (Some(from), Some(to)) if !from.is_empty() => Ok((from.to_owned(), to.to_owned())),
        _ => Err(unsupported(step)),
    }
}

fn strip_start(step: &Value) -> Result<Strip, TokenizerError> {
    let content = step["content"].as_str().and_then(|text| {
        let mut chars = text.chars();
        chars.next().filter(|_| chars.next().is_none())
    });
    match (content, step["start"].as_u64(), step["stop"].as_u64()) {
        (Some(content), Some(start), Some(0)) => {
            Ok(Strip { content, count: usize::try_from(start).unwrap_or(usize::MAX) })
        }
        _ => Err(unsupported(step)),
    }
}

/// Metaspace drops the replacement from the first token unless nothing was prepended.
fn metaspace(step: &Value) -> Result<Decoding, TokenizerError> {
    let replacement = step["replacement"].as_str().unwrap_or("▁");
    let prepended = match step["prepend_scheme"].as_str() {
        Some("never") => false,
        Some("always" | "first") => true,
        None => step["add_prefix_space"].as_bool().unwrap_or(true),
        Some(_) => return Err(unsupported(step)),
    };
    Ok(Decoding::Pieces {
        replace: vec![(replacement.to_owned(), " ".to_owned())],
        byte_fallback: false,
        strip: prepended.then_some(Strip { content: ' ', count: 1 }),
    })
}

/// `<0x0A>` is the byte 10.
fn byte_token(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if hex.len() != 2 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    u8::from_str_radix(hex, 16).ok()
}

/// A byte-level token's bytes; a token with other characters, such as an added one with a space, is plain text.
fn bytes_of(token: &str) -> Vec<u8> {
    let bytes: Option<Vec<u8>> = token.chars().map(byte_of_char).collect();
    bytes.unwrap_or_else(|| token.as_bytes().to_vec())
}

/// GPT-2's alphabet: printable bytes of Latin-1 are themselves, the other 68 follow from U+0100 on, in order.
fn byte_of_char(c: char) -> Option<u8> {
    let code = u32::from(c);
    let code = match code {
        0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF => code,
        0x100..=0x120 => code - 0x100,
        0x121..=0x142 => code - 0x121 + 0x7F,
        0x143 => 0xAD,
        _ => return None,
    };
    u8::try_from(code).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_byte_alphabet_is_complete() {
        let mut bytes: Vec<u8> =
            (0..0x200).filter_map(char::from_u32).filter_map(byte_of_char).collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=255).collect::<Vec<u8>>());
        assert_eq!(bytes_of("Ġtheċ"), b" the\x0b");
        assert_eq!(bytes_of("a b"), b"a b");
    }

    #[test]
    fn byte_tokens() {
        assert_eq!(byte_token("<0x0A>"), Some(10));
        assert_eq!(byte_token("<0x+A>"), None);
        assert_eq!(byte_token("<0x0A"), None);
        assert_eq!(byte_token("0A"), None);
    }

    #[test]
    fn decoders() {
        let json = |text: &str| Decoding::from_json(&serde_json::from_str(text).unwrap());
        assert_eq!(json(r#"{"type":"ByteLevel"}"#).unwrap(), Decoding::ByteLevel);
        assert!(json("null").is_err());
        assert!(json(r#"{"type":"WordPiece"}"#).unwrap_err().to_string().contains("WordPiece"));
        assert!(json(r#"{"type":"Sequence","decoders":[]}"#).is_err());
    }
}
