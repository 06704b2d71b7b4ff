//! Backends that come through the C door, behind the same traits as those of the Rust door.
//!
//! Nothing that a backend writes is trusted to be well-formed: the table is copied into one of the host's own, outputs come
//! zeroed, text may be any bytes, and "ok" without an object is an error.

mod collective;
mod device;

use std::{ptr, sync::Arc};

use halyard_abi::{
    AbiError, Code, DeviceBox, InfoKey, KeyValue, R, RSlice,
    c::{ABI_VERSION, BackendApi, Entries, EntryFn, ErrorBuffer, compatible},
    exporting::TD_Opaque,
    traits,
};

use crate::host_log::c_host_table;

/// A backend's table, checked; its library is never unloaded.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CModule {
    entries: &'static Entries,
}

/// Why a table was refused.
pub(crate) enum Refusal {
    /// The entry returned none, and said why.
    Said(AbiError),
    /// It is shorter than its own head, this many bytes.
    Short(usize),
    /// It is of this version.
    Version((u32, u32)),
    /// It lacks a required entry.
    Missing(&'static str),
}

/// Calls a backend's entry and takes its table.
pub(crate) fn open(entry: EntryFn) -> Result<CModule, Refusal> {
    let mut err = ErrorBuffer::EMPTY;
    // SAFETY: a symbol of this name has this type (the header), and the host's table lives for ever.
    let table = unsafe { entry(c_host_table(), &mut err) };
    if table.is_null() {
        return Err(Refusal::Said(err.read(err.code)));
    }
    let table = copy_of(table)?;
    let version = (table.abi_major, table.abi_minor);
    if !compatible(ABI_VERSION, version) {
        return Err(Refusal::Version(version));
    }
    let entries = table.entries().map_err(Refusal::Missing)?;
    Ok(CModule { entries: Box::leak(Box::new(entries)) })
}

/// As much of the table as both sides have; the rest of ours is empty.
fn copy_of(theirs: *const BackendApi) -> Result<BackendApi, Refusal> {
    const HEAD: usize = std::mem::offset_of!(BackendApi, info);
    // SAFETY: a table begins with its size; nothing is assumed of its alignment.
    let bytes = unsafe { theirs.cast::<usize>().read_unaligned() };
    if bytes < HEAD {
        return Err(Refusal::Short(bytes));
    }
    // Whole entries only: a cut through one would leave half an address.
    let whole = bytes.min(size_of::<BackendApi>()) / size_of::<usize>() * size_of::<usize>();
    let mut ours = BackendApi::EMPTY;
    // SAFETY: the table has `bytes` bytes, ours has no fewer than `whole`; each entry is an address or null, which `Option` is, too.
    unsafe { ptr::copy_nonoverlapping(theirs.cast::<u8>(), (&raw mut ours).cast(), whole) };
    Ok(ours)
}

impl CModule {
    pub(crate) fn info(&self, key: InfoKey) -> String {
        // SAFETY: `text` gives a buffer of this size.
        text(|buf, cap| unsafe { (self.entries.info)(key, buf, cap) })
    }

    pub(crate) fn probe(&self) -> i32 {
        // SAFETY: takes nothing.
        unsafe { (self.entries.probe)() }
    }

    pub(crate) fn device_count(&self) -> R<u32> {
        let mut count = 0;
        call("device_count", |err| {
            // SAFETY: both outputs are live and zeroed.
            unsafe { (self.entries.device_count)(&mut count, err) }
        })
        .map(|()| count)
        .into()
    }

    pub(crate) fn open(&self, ordinal: u32, options: RSlice<'_, KeyValue<'_>>) -> R<DeviceBox> {
        let mut raw = ptr::null_mut();
        let opened = call("device_open", |err| {
            // SAFETY: the options live until the call returns; both outputs are live and zeroed.
            unsafe { (self.entries.device_open)(ordinal, options, &mut raw, err) }
        });
        let opened = opened.and_then(|()| object("device_open", raw));
        opened
            .map(|raw| {
                let open = Arc::new(device::Open::new(self.entries, raw));
                traits::Device_TO::from_value(device::CDevice::new(open), TD_Opaque)
            })
            .into()
    }
}

/// Runs an entry and reads its error.
fn call(name: &str, entry: impl FnOnce(&mut ErrorBuffer) -> Code) -> Result<(), AbiError> {
    let mut err = ErrorBuffer::EMPTY;
    match entry(&mut err) {
        Code::OK => Ok(()),
        code => {
            let mut error = err.read(code);
            if error.message.is_empty() {
                error.message = format!("`{name}` gave no message").into();
            }
            Err(error)
        }
    }
}

/// An object that an entry made; "ok" without one is the backend's mistake.
fn object<T>(name: &str, raw: *mut T) -> Result<ptr::NonNull<T>, AbiError> {
    let missing = || AbiError::new(Code::ABI, format!("`{name}` said ok but gave no object"));
    ptr::NonNull::new(raw).ok_or_else(missing)
}

/// Most bytes of a text; a backend that claims more is not believed.
const LONGEST_TEXT: usize = 1 << 20;

/// Reads a text; bytes that are no UTF-8 are replaced.
fn text(fill: impl Fn(*mut u8, usize) -> usize) -> String {
    let mut buffer = vec![0; 256];
    let mut bytes = fill(buffer.as_mut_ptr(), buffer.len());
    if bytes > buffer.len() {
        buffer.resize(bytes.min(LONGEST_TEXT), 0);
        bytes = fill(buffer.as_mut_ptr(), buffer.len());
    }
    buffer.truncate(bytes);
    String::from_utf8_lossy(&buffer).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A table of `bytes` bytes in memory that holds no more.
    fn table_of(bytes: usize) -> Vec<u8> {
        let mut memory = vec![0xff; bytes];
        memory[..8].copy_from_slice(&bytes.to_ne_bytes());
        memory[8..16].fill(0);
        memory
    }

    #[test]
    fn only_what_a_table_has_is_read() {
        let whole = size_of::<BackendApi>();
        for bytes in [16, 24, 31, whole] {
            let theirs = table_of(bytes);
            let ours = copy_of(theirs.as_ptr().cast()).ok().unwrap();
            assert_eq!(ours.info.is_some(), bytes >= 24, "{bytes}");
            assert_eq!(ours.probe.is_some(), bytes >= 32, "{bytes}");
            assert_eq!(ours.kernel_plan_update.is_some(), bytes == whole, "{bytes}");
        }
        let mut short = table_of(16);
        short[..8].copy_from_slice(&15usize.to_ne_bytes());
        assert!(matches!(copy_of(short.as_ptr().cast()), Err(Refusal::Short(15))));
    }

    #[test]
    fn texts_of_any_length_and_bytes() {
        let of = |source: &'static [u8]| {
            text(move |buf, cap| {
                let n = source.len().min(cap);
                // SAFETY: `n` bytes are in both.
                unsafe { ptr::copy_nonoverlapping(source.as_ptr(), buf, n) };
                source.len()
            })
        };
        assert_eq!(of(b"cpu"), "cpu");
        assert_eq!(of(b""), "");
        assert_eq!(of(b"a\xffb"), "a\u{fffd}b");
        assert_eq!(of(&[b'x'; 1000]), "x".repeat(1000));
        // A backend that claims what it does not write.
        assert_eq!(text(|_, _| usize::MAX).len(), LONGEST_TEXT);
    }
}
