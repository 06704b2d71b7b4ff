//! For hosts: loader, trust checks, safe handles over a backend.
