//! ARGMAX.

use halyard_sdk::{Result, TensorSpec, abi::ops::attrs};

use super::{
    Launch, Op,
    args::{Args, Kind, Place, scratch_bytes},
    index::put,
};
use crate::driver::Scalar;

struct Argmax;

pub(super) fn argmax(op: &Op<'_>) -> Result<Box<dyn Launch>> {
    let attrs::Argmax {} = op.attrs()?;
    op.floats(&[0])?;
    Ok(Box::new(Argmax))
}

/// Logits in f32 with -inf for NaN.
fn comparable(args: &Args<'_>, x: &Place) -> Result<Place> {
    let wide = args.cast(x, Kind::F32)?;
    let bounded = args.scratch(Kind::F32, &x.dims)?;
    let difference = args.scratch(Kind::F32, &x.dims)?;
    {
        let (from, to) = (args.tensor(&wide)?, args.tensor(&bounded)?);
        enqueue!(args.on, Tanh(from.raw(), to.raw()))?;
        // A finite number less itself is 0, NaN less itself is none.
        let (one, zero) = (Scalar::float(args.on.driver(), 1.0)?, args.tensor(&difference)?);
        enqueue!(args.on, Sub(to.raw(), to.raw(), one.raw(), zero.raw()))?;
    }
    let nan = args.cast(&difference, Kind::BOOL)?;
    put(args, &wide, &nan, f32::NEG_INFINITY)?;
    Ok(wide)
}

impl Launch for Argmax {
    fn workspace_bytes(&self, shapes: &[TensorSpec]) -> u64 {
        let dims = shapes.first().map_or(&[0][..], |s| s.dims());
        3 * scratch_bytes(Kind::F32, dims) + scratch_bytes(Kind::BOOL, dims)
    }

    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let (x, y) = (args.place(0)?, args.place(1)?);
        if y.is_empty() {
            return Ok(());
        }
        let (x, y) = (args.tensor(&comparable(args, &x)?)?, args.tensor(&y)?);
        enqueue!(args.on, ArgMax(x.raw(), -1, false, y.raw()))
    }
}
