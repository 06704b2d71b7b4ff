//! Whether decode steps can be captured in graphs, and what room those want.

use halyard_core::{CAPTURABLE, Device, HOST_LENGTHS, MetricKey, PLAN_UPDATE};

use super::ranks::RankPlan;
use crate::{
    buckets::Buckets,
    program::{Section, Step},
};

/// What the model's part of a decode step runs.
const SECTIONS: [Section; 2] = [Section::Body, Section::Head];

/// Bytes of device memory that are set aside for a captured launch: its parameters and the driver's bookkeeping. An estimate, generous
/// for what drivers are known to take.
const NODE_BYTES: u64 = 8 << 10;

/// Whether the steps of these ranks, of `world` altogether, can be captured.
///
/// # Errors
/// Why not, for people.
pub(super) fn possible(ranks: &[RankPlan], world: usize) -> Result<(), String> {
    for RankPlan { device, program, kernels, .. } in ranks {
        let id = device.backend().id();
        if !device.has_graphs() {
            return Err(format!("the backend {id} has no graphs"));
        }
        if world > 1 && !device.captures_exchanges() {
            return Err(format!("the backend {id} cannot capture what ranks exchange"));
        }
        for section in SECTIONS {
            for step in program.steps(section) {
                let Step::Launch(call) = step else { continue };
                let kernel = &kernels[call.op];
                let kind = kernel.op().kind();
                if kernel.flags() & CAPTURABLE == 0 {
                    return Err(format!("the kernel of {kind} cannot be captured"));
                }
                if kernel.flags() & (HOST_LENGTHS | PLAN_UPDATE) == HOST_LENGTHS {
                    return Err(format!("the kernel of {kind} reads lengths on the host"));
                }
            }
        }
    }
    Ok(())
}

/// Bytes that are free on the devices together; `None` if they do not say.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a measurement of bytes, below 2^53"
)]
pub(super) fn free_bytes(devices: &[Device]) -> Option<u64> {
    let free = |device: &Device| {
        let all = device.telemetry();
        all.iter()
            .find(|metric| metric.key == MetricKey::MEM_FREE)
            .map(|metric| metric.value as u64)
    };
    devices.iter().map(free).sum()
}

/// Bytes to set aside on a rank's device for graphs of these sizes.
pub(super) fn bytes(rank: &RankPlan, buckets: &Buckets) -> u64 {
    let nodes: usize = SECTIONS.iter().map(|&section| rank.program.steps(section).len()).sum();
    (nodes * buckets.sizes().len()) as u64 * NODE_BYTES
}

/// Says what graphs took of the bytes that were set aside for them.
pub(super) fn compare(free_before: Option<u64>, free_after: Option<u64>, set_aside: u64) {
    let (Some(before), Some(after)) = (free_before, free_after) else { return };
    let taken = before.saturating_sub(after);
    tracing::debug!(taken, set_aside, "bytes of graphs");
    if taken > set_aside {
        tracing::warn!(
            taken,
            set_aside,
            "graphs take more memory than was set aside; --gpu-memory-utilization leaves less than it says"
        );
    }
}
