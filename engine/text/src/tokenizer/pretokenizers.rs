//! How text is cut before merging: GGUF only names the way (`tokenizer.ggml.pre`).

use tokenizers::SplitDelimiterBehavior;
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::normalizers::unicode::NFC;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};

use super::guarded;
use crate::error::TokenizerError;

/// What a pre-tokenizer's name stands for.
pub(super) struct PreTokenizer {
    /// Each cuts what the one before it has left.
    patterns: &'static [&'static str],
    /// Whether a word that is a token is taken without merging.
    pub(super) ignore_merges: bool,
    /// Whether text is brought to NFC first.
    nfc: bool,
    /// Whether a text begins with the bos token where the file does not say.
    pub(super) add_bos: bool,
}

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const CJK_HANGUL: &str = "[\u{4e00}-\u{9fa5}\u{0800}-\u{4e00}\u{ac00}-\u{d7ff}]+";
// The letters that the model's authors chose; escaped where an editor would normalise the character.
const DEEPSEEK_LETTERS: &str = "\\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\u{1f7d}ᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-\u{1fd3}ῖ-\u{1fdb}ῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u{2126}ℨ\u{212a}-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+";
const DEEPSEEK_PUNCTUATION: &str = "\\s?[!-/:-~！-／：-～‘-‟\u{3000}-。]+";
const DEEPSEEK3: &str = "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

const SUPPORTED: &str = "default, gpt-2, llama-bpe, llama3, qwen2, deepseek-r1-qwen, stablelm2, smollm, starcoder, refact, \
                         command-r, codeshell, tekken, deepseek-llm, deepseek-coder, deepseek-v3";

const PLAIN: PreTokenizer =
    PreTokenizer { patterns: &[GPT2], ignore_merges: false, nfc: false, add_bos: false };

impl PreTokenizer {
    pub(super) fn named(name: &str) -> Result<Self, TokenizerError> {
        Ok(match name {
            "gpt-2" | "gpt2" | "phi-2" | "olmo" | "mpt" => PLAIN,
            "default" => Self {
                patterns: &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"],
                ..PLAIN
            },
            "llama-bpe" | "llama3" | "llama-v3" | "falcon3" | "pixtral" => {
                Self { patterns: &[LLAMA3], ignore_merges: true, add_bos: true, nfc: false }
            }
            "qwen2" | "deepseek-r1-qwen" | "stablelm2" => {
                Self { patterns: &[QWEN2], nfc: name == "qwen2", ..PLAIN }
            }
            "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" => {
                Self { patterns: &[r"\p{N}", GPT2], ..PLAIN }
            }
            "tekken" => {
                Self { patterns: &[TEKKEN], ignore_merges: true, add_bos: true, nfc: false }
            }
            "deepseek-llm" => Self {
                patterns: &[
                    "[\r\n]",
                    DEEPSEEK_LETTERS,
                    DEEPSEEK_PUNCTUATION,
                    r"\s+$",
                    CJK_HANGUL,
                    r"\p{N}",
                ],
                add_bos: true,
                ..PLAIN
            },
            "deepseek-coder" => Self {
                patterns: &["[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", CJK_HANGUL, r"\p{N}"],
                add_bos: true,
                ..PLAIN
            },
            "deepseek-v3" => Self {
                patterns: &[r"\p{N}{1,3}", "[一-龥\u{3040}-ゟ゠-ヿ]+", DEEPSEEK3],
                add_bos: true,
                ..PLAIN
            },
            other => {
                return Err(TokenizerError::unsupported("tokenizer.ggml.pre", other, SUPPORTED));
            }
        })
    }

    pub(super) fn normalizer(&self) -> Option<NormalizerWrapper> {
        self.nfc.then_some(NormalizerWrapper::NFC(NFC))
    }

    pub(super) fn build(&self) -> Result<PreTokenizerWrapper, TokenizerError> {
        let mut steps = Vec::new();
        for pattern in self.patterns {
            let pattern = SplitPattern::Regex((*pattern).to_owned());
            let split = guarded("building the pre-tokenizer", || {
                Split::new(pattern, SplitDelimiterBehavior::Isolated, false)
            })?;
            steps.push(PreTokenizerWrapper::Split(split));
        }
        steps.push(PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, true, false)));
        Ok(PreTokenizerWrapper::Sequence(Sequence::new(steps)))
    }
}

#[cfg(test)]
mod tests {
    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer as _};

    use super::*;

    fn cut(name: &str, text: &str) -> Vec<String> {
        let mut string = PreTokenizedString::from(text);
        PreTokenizer::named(name).unwrap().build().unwrap().pre_tokenize(&mut string).unwrap();
        let pieces = string.get_splits(OffsetReferential::Original, OffsetType::Byte);
        pieces.into_iter().map(|(_, (start, end), _)| text[start..end].to_owned()).collect()
    }

    #[test]
    fn every_name_cuts_its_way() {
        let text = "I'LL pay 1234 Ἀώ 你好!\n\n  ok";
        let cases: [(&str, &[&str]); 9] = [
            ("gpt-2", &["I", "'", "LL", " pay", " 1234", " Ἀώ", " 你好", "!", "\n\n ", " ok"]),
            (
                "default",
                &["I", "'", "LL", " pay", " ", "123", "4", " Ἀώ", " 你好", "!", "\n\n ", " ok"],
            ),
            (
                "llama-bpe",
                &["I", "'LL", " pay", " ", "123", "4", " Ἀώ", " 你好", "!\n\n", " ", " ok"],
            ),
            (
                "qwen2",
                &["I", "'LL", " pay", " ", "1", "2", "3", "4", " Ἀώ", " 你好", "!\n\n", " ", " ok"],
            ),
            (
                "smollm",
                &[
                    "I", "'", "LL", " pay", " ", "1", "2", "3", "4", " Ἀώ", " 你好", "!", "\n\n ",
                    " ok",
                ],
            ),
            (
                "tekken",
                &["I", "'LL", " pay", " ", "1", "2", "3", "4", " Ἀώ", " 你好", "!\n\n", " ", " ok"],
            ),
            (
                "deepseek-llm",
                &[
                    "I", "'", "LL", " pay", " ", "1", "2", "3", "4", " ", "Ἀ", "ώ", " ", "你好",
                    "!", "\n", "\n", " ", " ok",
                ],
            ),
            (
                "deepseek-coder",
                &[
                    "I", "'", "LL", " pay", " ", "1", "2", "3", "4", " ", "Ἀ", "ώ", " ", "你好",
                    "!", "\n", "\n", " ", " ok",
                ],
            ),
            (
                "deepseek-v3",
                &["I", "'LL", " pay", " ", "123", "4", " Ἀώ", " ", "你好", "!\n\n", " ", " ok"],
            ),
        ];
        for (name, expected) in cases {
            assert_eq!(cut(name, text), expected, "{name}");
        }
        assert!(PreTokenizer::named("other").is_err_and(|e| e.to_string().contains("llama-bpe")));
    }
}
