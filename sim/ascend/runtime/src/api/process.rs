//! The process: begin, end, versions, messages.

use super::{In, Out};
use crate::code::{Code, Failure, Outcome, take_messages};
use crate::fault;
use crate::runtime::{finalize, here, initialise};
use std::ffi::c_char;

/// `aclCANNPackageVersion`: the version's text comes first.
type PackageVersion = [u8; 512];

/// Packages that `aclCANNPackageName` counts.
const PACKAGES: i32 = 8;

/// The version of every package but the driver, as the profile has it.
fn package_version(name: i32, out: &Out<PackageVersion>, version: &str) -> Outcome {
    if !(0..PACKAGES).contains(&name) {
        return Err(Failure::argument("name", format!("{name} is no package (0 to 7)")));
    }
    let mut whole = [0; 512];
    whole[..version.len()].copy_from_slice(version.as_bytes());
    out.set("version", whole)
}

entries! { ENTRIES of Acl:
    fn aclInit(config_path: In<c_char>) {
        config_path.text("configPath")?;
        initialise()
    }

    fn aclFinalize() {
        finalize()
    }

    /* The version of the AscendCL interface. */
    fn aclrtGetVersion(major: Out<i32>, minor: Out<i32>, patch: Out<i32>) {
        major.set("majorVersion", 1)?;
        minor.set("minorVersion", 0)?;
        patch.set("patchVersion", 0)
    }

}

entries! { NNOP of Aclnn:
    fn aclnnInit(config_path: In<c_char>) {
        config_path.text("configPath")?;
        match initialise() {
            Err(failure) if failure.code == Code::REPEAT_INITIALISE => Ok(()),
            other => other,
        }
    }

    fn aclnnFinalize() {
        Ok(())
    }
}

fn version_text(package: &In<c_char>) -> Outcome {
    match package.text("pkgName")? {
        Some(_) => Ok(()),
        None => Err(Failure::null("pkgName")),
    }
}

entries! { ENTRIES_9 of Acl:
    fn aclsysGetVersionStr(package: In<c_char>, version: Out<u8>) {
        version_text(&package)?;
        version.set_all("versionStr", 0, b"9.1.0\0")
    }

    fn aclsysGetVersionNum(package: In<c_char>, version: Out<i32>) {
        version_text(&package)?;
        version.set("versionNum", 90_100_000)
    }
}

// One for each profile: the libraries of a profile take theirs.
entries! { VERSIONS of Acl:
    fn aclsysGetCANNVersion_8_0(name: i32, version: Out<PackageVersion>) {
        package_version(name, &version, "8.0.0")
    }

    fn aclsysGetCANNVersion_8_1(name: i32, version: Out<PackageVersion>) {
        package_version(name, &version, "8.1.RC1")
    }

    fn aclsysGetCANNVersion_8_5(name: i32, version: Out<PackageVersion>) {
        package_version(name, &version, "8.5.0")
    }

    fn aclsysGetCANNVersion_9_1(name: i32, version: Out<PackageVersion>) {
        package_version(name, &version, "9.1.0")
    }
}

// Of no vendor: for tests.
entries! { _TOOLS of Acl:
    /* Plants failures: see `fault`. */
    fn fault(faults: In<c_char>) {
        fault::plant(&faults.text("faults")?.unwrap_or_default())
    }
}

values! { VALUES of Acl:
    fn aclrtGetSocName() -> *const c_char, std::ptr::null(); {
        here().map(|(_, device)| device.chip.soc_name.as_ptr())
    }

    fn aclGetRecentErrMsg() -> *const c_char, std::ptr::null(); {
        Ok(take_messages())
    }
}
