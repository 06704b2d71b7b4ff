//! AscendCL and aclnn as safe Rust: all `unsafe` of this crate that is not an operator's call, a collective's or a host's weight.
//!
//! Every function wants its device's context bound ([`Context::bind`]), and says which call failed.

/// Calls a function of AscendCL: a `Result`. To be used inside `unsafe`.
macro_rules! call {
    ($acl:expr, $name:ident($($arg:expr),* $(,)?)) => {{
        let acl: &halyard_ascend_sys::acl::Acl = $acl;
        match acl.$name {
            Some(function) => crate::driver::error::check(acl, stringify!($name), function($($arg),*)),
            None => Err(crate::driver::error::missing(stringify!($name))),
        }
    }};
}

mod context;
mod dcmi;
mod error;
mod graph;
pub(crate) mod hccl;
mod hccn;
mod memory;
mod operator;
mod release;
mod smi;
mod stream;
mod tensor;

use std::{ptr, sync::OnceLock};

use halyard_ascend_sys::{Libraries, acl::Acl, aclnn::Aclnn};
use halyard_sdk::{Error, Result};

pub(crate) use context::{Bound, Context, count};
pub(crate) use dcmi::{Sensors, machine_numbers};
pub(crate) use graph::{Changing, Graph};
pub(crate) use halyard_sdk::vendor::Plane;
pub(crate) use hccn::diagnosis;
pub(crate) use memory::{Memory, Pinned, copy};
pub(crate) use operator::{Use, run};
pub(crate) use release::graphs_lack;
pub(crate) use stream::{Event, Stream};
pub(crate) use tensor::{
    Create, Describe, IntArray, NO_INTS, NO_LIST, NO_TENSOR, Scalar, Tensor, TensorList,
};

/// The result of a second `aclInit` in a process, by whomever the first was.
const REPEATED_INIT: i32 = 100_002;

/// The functions found.
#[derive(Debug)]
pub(crate) struct Driver {
    pub(crate) acl: Acl,
    pub(crate) operators: Aclnn,
}

/// Opens the libraries and starts them; once in a process.
///
/// # Errors
/// `UNSUPPORTED` if there is no CANN, it does not start, or it is too old.
pub(crate) fn start() -> Result<&'static Driver> {
    static DRIVER: OnceLock<Result<Driver>> = OnceLock::new();
    let started = DRIVER.get_or_init(|| {
        let libraries = Libraries::open().map_err(|e| Error::unsupported(e.to_string()))?;
        let driver = Driver { acl: Acl::load(&libraries), operators: Aclnn::load(&libraries) };
        // SAFETY: no configuration file; a second start is refused with a result of its own.
        match unsafe { call!(&driver.acl, aclInit(ptr::null())) } {
            Err(error) if error.vendor_code != REPEATED_INIT => Err(error),
            _ => release::check(&driver).map(|()| driver),
        }
    });
    started.as_ref().map_err(Clone::clone)
}

/// The version for people, if there is a CANN that can be used.
pub(crate) fn version_text() -> String {
    start().map_or_else(|_| String::new(), release::text)
}
