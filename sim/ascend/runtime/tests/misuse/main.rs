//! Misuses, each of which must fail with a code and a message that names the call and the argument.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::float_cmp,
    clippy::cast_possible_truncation,
    reason = "tests: sizes are small"
)]

#[path = "../common/mod.rs"]
mod common;

mod collectives;
mod executors;
mod graphs;
mod memory;
mod objects;
mod operators;
mod order;

use common::*;
use std::thread;

const BF16: i32 = 27;
/// The default stream
const DEFAULT: usize = 0;
/// `aclmdlRICaptureMode`
const GLOBAL: u32 = 0;

/// A misuse: what it is, what is done, the code and what the message has.
type Misuse = (&'static str, fn() -> i32, i32, &'static [&'static str]);

/// Whether a message says which argument of a call is wrong: as the runtime does, or as operators do after their own name.
fn names_an_argument(said: &str) -> bool {
    let of_operator = |part: &str| {
        let mut words = part.split(": ");
        let plain = |word: &str| !word.is_empty() && word.chars().all(char::is_alphanumeric);
        words.next().is_some_and(plain) && words.next().is_some_and(plain) && words.next().is_some()
    };
    let operators = said.match_indices("aclnn").map(|(at, _)| &said[at..]);
    said.contains("argument `") || operators.into_iter().any(of_operator)
}

/// Calls that are wrong when they are made, whatever they are given.
const WITHOUT_ARGUMENT: [&str; 3] = [
    "HcclGroupEnd: ",
    "not allowed while a stream is capturing",
    "for rank 1 in the others to join",
];

/// Does each on a device and a thread of its own.
fn all(misuses: &[Misuse]) {
    libraries();
    let mut wrong = Vec::new();
    for (what, run, code, wanted) in misuses {
        let run = *run;
        let (status, said) = thread::spawn(move || {
            use_device(0);
            let status = run();
            (status, message())
        })
        .join()
        .unwrap_or_else(|_| panic!("{what}: panicked"));
        let missing: Vec<_> = wanted.iter().filter(|part| !said.contains(**part)).collect();
        // What expects no message has looked at that of another thread.
        let told = wanted.is_empty()
            || names_an_argument(&said)
            || WITHOUT_ARGUMENT.iter().any(|call| said.contains(call));
        if status != *code || !missing.is_empty() || !told {
            wrong.push(format!(
                "{what}: {status} '{said}'; expected {code}, the argument's name and {missing:?}"
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Status of the stream, or of what came before.
fn settled(before: i32, s: usize) -> i32 {
    if before != 0 { before } else { call("aclrtSynchronizeStream", (s,)) }
}
