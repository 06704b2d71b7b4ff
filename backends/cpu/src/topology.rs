//! What the processor is.

use std::collections::HashSet;

/// Physical cores that this process may use: two threads of one core only get in each other's way.
pub(crate) fn physical_cores() -> usize {
    let allowed = std::thread::available_parallelism().map_or(1, usize::from);
    let mut cores = HashSet::new();
    for cpu in 0..4096 {
        let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
        match std::fs::read_to_string(path) {
            Ok(siblings) => cores.insert(siblings),
            Err(_) => break,
        };
    }
    if cores.is_empty() { allowed } else { cores.len().min(allowed) }
}

/// The processor's name for people.
pub(crate) fn model_name() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let value = |key: &str| {
        let line = text.lines().find(|l| l.split(':').next().is_some_and(|k| k.trim() == key))?;
        line.split_once(':').map(|(_, v)| v.trim().to_owned())
    };
    value("model name").unwrap_or_else(|| format!("{} processor", std::env::consts::ARCH))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_core_and_it_has_a_name() {
        let cores = physical_cores();
        assert!(cores >= 1 && cores <= std::thread::available_parallelism().unwrap().get());
        assert!(!model_name().is_empty());
    }
}
