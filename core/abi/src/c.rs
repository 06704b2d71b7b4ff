//! The C door: Rust's view of `include/halyard_backend.h`, which is the contract; read it first.
//!
//! A backend exports [`ENTRY`] and hands out a [`BackendApi`]. A host copies as much of that table as the backend has into a zeroed
//! one of its own and takes the [`Entries`] out. Everything else that crosses is in [`crate::types`]: the same bytes through both doors.

mod layout;

use abi_stable::std_types::{RSlice, RStr};

use crate::{
    error::AbiError,
    ids::{Code, Event, Graph, InfoKey, Plan, PropKey, ReduceOp, Stream, Weight},
    types::{
        A2av, AllocReq, Buffer, CommDesc, CopyReq, KeyValue, KvDesc, KvLayout, LaunchArgs, MemRef,
        Metric, Notify, OpDesc, TensorSpec, TensorView, WeightDesc, WeightFill, WeightPlan,
    },
};

/// The symbol that a backend exports.
pub const ENTRY: &str = "halyard_backend_v1";

/// Its type. The host's table lives for ever; null after filling the error, or a table that lives for ever.
pub type EntryFn = unsafe extern "C" fn(*const HostTable, &mut ErrorBuffer) -> *const BackendApi;

/// Whether a host and a backend of these versions (major, minor) understand each other. Before 1.0 every minor version may change the
/// boundary, so that has to match, too.
#[must_use]
pub const fn compatible(host: (u32, u32), backend: (u32, u32)) -> bool {
    host.0 == backend.0 && (host.0 > 0 || host.1 == backend.1)
}

/// The version of the boundary that this build speaks, major and minor: that of this crate.
pub const ABI_VERSION: (u32, u32) = (
    decimal(env!("CARGO_PKG_VERSION_MAJOR").as_bytes()),
    decimal(env!("CARGO_PKG_VERSION_MINOR").as_bytes()),
);

const fn decimal(digits: &[u8]) -> u32 {
    let (mut value, mut i) = (0, 0);
    while i < digits.len() {
        value = value * 10 + (digits[i] - b'0') as u32;
        i += 1;
    }
    value
}

macro_rules! objects {
    ($($(#[$meta:meta])* $name:ident)*) => {$(
        $(#[$meta])*
        #[repr(C)]
        #[derive(Debug)]
        pub struct $name {
            opaque: [u8; 0],
        }
    )*};
}

objects! {
    /// A backend's device; only ever behind a pointer.
    Device
    /// A backend's kernel; only ever behind a pointer.
    Kernel
    /// A backend's communicator; only ever behind a pointer.
    Collective
}

/// Text that a backend passes to the host: UTF-8 by contract, but anything may come.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Text {
    /// First byte.
    pub ptr: *const u8,
    /// Bytes.
    pub len: usize,
}

/// What a host offers a backend.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HostTable {
    /// Bytes of this table as the host was compiled.
    pub struct_size: usize,
    /// As [`ABI_VERSION`].
    pub abi_major: u32,
    /// As [`ABI_VERSION`].
    pub abi_minor: u32,
    /// A `void *` that only its owner understands; passed back to every function.
    pub ctx: usize,
    /// Whether a message of this level (1 error … 5 trace) and target would be kept.
    pub log_enabled: unsafe extern "C" fn(ctx: usize, level: u32, target: Text) -> i32,
    /// Logs a message; `fields_json` is a JSON object.
    pub log: unsafe extern "C" fn(
        ctx: usize,
        level: u32,
        target: Text,
        message: Text,
        fields_json: Text,
    ),
}

/// Bytes of an error's message.
pub const MESSAGE_BYTES: usize = 480;

/// Why a call failed, in memory of the caller's.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ErrorBuffer {
    /// What kind of failure.
    pub code: Code,
    /// The vendor library's own code, 0 if none.
    pub vendor_code: i32,
    /// Bytes of `msg` in use.
    pub msg_len: u32,
    /// 0.
    pub pad: u32,
    /// One line of English.
    pub msg: [u8; MESSAGE_BYTES],
}

