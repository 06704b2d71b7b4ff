//! Files of flags.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let _ = halyard_server::cli::parse_config(text);
});
