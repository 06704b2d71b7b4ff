//! `y = x`, converted: floats to nearest even, integers half to even; 8-bit floats and integers saturate.

use halyard_sdk::{Result, abi::ops::attrs::Copy};

use crate::{
    glue::Args,
    rows::{leads, width},
};

pub(super) fn run(_: &Copy, args: &Args) -> Result<()> {
    let (x, y) = (args.tensor(0)?, args.tensor(1)?);
    for lead in leads(&x) {
        for i in 0..width(&x) {
            x.copy_to(&[lead.as_slice(), &[i]].concat(), &y);
        }
    }
    Ok(())
}
