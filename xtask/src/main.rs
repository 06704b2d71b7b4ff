//! `cargo xtask`: every command a person or CI needs.
#![expect(clippy::print_stdout, reason = "a command-line tool talks to its user")]

mod ascend;
mod ascend_headers;
mod bench;
mod cuda;
mod demo;
mod docs;
mod example;
mod example_c;
mod figures;
mod hw_check;
mod model;
mod mutants;
mod mutants_cuda;
mod ptx;
mod test;
mod tool;

use clap::{Parser, Subcommand};

/// Tasks of the Halyard workspace.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Fetch a small real model, serve it, and stream one answer
    Demo(demo::Args),
    /// Run everything CI runs
    Test(test::Args),
    /// Compile the CUDA kernels to PTX with clang, and assemble them with the vendor's assembler: no spills
    Ptx(ptx::Args),
    /// Run `halyard verify cuda` on the software GPU, as each of its devices
    VerifyCuda(cuda::Args),
    /// What the CUDA kernels do, counted on the software GPU: bytes against the least, tensor cores, bank conflicts, roofline
    CudaFigures(cuda::FiguresArgs),
    /// Run `halyard verify ascend` on the software NPU, with the libraries of each release of CANN
    VerifyAscend(ascend::Args),
    /// Prove and time a backend on this machine's devices, and write a report to docs/hardware
    HwCheck(hw_check::Args),
    /// Compare the declarations of CANN with the vendor's headers: those of the torch-npu wheel, or an installed toolkit's
    AscendHeaders(ascend_headers::Args),
    /// Write docs/ops.md from the op catalogue
    Docs,
    /// Plant bugs in the reference backend and count those that the conformance suite catches
    Mutants(mutants::Args),
    /// Plant bugs in the CUDA backend's kernels, each of which the software GPU or the conformance suite must find
    MutantsCuda(mutants_cuda::Args),
    /// Measure what README.md says of the conformance suite: cases, times, mutation score (best on a quiet machine)
    Figures,
    /// Measure the demo model beside llama.cpp's llama-bench
    Bench(bench::Args),
}

fn main() -> anyhow::Result<()> {
    // Everything below speaks of paths from the root.
    std::env::set_current_dir(tool::root())?;
    match Cli::parse().task {
        Task::Demo(args) => demo::demo(&args),
        Task::Test(args) => test::test(&args),
        Task::Ptx(args) => ptx::ptx(&args),
        Task::VerifyCuda(args) => cuda::verify(&args),
        Task::CudaFigures(args) => cuda::figures(&args),
        Task::VerifyAscend(args) => ascend::verify(&args),
        Task::HwCheck(args) => hw_check::check(&args),
        Task::AscendHeaders(args) => ascend_headers::check(&args),
        Task::Docs => docs::docs(),
        Task::Mutants(args) => mutants::mutants(&args),
        Task::MutantsCuda(args) => mutants_cuda::mutants(&args),
        Task::Figures => figures::figures(),
        Task::Bench(args) => bench::bench(&args),
    }
}
