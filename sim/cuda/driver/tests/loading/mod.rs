//! The software GPU, and libraries on it, which lie beside the test.

use libloading::Library;
use std::env;
use std::ffi::{CString, c_char};

/// The driver, which gets these devices, and then the libraries of these names.
pub(crate) fn libraries(devices: &str, others: &[&str]) -> Vec<Library> {
    let exe = env::current_exe().expect("a test knows its path");
    let open = |name: &str| {
        let path = exe.with_file_name(name);
        // SAFETY: they are libraries of this workspace, whose loading does nothing by itself.
        let library = unsafe { Library::new(&path) };
        library.unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    };
    let driver = open("libhalyard_sim_cuda.so");
    let names = CString::new(devices).expect("no zeros");
    // SAFETY: the library exports it with this signature.
    let choose = unsafe {
        driver.get::<unsafe extern "C" fn(*const c_char) -> u32>(b"halyard_sim_cuda_devices")
    };
    // SAFETY: the text ends with a zero.
    assert_eq!(unsafe { choose.expect("it has devices")(names.as_ptr()) }, 0);
    std::iter::once(driver).chain(others.iter().map(|name| open(name))).collect()
}
