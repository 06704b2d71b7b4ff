//! The C functions of the driver API, by topic.
//!
//! Pointers of the caller appear only here: results go through [`Out`], arguments come through [`In`], and every entry
//! runs in a guard that turns a panic into an error.

/// Defines entries: each exported by its name, its body guarded.
macro_rules! entries {
    ($(fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $body:block)*) => { $(
        #[doc = concat!("`", stringify!($name), "` of the CUDA driver API.")]
        ///
        /// # Safety
        /// Pointers are as the driver API asks.
        #[unsafe(no_mangle)]
        pub(crate) unsafe extern "C" fn $name($($arg: $ty),*) -> u32 {
            if $crate::plant::skips(stringify!($name)) {
                return 0;
            }
            $crate::api::guard(move || {
                $crate::faults::call(stringify!($name))?;
                $body
            })
        }
    )* };
}

/// Defines entries of the management library, whose results have other numbers.
macro_rules! management_entries {
    ($(fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $body:block)*) => { $(
        #[doc = concat!("`", stringify!($name), "` of NVML.")]
        ///
        /// # Safety
        /// Pointers are as NVML asks.
        #[unsafe(no_mangle)]
        pub(crate) unsafe extern "C" fn $name($($arg: $ty),*) -> u32 {
            $crate::api::nvml::result($crate::api::guard(move || $body))
        }
    )* };
}

mod context;
mod device;
mod event;
mod graph;
mod memory;
mod module;
mod nvml;
mod report;
mod stream;
mod tensor_map;

use crate::code::{Code, Failure, Outcome, remember};
use std::ffi::{CStr, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Where a result goes. The caller of an entry promises that it may be written, or is null.
#[repr(transparent)]
pub(crate) struct Out<T>(*mut T);

impl<T> Out<T> {
    fn set(&self, value: T) -> Outcome {
        if self.0.is_null() {
            return Err(Code::InvalidValue.into());
        }
        // SAFETY: the caller of the entry promises that the pointer, which is not null, may be written.
        unsafe { self.0.write(value) };
        Ok(())
    }

    /// For results that may be left out.
    fn set_if_wanted(&self, value: T) {
        if !self.0.is_null() {
            // SAFETY: the caller of the entry promises that the pointer, which is not null, may be written.
            unsafe { self.0.write(value) };
        }
    }

    /// Writes several values.
    fn set_all(&self, values: &[T]) -> Outcome
    where
        T: Copy,
    {
        if values.is_empty() {
            return Ok(());
        }
        if self.0.is_null() {
            return Err(Code::InvalidValue.into());
        }
        // SAFETY: the caller of the entry promises room for as many values as it asked for, apart from ours.
        unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), self.0, values.len()) };
        Ok(())
    }
}

/// Where an argument is. The caller of an entry promises that it may be read, or is null.
#[repr(transparent)]
pub(crate) struct In<T>(*const T);

impl<T: Copy> In<T> {
    fn is_null(&self) -> bool {
        self.0.is_null()
    }

    /// The value at `index`.
    fn at(&self, index: usize) -> Outcome<T> {
        if self.0.is_null() {
            return Err(Code::InvalidValue.into());
        }
        // SAFETY: the caller of the entry promises that as many values are there as the entry's documentation says.
        let place = unsafe { self.0.add(index) };
        // SAFETY: as above; it need not be aligned.
        Ok(unsafe { place.read_unaligned() })
    }
}

impl In<u8> {
    /// `count` bytes.
    fn bytes(&self, count: usize) -> Outcome<Vec<u8>> {
        if count == 0 {
            return Ok(Vec::new());
        }
        if self.0.is_null() {
            return Err(Code::InvalidValue.into());
        }
        // SAFETY: the caller of the entry promises that so many bytes are there, and leaves them alone while it runs.
        Ok(unsafe { std::slice::from_raw_parts(self.0, count) }.to_vec())
    }
}

impl In<c_char> {
    /// A text that ends with a zero.
    fn text(&self) -> Outcome<String> {
        if self.0.is_null() {
            return Err(Code::InvalidValue.into());
        }
        // SAFETY: the caller of the entry promises a text that ends with a zero.
        let text = unsafe { CStr::from_ptr(self.0) };
        let text = text
            .to_str()
            .map_err(|_| Failure::new(Code::InvalidValue, "a text that is not UTF-8"))?;
        Ok(text.to_owned())
    }
}

/// Runs an entry.
fn guard(entry: impl FnOnce() -> Outcome) -> u32 {
    let outcome = catch_unwind(AssertUnwindSafe(entry));
    let outcome = outcome
        .unwrap_or_else(|_| Err(Failure::new(Code::Unknown, "a bug in the simulator: panic")));
    match outcome {
        Ok(()) => 0,
        Err(failure) => {
            remember(&failure);
            failure.code as u32
        }
    }
}
