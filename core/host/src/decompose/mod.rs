//! Ops that a backend lacks, built from ops that it has.
//!
//! A [`Recipe`] is a list of steps over the op's own tensors and temporary ones, which lie in the workspace. It becomes a
//! [`Kernel`](halyard_abi::traits::Kernel) like any other, so that nobody who launches it knows. Which ops are built so is decided when they are
//! prepared; [`Device::support`](crate::Device::support) tells.

mod attention;
mod experts;
mod kernel;
mod qkv;
mod recipe;
mod rows;

use std::sync::Arc;

use halyard_abi::{
    AbiError, KernelBox, OpBuf, OpKind,
    traits::{SUPPORT_NO, SUPPORT_SLOW},
};

use crate::{Result, Support, device::DeviceInner, error::Named};
use recipe::Recipe;

/// When a device builds an op from others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Decompose {
    /// Never: what the backend lacks is unsupported.
    #[default]
    Never,
    /// Where the backend lacks it.
    Missing,
    /// Wherever it is possible, even if the backend has it: to prove the decompositions.
    Always,
}

/// Native, or how else.
enum Choice {
    Native,
    Built(Recipe),
    Refused(AbiError),
}

fn choose(device: &DeviceInner, when: Decompose, op: &OpBuf) -> Choice {
    let native = || device.raw.supports(&op.desc()) != SUPPORT_NO;
    if when == Decompose::Never || (when == Decompose::Missing && native()) {
        return Choice::Native;
    }
    match recipe_of(op) {
        Ok(None) => Choice::Native,
        Ok(Some(recipe)) => match missing(device, when, &recipe) {
            None => Choice::Built(recipe),
            Some(why) => Choice::Refused(AbiError::unsupported(why)),
        },
        Err(error) => Choice::Refused(error),
    }
}

/// How well a device has an op, and if not natively, from what it is built.
pub(crate) fn support(device: &DeviceInner, when: Decompose, op: &OpBuf) -> Support {
    let explain = || device.raw.explain(&op.desc()).into_string();
    match choose(device, when, op) {
        Choice::Built(recipe) => Support::Slow(format!("built from {recipe}")),
        Choice::Refused(error) if when == Decompose::Always => Support::No(error.message.into()),
        Choice::Refused(error) => Support::No(format!("{}; {}", explain(), error.message)),
        Choice::Native => match device.raw.supports(&op.desc()) {
            SUPPORT_NO => Support::No(explain()),
            SUPPORT_SLOW => Support::Slow(explain()),
            halyard_abi::traits::SUPPORT_NATIVE => Support::Native,
            _ => Support::Tuned,
        },
    }
}

/// Prepares a kernel, native or built.
pub(crate) fn prepare(device: &Arc<DeviceInner>, when: Decompose, op: &OpBuf) -> Result<KernelBox> {
    match choose(device, when, op) {
        Choice::Native => device.raw.prepare(&op.desc()).named("prepare"),
        Choice::Refused(error) => Err(error).named("prepare"),
        Choice::Built(recipe) => {
            tracing::debug!(%op, %recipe, "an op is built from others");
            let prepare = |part: &OpBuf| prepare(device, when, part);
            let kernels = recipe.ops().map(prepare).collect::<Result<_>>()?;
            Ok(kernel::built(device, recipe, kernels))
        }
    }
}

/// The first step that a device cannot do, or communicator that it has not joined.
fn missing(device: &DeviceInner, when: Decompose, recipe: &Recipe) -> Option<String> {
    let op = recipe.ops().find_map(|part| match support(device, when, part) {
        Support::No(why) => Some(format!("built from {recipe} it needs {part}: {why}")),
        _ => None,
    });
    op.or_else(|| {
        let unknown = |number| device.communicator(number).err();
        recipe.communicators().find_map(unknown).map(|error| error.message.into())
    })
}

/// How to build an op; `None` if it is a basic one.
fn recipe_of(op: &OpBuf) -> std::result::Result<Option<Recipe>, AbiError> {
    match op.kind() {
        OpKind::RMS_NORM => rows::rms_norm(op),
        OpKind::RMS_NORM_QUANT => rows::rms_norm_quant(op).map(Some),
        OpKind::LINEAR_ACT_MUL => rows::linear_act_mul(op).map(Some),
        OpKind::LINEAR_ALL_REDUCE => rows::linear_all_reduce(op).map(Some),
        OpKind::ARGMAX => rows::argmax(op).map(Some),
        OpKind::MOE_EXPERTS => experts::moe_experts(op).map(Some),
        OpKind::PAGED_ATTENTION => attention::paged(op).map(Some),
        OpKind::MLA_ATTENTION => attention::latent(op).map(Some),
        OpKind::QKV_POST => qkv::qkv_post(op).map(Some),
        _ => Ok(None),
    }
}
