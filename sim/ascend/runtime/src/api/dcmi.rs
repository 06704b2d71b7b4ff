//! DCMI: health and use of cards. A card has one device, and both have the number that AscendCL gives the device.

use super::Out;
use crate::code::{Failure, Outcome};
use crate::runtime::{Device, Runtime, initialised_or_not};

/// `struct dcmi_hbm_info`
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct HbmInfo {
    memory_mib: u64,
    frequency: u32,
    used_mib: u64,
    temperature: i32,
    bandwidth_percent: u32,
}

/// What the system of an idle card takes.
const SYSTEM_MIB: u64 = 3072;

fn device(card: i32, device: i32) -> Outcome<(&'static Runtime, &'static Device)> {
    let runtime = initialised_or_not()?;
    if device != 0 {
        return Err(Failure::argument("device_id", format!("{device}; a card has device 0")));
    }
    Ok((runtime, runtime.device("card_id", card)?))
}

entries! { ENTRIES of Dcmi:
    fn dcmi_init() {
        initialised_or_not().map(|_| ())
    }

    fn dcmi_get_card_list(count: Out<i32>, list: Out<i32>, length: i32) {
        let cards: Vec<i32> = initialised_or_not()?.devices.iter().map(|d| d.index.cast_signed()).collect();
        let room = usize::try_from(length).unwrap_or(0).min(cards.len());
        count.set("card_num", i32::try_from(cards.len()).unwrap_or(i32::MAX))?;
        list.set_all("card_list", 0, &cards[..room])
    }

    fn dcmi_get_device_id_in_card(card: i32, max: Out<i32>, mcu: Out<i32>, cpu: Out<i32>) {
        device(card, 0)?;
        max.set("device_id_max", 1)?;
        mcu.set("mcu_id", -1)?;
        cpu.set("cpu_id", -1)
    }

    fn dcmi_get_card_id_device_id_from_logicid(card: Out<i32>, device_id: Out<i32>, logic: u32) {
        let (_, found) = device(logic.cast_signed(), 0)?;
        card.set("card_id", found.index.cast_signed())?;
        device_id.set("device_id", 0)
    }

    fn dcmi_get_device_utilization_rate(card: i32, device_id: i32, kind: i32, percent: Out<u32>) {
        let (runtime, device) = device(card, device_id)?;
        let value = match kind {
            6 => {
                let (free, total) = runtime.memory.info(device.index);
                u32::try_from((total - free) * 100 / total.max(1)).unwrap_or(100)
            }
            2 | 3 | 4 | 10 | 12 | 13 => 0,
            _ => return Err(Failure::argument("input_type", format!("{kind} is none of a 910B"))),
        };
        percent.set("utilization_rate", value)
    }

    fn dcmi_get_device_hbm_info(card: i32, device_id: i32, info: Out<HbmInfo>) {
        let (runtime, device) = device(card, device_id)?;
        let (free, total) = runtime.memory.info(device.index);
        let (memory_mib, used_mib) = (total >> 20, SYSTEM_MIB + ((total - free) >> 20));
        info.set("hbm_info", HbmInfo { memory_mib, frequency: 1600, used_mib, temperature: 40, bandwidth_percent: 0 })
    }

    /* 0 well, 3 critical: the device is lost. */
    fn dcmi_get_device_health(card: i32, device_id: i32, health: Out<u32>) {
        let lost = device(card, device_id)?.1.healthy().is_err();
        health.set("health", if lost { 3 } else { 0 })
    }

    fn dcmi_get_device_network_health(card: i32, device_id: i32, health: Out<u32>) {
        device(card, device_id)?;
        health.set("result", 0)
    }
}
