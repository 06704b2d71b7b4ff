//! Launch after launch: a kernel must not remember the one before.

use std::rc::Rc;

use halyard_core::{OpBuf, OpKind, Sym, Weight, ops::OpSchema};

use super::{Subject, judged};
use crate::{
    catalog::Case,
    execute::{Prepared, Scratch, Trouble},
    generate::{Inputs, Recipe, complete, inputs},
    judge::Reference,
    rng::Rng,
    symbols::Symbols,
    verify::expected,
    weight::WeightSource,
};

/// What some launches are about.
struct Round {
    inputs: Inputs,
    want: Reference,
    weights: Vec<Weight>,
}

/// Two kernels of the op, by turns on one stream and with one scratch memory: the case's inputs, others of the same shapes with other
/// weights, and more rows.
pub(super) fn check(subject: Subject<'_>) -> Result<(), Trouble> {
    let Subject { device, case, weights, .. } = subject;
    let (op, layout) = (&case.op, case.layout);
    let stream = Rc::new(device.stream(0)?);
    let first = Prepared::on(device, Rc::clone(&stream), op, weights)?;
    let second = Prepared::on(device, Rc::clone(&stream), op, weights)?;
    let rounds = rounds(subject, &first)?;
    // All memory and every plan is there before the first launch, and lives until the last one is looked at.
    let turns = [(&first, 0), (&first, 1), (&second, 2), (&first, 2), (&second, 0), (&first, 1)];
    let flights: Vec<_> = turns
        .iter()
        .map(|(kernel, round)| (kernel, &rounds[*round]))
        .map(|(kernel, r)| kernel.board_with(&r.weights, &r.inputs, layout))
        .collect::<Result<_, _>>()?;
    let most = flights.iter().map(|f| f.scratch_bytes()).max().unwrap_or(0);
    let scratch = Scratch::new(device, &stream, most, u32::MAX)?;
    for flight in &flights {
        flight.go(scratch.as_ref())?;
    }
    stream.sync()?;
    if let Some(scratch) = &scratch {
        scratch.check(&stream)?;
    }
    for (n, (flight, (_, round))) in flights.into_iter().zip(turns).enumerate() {
        let Round { inputs, want, .. } = &rounds[round];
        let when = format!("launch {} of 6 by turns", n + 1);
        judged(op, inputs, (&flight.outputs()?, want), &when)?;
    }
    Ok(())
}

/// The case's inputs, others of the same shapes, and more.
fn rounds(subject: Subject<'_>, kernel: &Prepared<'_>) -> Result<[Round; 3], Trouble> {
    let Subject { oracle, case, weights, .. } = subject;
    let (op, layout) = (&case.op, case.layout);
    let mut rng = Rng::new(subject.seed.wrapping_add(2), &case.name);
    let mut round = |(symbols, recipe): (Symbols, Recipe)| -> Result<Round, Trouble> {
        let others = weights.iter().map(|w| WeightSource::new(*w.desc(), &mut rng));
        let others: Vec<WeightSource> = others.collect::<Result<_, _>>().map_err(Trouble::Case)?;
        let inputs = inputs(op, &symbols, &recipe, &mut rng).map_err(Trouble::Case)?;
        let inputs = inputs.shown(op, layout);
        let want = expected(oracle, op, &others, &inputs, layout)?;
        Ok(Round { inputs, want, weights: kernel.pack(&others)? })
    };
    let (others, more) = (round(same_rows(case))?, round(more_rows(case))?);
    let weights = kernel.pack(weights)?;
    let (inputs, want) = (subject.inputs.clone(), subject.reference.clone());
    Ok([Round { inputs, want, weights }, others, more])
}

/// As many rows and sequences, the sequences longer.
fn same_rows(case: &Case) -> (Symbols, Recipe) {
    let mut recipe = case.recipe.clone();
    for [_, kv] in &mut recipe.batch {
        *kv += kv.div_ceil(2);
    }
    (rescaled(case, &recipe, 1), recipe)
}

/// More than twice as many rows, or longer sequences in another order and one more.
fn more_rows(case: &Case) -> (Symbols, Recipe) {
    let longer = |&[q, kv]: &[usize; 2]| match (q, kv) {
        (0 | 1, 0) => [q, 0],
        (0 | 1, _) => [q, 2 * kv + 3],
        _ => [q + 2, 2 * kv + 3],
    };
    let mut batch: Vec<_> = case.recipe.batch.iter().rev().map(longer).collect();
    if !batch.is_empty() {
        batch.push([1, 9]);
    }
    let recipe = Recipe { batch, ..case.recipe.clone() };
    (rescaled(case, &recipe, 3), recipe)
}

/// The symbols that change from launch to launch.
fn dynamic(op: &OpBuf) -> Vec<Sym> {
    let slots = OpSchema::of(op.kind()).map_or(&[][..], |s| s.slots);
    let of_slot = |(slot, spec): (&halyard_abi::ops::schema::Slot, &halyard_core::TensorSpec)| {
        let axes = slot.axes(spec.dims().len()).zip(spec.dims().to_vec());
        axes.filter(|(_, d)| *d < 0).filter_map(|(axis, _)| axis.sym()).collect::<Vec<_>>()
    };
    slots.iter().zip(op.tensors()).flat_map(of_slot).collect()
}

/// A case's symbols for another batch, or with `times` as many rows.
fn rescaled(case: &Case, recipe: &Recipe, times: usize) -> Symbols {
    let (op, mut symbols) = (&case.op, case.symbols.clone());
    let sorted = matches!(op.kind(), OpKind::MOE_PERMUTE | OpKind::MOE_UNPERMUTE);
    for sym in dynamic(op) {
        let counts = match sym {
            Sym::T | Sym::B | Sym::D0 | Sym::D1 | Sym::D2 | Sym::D3 => recipe.batch.is_empty(),
            Sym::P => !sorted,
            _ => false,
        };
        if counts {
            symbols.set(sym, times * case.symbols.get(sym));
        } else {
            symbols.forget(sym);
        }
    }
    complete(op.kind(), op.attrs(), &mut symbols, recipe);
    for sym in dynamic(op) {
        symbols.or(sym, case.symbols.get(sym));
    }
    symbols
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_rows_are_more() {
        for case in crate::catalog::cases(false).unwrap().iter().filter(|c| !c.conduct.is_empty()) {
            let mut rng = Rng::new(0, &case.name);
            let mut elements = |(symbols, recipe): (Symbols, Recipe)| -> usize {
                let inputs = inputs(&case.op, &symbols, &recipe, &mut rng).unwrap();
                inputs.slots.iter().filter_map(|s| s.array()).map(crate::array::Array::len).sum()
            };
            let few = elements((case.symbols.clone(), case.recipe.clone()));
            let (same, more) = (elements(same_rows(case)), elements(more_rows(case)));
            assert!(few <= same && same < more, "{}", case.name);
        }
    }
}
