//! DCMI as safe Rust: what the driver's management library measures of a device.
//!
//! It is optional. The library is looked for when measurements are first wanted. Where it is missing `npu-smi` is asked; where one of its
//! functions is, or a device does not have a sensor, the measurement is left out.

use std::{env, ffi::c_int, sync::OnceLock};

use halyard_ascend_sys::{
    Libraries,
    dcmi::{
        DCMI_DEVICE_TYPE_HBM, DCMI_UTILIZATION_HBM_BANDWIDTH, DCMI_UTILIZATION_OVERALL, Dcmi,
        dcmi_ecc_info,
    },
};
use halyard_sdk::MetricKey;

use super::smi::Smi;

/// The devices that the process sees.
const VISIBLE: &str = "ASCEND_RT_VISIBLE_DEVICES";

/// The library, started once a process; none if it is not there or does not start.
fn library() -> Option<&'static Dcmi> {
    static LIBRARY: OnceLock<Option<Dcmi>> = OnceLock::new();
    LIBRARY.get_or_init(start).as_ref()
}

fn start() -> Option<Dcmi> {
    let libraries = match Libraries::open_management() {
        Ok(libraries) => libraries,
        Err(error) => {
            tracing::debug!(%error, "npu-smi is asked instead");
            return None;
        }
    };
    let dcmi = Dcmi::load(&libraries);
    // SAFETY: takes nothing, and may be called at any time.
    let result = unsafe { dcmi.dcmi_init?() };
    if result != 0 {
        tracing::debug!(result, "dcmi_init failed: npu-smi is asked instead");
        return None;
    }
    Some(dcmi)
}

/// A device's sensors.
#[derive(Debug)]
pub(crate) enum Sensors {
    Dcmi(OfDcmi),
    Smi(Smi),
}

/// A device as DCMI names it.
#[derive(Debug)]
pub(crate) struct OfDcmi {
    dcmi: &'static Dcmi,
    card: c_int,
    device: c_int,
}

impl Sensors {
    /// Those of a device of the runtime's; none without DCMI and `npu-smi`, which number the machine's devices, whichever the process
    /// sees.
    pub(crate) fn of(ordinal: u32) -> Option<Self> {
        let visible = env::var(VISIBLE).ok();
        let number = machine_number(ordinal, visible.as_deref())?;
        match library() {
            Some(dcmi) => OfDcmi::of(dcmi, number).map(Self::Dcmi),
            None => Smi::of(number).map(Self::Smi),
        }
    }

    /// What they say now, or said a few seconds ago.
    pub(crate) fn read(&self) -> Vec<(MetricKey, u64)> {
        match self {
            Self::Dcmi(dcmi) => dcmi.read().collect(),
            Self::Smi(smi) => smi.read(),
        }
    }
}

impl OfDcmi {
    fn of(dcmi: &'static Dcmi, number: u32) -> Option<Self> {
        let (mut card, mut device) = (0, 0);
        let ask = dcmi.dcmi_get_card_id_device_id_from_logicid?;
        // SAFETY: both go to variables of ours.
        let result = unsafe { ask(&raw mut card, &raw mut device, number) };
        if result != 0 {
            tracing::debug!(number, result, "DCMI does not know the device");
            return None;
        }
        Some(Self { dcmi, card, device })
    }

    /// What they say now.
    fn read(&self) -> impl Iterator<Item = (MetricKey, u64)> {
        let Self { dcmi, card, device } = *self;
        let rate = |kind| {
            // SAFETY: DCMI gave the numbers; the measurement goes to a variable of ours. So in all that follow.
            measured(dcmi.dcmi_get_device_utilization_rate, |f, to| unsafe {
                f(card, device, kind, to)
            })
        };
        let temperature =
            // SAFETY: as above.
            measured(dcmi.dcmi_get_device_temperature, |f, to| unsafe { f(card, device, to) });
        let power =
            // SAFETY: as above.
            measured(dcmi.dcmi_get_device_power_info, |f, to| unsafe { f(card, device, to) });
        // SAFETY: as above.
        let errors = measured(dcmi.dcmi_get_device_ecc_info, |f, to| unsafe {
            f(card, device, DCMI_DEVICE_TYPE_HBM, to)
        });
        let whole = |number: c_int| u64::try_from(number).ok();
        let counted = errors.filter(|errors: &dcmi_ecc_info| errors.enable_flag != 0);
        let all = [
            (MetricKey::UTIL_PCT, rate(DCMI_UTILIZATION_OVERALL).map(u64::from)),
            (MetricKey::MEM_BW_PCT, rate(DCMI_UTILIZATION_HBM_BANDWIDTH).map(u64::from)),
            (MetricKey::TEMP_C, temperature.and_then(whole)),
            // Tenths of a watt.
            (MetricKey::POWER_MW, power.and_then(whole).map(|power| power * 100)),
            (MetricKey::ECC_ERRORS, counted.map(|errors| errors.double_bit_error_cnt.into())),
        ];
        all.into_iter().filter_map(|(key, value)| Some((key, value?)))
    }
}

/// Numbers on the machine of the devices that the process sees.
pub(crate) fn machine_numbers() -> Vec<u32> {
    let visible = env::var(VISIBLE).ok();
    let all = 0..super::count().unwrap_or(0);
    all.filter_map(|ordinal| machine_number(ordinal, visible.as_deref())).collect()
}

/// A device's number on the machine, if `ASCEND_RT_VISIBLE_DEVICES` lists those that the process sees.
fn machine_number(ordinal: u32, visible: Option<&str>) -> Option<u32> {
    match visible {
        None => Some(ordinal),
        Some(list) => list.split(',').nth(ordinal as usize)?.trim().parse().ok(),
    }
}

/// What a function writes, if it is there and succeeds.
fn measured<F, T: Default>(
    function: Option<F>,
    call: impl FnOnce(F, *mut T) -> c_int,
) -> Option<T> {
    let mut value = T::default();
    (call(function?, &raw mut value) == 0).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::machine_number;

    #[test]
    fn devices_that_the_process_sees_have_numbers_of_the_machine() {
        assert_eq!(machine_number(1, None), Some(1));
        assert_eq!(machine_number(1, Some("2, 5")), Some(5));
        assert_eq!(machine_number(2, Some("2,5")), None);
        assert_eq!(machine_number(0, Some("")), None);
    }
}
