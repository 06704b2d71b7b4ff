//! Finds, checks and loads backend libraries.
//!
//! `dlopen` runs a library's constructors, so everything that decides *whether* it loads comes first ([`trust`]). A loaded backend
//! has all the rights of the process; it is never unloaded.

mod layout;
mod library;
mod search;
mod trust;

use std::path::PathBuf;

use serde::Deserialize;

pub use library::load;
pub use search::{Found, Manifest, SearchPath, discover};
pub use trust::{Trust, sha256_of};

/// How a library is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Door {
    /// `abi_stable` objects, checked type by type.
    Rust,
    /// The function table of `halyard_backend.h`.
    C,
}

impl std::fmt::Display for Door {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Rust => "rust",
            Self::C => "c",
        })
    }
}

impl std::str::FromStr for Door {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "rust" => Ok(Self::Rust),
            "c" => Ok(Self::C),
            other => Err(format!("`{other}` is no door: rust or c")),
        }
    }
}

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
        "backend {path}: not a Halyard backend (it exports neither a `halyard_sdk::export_backend!` module nor `halyard_backend_v1`)"
    )]
    NotABackend {
        /// Which file.
        path: PathBuf,
    },
    /// It does not have the door that was asked for.
    #[error("backend {path}: it has no {door} door, which its manifest or --door asks for")]
    NoDoor {
        /// Which file.
        path: PathBuf,
        /// The door.
        door: Door,
    },
    /// It is loaded already, through another door than the one asked for.
    #[error("backend {path}: it is loaded already, through its {loaded} door")]
    OtherDoor {
        /// Which file.
        path: PathBuf,
        /// The door it came through.
        loaded: Door,
    },
    /// Its table of the C door lacks what every backend must have.
    #[error("backend {path}: its table lacks the required entry `{entry}`")]
    MissingEntry {
        /// Which file.
        path: PathBuf,
        /// The entry, as the header calls it.
        entry: &'static str,
    },
    /// It was built against another version of the boundary.
    #[error(
        "backend {path}: built for Halyard ABI {theirs}, this host speaks {ours}; rebuild it with a matching halyard-sdk or halyard_backend.h"
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
