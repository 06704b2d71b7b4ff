//! Which release of CANN is installed, and whether it has what is needed.

use std::ffi::{CStr, c_void};

use halyard_ascend_sys::{
    acl::Acl,
    types::{ACL_PKG_NAME_CANN, ACL_PKG_NAME_TOOLKIT, CANN_PACKAGE_VERSION_BYTES},
};
use halyard_sdk::{Error, Result};

use super::Driver;

/// The oldest release that has all that is needed.
const OLDEST: &str = "8.1.RC1";

/// What younger releases have and this backend does without. The revision of an operator before it must be there where it names one.
const OPTIONAL: [(&str, &str); 16] = [
    ("aclsysGetCANNVersion", ""),
    ("aclrtLaunchHostFunc", ""),
    ("aclmdlRICaptureBegin", ""),
    ("aclmdlRICaptureEnd", ""),
    ("aclmdlRICaptureTaskGrpBegin", ""),
    ("aclmdlRICaptureTaskGrpEnd", ""),
    ("aclmdlRICaptureTaskUpdateBegin", ""),
    ("aclmdlRICaptureTaskUpdateEnd", ""),
    ("aclmdlRIExecuteAsync", ""),
    ("aclmdlRIDestroy", ""),
    ("aclnnRotaryPositionEmbedding", ""),
    ("aclnnMoeGatingTopK", ""),
    ("aclnnQuantMatmulWeightNz", ""),
    ("aclnnQuantMatmulV5", "aclnnQuantMatmulV4"),
    ("aclnnGroupedMatmulV5", "aclnnGroupedMatmulV4"),
    ("aclnnFusedInferAttentionScoreV4", "aclnnFusedInferAttentionScoreV3"),
];

/// Functions that a message lists.
const LISTED: usize = 6;

/// The release's version, such as `8.1.RC1`; none if it does not tell.
fn version(acl: &Acl) -> Option<String> {
    let ask = acl.aclsysGetCANNVersion?;
    let of_package = |name| {
        let mut text = [0u8; CANN_PACKAGE_VERSION_BYTES];
        // SAFETY: the structure has so many bytes.
        let told = unsafe { ask(name, text.as_mut_ptr().cast::<c_void>()) };
        let text = CStr::from_bytes_until_nul(&text).ok()?.to_string_lossy().into_owned();
        (told == 0 && !text.is_empty()).then_some(text)
    };
    [ACL_PKG_NAME_CANN, ACL_PKG_NAME_TOOLKIT].into_iter().find_map(of_package)
}

/// The version for people.
pub(super) fn text(driver: &Driver) -> String {
    let (mut major, mut minor, mut patch) = (0, 0, 0);
    // SAFETY: the numbers go to variables of ours.
    let asked = unsafe {
        call!(&driver.acl, aclrtGetVersion(&raw mut major, &raw mut minor, &raw mut patch))
    };
    let interface = asked.map(|()| format!("AscendCL {major}.{minor}.{patch}")).ok();
    let release = version(&driver.acl).map(|version| format!("CANN {version}"));
    release.into_iter().chain(interface).collect::<Vec<_>>().join(", ")
}

/// Functions of graphs that the release lacks; with all of them there are graphs.
pub(crate) fn graphs_lack(driver: &Driver) -> Vec<&'static str> {
    driver.acl.missing().filter(|name| name.starts_with("aclmdlRI")).collect()
}

/// # Errors
/// `UNSUPPORTED`, naming the release found, what it lacks and the release that is needed.
pub(super) fn check(driver: &Driver) -> Result<()> {
    let operators = driver.operators.missing().map(|name| format!("aclnn{name}"));
    let missing: Vec<_> = driver.acl.missing().map(str::to_owned).chain(operators).collect();
    refuse(&missing, || version(&driver.acl))
}

fn refuse(missing: &[String], version: impl FnOnce() -> Option<String>) -> Result<()> {
    let has = |name: &str| !missing.iter().any(|one| one == name);
    let is_done_without = |name: &String| {
        let known = OPTIONAL.iter().find(|(optional, _)| name == optional);
        // The older revision is told of by its younger one.
        let older = OPTIONAL.iter().find(|(_, before)| name == before);
        known.is_some_and(|(_, before)| has(before)) || older.is_some_and(|(new, _)| has(new))
    };
    let lacking: Vec<&str> =
        missing.iter().filter(|name| !is_done_without(name)).map(String::as_str).collect();
    if lacking.is_empty() {
        return Ok(());
    }
    let found = version().map_or_else(|| "of unknown version".into(), |v| format!("({v})"));
    let listed = lacking[..lacking.len().min(LISTED)].join(", ");
    let more = match lacking.len().saturating_sub(LISTED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    Err(Error::unsupported(format!(
        "the installed CANN {found} has no {listed}{more}; CANN {OLDEST} or newer is needed, with its package of operators: install it and \
         source its set_env.sh"
    )))
}

#[cfg(test)]
mod tests {
    use super::refuse;

    fn refusal(missing: &[&str], version: Option<&str>) -> Option<String> {
        let missing: Vec<_> = missing.iter().map(|&name| name.to_owned()).collect();
        let refused = refuse(&missing, || version.map(str::to_owned));
        refused.err().map(|error| error.message.to_string())
    }

    #[test]
    fn a_release_may_lack_what_another_function_does() {
        assert_eq!(refusal(&[], None), None);
        let of_8_1 = ["aclnnRotaryPositionEmbedding", "aclnnGroupedMatmulV5", "aclnnQuantMatmulV5"];
        assert_eq!(refusal(&of_8_1, Some("8.1.RC1")), None);
        assert_eq!(refusal(&["aclnnGroupedMatmulV4"], Some("9.9")), None);
    }

    #[test]
    fn what_is_missing_is_listed_with_the_release_that_has_it() {
        let both = ["aclnnGroupedMatmulV4", "aclnnGroupedMatmulV5"];
        let told = refusal(&both, Some("8.0.RC1")).unwrap_or_default();
        let wanted = "the installed CANN (8.0.RC1) has no aclnnGroupedMatmulV4, aclnnGroupedMatmulV5; CANN 8.1.RC1 or newer is needed";
        assert!(told.starts_with(wanted), "{told}");
        let told = refusal(&["a", "b", "c", "d", "e", "f", "g", "h"], None).unwrap_or_default();
        assert!(told.contains("of unknown version has no a, b, c, d, e, f and 2 more;"), "{told}");
    }
}
