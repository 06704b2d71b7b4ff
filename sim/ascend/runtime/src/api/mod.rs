//! The C functions, by topic.
//!
//! Pointers of the caller appear only here: results go through [`Out`], arguments come through [`In`], and every entry runs in a guard
//! that turns a panic into an error. Exported names have the prefix `halyard_sim_ascend_`: the libraries of a profile give those that
//! the profile has their vendor's names (`layout`).

/// Defines entries that return a result, and the list of their names. The body is guarded.
macro_rules! entries {
    ($set:ident of $family:ident: $(fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $body:block)*) => {
        #[doc = "Names of entries."]
        pub(crate) const $set: &[&str] = &[$(stringify!($name)),*];
        $(
            #[doc = concat!("`", stringify!($name), "`.")]
            ///
            /// # Safety
            /// Pointers are as the vendor's documentation asks.
            #[unsafe(export_name = concat!("halyard_sim_ascend_", stringify!($name)))]
            pub(crate) unsafe extern "C" fn $name($($arg: $ty),*) -> i32 {
                let family = $crate::code::Family::$family;
                $crate::api::guard(stringify!($name), family, move || $body)
            }
        )*
    };
}

/// Defines entries that return something else; a failure gives `$none`.
macro_rules! values {
    ($set:ident of $family:ident: $(fn $name:ident($($arg:ident: $ty:ty),* $(,)?) -> $out:ty, $none:expr; $body:block)*) => {
        #[doc = "Names of entries."]
        pub(crate) const $set: &[&str] = &[$(stringify!($name)),*];
        $(
            #[doc = concat!("`", stringify!($name), "`.")]
            ///
            /// # Safety
            /// Pointers are as the vendor's documentation asks.
            #[unsafe(export_name = concat!("halyard_sim_ascend_", stringify!($name)))]
            pub(crate) unsafe extern "C" fn $name($($arg: $ty),*) -> $out {
                let family = $crate::code::Family::$family;
                let (mut out, none): ($out, $out) = ($none, $none);
                let number = $crate::api::guard(stringify!($name), family, || {
                    let given: $crate::code::Outcome<$out> = $body;
                    out = given?;
                    Ok(())
                });
                if number == 0 { out } else { none }
            }
        )*
    };
}

pub(crate) mod callback;
pub(crate) mod context;
pub(crate) mod convert;
pub(crate) mod dcmi;
pub(crate) mod device;
pub(crate) mod event;
pub(crate) mod format;
pub(crate) mod graph;
pub(crate) mod hccl;
pub(crate) mod memory;
pub(crate) mod object;
pub(crate) mod operators;
pub(crate) mod process;
pub(crate) mod stream;

use crate::code::{Code, Failure, Family, Outcome, report};
use crate::{calls, fault};
use std::ffi::{CStr, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Where a result goes. The caller of an entry promises that it may be written, or is null.
#[repr(transparent)]
pub(crate) struct Out<T>(*mut T);

impl<T> Out<T> {
    /// `argument` gets `value`.
    pub(crate) fn set(&self, argument: &str, value: T) -> Outcome {
        if self.0.is_null() {
            return Err(Failure::null(argument));
        }
        // SAFETY: the caller of the entry promises that the pointer, which is not null, may be written.
        unsafe { self.0.write_unaligned(value) };
        Ok(())
    }

    pub(crate) fn is_null(&self) -> bool {
        self.0.is_null()
    }

    pub(crate) fn address(&self) -> u64 {
        self.0.addr() as u64
    }

    /// `argument` gets several values, the first `skip` places further.
    pub(crate) fn set_all(&self, argument: &str, skip: usize, values: &[T]) -> Outcome
    where
        T: Copy,
    {
        if values.is_empty() {
            return Ok(());
        }
        if self.0.is_null() {
            return Err(Failure::null(argument));
        }
        // SAFETY: the caller of the entry promises room for as many values as it asked for.
        let place = unsafe { self.0.add(skip) };
        // SAFETY: as above, and they are apart from ours.
        unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), place, values.len()) };
        Ok(())
    }
}

/// Where an argument is. The caller of an entry promises that it may be read, or is null.
#[repr(transparent)]
pub(crate) struct In<T>(*const T);

impl<T: Copy> In<T> {
    pub(crate) fn is_null(&self) -> bool {
        self.0.is_null()
    }

    pub(crate) fn address(&self) -> u64 {
        self.0.addr() as u64
    }

    /// The value of `argument` at `index`.
    pub(crate) fn at(&self, argument: &str, index: usize) -> Outcome<T> {
        if self.0.is_null() {
            return Err(Failure::null(argument));
        }
        // SAFETY: the caller of the entry promises that as many values are there as the entry's documentation says.
        let place = unsafe { self.0.add(index) };
        // SAFETY: as above; it need not be aligned.
        Ok(unsafe { place.read_unaligned() })
    }

    /// `count` values of `argument`.
    pub(crate) fn all(&self, argument: &str, count: usize) -> Outcome<Vec<T>> {
        (0..count).map(|index| self.at(argument, index)).collect()
    }
}

impl In<u8> {
    /// `count` bytes from the byte `skip` of `argument`.
    pub(crate) fn bytes(&self, argument: &str, skip: usize, count: usize) -> Outcome<Vec<u8>> {
        if count == 0 {
            return Ok(Vec::new());
        }
        if self.0.is_null() {
            return Err(Failure::null(argument));
        }
        // SAFETY: the caller of the entry promises that so many bytes are there.
        let place = unsafe { self.0.add(skip) };
        // SAFETY: as above, and it leaves them alone while the entry runs.
        Ok(unsafe { std::slice::from_raw_parts(place, count) }.to_vec())
    }
}

impl In<c_char> {
    /// A text that ends with a zero; none if `argument` is NULL.
    pub(crate) fn text(&self, argument: &str) -> Outcome<Option<String>> {
        if self.0.is_null() {
            return Ok(None);
        }
        // SAFETY: the caller of the entry promises a text that ends with a zero.
        let text = unsafe { CStr::from_ptr(self.0) };
        let text = text.to_str().map_err(|_| Failure::argument(argument, "not UTF-8"))?;
        Ok(Some(text.to_owned()))
    }
}

/// Runs an entry.
pub(crate) fn guard(name: &str, family: Family, entry: impl FnOnce() -> Outcome) -> i32 {
    let planted = || fault::on_call(name).and_then(|()| entry());
    let outcome = catch_unwind(AssertUnwindSafe(planted));
    let outcome = outcome
        .unwrap_or_else(|_| Err(Failure::new(Code::INTERNAL, "a bug in the simulator: panic")));
    let number = outcome.as_ref().map_or_else(|failure| family.number(failure.code), |()| 0);
    calls::note(name, number);
    if let Err(failure) = outcome
        && failure.is_logged()
    {
        report(name, number, &failure.text);
    }
    number
}
