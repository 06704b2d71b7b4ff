//! The CUDA backend's library, as a server would load it, on the software GPU.

use std::{
    ffi::{CString, c_char},
    sync::OnceLock,
};

use halyard_core::{Backend, Device};
use libloading::Library;

use super::plugin::{backend, beside, loaded};

/// What the software GPU's devices are: those that ranks share, and one of each other kind.
const DEVICES: &str = "a100-80g,a100-80g,a100-80g,a100-80g,h100,l20";

/// Device numbers of the kinds whose kernels are compiled apart.
pub(crate) const KINDS: [u32; 3] = [0, 4, 5];

/// Takes the software GPU for the driver, and its NCCL for NCCL.
fn driver() {
    static LIBRARIES: OnceLock<[Library; 2]> = OnceLock::new();
    LIBRARIES.get_or_init(|| {
        let library = loaded(&beside("libhalyard_sim_cuda.so"));
        type Choose = unsafe extern "C" fn(*const c_char) -> u32;
        // SAFETY: the library exports it with this signature.
        let choose = unsafe { library.get::<Choose>(b"halyard_sim_cuda_devices") };
        let names = CString::new(DEVICES).expect("no zeros");
        // SAFETY: the text ends with a zero.
        assert_eq!(unsafe { choose.expect("it has devices")(names.as_ptr()) }, 0);
        [library, loaded(&beside("libhalyard_sim_nccl.so"))]
    });
}

/// The devices of these numbers, opened.
pub(crate) fn open(ordinals: impl IntoIterator<Item = u32>) -> Vec<Device> {
    static BACKEND: OnceLock<Backend> = OnceLock::new();
    let cuda = BACKEND.get_or_init(|| {
        driver();
        backend("cuda")
    });
    ordinals.into_iter().map(|ordinal| cuda.open(ordinal, &[]).expect("opens")).collect()
}
