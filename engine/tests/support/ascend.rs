//! The Ascend backend's library, as a server would load it, on the software NPU.

use std::{fs, sync::OnceLock};

use halyard_core::{Backend, Device};
use halyard_sim_ascend::layout::{Profile, install};
use libloading::Library;

use super::plugin::{backend, beside, loaded};

/// Takes the software NPU's libraries for CANN's, which are found by their names once they are loaded.
fn cann() {
    static LIBRARIES: OnceLock<Vec<Library>> = OnceLock::new();
    LIBRARIES.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a folder");
        let core = beside("libhalyard_sim_ascend.so");
        install(Profile::Cann81, &core, folder.path()).expect("cc links the libraries");
        let files = fs::read_dir(folder.path()).expect("it was written");
        files.map(|file| loaded(&file.expect("it was written").path())).collect()
    });
}

/// The software NPU's one device, opened.
pub(crate) fn open() -> Device {
    static BACKEND: OnceLock<Backend> = OnceLock::new();
    let ascend = BACKEND.get_or_init(|| {
        cann();
        backend("ascend")
    });
    ascend.open(0, &[]).expect("opens")
}
