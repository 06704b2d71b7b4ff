//! How fast kernels are interpreted: `cargo bench -p halyard-sim-cuda-exec [NAME]`. One worker, so figures are a core's.
#![expect(clippy::print_stdout, reason = "a benchmark reports on the terminal")]
#![allow(missing_docs, reason = "not a library")]

#[path = "../tests/machine/mod.rs"]
mod machine;

use halyard_sim_cuda_exec::Counters;
use machine::{Arg, Machine};
use std::time::Duration;
use std::{env, fs};

const GEMM: &str = include_str!("../../kernels/ptx/gemm.sm_80.ptx");
const WGMMA: &str = include_str!("../tests/triton/matmul_wide.sm_90.ptx");
const NORM: &str = include_str!("../../kernels/ptx/rms_norm.sm_80.ptx");
const DECODE: &str = include_str!("../../kernels/ptx/paged_decode.sm_80.ptx");

/// Time that this thread has had the processor: what else the machine does must not count.
fn used() -> Duration {
    let text = fs::read_to_string("/proc/thread-self/schedstat").expect("Linux counts it");
    let nanoseconds = text.split(' ').next().and_then(|first| first.parse().ok());
    Duration::from_nanos(nanoseconds.expect("a number"))
}

/// What time is counted to may be a hundredth of this.
const LONG_ENOUGH: Duration = Duration::from_millis(400);

/// The fastest of three rows of launches: what one of them takes, and counts.
fn best(run: impl Fn() -> Counters) -> (Duration, Counters) {
    let timed = |_| {
        let start = used();
        for launches in 1.. {
            let counters = run();
            let time = used() - start;
            if time >= LONG_ENOUGH {
                return (time / launches, counters);
            }
        }
        unreachable!("a row ends")
    };
    (0..3).map(timed).min_by_key(|timed| timed.0).expect("three rows")
}

/// Runs and reports, unless the command line names another.
fn report(name: &str, run: impl Fn() -> Counters) {
    let wanted = env::args().nth(1).filter(|wanted| !wanted.starts_with("--"));
    if wanted.is_some_and(|wanted| !name.contains(&wanted)) {
        return;
    }
    let (time, counters) = best(run);
    let nanoseconds = time.as_nanos() as f64;
    println!(
        "{name}: {:.1} ms, {:.1} ns a warp instruction, {:.2} G thread instructions/s, {:.1} GFLOP/s in mma",
        nanoseconds / 1e6,
        nanoseconds / counters.issued() as f64,
        counters.thread_instructions as f64 / nanoseconds,
        counters.tensor_ops as f64 / nanoseconds,
    );
}

fn ones(machine: &Machine, count: usize) -> u64 {
    machine.buffer(&vec![0x3f80u16; count], u16::to_le_bytes)
}

fn main() {
    let machine = Machine::with_helpers(GEMM, 0);
    let n = 512u32;
    let [a, b, c] = [(); 3].map(|()| ones(&machine, (n * n) as usize));
    report("gemm 512x512x512 by mma", || {
        let args = [c.into(), a.into(), b.into(), n.into(), n.into(), n.into()];
        machine
            .launch("gemm_bf16_nt", ([n / 64, n / 64, 1], [128, 1, 1], 24_576), &args)
            .expect("no fault")
    });

    let machine = Machine::with_helpers(WGMMA, 0);
    let [a, b, c] = [(); 3].map(|()| ones(&machine, (n * n) as usize));
    report("gemm 512x512x512 by wgmma", || {
        let args =
            [c.into(), a.into(), b.into(), n.into(), n.into(), n.into(), 0u64.into(), 0u64.into()];
        machine
            .launch("matmul", ([n / 128, n / 128, 1], [256, 1, 1], 98_304), &args)
            .expect("no fault")
    });

    let machine = Machine::with_helpers(NORM, 0);
    let (rows, width) = (256u32, 4096u32);
    let [x, w, out] =
        [rows * width, width, rows * width].map(|count| ones(&machine, count as usize));
    report("rms_norm 256x4096", || {
        let args = [out.into(), x.into(), w.into(), 1e-5f32.into(), width.into()];
        machine.launch("rms_norm_bf16", ([rows, 1, 1], [256, 1, 1], 0), &args).expect("no fault")
    });

    let machine = Machine::with_helpers(DECODE, 0);
    let (seqs, heads, kv_heads, pages) = (4u32, 16u32, 4u32, 64u32);
    let [q, out] = [(); 2].map(|()| ones(&machine, (seqs * heads * 128) as usize));
    let [k, v] = [(); 2].map(|()| ones(&machine, (seqs * pages * 16 * kv_heads * 128) as usize));
    let table = machine.u32s(&(0..seqs * pages).collect::<Vec<_>>());
    let lens = machine.u32s(&vec![pages * 16; seqs as usize]);
    report("paged_decode 4x16 heads, 1024 keys", || {
        let mut shape = Arg::from(heads);
        shape.extend([kv_heads, pages, 16]);
        let args = [
            out.into(),
            q.into(),
            k.into(),
            v.into(),
            table.into(),
            lens.into(),
            0.1f32.into(),
            shape,
        ];
        machine
            .launch("paged_decode_bf16", ([seqs, heads, 1], [128, 1, 1], 0), &args)
            .expect("no fault")
    });
}
