//! `y = a + ALPHA b`

use halyard_sdk::{Result, abi::ops::attrs::Add};

use crate::{glue::Args, rows};

pub(super) fn run(attrs: &Add, args: &Args) -> Result<()> {
    let (a, b, y) = (args.tensor(0)?, args.tensor(1)?, args.tensor(2)?);
    for lead in rows::leads(&a) {
        // b may lack leading dims.
        let b_lead = &lead[a.rank() - b.rank()..];
        let sum = rows::read(&a, &lead).into_iter().zip(rows::read(&b, b_lead));
        y.set_row(&lead, sum.map(|(a, b)| a + attrs.alpha * b));
    }
    Ok(())
}
