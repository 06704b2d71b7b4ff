//! What goes wrong with GPUs, on the software GPU: each failure ends in one clear message, and the server stays able to say so.

mod common;

use std::path::Path;

use common::{
    Client, Server, body_of,
    failure::{error, lost, refused, says},
    golden::{PLAIN, answers_golden, greedy},
    gpu::{Machine, beside},
};
use serde_json::json;

/// A file that is no library, and hides those that a developer's machine may have.
fn nothing() -> tempfile::NamedTempFile {
    tempfile::NamedTempFile::new().expect("a file")
}

fn with_driver(path: &Path) -> Machine {
    Machine::with("l20").replacing("libcuda.so", path).replacing("libcuda.so.1", path)
}

#[test]
fn no_driver_or_one_that_is_of_no_use() {
    let nothing = nothing();
    let words = ["no libcuda.so.1", "NVIDIA driver is not installed", "library path"];
    refused(&mut with_driver(nothing.path()).serve("llama", &[]), &words);
    let other = with_driver(&beside("libhalyard_sim_nccl.so"));
    refused(&mut other.serve("llama", &[]), &["no NVIDIA driver", "cuDriverGetVersion"]);
    let old = Machine::with("l20").failing("version 11040");
    refused(&mut old.serve("llama", &[]), &["CUDA 11.4", "at least 12.2", "driver 535 or newer"]);
    let stub = Machine::with("l20").failing("34 call 1 of cuInit");
    refused(&mut stub.serve("llama", &[]), &["cuInit", "CUDA_ERROR_STUB_LIBRARY"]);
}

#[test]
fn a_cublaslt_that_is_wanted_must_be_there_and_work() {
    let nothing = nothing();
    let none = Machine::with("l20").with_cublaslt();
    let none = none.replacing("libcublasLt.so.12", nothing.path());
    refused(&mut none.serve("llama", &[]), &["HALYARD_CUDA_CUBLASLT is 1", "no cuBLASLt"]);
    let other = Machine::with("l20").with_cublaslt();
    let other = other.replacing("libcublasLt.so.12", &beside("libhalyard_sim_nccl.so"));
    refused(&mut other.serve("llama", &[]), &["no cublasLtGetVersion"]);
    let word = Machine::with("l20").set("HALYARD_CUDA_CUBLASLT", "yes");
    refused(&mut word.serve("llama", &[]), &["HALYARD_CUDA_CUBLASLT is yes", "expected 0"]);
}

#[test]
fn no_device_or_too_few_of_them() {
    let none = Machine::with("");
    refused(
        &mut none.serve("llama", &[]),
        &["cuda:0 is not there", "driver is there", "no device"],
    );
    let two = Machine::with("l20,l20");
    let words = ["--tensor-parallel-size 4 needs 4 devices", "cuda has 2"];
    refused(&mut two.serve("llama", &["-tp", "4"]), &words);
    let busy = Machine::with("l20").failing("46 call 1 of cuDevicePrimaryCtxRetain");
    refused(&mut busy.serve("llama", &[]), &["cannot open the device cuda:0", "unavailable"]);
    // More than the heads of keys and values, and no multiple of them.
    let three = Machine::with("l20,l20,l20");
    let words = ["num_attention_heads = 4", "multiple of 3", "1, 2, 4 work"];
    refused(&mut three.serve("llama", &["-tp", "3"]), &words);
}

#[test]
fn devices_that_share_a_model_need_nccl() {
    let nothing = nothing();
    let without = Machine::with("l20,l20").replacing("libnccl.so", nothing.path());
    let words = ["tensor_parallel_size", "no libnccl.so", "NCCL 2.18 or newer"];
    refused(&mut without.serve("llama", &["-tp", "2"]), &words);
    let other = Machine::with("l20,l20");
    let other = other.replacing("libnccl.so", &beside("libhalyard_sim_cuda.so"));
    refused(&mut other.serve("llama", &["-tp", "2"]), &["no NCCL", "ncclGetVersion"]);
}

