//! Both phases of an operator.

use std::ptr;

use halyard_ascend_sys::{aclnn::Operator, types::aclOpExecutor};
use halyard_sdk::{Error, Result};

use super::{
    Stream,
    error::{check, missing},
};

/// Enqueues an operator. `plan` calls its first phase with the arguments and the two places for its answer.
///
/// # Safety
/// `plan` passes live descriptors. Every address in them is of device memory that the operator may touch as it does, until the stream has
/// reached this point.
pub(crate) unsafe fn run<F: Copy>(
    name: &str,
    operator: Option<Operator<F>>,
    on: &Stream,
    plan: impl FnOnce(F, *mut u64, *mut *mut aclOpExecutor) -> i32,
) -> Result<()> {
    let operator = operator.ok_or_else(|| missing(&format!("aclnn{name}")))?;
    let (mut bytes, mut executor) = (0, ptr::null_mut());
    let planned = plan(operator.size, &raw mut bytes, &raw mut executor);
    check(&on.driver.acl, &format!("aclnn{name}GetWorkspaceSize"), planned)?;
    let size = usize::try_from(bytes).map_err(|_| Error::invalid("a workspace too large"))?;
    let scratch = match on.scratch(size) {
        Ok(scratch) => scratch,
        Err(error) => {
            forget(on, executor);
            return Err(error);
        }
    };
    // SAFETY: the executor is of this operator's first phase and used once; the scratch memory is the stream's.
    let enqueued = unsafe { (operator.run)(scratch, bytes, executor, on.raw()) };
    check(&on.driver.acl, &format!("aclnn{name}"), enqueued)
}

/// Frees an executor whose second phase will not come. Only one that may be used again can be freed.
fn forget(on: &Stream, executor: *mut aclOpExecutor) {
    let acl = &on.driver.acl;
    // SAFETY: the executor is of a first phase, and was not used.
    let repeatable = unsafe { call!(acl, aclSetAclOpExecutorRepeatable(executor)) };
    // SAFETY: as above; it is named no more after this.
    let freed = repeatable.and_then(|()| unsafe { call!(acl, aclDestroyAclOpExecutor(executor)) });
    if let Err(error) = freed {
        tracing::debug!(%error, "an executor that was not used");
    }
}
