//! `cargo xtask mutants-cuda`: bugs planted one at a time in the CUDA backend's kernels, each of which the software GPU's checks or the
//! conformance suite must find.
//!
//! The library under test is the one that a user installs: the software GPU edits a kernel's text when its module is loaded, or leaves out
//! calls of the driver (`sim/cuda/driver/src/plant.rs`). Each bug has a process of its own.

use std::{collections::BTreeSet, process::Output};

use anyhow::{Result, bail, ensure};

use crate::{
    cuda::{build, halyard},
    tool::each,
};

/// The device of the tests: its kernels are compiled for the oldest architecture.
const DEVICE: &str = "a100-80g";

/// A bug.
struct Mutant {
    /// What a programmer did wrong.
    bug: &'static str,
    /// As `HALYARD_SIM_CUDA_PLANT` has it.
    plant: &'static str,
    /// Flags of `halyard verify` that choose cases which go through it.
    cases: &'static str,
}

const fn mutant(bug: &'static str, plant: &'static str, cases: &'static str) -> Mutant {
    Mutant { bug, plant, cases }
}

/// Flags of `cargo xtask mutants-cuda`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only bugs with this in their name or kernel
    part: Option<String>,
}

/// Plants the bugs; fails if one escapes.
pub(crate) fn mutants(args: &Args) -> Result<()> {
    build()?;
    plant(args)
}

/// The step of `cargo xtask test`, after everything is built.
pub(crate) fn test() -> Result<()> {
    plant(&Args { part: None })
}

fn plant(args: &Args) -> Result<()> {
    let wanted = |m: &&Mutant| {
        args.part.as_ref().is_none_or(|part| m.bug.contains(part) || m.plant.contains(part))
    };
    let mutants: Vec<_> = MUTANTS.iter().filter(wanted).collect();
    ensure!(!mutants.is_empty(), "no bug has this in its name");
    let cases: Vec<_> =
        mutants.iter().map(|m| m.cases).collect::<BTreeSet<_>>().into_iter().collect();
    let unspoilt = each(&cases, |cases| {
        let done = verify(cases, None)?;
        ensure!(done.status.success(), "`{cases}` fails without a bug:\n{}", text(&done));
        Ok(())
    });
    unspoilt.into_iter().collect::<Result<()>>()?;
    let mut escaped = Vec::new();
    let outcomes = each(&mutants, |m| catch(m));
    for (mutant, caught) in mutants.iter().zip(outcomes) {
        match caught? {
            Some((by, how)) => println!("{:<62} {by:<11} {how:.110}", mutant.bug),
            None => escaped.push(format!("{} ({})", mutant.bug, mutant.plant)),
        }
    }
    ensure!(escaped.is_empty(), "escaped:\n{}", escaped.join("\n"));
    println!("{} bugs, each caught.", mutants.len());
    Ok(())
}

/// Who caught a bug, and what it said; `None` if nobody did.
fn catch(mutant: &Mutant) -> Result<Option<(&'static str, String)>> {
    let done = verify(mutant.cases, Some(mutant.plant))?;
    if done.status.success() {
        return Ok(None);
    }
    let text = text(&done);
    let mut lines = text.lines().map(str::trim);
    let said = lines.find(|line| line.starts_with("FAILED")).and_then(|_| lines.nth(1));
    let Some(said) = said else {
        bail!("{} ({}): no case failed:\n{text}", mutant.bug, mutant.plant);
    };
    // An edit that has no place, or that is no PTX, shows nothing.
    if text.contains("cuModuleLoad") {
        bail!("{} ({}): {said}", mutant.bug, mutant.plant);
    }
    // `kernel K, PTX line N, ...`
    let fault = said.find(", PTX line").and_then(|line| said[..line].rfind("kernel "));
    Ok(Some(match fault {
        Some(at) => ("checks", said[at..].to_owned()),
        None => ("conformance", said.to_owned()),
    }))
}

fn verify(cases: &str, plant: Option<&str>) -> Result<Output> {
    let mut halyard = halyard(DEVICE)?;
    halyard.args(["verify", "cuda"]).args(cases.split(' '));
    // There are as many processes as cores.
    halyard.env("HALYARD_SIM_CUDA_THREADS", "1");
    if let Some(plant) = plant {
        halyard.env("HALYARD_SIM_CUDA_PLANT", plant);
    }
    Ok(halyard.output()?)
}