#[test]
fn too_little_memory_is_said_with_the_numbers() {
    let small = Machine::with("l20:1M");
    let words = ["the model needs", "MiB for weights", "MiB for activations", "device's 1.0 MiB"];
    refused(&mut small.serve("llama", &[]), &words);
    let crowded = Machine::with("l20:16M");
    let flags = ["--max-model-len", "512", "--gpu-memory-utilization", "0.05"];
    refused(&mut crowded.serve("llama", &flags), &["gpu_memory_utilization = 0.05", "16.0 MiB"]);
    // The cache is larger than what there is.
    let flags = ["--kv-cache-memory-bytes", "128M"];
    let words = ["CUDA_ERROR_OUT_OF_MEMORY", "MiB are wanted", "of the device's 64 MiB are free"];
    refused(&mut Machine::with("l20:64M").serve("llama", &flags), &words);
    // Kernels do not find room: an error, not a device without the kernel.
    let full = Machine::with("l20").failing("2 call 1+ of cuModuleLoadData");
    let words = ["preparing", "module", "CUDA_ERROR_OUT_OF_MEMORY"];
    refused(&mut full.serve("llama", &[]), &words);
}

#[test]
fn a_device_that_is_lost_ends_all_requests_and_is_told_on_health() {
    for (code, name) in [
        (700, "CUDA_ERROR_ILLEGAL_ADDRESS"),
        (214, "CUDA_ERROR_ECC_UNCORRECTABLE"),
        (702, "CUDA_ERROR_LAUNCH_TIMEOUT"),
        (719, "CUDA_ERROR_LAUNCH_FAILED"),
        (999, "CUDA_ERROR_UNKNOWN"),
    ] {
        let machine = Machine::with("l20").failing(&format!("{code} launch 150 of attention"));
        let server = Server::run(&mut machine.serve("llama", &["--dtype", "float32"]));
        lost(server, "cuda:0", &[name, &format!("(vendor code {code})"), "attention_f32_f32"]);
    }
}

#[test]
fn a_kernel_that_does_not_end_is_named_with_its_line() {
    let machine = Machine::with("l20")
        .set("HALYARD_SIM_CUDA_PLANT", "attention_f32_f32; 1; ret; replace again: bra again")
        .set("HALYARD_SIM_CUDA_INSTRUCTIONS", "1000000");
    // Steps that are captured run once at the start, which would end there.
    let flags = ["--dtype", "float32", "--enforce-eager"];
    let server = Server::run(&mut machine.serve("llama", &flags));
    let words = ["CUDA_ERROR_LAUNCH_TIMEOUT", "kernel attention_f32_f32, PTX line", "does not end"];
    lost(server, "cuda:0", &words);
}

#[test]
fn a_rank_that_is_lost_is_named() {
    for rank in [0, 1] {
        let fault = format!("700 launch 150 of attention on {rank}");
        let machine = Machine::with("h100,h100").failing(&fault);
        let server = Server::run(&mut machine.serve("llama", &["--dtype", "float32", "-tp", "2"]));
        lost(server, "cuda:0", &[&format!("rank {rank} of 2"), "CUDA_ERROR_ILLEGAL_ADDRESS"]);
    }
}

#[test]
fn a_link_that_is_gone_is_told() {
    for rank in [0, 1] {
        let machine = Machine::with("h100,h100");
        let machine = machine.set("HALYARD_SIM_NCCL_FAULT", &format!("{rank}:100"));
        let server = Server::run(&mut machine.serve("llama", &["--dtype", "float32", "-tp", "2"]));
        // Both ranks find out; who is first is the one that is named.
        lost(server, "cuda:0", &["of 2", "remote process exited", &format!("rank {rank}")]);
    }
}

/// A call that finds no memory fails its requests, and the server goes on.
#[test]
fn memory_that_runs_out_while_serving_fails_one_step() {
    let machine = Machine::with("l20").failing("2 call 1000 of cuLaunchKernel");
    let server = Server::run(&mut machine.serve("llama", &["--dtype", "float32"]));
    let client: Client<'_> = server.client();
    let failed = body_of(client.send(PLAIN, &greedy(&json!("a"), 200)), 500);
    says(&error(&failed), &["the device failed", "CUDA_ERROR_OUT_OF_MEMORY", "cuLaunchKernel"]);
    assert_eq!(client.get("/health"), "");
    answers_golden(client, "llama");
}
