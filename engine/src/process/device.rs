//! The devices of ranks, wherever they are.

use halyard_core::{CommId, Device, Metric};

use super::peers::Gauge;

/// The device of a rank, to be measured.
#[derive(Clone, Debug)]
pub struct RankDevice {
    place: String,
    at: At,
}

#[derive(Clone, Debug)]
enum At {
    Here(Device),
    There(Gauge),
}

impl RankDevice {
    pub(crate) fn here(device: &Device) -> Self {
        let place = format!("{}:{}", device.backend().id(), device.ordinal());
        Self { place, at: At::Here(device.clone()) }
    }

    pub(crate) fn there(place: &str, gauge: Gauge) -> Self {
        Self { place: place.to_owned(), at: At::There(gauge) }
    }

    /// Such as `cuda:1`.
    #[must_use]
    pub fn place(&self) -> &str {
        &self.place
    }

    /// What it measures of itself now. A device in another process that does not answer soon has nothing to say.
    #[must_use]
    pub fn telemetry(&self) -> Vec<Metric> {
        match &self.at {
            At::Here(device) => device.telemetry(),
            At::There(gauge) => gauge.measure(),
        }
    }
}

/// A rank's place in a trial of exchanges between processes.
#[derive(Clone, Copy, Debug)]
pub struct Trial<'a> {
    /// Its device.
    pub device: &'a Device,
    /// What the ranks meet by.
    pub id: &'a CommId,
    /// Its number.
    pub rank: u32,
    /// Ranks altogether.
    pub world: u32,
}
