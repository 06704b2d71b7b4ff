//! Verified before served: the kernels a model will launch, against the reference, before its weights
//! are loaded.

use anyhow::Context;
use halyard_conformance::{
    Progress, gate,
    gate::{Exchange, GateOptions, GateReport, exchanges, standard_cache_dir},
    oracle,
};
use halyard_core::{Device, OpBuf};
use halyard_engine::{ExchangeKind, Plan};

use crate::{
    cli::values::Conformance,
    ui::{self, Unit},
};

/// Checks every kernel of every kind of device, and what the devices exchange; what a failure means is the policy's to say.
pub(super) fn check(plan: &Plan, policy: Conformance) -> anyhow::Result<()> {
    for (device, kernels) in plan.kernel_sets() {
        check_kernels(device, &kernels, policy)?;
    }
    let all: Vec<Exchange> = plan.exchanges().into_iter().map(exchange).collect();
    if all.is_empty() || policy == Conformance::Off {
        return Ok(());
    }
    let report = exchanges(&plan.devices(), &all, 0);
    if report.passed() {
        tracing::info!("exchanges: all {} verified in {} ms", all.len(), report.millis);
    }
    judge(&report, policy)
}

fn exchange(planned: ExchangeKind) -> Exchange {
    let ExchangeKind { is_gather, dtype, width } = planned;
    if is_gather { Exchange::Gather { dtype, width } } else { Exchange::Sum { dtype, width } }
}

fn check_kernels(device: &Device, kernels: &[OpBuf], policy: Conformance) -> anyhow::Result<()> {
    if policy == Conformance::Off {
        tracing::warn!("--conformance off: {} kernels are not verified", kernels.len());
        return Ok(());
    }
    let oracle = oracle().context("cannot open the reference to verify kernels against")?;
    let options = GateOptions { seed: 0, cache_dir: standard_cache_dir() };
    let bar = ui::progress("verifying kernels", 0, Unit::Items);
    let mut on_progress = |progress: Progress<'_>| {
        bar.set_length(u64::try_from(progress.total).unwrap_or(0));
        bar.set_position(u64::try_from(progress.done).unwrap_or(0));
    };
    let report = gate(device, &oracle, kernels, &options, &mut on_progress);
    bar.finish_and_clear();
    if report.passed() {
        let (count, millis) = (report.kernels.len(), report.millis);
        if report.from_cache {
            tracing::info!("kernels: all {count} verified before, on this device");
        } else {
            tracing::info!("kernels: all {count} verified in {millis} ms");
        }
    }
    judge(&report, policy)
}

fn judge(report: &GateReport, policy: Conformance) -> anyhow::Result<()> {
    match (report.require(), policy) {
        (Ok(()), _) => Ok(()),
        (Err(error), Conformance::Warn) => {
            tracing::warn!("--conformance warn: serving although {error}");
            Ok(())
        }
        (Err(error), _) => Err(error).context(
            "the backend is refused; --conformance warn would serve all the same, with wrong numbers",
        ),
    }
}
