//! The CPU backend as a loadable backend.
