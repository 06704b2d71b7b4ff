//! Results of the driver API, and the message of the last fault.

use halyard_sim_cuda_exec::{Fault, FaultKind, LaunchError, LoadError, MemoryError};
use std::ffi::{CStr, CString};
use std::sync::{Mutex, PoisonError};

macro_rules! codes {
    ($($variant:ident $number:literal $name:literal $text:literal)*) => {
        /// A `CUresult` other than success.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Code { $($variant = $number),* }

        /// Name and description of a `CUresult`.
        pub(crate) fn describe(code: u32) -> Option<(&'static CStr, &'static CStr)> {
            match code {
                0 => Some((c"CUDA_SUCCESS", c"no error")),
                $($number => Some(($name, $text)),)*
                _ => None,
            }
        }

        impl Code {
            /// The result with this number.
            pub(crate) fn numbered(code: u32) -> Option<Self> {
                match code {
                    $($number => Some(Self::$variant),)*
                    _ => None,
                }
            }
        }
    };
}

codes! {
    InvalidValue 1 c"CUDA_ERROR_INVALID_VALUE" c"invalid argument"
    OutOfMemory 2 c"CUDA_ERROR_OUT_OF_MEMORY" c"out of memory"
    NotInitialized 3 c"CUDA_ERROR_NOT_INITIALIZED" c"initialization error"
    StubLibrary 34 c"CUDA_ERROR_STUB_LIBRARY" c"CUDA driver is a stub library"
    DeviceUnavailable 46 c"CUDA_ERROR_DEVICE_UNAVAILABLE" c"CUDA-capable device(s) is/are busy or unavailable"
    NoDevice 100 c"CUDA_ERROR_NO_DEVICE" c"no CUDA-capable device is detected"
    InvalidDevice 101 c"CUDA_ERROR_INVALID_DEVICE" c"invalid device ordinal"
    InvalidContext 201 c"CUDA_ERROR_INVALID_CONTEXT" c"invalid device context"
    NoBinary 209 c"CUDA_ERROR_NO_BINARY_FOR_GPU" c"no kernel image is available for execution on the device"
    EccUncorrectable 214 c"CUDA_ERROR_ECC_UNCORRECTABLE" c"uncorrectable ECC error encountered"
    InvalidPtx 218 c"CUDA_ERROR_INVALID_PTX" c"a PTX JIT compilation failed"
    UnsupportedPtx 222 c"CUDA_ERROR_UNSUPPORTED_PTX_VERSION" c"the provided PTX was compiled with an unsupported toolchain."
    FileNotFound 301 c"CUDA_ERROR_FILE_NOT_FOUND" c"file not found"
    InvalidHandle 400 c"CUDA_ERROR_INVALID_HANDLE" c"invalid resource handle"
    NotFound 500 c"CUDA_ERROR_NOT_FOUND" c"named symbol not found"
    NotReady 600 c"CUDA_ERROR_NOT_READY" c"device not ready"
    IllegalAddress 700 c"CUDA_ERROR_ILLEGAL_ADDRESS" c"an illegal memory access was encountered"
    OutOfResources 701 c"CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES" c"too many resources requested for launch"
    LaunchTimeout 702 c"CUDA_ERROR_LAUNCH_TIMEOUT" c"the launch timed out and was terminated"
    PeerAlreadyEnabled 704 c"CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED" c"peer access is already enabled"
    Assert 710 c"CUDA_ERROR_ASSERT" c"device-side assert triggered"
    MisalignedAddress 716 c"CUDA_ERROR_MISALIGNED_ADDRESS" c"misaligned address"
    LaunchFailed 719 c"CUDA_ERROR_LAUNCH_FAILED" c"unspecified launch failure"
    NotSupported 801 c"CUDA_ERROR_NOT_SUPPORTED" c"operation not supported"
    CaptureUnsupported 900 c"CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED" c"operation not permitted when stream is capturing"
    CaptureUnmatched 903 c"CUDA_ERROR_STREAM_CAPTURE_UNMATCHED" c"the capture was not initiated in this stream"
    CaptureIsolation 905 c"CUDA_ERROR_STREAM_CAPTURE_ISOLATION" c"dependency created on uncaptured work in another stream"
    Unknown 999 c"CUDA_ERROR_UNKNOWN" c"unknown error"
}

/// A failure: its code, and what is to be said about it.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) code: Code,
    pub(crate) text: String,
}

/// What an entry of the driver gives.
pub(crate) type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    pub(crate) fn new(code: Code, text: impl Into<String>) -> Self {
        Self { code, text: text.into() }
    }
}

impl From<Code> for Failure {
    fn from(code: Code) -> Self {
        Self { code, text: String::new() }
    }
}

impl From<MemoryError> for Failure {
    fn from(error: MemoryError) -> Self {
        let code = match error {
            MemoryError::OutOfMemory { .. } | MemoryError::Host { .. } => Code::OutOfMemory,
            MemoryError::Invalid { .. } | MemoryError::Unwritten { .. } => Code::InvalidValue,
            MemoryError::Freed { .. } => Code::IllegalAddress,
            MemoryError::StreamRace { .. } => Code::LaunchFailed,
        };
        Self::new(code, error.to_string())
    }
}

impl From<LoadError> for Failure {
    fn from(error: LoadError) -> Self {
        let text = error.to_string();
        match error {
            LoadError::Target { .. } => Self::new(Code::NoBinary, text),
            LoadError::Memory(error) => error.into(),
            LoadError::Parse(_) | LoadError::Decode(_) => Self::new(Code::InvalidPtx, text),
        }
    }
}

impl From<LaunchError> for Failure {
    fn from(error: LaunchError) -> Self {
        let text = error.to_string();
        match error {
            LaunchError::Shape { .. } => Self::new(Code::InvalidValue, text),
            LaunchError::Resources { .. } => Self::new(Code::OutOfResources, text),
        }
    }
}

impl From<&Fault> for Failure {
    fn from(fault: &Fault) -> Self {
        let code = match fault.kind {
            FaultKind::OutOfBounds | FaultKind::UseAfterFree => Code::IllegalAddress,
            FaultKind::Misaligned => Code::MisalignedAddress,
            FaultKind::Endless => Code::LaunchTimeout,
            FaultKind::Assert => Code::Assert,
            _ => Code::LaunchFailed,
        };
        Self::new(code, fault.to_string())
    }
}

/// The last failure that had something to say, as `cuGetErrorString` tells it.
static LAST: Mutex<Option<(Code, &'static CStr)>> = Mutex::new(None);

/// Keeps `failure`'s text for whoever asks what its code means.
pub(crate) fn remember(failure: &Failure) {
    if failure.text.is_empty() {
        return;
    }
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    let meaning =
        describe(failure.code as u32).map_or("", |(_, text)| text.to_str().unwrap_or_default());
    let text = format!("{meaning}: {}", failure.text).replace('\0', " ");
    let same = last.is_some_and(|(_, there)| there.to_bytes() == text.as_bytes());
    if let (false, Ok(text)) = (same, CString::new(text)) {
        // Callers keep the pointer for as long as they like: the text is never freed. One a failure.
        *last = Some((failure.code, Box::leak(text.into_boxed_c_str())));
    }
}

/// What `code` means; with the last failure's text, if that had this code.
pub(crate) fn meaning(code: u32) -> Option<&'static CStr> {
    let last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    match *last {
        Some((of, text)) if of as u32 == code => Some(text),
        _ => describe(code).map(|(_, text)| text),
    }
}
