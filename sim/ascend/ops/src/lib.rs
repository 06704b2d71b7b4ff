//! The operators of a stand-in for Huawei's CANN libraries (`aclnn…`) on an Ascend 910B (Atlas A2).
//!
//! An [`Op`] is called as the library is: [`Op::plan`] checks the arguments against the documented limits and gives
//! a [`Plan`] with the workspace's size, [`Plan::run`] computes it on a [`Memory`]. It shows that calls keep to the
//! documentation as its authors read it, and gives numbers in the documented precision; it shows nothing of real
//! kernels, their rounding inside or their speed.
//!
//! ```
//! use halyard_sim_ascend_ops::{Arg, Soc, Tensor, find};
//!
//! let tensor = |dims: &[i64], address| Arg::Tensor(Some(Tensor::contiguous(0, dims, address)));
//! let args = [tensor(&[2, 3], 0x1000), tensor(&[4, 5], 0x2000), tensor(&[2, 5], 0x3000), Arg::Int(0)];
//! let refusal = find("Mm").unwrap().plan(&args, &Soc::ascend_910b1()).unwrap_err();
//! assert_eq!(refusal.code, 161002);
//! assert!(refusal.message.contains("mat2: shape [4, 5]"));
//! ```

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "an operator narrows numbers to the types of its documentation; sizes are checked when it is planned"
)]
mod activation;
mod arg;
mod attention;
mod cache;
mod compare;
mod copy;
mod dtype;
mod elementwise;
mod fill;
mod format;
mod gating;
mod gemm;
mod grouped;
mod index;
mod launch;
mod matmul;
mod norm;
mod nz;
mod op;
mod quant;
mod quant_matmul;
mod reduce;
mod refusal;
mod rope;
mod routing;
mod sample;
mod view;

pub use arg::{Arg, Scalar, Tensor};
pub use format::{cast_storage_dims, matmul_weight_elements};
pub use launch::{Fault, Memory};
pub use op::{Kind, Op, Param, Plan, Since, Slot, Soc};
pub use refusal::{Refusal, code};

/// The operators, a family a slice.
pub static FAMILIES: &[&[Op]] = &[
    matmul::OPS,
    norm::OPS,
    rope::OPS,
    activation::OPS,
    index::OPS,
    cache::OPS,
    attention::OPS,
    gating::OPS,
    routing::OPS,
    grouped::OPS,
    quant::OPS,
    quant_matmul::OPS,
    format::OPS,
    sample::OPS,
    elementwise::OPS,
    compare::OPS,
    copy::OPS,
    fill::OPS,
    reduce::OPS,
];

/// All operators.
pub fn ops() -> impl Iterator<Item = &'static Op> {
    FAMILIES.iter().flat_map(|family| family.iter())
}

/// The operator of a name, without its `aclnn`.
#[must_use]
pub fn find(name: &str) -> Option<&'static Op> {
    ops().find(|op| op.name == name)
}
