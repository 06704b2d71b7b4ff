//! The chips that a device can be.

use crate::code::{Code, Failure, Outcome};

const GIB: u64 = 1 << 30;

/// A chip of the 910B family.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chip {
    /// As `HALYARD_SIM_ASCEND_DEVICES` has it.
    pub(crate) name: &'static str,
    /// As `aclrtGetSocName` tells it.
    pub(crate) soc_name: &'static std::ffi::CStr,
    pub(crate) cube_cores: i64,
    pub(crate) vector_cores: i64,
    pub(crate) hbm_bytes: u64,
    pub(crate) l2_bytes: i64,
}

const MIB: i64 = 1 << 20;

const B1: Chip = Chip {
    name: "910B1",
    soc_name: c"Ascend910B1",
    cube_cores: 24,
    vector_cores: 48,
    hbm_bytes: 64 * GIB,
    l2_bytes: 192 * MIB,
};

const CHIPS: [Chip; 5] = [
    B1,
    Chip { name: "910B2", soc_name: c"Ascend910B2", ..B1 },
    Chip { name: "910B2C", soc_name: c"Ascend910B2C", ..B1 },
    Chip { name: "910B3", soc_name: c"Ascend910B3", cube_cores: 20, vector_cores: 40, ..B1 },
    Chip {
        name: "910B4",
        soc_name: c"Ascend910B4",
        cube_cores: 20,
        vector_cores: 40,
        hbm_bytes: 32 * GIB,
        l2_bytes: 96 * MIB,
    },
];

impl Chip {
    /// The chip of this name.
    pub(crate) fn named(name: &str) -> Outcome<&'static Self> {
        CHIPS.iter().find(|chip| chip.name.eq_ignore_ascii_case(name)).ok_or_else(|| {
            let known = CHIPS.map(|chip| chip.name).join(", ");
            Failure::new(Code::NO_DEVICE, format!("no chip '{name}'; known are {known}"))
        })
    }
}
