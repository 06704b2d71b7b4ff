//! The CPU backend as a loadable backend.

halyard_sdk::export_backend!(halyard_cpu::Cpu);
