//! Finds, checks and loads backend libraries.
//!
//! `dlopen` runs a library's constructors, so everything that decides *whether* it loads comes first ([`trust`]). A loaded backend
//! has all the rights of the process; it is never unloaded.

mod layout;
mod library;
mod search;
mod trust;

use std::path::PathBuf;

pub use library::load;
pub use search::{Found, Manifest, SearchPath, discover};
pub use trust::{Trust, sha256_of};

/// Why a library was not loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The file cannot be read.
    #[error("backend {path}: cannot be read")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A check before loading said no.
    #[error("backend {path} is not trusted: {reason}")]
    Untrusted {
        /// Which file.
        path: PathBuf,
        /// What is wrong and what to do.
        reason: String,
    },
    /// The manifest beside the library is malformed or contradicts it.
    #[error("manifest {path}: {reason}")]
    Manifest {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The system's loader refused it: not a library, wrong architecture, a missing symbol.
    #[error("backend {path}: the system cannot load it: {reason}")]
    Open {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// It is a library, but no backend.
    #[error(
        "backend {path}: not a Halyard backend (it exports no `halyard_sdk::export_backend!` module)"
    )]
    NotABackend {
        /// Which file.
        path: PathBuf,
    },
    /// It speaks through the C door, which this host does not open yet.
    #[error("backend {path}: it exports `{symbol}`; this host loads Rust-door backends only")]
    CDoor {
        /// Which file.
        path: PathBuf,
        /// Its entry.
        symbol: &'static str,
    },
    /// It was built against another version of the boundary.
    #[error(
        "backend {path}: built for Halyard ABI {theirs}, this host speaks {ours}; rebuild it with a matching halyard-sdk"
    )]
    Version {
        /// Which file.
        path: PathBuf,
        /// Version it was built against.
        theirs: String,
        /// Version of this host.
        ours: String,
    },
    /// Its types are laid out differently although the version is the same.
    #[error("backend {path}: its types differ from this host's: {}", differences.join("; "))]
    Layout {
        /// Which file.
        path: PathBuf,
        /// Each difference, from the outside in.
        differences: Vec<String>,
    },
    /// Its module could not be made.
    #[error("backend {path}: its entry failed: {reason}")]
    Init {
        /// Which file.
        path: PathBuf,
        /// What it said.
        reason: String,
    },
    /// Another library with the same id is loaded already.
    #[error("backend {path}: id `{id}` is already taken by {other}")]
    Duplicate {
        /// Which file.
        path: PathBuf,
        /// The id.
        id: String,
        /// The library that has it.
        other: PathBuf,
    },
}
