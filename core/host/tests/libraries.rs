//! Real libraries through the real loader.

#![expect(clippy::unwrap_used, reason = "helpers of a test, outside its functions")]

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    sync::{LazyLock, Mutex},
};

use halyard_core::{
    Backend, Code, DType, Launch, LoadError, OpBuf, TensorSpec, Workspace, attrs,
    loader::{Found, SearchPath, Trust, discover, load},
};

/// Where the fixtures were built.
static BUILT: LazyLock<PathBuf> = LazyLock::new(|| {
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--quiet", "--package", "halyard-loader-fixtures", "--examples"]);
    build.current_dir(env!("CARGO_MANIFEST_DIR"));
    assert!(build.status().unwrap().success(), "the fixtures must build");
    // This test is at target/<profile>/deps/libraries-….
    let exe = std::env::current_exe().unwrap();
    exe.ancestors().nth(2).unwrap().join("examples")
});

/// A fixture, copied to a folder of its own.
struct Fixture {
    _folder: tempfile::TempDir,
    path: PathBuf,
}

impl Fixture {
    fn new(name: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(format!("libhalyard_backend_{name}.so"));
        fs::copy(BUILT.join(format!("lib{name}.so")), &path).unwrap();
        chmod(&path, 0o755);
        Self { _folder: folder, path }
    }

    fn load(&self) -> Result<Backend, LoadError> {
        load(&found(&self.path), &Trust::default())
    }
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn found(path: &Path) -> Found {
    discover(&SearchPath::standard(&[path.to_owned()])).unwrap().remove(0)
}

/// The good fixture is loaded once: a second copy would be refused by its id.
static GOOD: LazyLock<(Fixture, Backend)> = LazyLock::new(|| {
    let fixture = Fixture::new("good");
    let backend = fixture.load().unwrap();
    (fixture, backend)
});

fn add(options: &[(&str, &str)]) -> halyard_core::Result<Vec<f32>> {
    let device = GOOD.1.open(0, options)?;
    let stream = device.stream(0)?;
    let spec = TensorSpec::new(DType::F32, &[-1]);
    let kernel = device.prepare(OpBuf::new(&attrs::Add::default(), [spec; 3], []))?;
    let a = device.tensor_from(&stream, &[3], &[1f32, 2.0, 3.0])?;
    let b = device.tensor_from(&stream, &[3], &[10f32, 20.0, 30.0])?;
    let mut launch = Launch::new(&kernel, &[Some(&a), Some(&b), Some(&a)], &[])?;
    launch.set_rows(2)?;
    assert!(launch.set_rows(4).is_err(), "the tensors hold 3");
    let workspace = Workspace::new(&device, launch.workspace_bytes())?;
    let result = launch.run(&stream, &workspace, &[]);
    if let Err(error) = result {
        // Poisoned from here on: every call says so, none runs.
        let again = launch.run(&stream, &workspace, &[]).unwrap_err();
        assert_eq!(again.code, Code::POISONED);
        assert_eq!(device.alloc(1).unwrap_err().code, Code::POISONED);
        return Err(error);
    }
    let mut out = vec![0f32; 3];
    a.read(&stream, &mut out)?;
    Ok(out)
}

#[test]
fn a_good_library_loads_computes_and_is_loaded_once() {
    let (fixture, backend) = &*GOOD;
    assert_eq!(backend.id(), "good");
    assert_eq!(backend.sha256().len(), 64);
    assert_eq!(add(&[]).unwrap(), [11.0, 22.0, 3.0]);
    let link = fixture.path.with_file_name("libhalyard_backend_link.so");
    std::os::unix::fs::symlink(&fixture.path, &link).unwrap();
    let again = load(&found(&link), &Trust::default()).unwrap();
    assert_eq!(again.library(), backend.library());
    let copy = Fixture::new("good");
    let error = copy.load().unwrap_err();
    assert!(matches!(error, LoadError::Duplicate { .. }), "{error}");
}

#[test]
fn a_panic_in_launch_poisons_the_device_and_nothing_else() {
    let error = add(&[("panics", "true")]).unwrap_err();
    assert_eq!(error.code, Code::PANIC);
    assert_eq!(error.to_string(), "launch: panic: the backend panicked: told to panic in launch");
    assert_eq!(add(&[]).unwrap(), [11.0, 22.0, 3.0]);
}

#[test]
fn a_panic_in_open_is_an_error() {
    let fixture = Fixture::new("panics_in_open");
    let error = fixture.load().unwrap().open(0, &[]).unwrap_err();
    assert_eq!(error.code, Code::PANIC);
    assert!(error.to_string().contains("told to panic in open"), "{error}");
}

#[test]
fn options_and_ordinals_are_checked() {
    let open =
        |ordinal, options: &[(&str, &str)]| GOOD.1.open(ordinal, options).unwrap_err().to_string();
    let unknown = open(0, &[("colour", "red")]);
    assert_eq!(
        unknown,
        "open: invalid argument: unknown option colour; this backend knows: panics"
    );
    assert!(open(0, &[("panics", "maybe")]).contains("panics=maybe: expected true or false"));
    assert!(open(1, &[]).contains("there is no device 1: 1 present"));
}

#[test]
fn what_is_no_backend_is_refused_with_its_reason() {
    for (name, reason) in [
        ("no_backend", "not a Halyard backend"),
        ("c_door", "exports `halyard_backend_v1`"),
        ("other_version", "built for Halyard ABI 7.0.0, this host speaks 0.1.0"),
        ("other_layout", "its types differ from this host's"),
    ] {
        let error = Fixture::new(name).load().unwrap_err().to_string();
        assert!(error.contains(reason), "{name}: {error}");
        assert!(error.len() < 2000, "{name}: the message is readable: {error}");
        assert_eq!(error.lines().count(), 1, "{name}: {error}");
    }
}

#[test]
fn a_file_that_is_no_library_is_refused_by_the_system() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("libhalyard_backend_text.so");
    fs::write(&path, "no library at all ".repeat(100)).unwrap();
    chmod(&path, 0o644);
    let error = load(&found(&path), &Trust::default()).unwrap_err().to_string();
    assert!(error.contains("the system cannot load it") && error.contains("ELF"), "{error}");
}

#[test]
fn a_world_writable_library_is_not_even_opened() {
    let fixture = Fixture::new("no_backend");
    chmod(&fixture.path, 0o757);
    let error = fixture.load().unwrap_err();
    assert!(matches!(error, LoadError::Untrusted { .. }), "{error}");
}

/// A library's `tracing` events arrive at the host's subscriber.
#[test]
fn a_librarys_log_reaches_the_host() {
    use tracing_subscriber::fmt::MakeWriter;

    #[derive(Clone, Default)]
    struct Lines(std::sync::Arc<Mutex<Vec<u8>>>);
    impl std::io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    impl<'a> MakeWriter<'a> for Lines {
        type Writer = Self;
        fn make_writer(&'a self) -> Self {
            self.clone()
        }
    }

    let lines = Lines::default();
    let subscriber = tracing_subscriber::fmt().with_writer(lines.clone()).with_ansi(false).finish();
    // For all threads: tests beside this one reach the same callsites.
    tracing::subscriber::set_global_default(subscriber).unwrap();
    GOOD.1.open(0, &[]).unwrap();
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    assert!(text.contains("WARN backend: opened"), "{text}");
    assert!(text.contains(r#""ordinal":0"#), "{text}");
}
