//! In place on logits: bias, then repetition, frequency and presence penalties, then the mask.

use halyard_sdk::{
    Error, OpDesc, Result,
    abi::ops::{Sym, attrs::LogitsProcess, check::Bindings},
};

use crate::{glue::Args, rows};

const IDS: usize = 2;
const BIAS_IDS: usize = 6;

pub(super) fn check(_: &LogitsProcess, desc: &OpDesc<'_>, bindings: &Bindings) -> Result<()> {
    let there = |slot: usize| desc.tensors.get(slot).is_some_and(|t| !t.is_none());
    if (IDS..BIAS_IDS).any(|slot| there(slot) != there(IDS)) || there(BIAS_IDS) != there(7) {
        return Err(Error::invalid(
            "logits_process: ids, count_all, count_out and params come together, as do bias_ids and bias",
        ));
    }
    let (v, words) = (bindings.get(Sym::V).unwrap_or(-1), bindings.get(Sym::Words).unwrap_or(-1));
    if v >= 0 && words >= 0 && words < (v + 31) / 32 {
        return Err(Error::invalid(format!("logits_process: {words} mask words for {v} ids")));
    }
    Ok(())
}

pub(super) fn run(_: &LogitsProcess, args: &Args) -> Result<()> {
    let logits = args.tensor(0)?;
    for b in 0..logits.dim(0) {
        let mut row = rows::read(&logits, &[b]);
        add_bias(args, b, &mut row)?;
        penalise(args, b, &mut row)?;
        mask(args, b, &mut row)?;
        logits.set_row(&[b], row);
    }
    Ok(())
}

/// (1) `l[bias_ids] += bias`.
fn add_bias(args: &Args, b: usize, row: &mut [f64]) -> Result<()> {
    let (Some(ids), Some(bias)) = (args.optional(BIAS_IDS)?, args.optional(7)?) else {
        return Ok(());
    };
    for m in 0..ids.dim(1) {
        let id = ids.get_int(&[b, m]);
        if id >= 0 {
            row[rows::checked("logits_process: bias_ids", id, row.len())?] += bias.get(&[b, m]);
        }
    }
    Ok(())
}

/// (2) where `count_all > 0`: `l = l > 0 ? l / r : l r`, `l -= frequency count_out + (count_out > 0 ? presence : 0)`.
fn penalise(args: &Args, b: usize, row: &mut [f64]) -> Result<()> {
    let Some(ids) = args.optional(IDS)? else { return Ok(()) };
    let (count_all, count_out) = (args.tensor(3)?, args.tensor(4)?);
    let params = rows::read(&args.tensor(5)?, &[b]);
    let (repetition, presence, frequency) = (params[0], params[1], params[2]);
    for m in 0..ids.dim(1) {
        let id = ids.get_int(&[b, m]);
        if id < 0 || count_all.get_int(&[b, m]) <= 0 {
            continue;
        }
        let l = &mut row[rows::checked("logits_process: ids", id, logits_len(args)?)?];
        *l = if *l > 0.0 { *l / repetition } else { *l * repetition };
        let out = count_out.get(&[b, m]);
        *l -= frequency * out + if out > 0.0 { presence } else { 0.0 };
    }
    Ok(())
}

fn logits_len(args: &Args) -> Result<usize> {
    Ok(args.tensor(0)?.dim(1))
}

/// (3) ids whose bit is 0 become -inf.
fn mask(args: &Args, b: usize, row: &mut [f64]) -> Result<()> {
    let Some(mask) = args.optional(1)? else { return Ok(()) };
    if mask.dim(1) < row.len().div_ceil(32) {
        let words = mask.dim(1);
        return Err(Error::invalid(format!("logits_process: {words} words for {} ids", row.len())));
    }
    for (id, l) in row.iter_mut().enumerate() {
        if mask.get_int(&[b, id / 32]) >> (id % 32) & 1 == 0 {
            *l = f64::NEG_INFINITY;
        }
    }
    Ok(())
}
