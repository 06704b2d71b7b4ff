//! MERGE_ATTENTION.

use halyard_sdk::{Result, TensorSpec, abi::ops::attrs};

use crate::ops::{
    Launch, Op,
    args::{Args, Kind, Place, scratch_bytes},
};

struct Merge;

pub(in crate::ops) fn prepare(op: &Op<'_>) -> Result<Box<dyn Launch>> {
    let attrs::MergeAttention {} = op.attrs()?;
    op.floats(&[0, 2, 4])?;
    Ok(Box::new(Merge))
}

/// A part's values in f32, zeros where it saw nothing, times its weight.
fn weighed(args: &Args<'_>, o: &Place, saw: &Place, weight: &Place) -> Result<Place> {
    let wide = args.cast(o, Kind::F32)?;
    args.choose(&saw.column(), [&wide, &args.number(0.0)?], &wide)?;
    args.mul(&wide, &weight.column(), &wide)?;
    Ok(wide)
}

impl Launch for Merge {
    fn workspace_bytes(&self, shapes: &[TensorSpec]) -> u64 {
        let dims = shapes.first().map_or(&[0][..], |s| s.dims());
        let rows = &dims[..dims.len() - 1];
        2 * scratch_bytes(Kind::F32, dims)
            + 12 * scratch_bytes(Kind::F32, rows)
            + 8 * scratch_bytes(Kind::F32, &[1])
    }

    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let parts = [(args.place(0)?, args.place(1)?), (args.place(2)?, args.place(3)?)];
        let (o, lse) = (args.place(4)?, args.place(5)?);
        if lse.is_empty() {
            return Ok(());
        }
        let like = |kind| args.scratch(kind, &lse.dims);
        let [first, second] = [&parts[0].1, &parts[1].1];
        let never = args.number(f32::NEG_INFINITY)?;
        // The larger one is taken off before the exponential, 0 where both parts saw nothing.
        let (mask, top) = (like(Kind::BOOL)?, like(Kind::F32)?);
        args.less(first, second, &mask)?;
        args.choose(&mask, [second, first], &top)?;
        args.equal(&top, &never, &mask)?;
        args.choose(&mask, [&args.number(0.0)?, &top], &top)?;
        let exponential = |of: &Place| {
            let e = like(Kind::F32)?;
            args.sub(of, &top, &e)?;
            args.exp(&e, &e)?;
            Ok::<_, halyard_sdk::Error>(e)
        };
        let weights = [exponential(first)?, exponential(second)?];
        let (sum, all) = (like(Kind::F32)?, like(Kind::F32)?);
        args.add((&weights[0], &weights[1]), 1.0, &sum)?;
        args.ln(&sum, &all)?;
        args.add_to(&all, &top)?;
        args.choose(&mask, [&args.number(1.0)?, &sum], &sum)?;
        let mut values = Vec::new();
        for ((o, lse), weight) in parts.iter().zip(&weights) {
            args.div(weight, &sum, weight)?;
            let saw = like(Kind::BOOL)?;
            args.less(&never, lse, &saw)?;
            values.push(weighed(args, o, &saw, weight)?);
        }
        args.copy(&lse, &all)?;
        if o.is_empty() {
            return Ok(());
        }
        args.add_to(&values[0], &values[1])?;
        args.copy(&o, &values[0])
    }
}
