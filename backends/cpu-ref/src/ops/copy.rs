//! `y = x`, converted.

use halyard_sdk::{
    DType, Error, OpDesc, Result,
    abi::ops::{attrs::Copy, check::Bindings},
};

use crate::{glue::Args, rows};

const FLOATS: [DType; 3] = [DType::F32, DType::F16, DType::BF16];
const INTS: [DType; 2] = [DType::I32, DType::U32];
const WIDE: [DType; 2] = [DType::I64, DType::U64];

/// Elements pass through `f64`, which holds all of these but 64-bit integers: those are copied as words, to their own type only.
pub(super) fn check(_: &Copy, desc: &OpDesc<'_>, _: &Bindings) -> Result<()> {
    let (x, y) = (desc.tensors[0].dtype, desc.tensors[1].dtype);
    let known = |t: DType| FLOATS.contains(&t) || INTS.contains(&t) || WIDE.contains(&t);
    if !known(x) || !known(y) {
        return Err(Error::unsupported(format!(
            "copy from {x} to {y}; supported: f32, f16, bf16, i32, u32, i64, u64"
        )));
    }
    if WIDE.contains(&x) && x != y {
        return Err(Error::unsupported(format!("copy from {x} to {y}; {x} copies to {x} only")));
    }
    Ok(())
}

pub(super) fn run(_: &Copy, args: &Args) -> Result<()> {
    let x = args.tensor(0)?;
    // What `check` let through with a wide x is the same type on both sides.
    let (x, y) = if WIDE.contains(&x.dtype()) {
        (args.words(0)?, args.words(1)?)
    } else {
        (x, args.tensor(1)?)
    };
    for lead in rows::leads(&x) {
        rows::write(&y, &lead, rows::read(&x, &lead));
    }
    Ok(())
}
