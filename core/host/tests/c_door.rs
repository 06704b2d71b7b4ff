//! Backends of the C door: one in C, compiled here in many versions, and the Rust fixture, which has both doors.

#![expect(clippy::unwrap_used, reason = "helpers of a test, outside its functions")]

mod fixture;

use std::{fs, path::Path, process::Command};

use fixture::{Fixture, add, chmod, found};
use halyard_core::{
    Backend, Code, DType, Door, InfoKey, Launch, LoadError, MetricKey, OpBuf, Support, TensorSpec,
    Workspace, attrs,
    loader::{Found, Trust, load},
};

/// The backend in C, compiled with these definitions.
fn compile(id: &str, defines: &[&str]) -> Fixture {
    let fixture = Fixture::empty(id);
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut cc = Command::new("cc");
    cc.args(["-std=c99", "-D_POSIX_C_SOURCE=200809L", "-Wall", "-Wextra", "-Werror", "-pedantic"]);
    cc.args(["-fPIC", "-shared", "-fvisibility=hidden", "-o"]).arg(&fixture.path);
    cc.arg("-I").arg(root.join("../abi/include")).arg(format!("-DID=\"{id}\""));
    cc.args(defines.iter().map(|define| format!("-D{define}")));
    let done =
        cc.arg(root.join("fixtures/c/plugin.c")).output().expect("a C compiler is installed");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    chmod(&fixture.path, 0o755);
    fixture
}

/// Loads it; it stays loaded when its file is gone.
fn loaded(id: &str, defines: &[&str]) -> Backend {
    compile(id, defines).load().unwrap()
}

fn refused(id: &str, defines: &[&str]) -> String {
    let error = compile(id, defines).load().unwrap_err().to_string();
    assert_eq!(error.lines().count(), 1, "{error}");
    error
}

#[test]
fn a_backend_in_c_loads_computes_and_closes_in_order() {
    let backend = loaded("good-c", &[]);
    assert_eq!((backend.id(), backend.door()), ("good-c", Door::C));
    assert_eq!(backend.info(InfoKey::NAME).len(), 296, "a text that needs a second call");
    assert_eq!(backend.info(InfoKey(77)), "");
    assert_eq!(add(&backend, &[]).unwrap(), [11.0, 22.0, 3.0]);
    let device = backend.open(0, &[]).unwrap();
    let metrics = device.telemetry();
    assert_eq!((metrics.len(), metrics[0].key), (1, MetricKey::TEMP_C));
    let spec = TensorSpec::new(DType::F32, &[-1]);
    let mul = OpBuf::new(&attrs::Mul {}, [spec; 3], []);
    assert_eq!(device.support(&mul), Support::No("only add".into()));
    let error = device.prepare(mul).unwrap_err();
    assert_eq!(error.to_string(), "prepare: unsupported: only add");
    let kernel = device.prepare(OpBuf::new(&attrs::Add::default(), [spec; 3], [])).unwrap();
    assert_eq!(kernel.flags(), halyard_core::DETERMINISTIC);
    drop(device);
    assert_eq!(backend.info(InfoKey(1000)), "2 opened, 1 closed, 0 too early", "a kernel is alive");
    drop(kernel);
    assert_eq!(backend.info(InfoKey(1000)), "2 opened, 2 closed, 0 too early");
}

#[test]
fn an_older_table_takes_the_defaults() {
    let backend = loaded("older", &["BYTES=offsetof(halyard_backend_api,device_telemetry)"]);
    assert_eq!(add(&backend, &[]).unwrap(), [11.0, 22.0, 3.0]);
    assert!(backend.open(0, &[]).unwrap().telemetry().is_empty());
}

#[test]
fn what_a_newer_table_has_more_is_not_looked_at() {
    let backend = loaded("newer", &["FUTURE"]);
    assert_eq!(add(&backend, &[]).unwrap(), [11.0, 22.0, 3.0]);
    assert_eq!(backend.open(0, &[]).unwrap().telemetry().len(), 1);
}

#[test]
fn a_table_that_lacks_what_is_required_is_refused_by_name() {
    let error = refused("cut", &["BYTES=offsetof(halyard_backend_api,kv_layout)"]);
    assert!(error.contains("lacks the required entry `kv_layout`"), "{error}");
    let error = refused("no-alloc", &["NO_ALLOC"]);
    assert!(error.contains("lacks the required entry `device_alloc`"), "{error}");
    let error = refused("half-comm", &["NO_SEND"]);
    assert!(error.contains("lacks the required entry `device_comm_unique_id`"), "{error}");
    let error = refused("short", &["BYTES=8"]);
    assert!(error.contains("claims 8 bytes"), "{error}");
}

