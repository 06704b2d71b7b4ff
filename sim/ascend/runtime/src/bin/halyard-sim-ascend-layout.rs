//! `halyard-sim-ascend-layout PROFILE FOLDER`: makes the libraries of a CANN release in a folder, for `LD_LIBRARY_PATH`.

use halyard_sim_ascend::layout::{Profile, built_core, install};
use std::io::{Error, Result};
use std::path::Path;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [profile, folder] = args.as_slice() else {
        return Err(Error::other("usage: halyard-sim-ascend-layout PROFILE FOLDER"));
    };
    let profile = Profile::named(profile).ok_or_else(|| {
        let known = Profile::ALL.map(Profile::name).join(", ");
        Error::other(format!("no profile '{profile}'; known are {known}"))
    })?;
    install(profile, &built_core()?, Path::new(folder))
}
