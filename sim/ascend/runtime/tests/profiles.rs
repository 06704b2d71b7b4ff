//! Which library of which release has which function, and that they load by plain names.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use halyard_sim_ascend::layout::{Profile, built_core, install};
use libloading::Library;
use std::env;
use std::process::Command;

/// The libraries of a release that have a function, itself and not one that it needs.
fn homes(profile: Profile, functions: &[&str]) -> Vec<Vec<String>> {
    let folder = tempfile::tempdir().unwrap();
    install(profile, &built_core().unwrap(), folder.path()).unwrap();
    let libraries = common::open(folder.path());
    let has = |library: &Library, name: &str| {
        // SAFETY: it is only looked up.
        unsafe { library.get::<*const ()>(name) }.is_ok()
    };
    let found = functions.iter().map(|function| {
        let all = libraries.iter().filter(|(_, library)| has(library, function));
        let mut names: Vec<_> = all.map(|(name, _)| name.clone()).collect();
        names.sort();
        names
    });
    found.collect()
}

#[test]
fn a_release_has_its_functions_where_they_are_documented() {
    let functions = [
        "aclrtMalloc",
        "aclCreateTensor",
        "aclnnMm",
        "aclnnAddGetWorkspaceSize",
        "aclnnFusedInferAttentionScoreV3",
        "aclnnFusedInferAttentionScoreV4",
        "aclnnScatterPaKvCache",
        "HcclAllReduce",
        "HcclGetRootInfo",
        "aclrtLaunchHostFunc",
        "aclnnNoSuchThing",
    ];
    let old = homes(Profile::Cann81, &functions);
    let one: [&[&str]; 11] = [
        &["libascendcl.so"],
        &["libnnopbase.so"],
        &["libopapi.so"],
        &["libopapi.so"],
        &["libopapi.so"],
        &[],
        &[],
        &["libhccl.so"],
        &["libhccl.so"],
        &[],
        &[],
    ];
    assert_eq!(old, one);
    let split = homes(Profile::Cann85, &functions);
    let many: [&[&str]; 11] = [
        &["libacl_rt.so", "libascendcl.so"],
        &["libnnopbase.so"],
        &["libopapi_nn.so"],
        &["libopapi_math.so"],
        &["libopapi_transformer.so"],
        &["libopapi_transformer.so"],
        &[],
        &["libhccl.so"],
        // The collectives' library needs the communicators'.
        &["libhccl.so", "libhcomm.so"],
        &[],
        &[],
    ];
    assert_eq!(split, many);
    let older = homes(Profile::Cann80, &functions);
    assert_eq!((&older[..4], &older[4]), (&old[..4], &Vec::new()));
    let new = homes(Profile::Cann91, &functions);
    assert_eq!(new[6], ["libopapi_transformer.so"]);
    assert_eq!(new[9], ["libacl_rt.so", "libascendcl.so"]);
}

/// What a process does that has a release's folder in its `LD_LIBRARY_PATH`.
#[test]
#[ignore = "run by `libraries_load_by_their_plain_names`"]
fn in_a_process_of_its_own() {
    let open = |name: &str| {
        // SAFETY: the folder has libraries of this package, whose loading does nothing by itself.
        unsafe { Library::new(name) }.unwrap()
    };
    let (acl, base) = (open("libascendcl.so"), open("libnnopbase.so"));
    let other = env::var("HALYARD_TEST_LIBRARY").unwrap();
    // SAFETY: as above.
    assert_eq!(unsafe { Library::new(&other) }.is_ok(), other == "libopapi.so");
    type Init = unsafe extern "C" fn(*const u8) -> i32;
    // SAFETY: the function has this type.
    let init = unsafe { acl.get::<Init>(b"aclInit") }.unwrap();
    // SAFETY: NULL is a path.
    assert_eq!(unsafe { init(std::ptr::null()) }, 0);
    // The libraries have one state: this one knows that the other was initialised.
    type Finalize = unsafe extern "C" fn() -> i32;
    // SAFETY: the function has this type.
    let finalize = unsafe { acl.get::<Finalize>(b"aclFinalize") }.unwrap();
    // SAFETY: the function has this type.
    let again = unsafe { base.get::<Init>(b"aclnnInit") }.unwrap();
    // SAFETY: NULL is a path.
    assert_eq!(unsafe { again(std::ptr::null()) }, 0);
    // SAFETY: NULL is a path.
    assert_eq!(unsafe { init(std::ptr::null()) }, 100_002);
    // SAFETY: it has no conditions.
    assert_eq!([0, 1].map(|_| unsafe { finalize() }), [0, 100_037]);
    type Version = unsafe extern "C" fn(i32, *mut u8) -> i32;
    // SAFETY: the function has this type.
    let version = unsafe { acl.get::<Version>(b"aclsysGetCANNVersion") }.unwrap();
    let mut text = [0u8; 512];
    // SAFETY: there is room for the structure.
    assert_eq!(unsafe { version(0, text.as_mut_ptr()) }, 0);
    let wanted = env::var("HALYARD_TEST_VERSION").unwrap();
    assert!(text.starts_with(wanted.as_bytes()));
}

#[test]
fn libraries_load_by_their_plain_names() {
    for (profile, version, library) in [
        (Profile::Cann80, "8.0.0", "libopapi.so"),
        (Profile::Cann81, "8.1.RC1", "libopapi.so"),
        (Profile::Cann85, "8.5.0", "libopapi_none.so"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        install(profile, &built_core().unwrap(), folder.path()).unwrap();
        let mut command = Command::new(env::current_exe().unwrap());
        command.args(["in_a_process_of_its_own", "--exact", "--ignored", "--nocapture"]);
        command.env("LD_LIBRARY_PATH", folder.path()).env("HALYARD_TEST_VERSION", version);
        let done = command.env("HALYARD_TEST_LIBRARY", library).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }
}

#[test]
fn a_folder_is_made_again() {
    let folder = tempfile::tempdir().unwrap();
    let core = built_core().unwrap();
    install(Profile::Cann81, &core, folder.path()).unwrap();
    install(Profile::Cann81, &core, folder.path()).unwrap();
    let missing = install(Profile::Cann81, &folder.path().join("none.so"), folder.path());
    assert!(missing.unwrap_err().to_string().contains("none.so"));
}
