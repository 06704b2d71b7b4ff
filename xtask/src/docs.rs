//! `cargo xtask docs`: the pages that are made from the code.

use anyhow::Result;

use crate::tool::{cargo, run};

/// Writes `docs/ops.md`: the test that compares it writes it first.
pub(crate) fn docs() -> Result<()> {
    let test = ["test", "--quiet", "--package", "halyard-abi", "--test", "docs"];
    run(cargo().args(test).env("HALYARD_WRITE_DOCS", "1"))
}
