//! tokenizer.json and tokenizer_config.json.
#![no_main]

use halyard_text::Tokenizer;
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: halyard_fuzz::let_panics_be_caught(), |data: &[u8]| {
    let (tokenizer, config) = match data.iter().position(|byte| *byte == 0) {
        Some(at) => (&data[..at], std::str::from_utf8(&data[at + 1..]).ok()),
        None => (data, None),
    };
    if let Ok(tokenizer) = Tokenizer::from_json(tokenizer, config) {
        halyard_fuzz::round_trip(&tokenizer);
    }
});
