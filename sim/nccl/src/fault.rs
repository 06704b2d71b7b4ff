//! A link that fails on request, to show that users are told of it: `HALYARD_SIM_NCCL_FAULT=RANK:N` ends rank `RANK` of every communicator
//! at its `N`th exchange, as if the network were gone.

use std::sync::OnceLock;

use crate::result::{Code, Failure, Outcome};

const FAULT: &str = "HALYARD_SIM_NCCL_FAULT";

/// The fault of the environment as rank and number; the message if it is none.
fn fault() -> &'static Result<Option<(u32, u64)>, String> {
    static KNOWN: OnceLock<Result<Option<(u32, u64)>, String>> = OnceLock::new();
    KNOWN.get_or_init(|| std::env::var(FAULT).ok().map(|text| parse(&text)).transpose())
}

fn parse(text: &str) -> Result<(u32, u64), String> {
    let (rank, nth) = text.split_once(':').unwrap_or_default();
    let numbers = rank.parse().ok().zip(nth.parse().ok().filter(|nth| *nth > 0));
    numbers.ok_or_else(|| format!("{FAULT}={text}, expected RANK:N, such as 1:40"))
}

/// Fails if this is the exchange; `number` counts from 0.
pub(crate) fn check(rank: u32, number: u64) -> Outcome {
    match fault() {
        Ok(Some(at)) if *at == (rank, number + 1) => {
            let text = format!("rank {rank} has lost its link: {FAULT} asks for it");
            Err(Failure::new(Code::RemoteError, text))
        }
        Ok(_) => Ok(()),
        Err(what) => Err(Failure::argument(what.as_str())),
    }
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn a_rank_and_a_number_are_a_fault() {
        assert_eq!(parse("1:40"), Ok((1, 40)));
        for bad in ["", "1", "1:0", "x:1", "1:2:3"] {
            assert!(parse(bad).is_err_and(|what| what.contains("expected RANK:N")), "{bad}");
        }
    }
}
