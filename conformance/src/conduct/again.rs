//! Launch after launch: a kernel must not remember the one before.

use std::rc::Rc;

use halyard_core::{OpBuf, OpKind, Sym, ops::OpSchema};

use super::{Subject, judged};
use crate::{
    catalog::Case,
    execute::{Prepared, Scratch, Trouble},
    generate::{Recipe, complete, inputs},
    rng::Rng,
    symbols::Symbols,
    verify::expected,
};

/// Two kernels of the op, by turns on one stream and with one scratch memory: the case's inputs, and more rows of others.
pub(super) fn check(subject: Subject<'_>) -> Result<(), Trouble> {
    let Subject { device, case, weights, inputs: few, reference: want_few, .. } = subject;
    let (op, layout) = (&case.op, case.layout);
    let mut rng = Rng::new(subject.seed.wrapping_add(2), &case.name);
    let (symbols, recipe) = more_rows(case);
    let many = inputs(op, &symbols, &recipe, &mut rng).map_err(Trouble::Case)?.shown(op, layout);
    let want_many = expected(subject.oracle, op, weights, &many, layout)?;

    let stream = Rc::new(device.stream(0)?);
    let first = Prepared::on(device, Rc::clone(&stream), op, weights)?;
    let second = Prepared::on(device, Rc::clone(&stream), op, weights)?;
    // All memory and every plan is there before the first launch, and lives until the last one is looked at.
    let (few, many) = ((few, want_few), (&many, &want_many));
    let turns = [
        (&first, few),
        (&first, many),
        (&second, few),
        (&first, few),
        (&second, many),
        (&first, many),
    ];
    let flights: Vec<_> = turns
        .iter()
        .map(|(kernel, (inputs, _))| kernel.board(inputs, layout))
        .collect::<Result<_, _>>()?;
    let most = flights.iter().map(|f| f.scratch_bytes()).max().unwrap_or(0);
    let scratch = match most {
        0 => None,
        bytes => Some(Scratch::new(device, &stream, bytes, u32::MAX)?),
    };
    for flight in &flights {
        flight.go(scratch.as_ref())?;
    }
    stream.sync()?;
    if let Some(scratch) = &scratch {
        scratch.check(&stream)?;
    }
    for (n, (flight, (_, (inputs, want)))) in flights.into_iter().zip(turns).enumerate() {
        let when = format!("launch {} of 6 by turns", n + 1);
        judged(op, inputs, (&flight.outputs()?, want), &when)?;
    }
    Ok(())
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

/// The same op over more than twice as many rows, or over longer sequences in another order and one more.
fn more_rows(case: &Case) -> (Symbols, Recipe) {
    let (op, mut symbols, mut recipe) = (&case.op, case.symbols.clone(), case.recipe.clone());
    let longer = |&[q, kv]: &[usize; 2]| match (q, kv) {
        (0 | 1, 0) => [q, 0],
        (0 | 1, _) => [q, 2 * kv + 3],
        _ => [q + 2, 2 * kv + 3],
    };
    recipe.batch = case.recipe.batch.iter().rev().map(longer).collect();
    if !recipe.batch.is_empty() {
        recipe.batch.push([1, 9]);
    }
    let sorted = matches!(op.kind(), OpKind::MOE_PERMUTE | OpKind::MOE_UNPERMUTE);
    for sym in dynamic(op) {
        let counts = match sym {
            Sym::T | Sym::B | Sym::D0 | Sym::D1 | Sym::D2 | Sym::D3 => recipe.batch.is_empty(),
            Sym::P => !sorted,
            _ => false,
        };
        if counts {
            symbols.set(sym, 2 * case.symbols.get(sym) + 3);
        } else {
            symbols.forget(sym);
        }
    }
    complete(op.kind(), op.attrs(), &mut symbols, &recipe);
    for sym in dynamic(op) {
        symbols.or(sym, case.symbols.get(sym));
    }
    (symbols, recipe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_rows_are_more() {
        for case in crate::catalog::cases().unwrap().iter().filter(|c| !c.conduct.is_empty()) {
            let (symbols, recipe) = more_rows(case);
            let mut rng = Rng::new(0, &case.name);
            let more = inputs(&case.op, &symbols, &recipe, &mut rng).unwrap();
            let few = inputs(&case.op, &case.symbols, &case.recipe, &mut rng).unwrap();
            let elements = |i: &crate::generate::Inputs| -> usize {
                i.slots.iter().filter_map(|s| s.array()).map(crate::array::Array::len).sum()
            };
            assert!(elements(&more) > elements(&few), "{}", case.name);
        }
    }
}
