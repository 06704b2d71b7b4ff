//! The oracle as a loadable backend.