fn text(done: &Output) -> String {
    let both = [&done.stdout[..], &done.stderr].concat();
    String::from_utf8_lossy(&both).into_owned()
}

/// The bugs.
const MUTANTS: &[Mutant] = &[
    mutant(
        "norm: no barrier in a sum over the block",
        "rms_norm_f32; 1; bar.sync; drop",
        "--op rms_norm --case rms_norm_shapes",
    ),
    mutant(
        "norm: a warp's part of the sum is not stored",
        "rms_norm_f32; 1; st.shared; drop",
        "--op rms_norm --case rms_norm_shapes",
    ),
    mutant(
        "norm: shared memory written one past the end",
        "rms_norm_f32; 1; st.shared; shift 4",
        "--op rms_norm --case rms_norm_shapes",
    ),
    mutant(
        "norm: lanes are summed twice",
        "rms_norm_f32; 1; , 16, 31, -1; replace , 8, 31, -1",
        "--op rms_norm --case rms_norm_shapes",
    ),
    mutant(
        "norm: one column too many",
        "rms_norm_f32; 2; setp.lt.u32; replace setp.le.u32",
        "--op rms_norm --case rms_norm_shapes",
    ),
    mutant(
        "add: every element stored one too far",
        "add_f32; 1; st.global; shift 4",
        "--op add --case add_shapes",
    ),
    mutant(
        "mul: every element stored one too far",
        "mul_f32; 1; st.global; shift 4",
        "--op mul --case mul_shapes",
    ),
    mutant(
        "act_mul: a wrong exponential",
        "act_mul_f32; 1; ex2.approx.f32; replace neg.f32",
        "--op act_mul --case act_mul",
    ),
    mutant(
        "copy: cut off instead of rounded",
        "copy_f32_bf16; 1; cvt.rn.bf16.f32; replace cvt.rz.bf16.f32",
        "--op copy --case copy_floats",
    ),
    mutant(
        "copy: integers cut off instead of rounded",
        "convert; 1; cvt.rni.s64.f32; replace cvt.rzi.s64.f32",
        "--op copy --case copy_integers",
    ),
    mutant("rope: the sine's sign", "rope_f32; 1; neg.f32; replace mov.f32", "--op rope"),
    mutant(
        "rope: positions beyond the table are not checked",
        "rope_f32; 2; setp.ge.u32; drop",
        "--op rope",
    ),
    mutant(
        "gather: negative indices are not checked",
        "gather_rows_b32; 1; setp.gt.s32; drop",
        "--op gather_rows",
    ),
    mutant(
        "gather: rows are not ended",
        "gather_rows_b16; 1; min.u32; replace max.u32",
        "--op gather_rows --case gather_rows",
    ),
    mutant(
        "embedding: ids beyond the table are not checked",
        "embedding_f32_f32; 1; setp.ge.u32; drop",
        "--op embedding",
    ),
    mutant(
        "gemm: no wait for the copies of a stage",
        "gemm_64_bf16; 2; cp.async.wait_group; drop",
        "--op linear --case linear_many_rows",
    ),
    mutant(
        "gemm: no barrier after the wait for a stage",
        "gemm_64_bf16; 3; bar.sync; drop",
        "--op linear --case linear_many_rows",
    ),
    mutant(
        "gemm: no barrier between sums and their stores",
        "gemm_64_bf16; 2; bar.sync; drop",
        "--op linear --case linear_many_rows",
    ),
    mutant(
        "gemm: stages become sums before all are read",
        "gemm_64_bf16; 1; bar.sync; drop",
        "--op linear --case linear_deep",
    ),
    mutant(
        "gemm: copies of a stage are not committed",
        "gemm_64_bf16; 4; cp.async.commit_group; drop",
        "--op linear --case linear_many_rows",
    ),
    mutant(
        "gemm: a copy to the next chunk",
        "gemm_64_bf16; 3; cp.async.cg.shared.global; shift 16",
        "--op linear --case linear_many_rows",
    ),
    mutant(
        "gemm: fragments transposed",
        "gemm_64_bf16; 1; ldmatrix.sync.aligned.m8n8.x4; replace ldmatrix.sync.aligned.m8n8.x4.trans",
        "--op linear --case linear_many_rows",
    ),
    mutant(
        "gemm: products of another type",
        "gemm_64_bf16; 1; f32.bf16.bf16.f32; replace f32.f16.f16.f32",
        "--op linear --case linear_many_rows",
    ),
    mutant(
        "gemm: a sum in its neighbour's place",
        "gemm_64_bf16; 5; st.shared.f32; shift 8",
        "--op linear --case linear_many_rows",
    ),
    mutant(
        "gemm of 16 rows: no barrier before warps are summed",
        "gemm_16_bf16; 1; bar.sync; drop",
        "--op linear --case linear_sizes",
    ),
    mutant(
        "gemm of 16 rows: half a product missing",
        "gemm_16_bf16; 2; mma.sync; drop",
        "--op linear --case linear_sizes",
    ),
    mutant(
        "gemm of 16 rows: weights eight columns on",
        "gemm_16_bf16; 3; ld.global.v4.u32; shift 16",
        "--op linear --case linear_sizes",
    ),
    mutant(
        "gemm of codes: no wait for the copies of a stage",
        "gemm_64_bf16_q4_k; 2; cp.async.wait_group; drop",
        "--op linear --case quant_linear_prefill",
    ),
    mutant(
        "gemm of codes: no barrier after the wait for a stage",
        "gemm_64_bf16_q4_k; 3; bar.sync; drop",
        "--op linear --case quant_linear_prefill",
    ),
    mutant(
        "gemm of codes: a tile of x in the stage after its own",
        "gemm_64_bf16_q4_k; 9; cp.async.cg.shared.global; shift 8192",
        "--op linear --case quant_linear_prefill",
    ),
    mutant(
        "gemm of codes: a fragment of the next chunk",
        "gemm_64_bf16_q4_k; 3; ldmatrix.sync.aligned.m8n8.x4; shift 16",
        "--op linear --case quant_linear_prefill",
    ),
    mutant(
        "gemm of codes: the next group's scale",
        "gemm_64_bf16_q4_k; 1; ld.shared.f32; shift 256",
        "--op linear --case quant_linear_prefill",
    ),
    mutant(
        "gemm of codes: minima of half a group's x",
        "gemm_64_bf16_q4_k; 9; mma.sync; drop",
        "--op linear --case quant_linear_prefill",
    ),
    mutant(
        "gemm of codes: codes of the next row",
        "gemm_128_bf16_q4_k; 5; st.shared.v4; shift 128",
        "--op linear --case quant_linear_tiles",
    ),
    mutant(
        "gemm of i8: half the columns of a tile missing",
        "gemm_64_i8; 9; mma.sync; drop",
        "--op linear --case act_quant_linear_tall",
    ),
    mutant(
        "gemm of i8: no wait for the copies of a stage",
        "gemm_64_i8; 1; cp.async.wait_group; drop",
        "--op linear --case act_quant_linear_tall",
    ),
    mutant(
        "codes of activations: scales are not stored",
        "stage_bf16_e4m3_bf16; 1; st.global.f32; drop",
        "--op linear --case act_quant_linear",
    ),
    mutant(
        "gemm without tensor cores: tiles overwritten too soon",
        "gemm_simt_f32_f32; 1; bar.sync; drop",
        "--op linear --case linear_many_rows",
    ),
    mutant(
        "gemm without tensor cores: tiles read too soon",
        "gemm_simt_f32_f32; 2; bar.sync; drop",
        "--op linear --case linear_many_rows",
    ),
    mutant(
        "gemm without tensor cores: a column of a tile missing",
        "gemm_simt_f32_f32; 7; st.shared; drop",
        "--op linear --case linear_many_rows",
    ),
    mutant(
        "gemv: columns four on",
        "gemv_1_f32_f32; 2; ld.global.v4.f32; shift 16",
        "--op linear --case linear_sizes",
    ),
    mutant(
        "gemv: lanes not summed",
        "gemv_1_f32_f32; 3; shfl.sync.bfly; drop",
        "--op linear --case linear_sizes",
    ),
    mutant(
        "cache: rows written 16 bytes too far",
        "kv_write_f32_f32; 1; st.global.v4; shift 16",
        "--op kv_write --case kv_write_heads",
    ),
    mutant(
        "cache: gathered one element too far",
        "kv_gather_f32_f32; 1; st.global; shift 4",
        "--op kv_gather",
    ),
    mutant(
        "attention: scores read before they are there",
        "attention_f32_f32; 1; bar.sync; drop",
        "--op paged_attention --case decode",
    ),
    mutant(
        "attention: parts merged with a wrong exponential",
        "merge_attention_f32; 1; ex2.approx.f32; replace neg.f32",
        "--op merge_attention",
    ),
    mutant(
        "qkv_post: heads normed before they are loaded",
        "qkv_post_f32_f32; 1; bar.warp.sync; drop",
        "--op qkv_post --case qkv_post",
    ),
    mutant(
        "qkv_post: heads stored before they are turned",
        "qkv_post_f32_f32; 2; bar.warp.sync; drop",
        "--op qkv_post --case qkv_post",
    ),
    mutant(
        "quant_act: codes cut off instead of rounded",
        "quant_act_f32_i8; 1; cvt.rni.f32.f32; replace cvt.rzi.f32.f32",
        "--op quant_act --case quant_act",
    ),
    mutant(
        "quant_act: the largest of half a group",
        "quant_act_bf16_e4m3; 1; shfl.sync.bfly; drop",
        "--op quant_act --case quant_act",
    ),
    mutant(
        "rms_norm_quant: no barrier in a sum over the block",
        "rms_norm_quant_f32_i8; 1; bar.sync; drop",
        "--op rms_norm_quant --case rms_norm_quant_range",
    ),
    mutant(
        "argmax: the last place instead of the first",
        "argmax_f32; 1; min.u64; replace max.u64",
        "--op argmax --case argmax",
    ),
    mutant(
        "argmax: no barrier before warps are compared",
        "argmax_f32; 1; bar.sync; drop",
        "--op argmax --case argmax",
    ),
    mutant(
        "logprobs: not below the largest",
        "logprobs_f32; 1; sub.f32; replace add.f32",
        "--op logprobs",
    ),
    mutant(
        "logprobs: no barrier before warps are compared",
        "logprobs_bf16; 1; bar.sync; drop",
        "--op logprobs --case logprobs",
    ),
    mutant(
        "logits_process: penalties before biases are there",
        "logits_process; 1; bar.sync; drop",
        "--op logits_process",
    ),
    mutant(
        "topk: a table is not cleared",
        "topk_f32; 1; st.shared.u32; drop",
        "--op topk --case topk",
    ),
    mutant(
        "topk: an element is not counted",
        "topk_f32; 1; atom.shared.add.u32; drop",
        "--op topk --case topk",
    ),
    mutant(
        "topk: a list filled before it is cleared",
        "topk_f32; 11; bar.sync; drop",
        "--op topk --case topk_many",
    ),
    mutant(
        "sample: a share of the mass by its low half",
        "sample_f32; 1; mul.hi.u64; replace mul.lo.u64",
        "--op sample --case sample_traps",
    ),
    mutant(
        "router: the last place instead of the first",
        "moe_router; 1; min.u64; replace max.u64",
        "--op moe_router --case router_softmax",
    ),
    mutant(
        "router: groups scored before keys are there",
        "moe_router; 1; bar.warp.sync; drop",
        "--op moe_router --case router_groups",
    ),
    mutant("moe_sort: counts read too soon", "moe_sort; 2; bar.sync; drop", "--op moe_permute"),
    mutant(
        "moe_sort: experts of other ranks are taken",
        "moe_sort; 1; setp.lt.s64; drop",
        "--op moe_permute",
    ),
    mutant(
        "moe_permute: rows one element on",
        "moe_permute_b32; 1; ld.global.u32; shift 4",
        "--op moe_permute",
    ),
    mutant(
        "moe_unpermute: cut off instead of rounded",
        "moe_unpermute_f32_bf16; 9; cvt.rn.bf16.f32; replace cvt.rz.bf16.f32",
        "--op moe_unpermute",
    ),
    mutant(
        "experts: columns four on",
        "experts_gates_f32; 2; ld.global.v4.f32; shift 16",
        "--op moe_experts --case experts_slice",
    ),
    mutant(
        "experts: lanes not summed",
        "experts_sums_f32; 1; shfl.sync.bfly; drop",
        "--op moe_experts --case experts_slice",
    ),
    mutant("a stream does not wait for an event", "skip cuStreamWaitEvent", "--case streams"),
    mutant("an event is not recorded", "skip cuEventRecord", "--case streams"),
    mutant("inputs are not copied", "skip cuMemcpyHtoDAsync_v2", "--op gather_rows"),
    mutant("memory is not filled", "skip cuMemsetD32Async", "--case streams"),
];
