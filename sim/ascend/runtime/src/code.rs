//! Results of the libraries, and what is said about failures.

use halyard_sim_memory::MemoryError;
use std::cell::RefCell;
use std::ffi::CString;

/// A result other than success, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Code(pub(crate) i32);

impl Code {
    /// A pointer that must not be NULL: each family of functions has its own number.
    pub(crate) const NULL: Self = Self(-1);
    /// A wrong argument: each family of functions has its own number.
    pub(crate) const ARGUMENT: Self = Self(-2);

    pub(crate) const NOT_INITIALISED: Self = Self(100_001);
    pub(crate) const REPEAT_INITIALISE: Self = Self(100_002);
    pub(crate) const REPEAT_FINALIZE: Self = Self(100_037);
    pub(crate) const INTERNAL: Self = Self(500_000);

    pub(crate) const PARAM: Self = Self(107_000);
    pub(crate) const DEVICE_ID: Self = Self(107_001);
    pub(crate) const CONTEXT_NULL: Self = Self(107_002);
    pub(crate) const STREAM_CONTEXT: Self = Self(107_003);
    pub(crate) const HANDLE: Self = Self(107_017);
    pub(crate) const TASK_TIMEOUT: Self = Self(107_020);
    pub(crate) const STREAM_ABORT: Self = Self(107_023);

    pub(crate) const CAPTURE_DEPENDENCY: Self = Self(107_024);
    pub(crate) const CAPTURE_UNJOINED: Self = Self(107_025);
    pub(crate) const MODEL_CAPTURED: Self = Self(107_026);
    pub(crate) const STREAM_CAPTURED: Self = Self(107_027);
    pub(crate) const EVENT_CAPTURED: Self = Self(107_028);
    pub(crate) const STREAM_NOT_CAPTURED: Self = Self(107_029);
    pub(crate) const CAPTURE_MODE: Self = Self(107_030);
    pub(crate) const CAPTURE_IMPLICIT: Self = Self(107_031);
    pub(crate) const CAPTURE_INVALIDATED: Self = Self(507_903);

    pub(crate) const NOT_SUPPORTED: Self = Self(207_000);
    pub(crate) const MEMORY: Self = Self(207_001);
    pub(crate) const NO_DEVICE: Self = Self(207_004);

    pub(crate) const MODEL_EXECUTE: Self = Self(507_011);
    pub(crate) const STREAM_TIMEOUT: Self = Self(507_046);
    pub(crate) const EVENT_TIMEOUT: Self = Self(507_047);
    pub(crate) const DRIVER: Self = Self(507_899);

    pub(crate) const ACLNN_NULL: Self = Self(161_001);
    pub(crate) const ACLNN_PARAM: Self = Self(161_002);
    pub(crate) const ACLNN_RUNTIME: Self = Self(361_001);
    pub(crate) const ACLNN_INNER: Self = Self(561_000);

    pub(crate) const HCCL_PARA: Self = Self(1);
    pub(crate) const HCCL_PTR: Self = Self(2);
    pub(crate) const HCCL_INTERNAL: Self = Self(4);
    pub(crate) const HCCL_NOT_SUPPORT: Self = Self(5);
    pub(crate) const HCCL_SYSCALL: Self = Self(8);
    pub(crate) const HCCL_TIMEOUT: Self = Self(9);
    pub(crate) const HCCL_RUNTIME: Self = Self(15);
    pub(crate) const HCCL_REMOTE: Self = Self(21);
}

/// A failure: its code, and what is to be said about it.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) code: Code,
    pub(crate) text: String,
}

