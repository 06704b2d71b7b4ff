//! Where the ranks of a plan are, and what they agree on before they load.

use halyard_core::{CommId, Device, InfoKey};

use super::{memory::Pool, options::Resolved, place};
use crate::{
    error::LoadError,
    process::{Agreed, FromRank, Leader, Offer, RankProcesses, Report, ToRank},
};

/// The ranks of this process: consecutive ones, each with a device.
#[derive(Clone, Copy, Debug)]
pub(super) struct Here<'a> {
    pub(super) first: usize,
    /// Ranks altogether.
    pub(super) world: usize,
    pub(super) devices: &'a [Device],
}

/// Where the other ranks are.
#[derive(Debug)]
pub(super) enum Party {
    /// Here: they are threads.
    Threads,
    /// Each in a process that this one has started.
    Processes(RankProcesses),
    /// As before, and this is one of those.
    Follows(Leader),
}

/// What comes of the offers of all ranks.
#[derive(Debug)]
pub(super) struct Terms {
    pub(super) agreed: Option<Agreed>,
    pub(super) pool: Pool,
    /// Whether decode steps can be captured; if not, why.
    pub(super) graphs: Result<(), String>,
    /// Of ranks in other processes.
    pub(super) others: Vec<Offer>,
}

impl<'a> Here<'a> {
    /// All of them.
    pub(super) fn all(devices: &'a [Device]) -> Self {
        Self { first: 0, world: devices.len(), devices }
    }
}

impl Party {
    /// What the ranks meet by, to work and to try that: rank 0 makes it.
    fn ids(here: Here<'_>) -> Result<[CommId; 2], LoadError> {
        let id = || super::ranks::comm_id(here.devices);
        Ok([id()?, id()?])
    }

    /// Brings the offers of all ranks together.
    ///
    /// # Errors
    /// A rank is lost, or has made other choices.
    pub(super) fn agree(&self, here: Here<'_>, own: Offer) -> Result<Terms, LoadError> {
        let mut pool = Pool::of(&own);
        let mut graphs = own.graphs.clone();
        match self {
            Self::Threads if here.world == 1 => {
                Ok(Terms { agreed: None, pool, graphs, others: Vec::new() })
            }
            Self::Threads | Self::Processes(_) => {
                let [comm, trial] = Self::ids(here)?;
                let mut others = Vec::new();
                if let Self::Processes(processes) = self {
                    others = processes.all(|report| match report {
                        Report::Offer(offer) => Some(offer),
                        _ => None,
                    })?;
                }
                for (rank, offer) in (1..).zip(&others) {
                    same_terms(rank, &offer.terms, &own.terms)?;
                    pool = pool.min(Pool::of(offer));
                    graphs = graphs.and(offer.graphs.clone());
                }
                let Pool { num_blocks, max_model_len } = pool;
                let (graphs_of_all, kind) = (graphs.clone(), own.kind);
                let agreed =
                    Agreed { num_blocks, max_model_len, graphs: graphs_of_all, kind, comm, trial };
                if let Self::Processes(processes) = self {
                    processes.tell(&ToRank::Agreed(agreed.clone()))?;
                }
                Ok(Terms { agreed: Some(agreed), pool, graphs, others })
            }
            Self::Follows(leader) => {
                leader.tell(&FromRank::Offer(own))?;
                let agreed = leader.agreed()?;
                let Agreed { num_blocks, max_model_len, .. } = agreed;
                pool = Pool { num_blocks, max_model_len };
                graphs.clone_from(&agreed.graphs);
                Ok(Terms { agreed: Some(agreed), pool, graphs, others: Vec::new() })
            }
        }
    }
}

fn same_terms(rank: usize, theirs: &str, ours: &str) -> Result<(), LoadError> {
    if theirs == ours {
        return Ok(());
    }
    Err(LoadError::Process(format!(
        "rank {rank} would run with {theirs}, rank 0 with {ours}: say by flags what is to be alike"
    )))
}

/// The choices that depend on the device and have to be alike.
pub(super) fn terms(options: &Resolved) -> String {
    let Resolved { dtype, block_size, max_num_seqs, max_num_batched_tokens, .. } = options;
    format!(
        "dtype {dtype}, block_size {block_size}, max_num_seqs {max_num_seqs}, \
         max_num_batched_tokens {max_num_batched_tokens}"
    )
}

/// What makes kernels that were verified on one device good for another.
pub(super) fn kind(device: &Device) -> String {
    let [name, arch] = [InfoKey::NAME, InfoKey::ARCH].map(|key| device.info(key));
    format!("{} {name} {arch}", device.backend().id())
}

/// Such as `cuda:0, cuda:1`.
pub(super) fn places(devices: &[Device], others: &[Offer]) -> String {
    let here = devices.iter().map(place);
    let all: Vec<String> = here.chain(others.iter().map(|offer| offer.place.clone())).collect();
    all.join(", ")
}
