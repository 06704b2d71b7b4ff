//! Verified before served: the kernels a model will launch, against the reference, before its weights
//! are loaded.

use anyhow::{Context, anyhow};
use halyard_conformance::{
    Progress, gate,
    gate::{Exchange, GateOptions, exchanges, exchanges_of_rank, standard_cache_dir},
    oracle,
};
use halyard_core::{CommId, Device, OpBuf};
use halyard_engine::{
    ExchangeKind, Plan,
    process::{Trial, Tried},
};

use crate::{
    cli::values::Conformance,
    ui::{self, Unit},
};

/// Checks every kernel of every kind of device, and what the devices exchange; what a failure means is the policy's to say.
pub(super) fn check(plan: &Plan, policy: Conformance) -> anyhow::Result<()> {
    check_kernels(plan, policy)?;
    let all = planned(plan);
    if all.is_empty() || policy == Conformance::Off {
        return Ok(());
    }
    let report = match plan.trial() {
        None => exchanges(&plan.devices(), &all, 0),
        Some(trial) => {
            let ((report, digest), others) =
                plan.try_exchanges(|| exchanges_of_rank(trial.device, ends(&trial), &all, 0))?;
            let complaints = (1..).zip(&others).filter_map(|(rank, tried)| {
                let differs = || format!("rank {rank} has other bits than rank 0");
                tried.complaint.clone().or_else(|| (tried.digest != digest).then(differs))
            });
            let complaints: Vec<String> = complaints.collect();
            if report.passed() && !complaints.is_empty() {
                return judge(Err(anyhow!(complaints.join("; "))), policy);
            }
            report
        }
    };
    if report.passed() {
        tracing::info!("exchanges: all {} verified in {} ms", all.len(), report.millis);
    }
    judge(report.require().map_err(Into::into), policy)
}

/// The trial of exchanges on a rank other than 0, whose processes make it together.
pub(super) fn try_exchanges(plan: &Plan) -> Tried {
    let Some(trial) = plan.trial() else {
        return Tried { digest: 0, complaint: Some("a rank without others".into()) };
    };
    let (report, digest) = exchanges_of_rank(trial.device, ends(&trial), &planned(plan), 0);
    Tried { digest, complaint: report.require().err().map(|error| error.to_string()) }
}

fn ends<'a>(trial: &Trial<'a>) -> (&'a CommId, u32, u32) {
    (trial.id, trial.rank, trial.world)
}

fn planned(plan: &Plan) -> Vec<Exchange> {
    plan.exchanges().into_iter().map(exchange).collect()
}

/// Checks every kernel of every kind of device.
pub(super) fn check_kernels(plan: &Plan, policy: Conformance) -> anyhow::Result<()> {
    let sets = plan.kernel_sets();
    sets.iter().try_for_each(|(device, kernels)| check_set(device, kernels, policy))
}

fn exchange(planned: ExchangeKind) -> Exchange {
    let ExchangeKind { is_gather, dtype, width } = planned;
    if is_gather { Exchange::Gather { dtype, width } } else { Exchange::Sum { dtype, width } }
}

fn check_set(device: &Device, kernels: &[OpBuf], policy: Conformance) -> anyhow::Result<()> {
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
    judge(report.require().map_err(Into::into), policy)
}

fn judge(verdict: anyhow::Result<()>, policy: Conformance) -> anyhow::Result<()> {
    match (verdict, policy) {
        (Ok(()), _) => Ok(()),
        (Err(error), Conformance::Warn) => {
            tracing::warn!("--conformance warn: serving although {error}");
            Ok(())
        }
        (Err(error), _) => Err(error.context(
            "the backend is refused; --conformance warn would serve all the same, with wrong numbers",
        )),
    }
}
