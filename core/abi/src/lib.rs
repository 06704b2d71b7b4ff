//! The contract between Halyard and a backend: identifiers, structs, traits and the op catalogue.
