//! The CUDA backend's library, as a server would load it, on the software GPU.

use std::{
    env,
    ffi::{CString, c_char},
    path::PathBuf,
    sync::OnceLock,
};

use halyard_core::{
    Backend, Device,
    loader::{SearchPath, Trust, discover, load},
};
use libloading::Library;

/// What the software GPU's devices are: those that ranks share, and one of each other kind.
const DEVICES: &str = "a100-80g,a100-80g,a100-80g,a100-80g,h100,l20";

/// Device numbers of the kinds whose kernels are compiled apart.
pub(crate) const KINDS: [u32; 3] = [0, 4, 5];

/// A library that cargo has put beside this test: development dependencies are always up to date.
fn beside(name: &str) -> PathBuf {
    env::current_exe().expect("a test knows its path").with_file_name(name)
}

/// A library of this workspace, loaded for good.
fn loaded(name: &str) -> Library {
    let path = beside(name);
    // SAFETY: it is a library of this workspace, whose loading does nothing by itself.
    let library = unsafe { Library::new(&path) };
    library.unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Takes the software GPU for the driver, and its NCCL for NCCL.
fn driver() {
    static LIBRARIES: OnceLock<[Library; 2]> = OnceLock::new();
    LIBRARIES.get_or_init(|| {
        let library = loaded("libhalyard_sim_cuda.so");
        type Choose = unsafe extern "C" fn(*const c_char) -> u32;
        // SAFETY: the library exports it with this signature.
        let choose = unsafe { library.get::<Choose>(b"halyard_sim_cuda_devices") };
        let names = CString::new(DEVICES).expect("no zeros");
        // SAFETY: the text ends with a zero.
        assert_eq!(unsafe { choose.expect("it has devices")(names.as_ptr()) }, 0);
        [library, loaded("libhalyard_sim_nccl.so")]
    });
}

/// The devices of these numbers, opened.
pub(crate) fn open(ordinals: impl IntoIterator<Item = u32>) -> Vec<Device> {
    static BACKEND: OnceLock<Backend> = OnceLock::new();
    let backend = BACKEND.get_or_init(|| {
        driver();
        let path = beside("libhalyard_backend_cuda.so");
        let found = discover(&SearchPath::standard(&[path])).expect("cargo has built it");
        // Who may write to a developer's target folder is not what is tested here.
        let trust = Trust { insecure: true, ..Trust::default() };
        load(&found[0], &trust).expect("it loads")
    });
    ordinals.into_iter().map(|ordinal| backend.open(ordinal, &[]).expect("opens")).collect()
}
