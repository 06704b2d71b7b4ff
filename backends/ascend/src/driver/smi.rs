//! `npu-smi`, the driver's tool: what it measures of a device, where DCMI is not there.
//!
//! It takes up to seconds, so it runs on a thread of its own, and what it said last is given until then.

use std::{
    path::PathBuf,
    process::Command,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use halyard_sdk::MetricKey;

/// How old measurements become before they are taken again.
const FRESH: Duration = Duration::from_secs(10);

/// How long is waited for the first ones.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where the driver puts it, if it is on no search path.
const USUAL: &str = "/usr/local/bin/npu-smi";

/// A device as the tool names it.
#[derive(Clone, Debug)]
struct Chip {
    program: PathBuf,
    card: u32,
    chip: u32,
}

#[derive(Debug, Default)]
struct Readings {
    last: Vec<(MetricKey, u64)>,
    taken: Option<Instant>,
    under_way: bool,
}

/// A device's measurements.
#[derive(Debug)]
pub(crate) struct Smi {
    chip: Chip,
    readings: Arc<(Mutex<Readings>, Condvar)>,
}

/// What the tool prints to a question; none if it is not there or fails.
fn ask(program: &PathBuf, question: &[&str]) -> Option<String> {
    let answer = Command::new(program).arg("info").args(question).output();
    let answer = answer.inspect_err(|error| tracing::debug!(%error, "npu-smi")).ok()?;
    answer.status.success().then(|| String::from_utf8_lossy(&answer.stdout).into_owned())
}

impl Smi {
    /// The device with this number on the machine; none without the tool.
    pub(super) fn of(number: u32) -> Option<Self> {
        let programs = ["npu-smi", USUAL].map(PathBuf::from);
        let found = programs.into_iter().find_map(|program| {
            let map = ask(&program, &["-m"])?;
            Some((program, map))
        });
        let Some((program, map)) = found else {
            tracing::info!(
                "neither DCMI nor npu-smi is there: no temperature, power and utilization"
            );
            return None;
        };
        let Some([card, chip]) = place(&map, number) else {
            tracing::info!(
                number,
                "npu-smi does not list the device: no temperature, power and utilization"
            );
            return None;
        };
        Some(Self { chip: Chip { program, card, chip }, readings: Arc::default() })
    }

    /// What was measured last. The first time it is waited for.
    pub(super) fn read(&self) -> Vec<(MetricKey, u64)> {
        let (readings, taken) = &*self.readings;
        let mut now = lock(readings);
        if !now.under_way && now.taken.is_none_or(|taken| taken.elapsed() > FRESH) {
            now.under_way = true;
            let (chip, all) = (self.chip.clone(), Arc::clone(&self.readings));
            thread::spawn(move || {
                let last = chip.measure();
                let mut now = lock(&all.0);
                *now = Readings { last, taken: Some(Instant::now()), under_way: false };
                all.1.notify_all();
            });
        }
        let is_missing = |now: &mut Readings| now.taken.is_none();
        let waited = taken.wait_timeout_while(now, PATIENCE, is_missing);
        waited.unwrap_or_else(PoisonError::into_inner).0.last.clone()
    }
}

fn lock(readings: &Mutex<Readings>) -> MutexGuard<'_, Readings> {
    readings.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Chip {
    fn measure(&self) -> Vec<(MetricKey, u64)> {
        let (card, chip) = (self.card.to_string(), self.chip.to_string());
        let of = |what: &str| {
            let asked = ask(&self.program, &["-t", what, "-i", &card, "-c", &chip]);
            asked.unwrap_or_default()
        };
        let text = ["usages", "temp", "power", "ecc"].map(of).concat();
        measurements(&text)
    }
}

/// Card and chip of a device, from lines of card, chip, the device's number or `-`, and the chip's name.
fn place(map: &str, number: u32) -> Option<[u32; 2]> {
    map.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        let mut next = || words.next()?.parse::<u32>().ok();
        let [card, chip, logic] = [next()?, next()?, next()?];
        (logic == number).then_some([card, chip])
    })
}

/// Labels, the first of several being the better, what they measure, and in how many parts.
const LABELS: [(&[&str], MetricKey, f64); 5] = [
    (&["npu utilization(%)", "aicore usage rate(%)"], MetricKey::UTIL_PCT, 1.0),
    (&["hbm bandwidth usage rate(%)"], MetricKey::MEM_BW_PCT, 1.0),
    (&["npu temperature(c)", "temperature(c)"], MetricKey::TEMP_C, 1.0),
    (&["npu real-time power(w)", "power dissipation(w)", "power(w)"], MetricKey::POWER_MW, 1000.0),
    (&["hbm double bit error count"], MetricKey::ECC_ERRORS, 1.0),
];

/// What lines of a label, `:` and a number say. Labels differ between products, also in spaces before a unit.
fn measurements(text: &str) -> Vec<(MetricKey, u64)> {
    let pairs: Vec<(String, f64)> = text
        .lines()
        .filter_map(|line| {
            let (label, value) = line.rsplit_once(':')?;
            let value = value.trim().parse::<f64>().ok().filter(|value| *value >= 0.0)?;
            Some((label.trim().to_ascii_lowercase().replace(" (", "("), value))
        })
        .collect();
    let value =
        |label: &&str| pairs.iter().find(|(have, _)| have == label).map(|(_, value)| *value);
    let found = LABELS.iter().filter_map(|(labels, key, parts)| {
        let value = labels.iter().find_map(value)?;
        Some((*key, (value * parts).round() as u64))
    });
    found.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_found_by_its_number() {
        let map = "\
\tNPU ID                         Chip ID                        Chip Logic ID                  Chip Name
\t2                              0                              0                              Ascend 910B1
\t2                              1                              -                              Mcu
\t5                              0                              1                              Ascend 910B1\n";
        assert_eq!(place(map, 0), Some([2, 0]));
        assert_eq!(place(map, 1), Some([5, 0]));
        assert_eq!(place(map, 2), None);
        assert_eq!(place("", 0), None);
    }

    #[test]
    fn labels_of_products_differ() {
        let newer = "\
\tNPU ID                         : 4
\tAicore Usage Rate(%)           : 83
\tHBM Bandwidth Usage Rate(%)    : 40
\tNPU Utilization(%)             : 96
\tNPU Temperature (C)            : 45
\tNPU Real-time Power(W)         : 94.2
\tHBM Double Bit Error Count     : 1\n";
        let expected = [
            (MetricKey::UTIL_PCT, 96),
            (MetricKey::MEM_BW_PCT, 40),
            (MetricKey::TEMP_C, 45),
            (MetricKey::POWER_MW, 94_200),
            (MetricKey::ECC_ERRORS, 1),
        ];
        assert_eq!(measurements(newer), expected);
        let older = "Aicore Usage Rate(%) : 7\nPower Dissipation(W) : 66\nTemperature(C) : NA\n";
        assert_eq!(measurements(older), [(MetricKey::UTIL_PCT, 7), (MetricKey::POWER_MW, 66_000)]);
        assert_eq!(measurements("This device does not support querying temp."), []);
    }
}
