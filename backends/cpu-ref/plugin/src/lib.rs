//! The oracle as a loadable backend.

halyard_sdk::export_backend!(halyard_cpu_ref::CpuRef);
