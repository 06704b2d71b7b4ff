//! The CPU backend as a loadable backend, through both doors.

halyard_sdk::export_backend!(halyard_cpu::Cpu);
halyard_sdk::export_c!(halyard_cpu::Cpu);
