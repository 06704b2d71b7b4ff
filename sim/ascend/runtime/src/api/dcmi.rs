//! DCMI: health and use of cards. A card has one device. Cards are those of the machine, whichever of them the process has.

use super::Out;
use crate::code::{Failure, Outcome};
use crate::runtime::{Device, Runtime, initialised_or_not};
use crate::soc::Chip;

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

/// `struct dcmi_ecc_info`: whether errors are counted; of one bit and of two since the start, all of each, pages that were taken out.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct EccInfo {
    enable_flag: i32,
    counts: [u32; 6],
}

/// `DCMI_DEVICE_TYPE_HBM`
const HBM: i32 = 2;

/// What the system of an idle card takes.
const SYSTEM_MIB: u64 = 3072;

/// A card, and what it is for this process.
struct Card {
    runtime: &'static Runtime,
    chip: &'static Chip,
    device: Option<&'static Device>,
}

impl Card {
    fn find(card: i32, device: i32) -> Outcome<Self> {
        let runtime = initialised_or_not()?;
        if device != 0 {
            return Err(Failure::argument("device_id", format!("{device}; a card has device 0")));
        }
        let found = usize::try_from(card).ok().and_then(|card| runtime.cards.get(card));
        let (chip, device) = found.ok_or_else(|| {
            Failure::argument("card_id", format!("{card} of {} cards", runtime.cards.len()))
        })?;
        let device = device.map(|device| &runtime.devices[device as usize]);
        Ok(Self { runtime, chip, device })
    }

    /// Bytes that this process uses.
    fn used(&self) -> u64 {
        self.device.map_or(0, |device| {
            let (free, total) = self.runtime.memory.info(device.index);
            total - free
        })
    }
}

entries! { ENTRIES of Dcmi:
    fn dcmi_init() {
        initialised_or_not().map(|_| ())
    }

    fn dcmi_get_card_list(count: Out<i32>, list: Out<i32>, length: i32) {
        let cards = i32::try_from(initialised_or_not()?.cards.len()).unwrap_or(i32::MAX);
        count.set("card_num", cards)?;
        list.set_all("card_list", 0, &(0..cards.min(length)).collect::<Vec<_>>())
    }

    fn dcmi_get_device_id_in_card(card: i32, max: Out<i32>, mcu: Out<i32>, cpu: Out<i32>) {
        Card::find(card, 0)?;
        max.set("device_id_max", 1)?;
        mcu.set("mcu_id", -1)?;
        cpu.set("cpu_id", -1)
    }

    fn dcmi_get_card_id_device_id_from_logicid(card: Out<i32>, device_id: Out<i32>, logic: u32) {
        Card::find(logic.cast_signed(), 0)?;
        card.set("card_id", logic.cast_signed())?;
        device_id.set("device_id", 0)
    }

    fn dcmi_get_device_utilization_rate(card: i32, device_id: i32, kind: i32, percent: Out<u32>) {
        let card = Card::find(card, device_id)?;
        let value = match kind {
            6 => u32::try_from(card.used() * 100 / card.chip.hbm_bytes).unwrap_or(100),
            // Nothing measures how busy cores are.
            2 | 3 | 4 | 10 | 12 | 13 => 0,
            _ => return Err(Failure::argument("input_type", format!("{kind} is none of a 910B"))),
        };
        percent.set("utilization_rate", value)
    }

    fn dcmi_get_device_hbm_info(card: i32, device_id: i32, info: Out<HbmInfo>) {
        let card = Card::find(card, device_id)?;
        let (memory_mib, used_mib) = (card.chip.hbm_bytes >> 20, SYSTEM_MIB + (card.used() >> 20));
        info.set("hbm_info", HbmInfo { memory_mib, frequency: 1600, used_mib, temperature: 40, bandwidth_percent: 0 })
    }

    /* Degrees Celsius; the first card is the coolest. */
    fn dcmi_get_device_temperature(card: i32, device_id: i32, temperature: Out<i32>) {
        Card::find(card, device_id)?;
        temperature.set("temperature", 42 + card)
    }

    /* Tenths of a watt. */
    fn dcmi_get_device_power_info(card: i32, device_id: i32, power: Out<i32>) {
        Card::find(card, device_id)?;
        power.set("power", 951)
    }

    fn dcmi_get_device_ecc_info(card: i32, device_id: i32, kind: i32, info: Out<EccInfo>) {
        Card::find(card, device_id)?;
        if kind != HBM {
            return Err(Failure::argument("input_type", format!("{kind}; a 910B has HBM, 2")));
        }
        info.set("device_ecc_info", EccInfo { enable_flag: 1, counts: [0; 6] })
    }

    /* 0 well, 3 critical: the device is lost. */
    fn dcmi_get_device_health(card: i32, device_id: i32, health: Out<u32>) {
        let lost = Card::find(card, device_id)?.device.is_some_and(|device| device.healthy().is_err());
        health.set("health", if lost { 3 } else { 0 })
    }

    fn dcmi_get_device_network_health(card: i32, device_id: i32, health: Out<u32>) {
        Card::find(card, device_id)?;
        health.set("result", 0)
    }
}
