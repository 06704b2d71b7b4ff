//! Real libraries through the real loader.

#![expect(clippy::unwrap_used, reason = "helpers of a test, outside its functions")]

mod fixture;

use std::{
    fs,
    sync::{LazyLock, Mutex},
};

use fixture::{Fixture, add, chmod, found};
use halyard_core::{
    Backend, Code, Door, LoadError,
    loader::{Trust, load},
};

/// The good fixture is loaded once: a second copy would be refused by its id.
static GOOD: LazyLock<(Fixture, Backend)> = LazyLock::new(|| {
    let fixture = Fixture::new("good");
    let backend = fixture.load().unwrap();
    (fixture, backend)
});

#[test]
fn a_good_library_loads_computes_and_is_loaded_once() {
    let (fixture, backend) = &*GOOD;
    assert_eq!((backend.id(), backend.door()), ("good", Door::Rust));
    assert_eq!(backend.sha256().len(), 64);
    assert_eq!(add(&GOOD.1, &[]).unwrap(), [11.0, 22.0, 3.0]);
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
    let error = add(&GOOD.1, &[("panics", "true")]).unwrap_err();
    assert_eq!(error.code, Code::PANIC);
    assert_eq!(error.to_string(), "launch: panic: the backend panicked: told to panic in launch");
    assert_eq!(add(&GOOD.1, &[]).unwrap(), [11.0, 22.0, 3.0]);
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
        ("other_version", "built for Halyard ABI 7.0.0, this host speaks 0.2.0"),
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