#[test]
fn another_version_is_refused() {
    let error = refused("major", &["MAJOR=7"]);
    assert!(error.contains("built for Halyard ABI 7.2, this host speaks 0.2"), "{error}");
    // Before 1.0 minor versions differ, too.
    let error = refused("minor", &["MINOR=3"]);
    assert!(error.contains("built for Halyard ABI 0.3"), "{error}");
}

#[test]
fn a_backend_may_refuse_a_host() {
    let error = refused("refuses", &["REFUSES"]);
    assert!(
        error.ends_with("its entry failed: abi mismatch: this host is not to my taste"),
        "{error}"
    );
}

#[test]
fn mistakes_of_a_backend_are_errors() {
    let backend = loaded("mistakes", &[]);
    let open = |mistake| backend.open(0, &[("mistake", mistake)]).unwrap_err();
    let nothing = open("nothing");
    assert_eq!(nothing.code, Code::ABI);
    assert_eq!(nothing.message, "`device_open` said ok but gave no object");
    let silent = open("silent");
    assert_eq!(
        (silent.code, silent.message.as_str()),
        (Code(1234), "`device_open` gave no message")
    );
    let garbage = open("garbage");
    assert_eq!((garbage.code, garbage.vendor_code), (Code::IO, -5));
    assert!(garbage.message.starts_with('\u{fffd}'), "{garbage}");
    assert!(garbage.message.contains("longer than the buffer"), "{garbage}");
}

#[test]
fn a_sticky_failure_poisons_the_device_and_nothing_else() {
    let backend = loaded("sticky", &[]);
    let device = backend.open(0, &[]).unwrap();
    let stream = device.stream(0).unwrap();
    let spec = TensorSpec::new(DType::F32, &[-1]);
    let kernel = device.prepare(OpBuf::new(&attrs::Add::default(), [spec; 3], [])).unwrap();
    let a = device.tensor_from(&stream, &[13], &[1f32; 13]).unwrap();
    let b = device.tensor_from(&stream, &[13], &[1f32; 13]).unwrap();
    let launch = Launch::new(&kernel, &[Some(&a), Some(&b), Some(&a)], &[]).unwrap();
    let workspace = Workspace::new(&device, launch.workspace_bytes()).unwrap();
    let fault = launch.run(&stream, &workspace, &[]).unwrap_err();
    assert_eq!((fault.code, fault.message.as_str()), (Code::KERNEL_FAULT, "thirteen rows"));
    assert_eq!(stream.sync().unwrap_err().code, Code::POISONED);
    assert_eq!(device.alloc(1).unwrap_err().code, Code::POISONED);
    assert_eq!(kernel.flags(), 0);
    assert_eq!(add(&backend, &[]).unwrap(), [11.0, 22.0, 3.0]);
}

/// A Rust backend that has both doors, through its C door, as its manifest wants it.
#[test]
fn a_rust_backend_through_the_c_door() {
    let fixture = Fixture::new("good");
    let manifest = r#"{"manifest": 1, "id": "good", "door": "c"}"#;
    fs::write(fixture.path.with_extension("json"), manifest).unwrap();
    let backend = fixture.load().unwrap();
    assert_eq!((backend.id(), backend.door()), ("good", Door::C));
    assert_eq!(add(&backend, &[]).unwrap(), [11.0, 22.0, 3.0]);
    // A panic is caught on its side and poisons one device.
    let error = add(&backend, &[("panics", "true")]).unwrap_err();
    assert_eq!(error.code, Code::PANIC);
    assert_eq!(error.to_string(), "launch: panic: the backend panicked: told to panic in launch");
    assert_eq!(add(&backend, &[]).unwrap(), [11.0, 22.0, 3.0]);
    let unknown = backend.open(0, &[("colour", "red")]).unwrap_err().to_string();
    assert_eq!(
        unknown,
        "open: invalid argument: unknown option colour; this backend knows: panics"
    );
    // One file is one backend, through one door.
    let rust = Found { door: Some(Door::Rust), ..found(&fixture.path) };
    let error = load(&rust, &Trust::default()).unwrap_err();
    assert!(matches!(error, LoadError::OtherDoor { loaded: Door::C, .. }), "{error}");
}

#[test]
fn a_door_that_is_not_there_is_said() {
    let fixture = compile("only-c", &[]);
    let rust = Found { door: Some(Door::Rust), ..found(&fixture.path) };
    let error = load(&rust, &Trust::default()).unwrap_err().to_string();
    assert!(error.contains("it has no rust door"), "{error}");
}