impl ErrorBuffer {
    /// As it comes to a backend.
    pub const EMPTY: Self =
        Self { code: Code::OK, vendor_code: 0, msg_len: 0, pad: 0, msg: [0; MESSAGE_BYTES] };

    /// Fills it, for a backend; returns the code. A message that does not fit is cut at a character.
    pub fn set(&mut self, error: &AbiError) -> Code {
        let len = error.message.floor_char_boundary(MESSAGE_BYTES);
        self.code = error.code;
        self.vendor_code = error.vendor_code;
        self.msg[..len].copy_from_slice(&error.message.as_bytes()[..len]);
        #[expect(clippy::cast_possible_truncation, reason = "at most MESSAGE_BYTES")]
        {
            self.msg_len = len as u32;
        }
        error.code
    }

    /// Reads it, for a host, after a call returned `code`. Whatever the backend wrote, the message is text.
    #[must_use]
    pub fn read(&self, code: Code) -> AbiError {
        let written = usize::try_from(self.msg_len).unwrap_or(usize::MAX);
        let text = String::from_utf8_lossy(&self.msg[..written.min(MESSAGE_BYTES)]);
        let mut message = text.trim_end_matches('\0').to_owned();
        if written > MESSAGE_BYTES {
            message.push_str(" … (the backend says that its message is longer than the buffer)");
        }
        AbiError { vendor_code: self.vendor_code, ..AbiError::new(code, message) }
    }
}

