//! `halyard:device_*`: what the devices measure of themselves, asked when the series are.

use std::fmt;

use halyard_core::{Metric, MetricKey};
use halyard_engine::process::RankDevice;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};

/// A measurement as a series: its key, its name and help, and how many of its unit are one of the series'.
type Series = (MetricKey, &'static str, &'static str, f64);

const GAUGES: [Series; 8] = [
    (MetricKey::MEM_FREE, "memory_free_bytes", "Memory that is free", 1.0),
    (MetricKey::MEM_USED, "memory_used_bytes", "Memory in use, by any process", 1.0),
    (MetricKey::MEM_USED_BY_US, "memory_allocated_bytes", "Memory that this server uses", 1.0),
    (MetricKey::UTIL_PCT, "utilization_ratio", "Time in which a kernel ran", 100.0),
    (MetricKey::MEM_BW_PCT, "memory_utilization_ratio", "Time in which memory was used", 100.0),
    (MetricKey::TEMP_C, "temperature_celsius", "Temperature", 1.0),
    (MetricKey::POWER_MW, "power_watts", "Power drawn", 1e3),
    (MetricKey::CLOCK_MHZ, "clock_hertz", "Clock of the processors", 1e-6),
];

const ECC_ERRORS: Series =
    (MetricKey::ECC_ERRORS, "ecc_errors", "Errors that memory could not correct", 1.0);

/// The engine's devices, by rank.
pub(super) struct DeviceCollector(Vec<RankDevice>);

/// What a device measures now.
struct Measured {
    labels: [(&'static str, String); 2],
    metrics: Vec<Metric>,
}

impl Measured {
    fn now((rank, device): (usize, &RankDevice)) -> Self {
        let labels = [("device", device.place().to_owned()), ("rank", rank.to_string())];
        Self { labels, metrics: device.telemetry() }
    }
}

impl DeviceCollector {
    pub(super) fn new(devices: Vec<RankDevice>) -> Self {
        Self(devices)
    }
}

impl fmt::Debug for DeviceCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeviceCollector of {} devices", self.0.len())
    }
}

impl Collector for DeviceCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let measured: Vec<Measured> = self.0.iter().enumerate().map(Measured::now).collect();
        for (series, kind) in GAUGES
            .map(|series| (series, MetricType::Gauge))
            .into_iter()
            .chain([(ECC_ERRORS, MetricType::Counter)])
        {
            let (key, name, help, a_unit) = series;
            let values = measured.iter().filter_map(|Measured { labels, metrics }| {
                let found = metrics.iter().find(|metric| metric.key == key)?;
                Some((labels, found.value / a_unit))
            });
            let mut values = values.peekable();
            // A device without the sensor has no series.
            if values.peek().is_none() {
                continue;
            }
            let name = format!("halyard:device_{name}");
            let mut family = encoder.encode_descriptor(&name, help, None, kind)?;
            for (labels, value) in values {
                let metric = family.encode_family(labels)?;
                match kind {
                    MetricType::Counter => ConstCounter::new(value).encode(metric)?,
                    _ => ConstGauge::new(value).encode(metric)?,
                }
            }
        }
        Ok(())
    }
}
