//! Draws a token a row; the rule is in [`crate::sampling`].

use halyard_sdk::{Result, abi::ops::attrs::Sample};

use crate::{
    glue::Args,
    order::log_sum_exp,
    rows,
    sampling::{Rule, choose, uniform},
};

pub(super) fn run(_: &Sample, args: &Args) -> Result<()> {
    let (logits, ids, logprob) = (args.tensor(0)?, args.tensor(7)?, args.optional(8)?);
    let number = |slot: usize, b: usize| Ok(args.tensor(slot)?.get(&[b]));
    let word = |slot: usize, b: usize| Ok(args.tensor(slot)?.get_int(&[b]).cast_unsigned());
    for b in 0..logits.dim(0) {
        let row = rows::read(&logits, &[b]);
        let rule = Rule {
            temperature: number(1, b)?,
            top_k: args.tensor(2)?.get_int(&[b]),
            top_p: number(3, b)?,
            min_p: number(4, b)?,
        };
        let id = choose(&row, &rule, uniform(word(5, b)?, word(6, b)?));
        ids.set(&[b], id as f64);
        if let Some(logprob) = &logprob {
            let scaled = rule.scaled(&row);
            logprob.set(&[b], scaled[id] - log_sum_exp(&scaled));
        }
    }
    Ok(())
}
