//! Collectives: ranks are threads of a process or processes of one host.
//!
//! A call runs in the order of its stream: it reads its input from device memory, exchanges bytes with the other ranks in shared memory
//! (`halyard_sdk::comm`, of which only gathering, sending and receiving bytes is used), computes, and writes its result. Ranks first
//! show each other what they call: calls that do not belong together end the communicator with a text that names both.
//!
//! - `comm`: communicators; `call`: calls and what they exchange; `reduce`: numbers

pub(crate) mod call;
pub(crate) mod comm;
mod reduce;

use crate::code::{Failure, Outcome};

/// The reduction that an `HcclReduceOp` says.
pub(crate) fn reduce_op(number: u32) -> Outcome<reduce::Op> {
    reduce::Op::named(number)
        .ok_or_else(|| Failure::argument("op", format!("{number} (SUM 0, PROD 1, MAX 2, MIN 3)")))
}
