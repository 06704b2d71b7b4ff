//! Both phases of an operator.
//!
//! What the first phase plans is kept and used again, where the operator allows it, by calls that differ in nothing but where their tensors
//! are. The first phase takes tens of microseconds of the host, and a step of generation calls the same operators for every layer.

use std::{collections::HashMap, ffi::c_void, ptr};

use halyard_ascend_sys::{
    aclnn::{Operator, Run},
    types::aclOpExecutor,
};
use halyard_sdk::{Error, Result};

use super::{
    Driver, Stream,
    error::{check, missing},
    tensor::{Held, Key},
};

/// Plans that a stream keeps.
const KEPT: usize = 1024;

/// Whether a call is likely to be made again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    Again,
    /// Its arguments are of this step alone.
    Once,
}

/// What a first phase gave, and the descriptors that it was given.
#[derive(Debug)]
struct Plan {
    driver: &'static Driver,
    name: &'static str,
    run: Run,
    executor: *mut aclOpExecutor,
    /// The executor is ours until it is destroyed; otherwise the second phase takes it.
    repeatable: bool,
    workspace: u64,
    addresses: Vec<u64>,
    held: Held,
    last_use: u64,
}

// SAFETY: an executor is a name that the library takes from any thread; it is used by one at a time.
unsafe impl Send for Plan {}

impl Plan {
    /// Other places for the tensors.
    fn readdress(&mut self, addresses: &[u64]) -> Result<()> {
        let places = self.addresses.iter_mut().zip(addresses).zip(&self.held.tensors).enumerate();
        for (number, ((old, new), tensor)) in places.filter(|(_, ((old, new), _))| old != new) {
            let (acl, to) = (&self.driver.acl, *new as *mut c_void);
            // SAFETY: the executor is repeatable, and the tensor is the one of this number of its call.
            unsafe { call!(acl, aclSetTensorAddr(self.executor, number, *tensor, to)) }?;
            *old = *new;
        }
        Ok(())
    }

    /// The second phase.
    ///
    /// # Safety
    /// As of [`run`].
    unsafe fn enqueue(&mut self, on: &Stream) -> Result<()> {
        let bytes = usize::try_from(self.workspace);
        let scratch = on.scratch(bytes.map_err(|_| Error::invalid("a workspace too large"))?);
        let scratch = scratch.map_err(|e| Error {
            message: format!("aclnn{}: {}", self.name, e.message).into(),
            ..e
        })?;
        // SAFETY: the executor is of this operator's first phase and used once, unless it is repeatable; the scratch memory is the stream's.
        let result = unsafe { (self.run)(scratch, self.workspace, self.executor, on.raw()) };
        if !self.repeatable {
            self.executor = ptr::null_mut();
        }
        check(&self.driver.acl, &format!("aclnn{}", self.name), result)
    }

    /// Keeps the executor after its second phase, if the operator allows it: not one that copies what it is given.
    fn keep(&mut self) -> Result<()> {
        // SAFETY: the executor is of a first phase, and was not used.
        unsafe { call!(&self.driver.acl, aclSetAclOpExecutorRepeatable(self.executor)) }?;
        self.repeatable = true;
        Ok(())
    }
}

impl Drop for Plan {
    fn drop(&mut self) {
        // One whose second phase did not come can be freed only if it could be used again.
        if self.executor.is_null() || !self.repeatable && self.keep().is_err() {
            return;
        }
        // SAFETY: it is named no more after this.
        let freed = unsafe { call!(&self.driver.acl, aclDestroyAclOpExecutor(self.executor)) };
        if let Err(error) = freed {
            tracing::debug!(%error, "an executor");
        }
    }
}

/// The plans that a stream keeps; of too many, those go that were used longest ago.
#[derive(Debug, Default)]
pub(super) struct Plans {
    kept: HashMap<Vec<u64>, Plan>,
    /// Calls so far.
    clock: u64,
}

impl Plans {
    fn insert(&mut self, key: Vec<u64>, plan: Plan) {
        if self.kept.len() >= KEPT {
            let oldest = self.kept.iter().min_by_key(|(_, plan)| plan.last_use);
            if let Some(oldest) = oldest.map(|(key, _)| key.clone()) {
                self.kept.remove(&oldest);
            }
        }
        self.kept.insert(key, plan);
    }

    /// Frees them all.
    pub(super) fn clear(&mut self) {
        self.kept.clear();
    }
}

/// Enqueues an operator. `describe` says what its arguments are, `plan` calls its first phase with them and the two places for its answer.
///
/// # Safety
/// Both name the same arguments. Every address in them is of device memory that the operator may touch as it does, until the stream has
/// reached this point.
pub(crate) unsafe fn run<F: Copy>(
    name: &'static str,
    operator: Option<Operator<F>>,
    (on, again): (&Stream, Use),
    describe: impl FnOnce(&mut Key),
    plan: impl FnOnce(F, &mut Held, *mut u64, *mut *mut aclOpExecutor) -> Result<i32>,
) -> Result<()> {
    let operator = operator.ok_or_else(|| missing(&format!("aclnn{name}")))?;
    let mut key = Key::default();
    // What is captured stays with its executor, which is used again by nobody.
    let again = if on.is_capturing() { Use::Once } else { again };
    key.words.push(operator.run as usize as u64);
    describe(&mut key);
    let key = key.finished();
    // Held to the end: an executor is used by one thread at a time.
    let mut plans = on.plans();
    plans.clock += 1;
    let now = plans.clock;
    if again == Use::Again
        && let Some(kept) = plans.kept.get_mut(&key.words)
    {
        kept.last_use = now;
        kept.readdress(&key.addresses)?;
        // SAFETY: the caller's promise.
        return unsafe { kept.enqueue(on) };
    }
    let driver = on.driver();
    let (mut workspace, mut executor, mut held) = (0, ptr::null_mut(), Held::new(driver));
    let planned = plan(operator.size, &mut held, &raw mut workspace, &raw mut executor)?;
    check(&driver.acl, &format!("aclnn{name}GetWorkspaceSize"), planned)?;
    let (run, addresses) = (operator.run, key.addresses);
    #[rustfmt::skip]
    let mut plan =
        Plan { driver, name, run, executor, repeatable: false, workspace, addresses, held, last_use: now };
    if again == Use::Again
        && let Err(error) = plan.keep()
    {
        tracing::trace!(name, %error, "an operator that is planned each time");
    }
    // SAFETY: the caller's promise.
    unsafe { plan.enqueue(on) }?;
    if plan.repeatable {
        plans.insert(key.words, plan);
    }
    Ok(())
}
