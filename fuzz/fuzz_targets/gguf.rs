//! A GGUF: its tables, the configuration and the tokenizer in its metadata.
#![no_main]

use halyard_text::Tokenizer;
use halyard_weights::gguf::Gguf;
use halyard_weights::{ModelConfig, dequantize, rope_table};
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: halyard_fuzz::let_panics_be_caught(), |file: &[u8]| {
    let Ok(gguf) = Gguf::parse(file) else { return };
    for tensor in gguf.tensors() {
        let start = usize::try_from(tensor.offset).expect("in the file");
        let end = start + usize::try_from(tensor.num_bytes).expect("in the file");
        let _ = dequantize(tensor.format, &file[start..end]);
    }
    let metadata = gguf.metadata(file);
    for key in metadata.keys() {
        let _ = (metadata.value(key), metadata.f64(key), metadata.i64_array(key));
    }
    if let Ok(config) = ModelConfig::from_gguf(metadata, gguf.tensors(), None) {
        let _ = rope_table(&config, 2);
    }
    if let Ok(tokenizer) = Tokenizer::from_gguf(metadata) {
        halyard_fuzz::round_trip(&tokenizer);
    }
});