macro_rules! backend_api {
    (
        required { $($req:ident($($rarg:ty),*) $(-> $rret:ty)?;)* }
        optional { $($opt:ident($($oarg:ty),*) $(-> $oret:ty)?;)* }
        collective { $($col:ident($($carg:ty),*) $(-> $cret:ty)?;)* }
        last { $($end:ident($($earg:ty),*) $(-> $eret:ty)?;)* }
    ) => {
        /// A backend's table, as it comes: each entry may be missing. The header says what each does.
        #[repr(C)]
        #[derive(Clone, Copy, Debug)]
        pub struct BackendApi {
            /// Bytes of this table as the backend was compiled.
            pub struct_size: usize,
            /// As [`ABI_VERSION`].
            pub abi_major: u32,
            /// As [`ABI_VERSION`].
            pub abi_minor: u32,
            $(#[doc = "Required."] pub $req: Option<unsafe extern "C" fn($($rarg),*) $(-> $rret)?>,)*
            $(#[doc = "Optional."] pub $opt: Option<unsafe extern "C" fn($($oarg),*) $(-> $oret)?>,)*
            $(#[doc = "All or none."] pub $col: Option<unsafe extern "C" fn($($carg),*) $(-> $cret)?>,)*
            $(#[doc = "Optional."] pub $end: Option<unsafe extern "C" fn($($earg),*) $(-> $eret)?>,)*
        }

        /// The entries of a table, known to be there where they are required.
        #[derive(Clone, Copy, Debug)]
        pub struct Entries {
            $(#[doc = "Required."] pub $req: unsafe extern "C" fn($($rarg),*) $(-> $rret)?,)*
            $(#[doc = "Optional."] pub $opt: Option<unsafe extern "C" fn($($oarg),*) $(-> $oret)?>,)*
            /// If the backend has collectives.
            pub collectives: Option<Collectives>,
            $(#[doc = "Optional."] pub $end: Option<unsafe extern "C" fn($($earg),*) $(-> $eret)?>,)*
        }

        /// The entries of a backend that has collectives.
        #[derive(Clone, Copy, Debug)]
        pub struct Collectives {
            $(#[doc = "Required beside the others."] pub $col: unsafe extern "C" fn($($carg),*) $(-> $cret)?,)*
        }

        impl BackendApi {
            /// A table without entries, of this build's version.
            pub const EMPTY: Self = Self {
                struct_size: size_of::<Self>(),
                abi_major: ABI_VERSION.0,
                abi_minor: ABI_VERSION.1,
                $($req: None,)* $($opt: None,)* $($col: None,)* $($end: None,)*
            };

            /// Every entry's name in order, and whether it is required.
            pub const NAMES: &'static [(&'static str, bool)] = &[
                $((stringify!($req), true),)* $((stringify!($opt), false),)*
                $((stringify!($col), false),)* $((stringify!($end), false),)*
            ];

            /// Takes the entries out.
            ///
            /// # Errors
            /// The name of a required entry that is missing.
            pub fn entries(&self) -> Result<Entries, &'static str> {
                Ok(Entries {
                    $($req: self.$req.ok_or(stringify!($req))?,)*
                    $($opt: self.$opt,)*
                    collectives: if self.device_comm_create.is_some() {
                        Some(Collectives { $($col: self.$col.ok_or(stringify!($col))?,)* })
                    } else {
                        None
                    },
                    $($end: self.$end,)*
                })
            }
        }
    };
}

type Err<'a> = &'a mut ErrorBuffer;

backend_api! {
    required {
        info(InfoKey, *mut u8, usize) -> usize;
        probe() -> i32;
        device_count(&mut u32, Err<'_>) -> Code;
        device_open(u32, RSlice<'_, KeyValue<'_>>, &mut *mut Device, Err<'_>) -> Code;
        device_close(*mut Device);
        device_property(*mut Device, PropKey, &mut u64) -> i32;
        device_info(*mut Device, InfoKey, *mut u8, usize) -> usize;
        device_alloc(*mut Device, &AllocReq, &mut Buffer, Err<'_>) -> Code;
        device_free(*mut Device, &Buffer, Err<'_>) -> Code;
        device_copy(*mut Device, Stream, &CopyReq, Err<'_>) -> Code;
        device_fill(*mut Device, Stream, &MemRef, u32, u64, Err<'_>) -> Code;
        stream_create(*mut Device, i32, u32, &mut Stream, Err<'_>) -> Code;
        stream_destroy(*mut Device, Stream, Err<'_>) -> Code;
        stream_sync(*mut Device, Stream, u64, Err<'_>) -> Code;
        stream_query(*mut Device, Stream, Err<'_>) -> Code;
        event_create(*mut Device, u32, &mut Event, Err<'_>) -> Code;
        event_destroy(*mut Device, Event, Err<'_>) -> Code;
        event_record(*mut Device, Event, Stream, Err<'_>) -> Code;
        event_wait(*mut Device, Stream, Event, Err<'_>) -> Code;
        event_sync(*mut Device, Event, u64, Err<'_>) -> Code;
        event_query(*mut Device, Event, Err<'_>) -> Code;
        event_elapsed_ns(*mut Device, Event, Event, &mut u64, Err<'_>) -> Code;
        device_supports(*mut Device, &OpDesc<'_>) -> u32;
        device_explain(*mut Device, &OpDesc<'_>, *mut u8, usize) -> usize;
        device_prepare(*mut Device, &OpDesc<'_>, &mut *mut Kernel, Err<'_>) -> Code;
        kernel_flags(*mut Kernel) -> u64;
        kernel_workspace_bytes(*mut Kernel, RSlice<'_, TensorSpec>) -> u64;
        kernel_launch(*mut Kernel, Stream, &LaunchArgs<'_>, Err<'_>) -> Code;
        kernel_destroy(*mut Kernel);
        weight_plan(*mut Device, &WeightDesc<'_>, &mut WeightPlan, Err<'_>) -> Code;
        weight_create(*mut Device, &WeightDesc<'_>, &MemRef, &mut Weight, Err<'_>) -> Code;
        weight_fill(*mut Device, Stream, Weight, &WeightFill<'_>, Err<'_>) -> Code;
        weight_seal(*mut Device, Stream, Weight, Err<'_>) -> Code;
        weight_destroy(*mut Device, Weight, Err<'_>) -> Code;
        kv_layout(*mut Device, &KvDesc<'_>, &mut KvLayout, Err<'_>) -> Code;
    }
    optional {
        device_telemetry(*mut Device, *mut Metric, usize) -> u32;
        kernel_plan(*mut Kernel, Stream, &LaunchArgs<'_>, &mut Plan, Err<'_>) -> Code;
        kernel_plan_free(*mut Kernel, Plan);
        device_notify(*mut Device, Stream, &Notify, Err<'_>) -> Code;
        graph_begin(*mut Device, Stream, Err<'_>) -> Code;
        graph_end(*mut Device, Stream, &mut Graph, Err<'_>) -> Code;
        graph_launch(*mut Device, Graph, Stream, Err<'_>) -> Code;
        graph_destroy(*mut Device, Graph, Err<'_>) -> Code;
        device_vendor_call(*mut Device, RStr<'_>, RSlice<'_, u8>, *mut u8, usize, &mut u64, Err<'_>) -> Code;
    }
    collective {
        device_comm_unique_id(*mut Device, *mut u8, usize, &mut u32, Err<'_>) -> Code;
        device_comm_create(*mut Device, &CommDesc<'_>, &mut *mut Collective, Err<'_>) -> Code;
        collective_all_reduce(*mut Collective, Stream, &TensorView, &TensorView, ReduceOp, Err<'_>) -> Code;
        collective_all_gather(*mut Collective, Stream, &TensorView, &TensorView, Err<'_>) -> Code;
        collective_reduce_scatter(*mut Collective, Stream, &TensorView, &TensorView, ReduceOp, Err<'_>) -> Code;
        collective_broadcast(*mut Collective, Stream, &TensorView, u32, Err<'_>) -> Code;
        collective_all_to_all_v(*mut Collective, Stream, &A2av<'_>, Err<'_>) -> Code;
        collective_send(*mut Collective, Stream, &TensorView, u32, Err<'_>) -> Code;
        collective_recv(*mut Collective, Stream, &TensorView, u32, Err<'_>) -> Code;
        collective_group_begin(*mut Collective, Err<'_>) -> Code;
        collective_group_end(*mut Collective, Err<'_>) -> Code;
        collective_barrier(*mut Collective, Stream, Err<'_>) -> Code;
        collective_status(*mut Collective, Err<'_>) -> Code;
        collective_abort(*mut Collective, Err<'_>) -> Code;
        collective_destroy(*mut Collective);
    }
    last {
        collective_split(*mut Collective, i32, i32, &mut *mut Collective, Err<'_>) -> Code;
        kernel_plan_update(*mut Kernel, Stream, Plan, &LaunchArgs<'_>, Err<'_>) -> Code;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_before_1_0_match_exactly() {
        assert!(compatible((0, 1), (0, 1)) && !compatible((0, 1), (0, 2)));
        assert!(compatible((1, 0), (1, 3)) && compatible((1, 3), (1, 0)));
        assert!(!compatible((1, 0), (2, 0)) && !compatible((1, 0), (0, 1)));
        assert_eq!(decimal(b"120"), 120);
    }

    #[test]
    fn a_message_comes_back_as_it_went_or_cut_at_a_character() {
        let mut buffer = ErrorBuffer::EMPTY;
        let error = AbiError { vendor_code: -7, ..AbiError::new(Code::IO, "aclrtMalloc: no link") };
        assert_eq!(buffer.set(&error), Code::IO);
        assert_eq!(buffer.read(Code::IO), error);
        let long = format!("{}é and more", "x".repeat(MESSAGE_BYTES - 1));
        buffer.set(&AbiError::invalid(long));
        assert_eq!(
            buffer.read(Code::INVALID_ARGUMENT).message.as_str(),
            "x".repeat(MESSAGE_BYTES - 1)
        );
    }

    #[test]
    fn whatever_a_backend_writes_is_read_as_text() {
        let mut buffer = ErrorBuffer::EMPTY;
        buffer.msg[..5].copy_from_slice(b"ab\xff\xfec");
        buffer.msg_len = 5;
        assert_eq!(buffer.read(Code(77)).message.as_str(), "ab\u{fffd}\u{fffd}c");
        buffer.msg_len = u32::MAX;
        let message = buffer.read(Code::INTERNAL).message.into_string();
        assert!(
            message.starts_with("ab") && message.contains("longer than the buffer"),
            "{message}"
        );
    }

    #[test]
    fn a_missing_entry_is_named() {
        assert_eq!(BackendApi::EMPTY.entries().unwrap_err(), "info");
    }
}
