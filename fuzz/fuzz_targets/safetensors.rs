//! A safetensors header: what is accepted lies in the file.
#![no_main]

use halyard_weights::parse_safetensors;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|file: &[u8]| {
    let Ok(entries) = parse_safetensors(file) else { return };
    let mut end = 0;
    for entry in entries {
        assert!(entry.offset >= end);
        end = entry.offset + entry.num_bytes;
        assert_eq!(entry.format.tensor_bytes(&entry.shape), Some(entry.num_bytes));
    }
    assert!(end <= file.len() as u64);
});