/// What an entry gives.
pub(crate) type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    pub(crate) fn new(code: Code, text: impl Into<String>) -> Self {
        Self { code, text: text.into() }
    }

    /// An answer that the vendor's library does not log, such as that there is nothing.
    pub(crate) fn unlogged(code: Code) -> Self {
        Self::new(code, "")
    }

    /// Whether the vendor's library logs it.
    pub(crate) fn is_logged(&self) -> bool {
        !self.text.is_empty()
    }

    /// A wrong value of an argument.
    pub(crate) fn argument(name: &str, what: impl std::fmt::Display) -> Self {
        Self::new(Code::ARGUMENT, format!("argument `{name}`: {what}"))
    }

    /// An argument that is NULL and must not be.
    pub(crate) fn null(name: &str) -> Self {
        Self::new(Code::NULL, format!("argument `{name}` is NULL"))
    }

    /// The same failure, in a sentence that begins with `what`.
    pub(crate) fn within(mut self, what: impl std::fmt::Display) -> Self {
        self.text = format!("{what}: {}", self.text);
        self
    }

    /// The same text with another code.
    pub(crate) fn coded(mut self, code: Code) -> Self {
        self.code = code;
        self
    }
}

impl From<MemoryError> for Failure {
    fn from(error: MemoryError) -> Self {
        let code = match error {
            MemoryError::OutOfMemory { .. } | MemoryError::Host { .. } => Code::MEMORY,
            _ => Code::PARAM,
        };
        Self::new(code, error.to_string())
    }
}

/// Functions that share numbers of results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    /// `acl*`, `aclrt*`, `aclmdlRI*`
    Acl,
    /// `aclCreate*` and all else of the operators' library
    Aclnn,
    /// `Hccl*`
    Hccl,
    /// `dcmi_*`
    Dcmi,
}

impl Family {
    /// The number that functions of this family return for a failure.
    pub(crate) fn number(self, code: Code) -> i32 {
        let own = match (self, code) {
            (Self::Acl, Code::NULL | Code::ARGUMENT) => Code(100_000),
            (Self::Aclnn, Code::NULL) => Code::ACLNN_NULL,
            (Self::Aclnn, Code::ARGUMENT) => Code::ACLNN_PARAM,
            (Self::Aclnn, Code::INTERNAL) => Code::ACLNN_INNER,
            (Self::Aclnn, Code(100_000..160_000 | 200_000..300_000 | 500_000..560_000)) => {
                Code::ACLNN_RUNTIME
            }
            (Self::Hccl, Code::NULL) => Code::HCCL_PTR,
            (Self::Hccl, Code::ARGUMENT) => Code::HCCL_PARA,
            (Self::Hccl, Code::INTERNAL) => Code::HCCL_INTERNAL,
            (Self::Hccl, Code::NOT_SUPPORTED) => Code::HCCL_NOT_SUPPORT,
            (Self::Hccl, Code(100_000..)) => Code::HCCL_RUNTIME,
            // DCMI's numbers are negative; -8001 is that of a wrong parameter.
            (Self::Dcmi, _) => Code(-8001),
            (_, code) => code,
        };
        own.0
    }
}

/// Messages kept for a thread that does not ask for them.
const KEPT: usize = 64;

thread_local! {
    static RECENT: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
    /// What `aclGetRecentErrMsg` gave last, which lives until it is called again.
    static GIVEN: RefCell<CString> = RefCell::default();
}

/// Keeps a failure's text for `aclGetRecentErrMsg` of this thread, and writes it to standard error.
pub(crate) fn report(call: &str, number: i32, text: &str) {
    let line = format!("{call}: {text} [{number}]");
    write_line(&line);
    RECENT.with_borrow_mut(|recent| {
        if recent.len() == KEPT {
            recent.remove(0);
        }
        recent.push(line);
    });
}

/// A line for whoever reads the process' standard error.
#[expect(clippy::print_stderr, reason = "a library of C functions has no other place for it")]
pub(crate) fn write_line(text: &str) {
    eprintln!("halyard-sim-ascend: {text}");
}

/// This thread's messages, which are cleared; the pointer is good until the next call.
pub(crate) fn take_messages() -> *const std::ffi::c_char {
    let text = RECENT.with_borrow_mut(std::mem::take).join("\n").replace('\0', " ");
    GIVEN.with_borrow_mut(|given| {
        *given = CString::new(text).unwrap_or_default();
        given.as_ptr()
    })
}
