//! Where the libraries are, and how a symbol is found in them.

use std::{env, error::Error as _, fmt, path::PathBuf};

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_LAZY};

/// Why there are no libraries.
#[derive(Clone, Debug)]
pub struct OpenError(String);

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for OpenError {}

/// CANN's libraries, as far as they are there. They are never closed: threads of theirs may run to the end of the process.
#[derive(Debug)]
pub struct Libraries {
    found: Vec<&'static Library>,
}

/// Libraries of operators: one up to CANN 8.3, several from 8.5 on. A symbol's home moves, so all are searched.
const OPERATORS: [&str; 7] = [
    "libopapi.so",
    "libopapi_math.so",
    "libopapi_nn.so",
    "libopapi_transformer.so",
    "libopapi_cv.so",
    "libopapi_oam.so",
    "libopapi_legacy.so",
];

/// Folders that `set_env.sh` names, and where CANN is installed by default. The loader's own search comes first.
fn folders() -> Vec<PathBuf> {
    let named = ["ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME"];
    let named = named.iter().filter_map(env::var_os).map(PathBuf::from);
    let usual = ["/usr/local/Ascend/cann", "/usr/local/Ascend/ascend-toolkit/latest"];
    named.chain(usual.map(PathBuf::from)).map(|home| home.join("lib64")).collect()
}

/// Libraries of operators in the folders that `ASCEND_CUSTOM_OPP_PATH` lists.
fn custom_operators() -> Vec<&'static Library> {
    let Some(folders) = env::var_os("ASCEND_CUSTOM_OPP_PATH") else { return Vec::new() };
    let paths = env::split_paths(&folders).map(|f| f.join("op_api/lib/libcust_opapi.so"));
    let open = |path: PathBuf| {
        // SAFETY: as in `open`.
        let library = unsafe { Library::open(Some(path), RTLD_LAZY | RTLD_GLOBAL) }.ok()?;
        Some(&*Box::leak(Box::new(library)))
    };
    paths.filter_map(open).collect()
}

fn open(name: &str) -> Result<&'static Library, String> {
    let flags = RTLD_LAZY | RTLD_GLOBAL;
    // SAFETY: the vendor's libraries run no code at load but constructors of their own, as programs that link them rely on.
    let first = match unsafe { Library::open(Some(name), flags) } {
        Ok(library) => return Ok(Box::leak(Box::new(library))),
        // The loader's own words are in the cause.
        Err(error) => error.source().map_or_else(|| error.to_string(), ToString::to_string),
    };
    for folder in folders() {
        // SAFETY: as above.
        if let Ok(library) = unsafe { Library::open(Some(folder.join(name)), flags) } {
            return Ok(Box::leak(Box::new(library)));
        }
    }
    Err(first)
}

impl Libraries {
    /// Opens AscendCL, the aclnn base and the operators.
    ///
    /// # Errors
    /// If AscendCL, the base or every library of operators is missing, naming it and what the loader said.
    pub fn open() -> Result<Self, OpenError> {
        let missing = |what: &str, why: &str| {
            OpenError(format!(
                "no CANN toolkit: {what} cannot be loaded ({why}); install CANN and source its set_env.sh"
            ))
        };
        let runtime = open("libascendcl.so")
            .or_else(|why| open("libacl_rt.so").map_err(|_| missing("libascendcl.so", &why)))?;
        let base = open("libnnopbase.so").map_err(|why| missing("libnnopbase.so", &why))?;
        let operators: Vec<_> = OPERATORS.iter().filter_map(|name| open(name).ok()).collect();
        if operators.is_empty() {
            return Err(missing("libopapi.so or libopapi_nn.so", "none is there"));
        }
        // Operators that somebody installed come before those of the toolkit.
        let custom = custom_operators();
        Ok(Self { found: [runtime, base].into_iter().chain(custom).chain(operators).collect() })
    }

    /// Opens HCCL: one library up to CANN 8.3, two from 8.5 on.
    ///
    /// # Errors
    /// If there is none, with what the loader said.
    pub fn open_collectives() -> Result<Self, OpenError> {
        let first = open("libhccl.so").map_err(|why| {
            OpenError(format!(
                "no HCCL: libhccl.so cannot be loaded ({why}); devices that work together need the HCCL of a CANN toolkit: install it and \
                 source its set_env.sh"
            ))
        })?;
        Ok(Self { found: [Some(first), open("libhcomm.so").ok()].into_iter().flatten().collect() })
    }

    /// Opens the driver's management library.
    ///
    /// # Errors
    /// If it is not there, with what the loader said.
    pub fn open_management() -> Result<Self, OpenError> {
        let found = open("libdcmi.so").or_else(|why| {
            // Where the driver puts it, which is on no library path.
            // SAFETY: as in `open`.
            let library = unsafe { Library::open(Some("/usr/local/dcmi/libdcmi.so"), RTLD_LAZY) };
            library.map(|library| &*Box::leak(Box::new(library))).map_err(|_| why)
        });
        let found = found.map_err(|why| OpenError(format!("no DCMI: libdcmi.so ({why})")))?;
        Ok(Self { found: vec![found] })
    }

    /// The symbol of this name.
    ///
    /// # Safety
    /// `F` is the type of a pointer to the function of this name.
    pub(crate) unsafe fn symbol<F: Copy>(&self, name: &str) -> Option<F> {
        self.found.iter().find_map(|library| {
            // SAFETY: the caller's promise.
            unsafe { library.get::<F>(name) }.ok().map(|symbol| *symbol)
        })
    }
}
