//! Functions of DCMI, the driver's management library.

use std::ffi::{c_int, c_uint};

use crate::Libraries;

/// `DCMI_DEVICE_TYPE_HBM`
pub const DCMI_DEVICE_TYPE_HBM: c_int = 2;

/// Kinds of utilization: of the memory's bandwidth, and of everything.
pub const DCMI_UTILIZATION_HBM_BANDWIDTH: c_int = 10;
pub const DCMI_UTILIZATION_OVERALL: c_int = 13;

/// `struct dcmi_ecc_info`
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct dcmi_ecc_info {
    pub enable_flag: c_int,
    pub single_bit_error_cnt: c_uint,
    pub double_bit_error_cnt: c_uint,
    pub total_single_bit_error_cnt: c_uint,
    pub total_double_bit_error_cnt: c_uint,
    pub single_bit_isolated_pages_cnt: c_uint,
    pub double_bit_isolated_pages_cnt: c_uint,
}

macro_rules! functions {
    ($($name:ident($($arg:ident: $ty:ty),* $(,)?);)*) => {
        /// The functions, each if the installed driver has it; 0 is success.
        #[derive(Debug)]
        pub struct Dcmi {
            $(pub $name: Option<unsafe extern "C" fn($($arg: $ty),*) -> c_int>,)*
        }

        impl Dcmi {
            /// Looks each function up.
            #[must_use]
            pub fn load(libraries: &Libraries) -> Self {
                // SAFETY: the types are those of the vendor's headers.
                Self { $($name: unsafe { libraries.symbol(stringify!($name)) },)* }
            }
        }
    };
}

functions! {
    dcmi_init();
    dcmi_get_card_id_device_id_from_logicid(card_id: *mut c_int, device_id: *mut c_int, device_logic_id: c_uint);
    dcmi_get_device_utilization_rate(card_id: c_int, device_id: c_int, input_type: c_int, utilization_rate: *mut c_uint);
    dcmi_get_device_temperature(card_id: c_int, device_id: c_int, temperature: *mut c_int);
    dcmi_get_device_power_info(card_id: c_int, device_id: c_int, power: *mut c_int);
    dcmi_get_device_ecc_info(card_id: c_int, device_id: c_int, input_type: c_int, device_ecc_info: *mut dcmi_ecc_info);
}
