//! config.json and generation_config.json: what is accepted can be computed with.
#![no_main]

use halyard_weights::{ModelConfig, rope_table};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let (config, generation) = text.split_once('\0').unwrap_or((text, "{}"));
    let Ok(config) = ModelConfig::from_json(config, Some(generation)) else { return };
    assert_eq!(config.layers.len(), config.num_hidden_layers);
    assert!(config.num_attention_heads.is_multiple_of(config.num_key_value_heads));
    if config.rope.dim < 1 << 16 {
        assert_eq!(rope_table(&config, 2).len(), 2 * config.rope.dim);
    }
});
