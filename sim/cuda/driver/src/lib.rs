//! A substitute for the CUDA driver library, for machines without a GPU: its devices execute PTX on the processor.
//!
//! Load the library by its path and leave it loaded. It is named `libcuda.so` inside, so that a later
//! `dlopen("libcuda.so")`, such as cudarc's, finds this one. `HALYARD_SIM_CUDA_DEVICES=h100,h100` names the devices
//! (`a100-80g`, `a100-40g`, `h100`, `l20`, `rtx4090`; by default one A100), `HALYARD_SIM_CUDA_SEED` decides the order of
//! blocks and warps, `HALYARD_SIM_CUDA_THREADS` how many threads execute kernels.
//!
//! What a kernel does wrong ends its launch: the context fails from then on, as a real one does, and
//! `cuGetErrorString` says which kernel, PTX line, block and thread did what.
//!
//! - `api`: the C functions; `code`: their results; `driver`: devices and handles
//! - `plant`: bugs that are put in on request, to show that tests find them; `faults`: failures of hardware and driver, likewise
//! - `stream`, `event`, `graph`: work that is done while the caller goes on, and its order
#![allow(non_snake_case, reason = "the entries have the names of the driver API")]

mod api;
mod code;
mod driver;
mod event;
mod faults;
mod graph;
mod plant;
mod stream;
