//! Whole command lines, an argument a line. `--config` is left out: it would read any file of the machine.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let args: Vec<_> = ["halyard", "serve"].into_iter().chain(text.lines()).collect();
    if args.iter().all(|arg| !arg.contains("config")) {
        let _ = halyard_server::cli::parse(args.into_iter().map(Into::into).collect());
    }
});
