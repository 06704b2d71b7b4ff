//! Kernels with one mistake each in what devices of capability 9.0 have beside: it must be found, and located. Where a line is
//! marked `FIX`, the kernel with it must run without a fault, whatever the order of warps.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "tests: sizes are small")]

mod machine;

use halyard_sim_cuda_exec::Fault;
use halyard_sim_cuda_exec::FaultKind::{self, *};
use machine::{Arg, Machine};
use std::cell::Cell;

struct Misuse {
    name: &'static str,
    kind: FaultKind,
    threads: u32,
    /// The mistake's line ends with `// HERE`. `%rd1` is a buffer of 4096 words, `%rd3` one of zeros, `%r1` the thread, `%p1`
    /// holds for the first, `%p2` for the first warp; `INIT n` makes an mbarrier for n arrivals at 0, `WAIT n` waits for parity n,
    /// `LOAD` brings 256 bytes to 1024, `PRODUCT` is a wgmma of 64x8 whose A is at 1024 and B at 4096.
    body: &'static str,
    says: &'static str,
}

const BASE: Misuse = Misuse { name: "", kind: Trap, threads: 128, body: "", says: "" };

const MISUSES: &[Misuse] = &[
    Misuse {
        name: "an arrival where no mbarrier is",
        kind: Mbarrier,
        body: "INIT 1\nbar.sync 0;\nmbarrier.arrive.shared::cta.b64 _, [8]; // HERE",
        says: "no mbarrier is initialised at 0x8",
        ..BASE
    },
    Misuse {
        name: "an arrival before the initialisation is known",
        kind: Mbarrier,
        body: "INIT 128\nbar.sync 0; // FIX\nmbarrier.arrive.shared::cta.b64 _, [0]; // HERE",
        says: "mbarrier",
        ..BASE
    },
    Misuse {
        name: "an mbarrier for no arrivals",
        kind: Mbarrier,
        body: "@%p1 mbarrier.init.shared::cta.b64 [0], 0; // HERE",
        says: "it counts from 1 to 1048575",
        ..BASE
    },
    Misuse {
        name: "more arrivals than are missing",
        kind: Mbarrier,
        body: "INIT 2\nbar.sync 0;\n@%p1 mbarrier.arrive.shared::cta.b64 _, [0], 3; // HERE",
        says: "3 arrivals at the mbarrier at 0x0, where 2 of 2 are missing",
        ..BASE
    },
    Misuse {
        name: "an arrival that may not complete the phase, and does",
        kind: Mbarrier,
        body: "INIT 1\nbar.sync 0;\n@%p1 mbarrier.arrive.noComplete.shared::cta.b64 %rd5, [0], 1; // HERE",
        says: "arrive.noComplete completes the phase",
        ..BASE
    },
    Misuse {
        name: "more bytes than an mbarrier counts",
        kind: Mbarrier,
        body: "INIT 1\nbar.sync 0;\n@%p1 mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [0], 1048576; // HERE",
        says: "1048576 bytes are missing",
        ..BASE
    },
    Misuse {
        name: "bytes that never come",
        kind: Mbarrier,
        body: "INIT 1\nbar.sync 0;\n@%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [0], 512;\nLOAD\n@%p1 cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [2048], [%rd1], 256, [0]; // FIX\nWAIT 0 // HERE",
        says: "the mbarrier at 0x0 never completes phase 0 (parity 0): 0 of 1 arrivals and 256 bytes are missing",
        ..BASE
    },
    Misuse {
        name: "more bytes than are expected",
        kind: Mbarrier,
        body: "INIT 1\nbar.sync 0;\nLOAD\n@%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [0], 128;\n@%p1 mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [0], 128; // FIX\nWAIT 0 // HERE",
        says: "128 bytes more came than were expected",
        ..BASE
    },
    Misuse {
        name: "a wait for the phase after the last",
        kind: Mbarrier,
        body: "INIT 1\nbar.sync 0;\n@%p1 mbarrier.arrive.shared::cta.b64 _, [0];\nWAIT 0\nbar.sync 0; // FIX\n@%p1 mbarrier.arrive.shared::cta.b64 _, [0]; // FIX\nWAIT 1 // HERE",
        says: "never completes phase 1 (parity 1): 1 of 1 arrivals",
        ..BASE
    },
    Misuse {
        name: "a wait for a phase long over",
        kind: Mbarrier,
        threads: 32,
        body: "INIT 1\nbar.warp.sync -1;\n@%p1 mbarrier.arrive.shared::cta.b64 %rd5, [0];\n@%p1 mbarrier.arrive.shared::cta.b64 _, [0];\n@%p1 mbarrier.test_wait.shared::cta.b64 %p4, [0], %rd5; // HERE",
        says: "a wait for phase 0 of the mbarrier at 0x0, which is at phase 2",
    },
    Misuse {
        name: "an mbarrier that is read as data",
        kind: AsyncCopyPending,
        body: "INIT 1\nbar.sync 0;\nld.shared.u32 %r5, [4]; // HERE",
        says: "which is part of the mbarrier initialised at line",
        ..BASE
    },
    Misuse {
        name: "an mbarrier that ends while others may use it",
        kind: Mbarrier,
        body: "INIT 128\nbar.sync 0;\nmbarrier.arrive.shared::cta.b64 _, [0];\nWAIT 0\nbar.sync 0; // FIX\n@%p1 mbarrier.inval.shared::cta.b64 [0]; // HERE",
        says: "the mbarrier at 0x0",
        ..BASE
    },
    Misuse {
        name: "a read of what a bulk copy has not delivered",
        kind: AsyncCopyPending,
        body: "INIT 1\nbar.sync 0;\n@%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [0], 256;\nLOAD\nbar.sync 0;\nWAIT 0 // FIX\nld.shared.u32 %r5, [1024]; // HERE",
        says: "has not delivered",
        ..BASE
    },
    Misuse {
        name: "a wait for the other parity than the copy's",
        kind: Mbarrier,
        body: "INIT 1\nbar.sync 0;\n@%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [0], 256;\nLOAD\nbar.sync 0;\nWAIT 1 // HERE\nld.shared.u32 %r5, [1024];",
        says: "never completes phase 1 (parity 1): 1 of 1 arrivals",
        ..BASE
    },
    Misuse {
        name: "a bulk copy over what other threads still read",
        kind: SharedRace,
        body: "INIT 1\n@%p1 st.shared.u32 [1024], 5;\nfence.proxy.async;\nbar.sync 0;\nld.shared.u32 %r5, [1024]; // HERE TOO\nbar.sync 0; // FIX\n@%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [0], 256;\n@%p1 cp.async.bulk.shared::cta.global.mbarrier::complete_tx::bytes [1024], [%rd1], 256, [0]; // HERE\nWAIT 0",
        says: "",
        ..BASE
    },
    Misuse {
        name: "a bulk copy over what the generic proxy wrote, without a fence",
        kind: ProxyFence,
        body: "INIT 1\nst.shared.u32 [%r2], %r1;\nfence.proxy.async.shared::cta; // FIX\nbar.sync 0;\n@%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [0], 256;\nLOAD // HERE\nWAIT 0",
        says: "the async proxy writes shared memory at 0x400, which thread",
        ..BASE
    },
    Misuse {
        name: "a block that ends before a bulk copy to it does",
        kind: Mbarrier,
        body: "INIT 1\nbar.sync 0;\n@%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [0], 256;\nLOAD\nWAIT 0 // FIX",
        says: "the mbarrier at 0x0 ends, and nobody waited for the bulk copy at line",
        ..BASE
    },
    Misuse {
        name: "a bulk copy of no multiple of 16 bytes",
        kind: Misaligned,
        body: "INIT 1\nbar.sync 0;\n@%p1 cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [1024], [%rd1], 40, [0]; // HERE",
        says: "bulk copy of 40 bytes",
        ..BASE
    },
    Misuse {
        name: "a bulk copy beyond the buffer",
        kind: OutOfBounds,
        body: "INIT 1\nbar.sync 0;\n@%p1 cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [1024], [%rd1+16000], 512, [0]; // HERE",
        says: "across the end of the 16384 bytes allocated",
        ..BASE
    },
    Misuse {
        name: "a bulk store of what the generic proxy wrote, without a fence",
        kind: ProxyFence,
        body: "st.shared.u32 [%r2], %r1;\nfence.proxy.async.shared::cta; // FIX\nbar.sync 0;\n@%p1 cp.async.bulk.global.shared::cta.bulk_group [%rd1], [1024], 512; // HERE\ncp.async.bulk.commit_group;\ncp.async.bulk.wait_group.read 0;",
        says: "no fence.proxy.async between",
        ..BASE
    },
    Misuse {
        name: "a fence of the proxies by the storing thread alone, for what it does not know of",
        kind: SharedRace,
        body: "st.shared.u32 [%r2], %r1; // HERE TOO\nbar.sync 0; // FIX\nfence.proxy.async.shared::cta;\n@%p1 cp.async.bulk.global.shared::cta.bulk_group [%rd1], [1024], 512; // HERE\ncp.async.bulk.commit_group;\ncp.async.bulk.wait_group.read 0;",
        says: "shared memory",
        ..BASE
    },
    Misuse {
        name: "a write of what a bulk store still reads",
        kind: AsyncRead,
        threads: 32,
        body: "st.shared.u32 [%r2], %r1;\nfence.proxy.async.shared::cta;\nbar.sync 0;\n@%p1 cp.async.bulk.global.shared::cta.bulk_group [%rd1], [1024], 128;\ncp.async.bulk.commit_group;\ncp.async.bulk.wait_group.read 0; // FIX\nbar.sync 0;\nst.shared.u32 [%r2], %r1; // HERE\ncp.async.bulk.wait_group 0;",
        says: "still reads",
    },
    Misuse {
        name: "an exit while a bulk store still reads",
        kind: AsyncRead,
        body: "st.shared.u32 [%r2], %r1;\nfence.proxy.async.shared::cta;\nbar.sync 0;\n@%p1 cp.async.bulk.global.shared::cta.bulk_group [%rd1], [1024], 512;\ncp.async.bulk.commit_group;\ncp.async.bulk.wait_group.read 0; // FIX\nret; // HERE",
        says: "exits while the bulk copy at line",
        ..BASE
    },
    Misuse {
        name: "a tensor map that is none",
        kind: TensorMap,
        body: "INIT 1\nbar.sync 0;\n@%p1 cp.async.bulk.tensor.2d.shared::cta.global.mbarrier::complete_tx::bytes [1024], [%rd3, {%r1, %r1}], [0]; // HERE",
        says: "a tensor at 0x0",
        ..BASE
    },
    Misuse {
        name: "a wgmma without wgmma.fence",
        kind: Wgmma,
        body: "OPERANDS\nmov.b32 %r10, 0;\nwgmma.fence.sync.aligned; // FIX\nPRODUCT // HERE\nwgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;",
        says: "no wgmma.fence since its registers were written",
        ..BASE
    },
    Misuse {
        name: "a result of wgmma that is read before the wait",
        kind: Wgmma,
        body: "OPERANDS\nwgmma.fence.sync.aligned;\nPRODUCT\nwgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0; // FIX\nadd.f32 %f1, %r11, %r11; // HERE\nwgmma.wait_group.sync.aligned 0;",
        says: "uses a register of the wgmma at line",
        ..BASE
    },
    Misuse {
        name: "a result of wgmma that no group has",
        kind: Wgmma,
        body: "OPERANDS\nwgmma.fence.sync.aligned;\nPRODUCT\nwgmma.commit_group.sync.aligned; // FIX\nwgmma.wait_group.sync.aligned 0;\nmov.b32 %r11, 0; // HERE",
        says: "before wgmma.wait_group",
        ..BASE
    },
    Misuse {
        name: "a wait for the group before the last",
        kind: Wgmma,
        body: "OPERANDS\nwgmma.fence.sync.aligned;\nPRODUCT\nwgmma.commit_group.sync.aligned;\nPRODUCT\nwgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 1;\nwgmma.wait_group.sync.aligned 0; // FIX\nmov.b32 %r20, %r12; // HERE",
        says: "before wgmma.wait_group",
        ..BASE
    },
    Misuse {
        name: "a register of A that is written before the wait",
        kind: Wgmma,
        body: "OPERANDS\nwgmma.fence.sync.aligned;\nwgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%r10, %r11, %r12, %r13}, {%r14, %r15, %r16, %r17}, %rd8, %p3, 1, 1, 0;\nwgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0; // FIX\nmov.b32 %r16, 0; // HERE\nwgmma.wait_group.sync.aligned 0;",
        says: "uses a register of the wgmma at line",
        ..BASE
    },
    Misuse {
        name: "a write of what wgmma still reads",
        kind: AsyncRead,
        body: "OPERANDS\nwgmma.fence.sync.aligned;\nPRODUCT\nwgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0; // FIX\nbar.sync 0;\nst.shared.u32 [%r2], %r1; // HERE\nwgmma.wait_group.sync.aligned 0;",
        says: "still reads: wait for its group first",
        ..BASE
    },
    Misuse {
        name: "a wgmma of what the generic proxy wrote, without a fence",
        kind: ProxyFence,
        body: "OPERANDS\nst.shared.u32 [%r2], %r1;\nfence.proxy.async; // FIX\nbar.sync 0;\nwgmma.fence.sync.aligned;\nPRODUCT // HERE\nwgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;",
        says: "the async proxy reads shared memory at",
        ..BASE
    },
    Misuse {
        name: "a wgmma of what cp.async brought, without a fence",
        kind: ProxyFence,
        body: "OPERANDS\nmul.wide.u32 %rd5, %r1, 4;\nadd.s64 %rd5, %rd5, %rd1;\ncp.async.ca.shared.global [%r2], [%rd5], 4;\ncp.async.wait_all;\nfence.proxy.async.shared::cta; // FIX\nbar.sync 0;\nwgmma.fence.sync.aligned;\nPRODUCT // HERE\nwgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;",
        says: "no fence.proxy.async between",
        ..BASE
    },
    Misuse {
        name: "a wgmma that one warp leaves out",
        kind: Wgmma,
        body: "OPERANDS\nwgmma.fence.sync.aligned;\nsetp.ge.u32 %p4, %r1, 96;\n@%p4 bra done;\nPRODUCT\ndone:\nwgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;",
        says: "warp 3 of the warpgroup never executes the wgmma at line",
        ..BASE
    },
    Misuse {
        name: "a wgmma by half a warpgroup",
        kind: Wgmma,
        threads: 64,
        body: "OPERANDS\nwgmma.fence.sync.aligned;\nPRODUCT // HERE",
        says: "a warpgroup of less than four warps",
    },
    Misuse {
        name: "warps of a warpgroup with several descriptors",
        kind: Wgmma,
        body: "OPERANDS\nshr.u32 %r5, %r1, 5;\ncvt.u64.u32 %rd5, %r5;\nadd.s64 %rd8, %rd8, %rd5;\nwgmma.fence.sync.aligned;\nPRODUCT // HERE\nwgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;",
        says: "of another of its warpgroup",
        ..BASE
    },
    Misuse {
        name: "a descriptor beyond shared memory",
        kind: OutOfBounds,
        body: "OPERANDS\nor.b64 %rd8, %rd8, 0x3fff;\nwgmma.fence.sync.aligned;\nPRODUCT // HERE",
        says: "a wgmma reads shared memory at",
        ..BASE
    },
    Misuse {
        name: "a block of a cluster that is not there",
        kind: OutOfBounds,
        body: "mov.u32 %r5, 1;\nmapa.shared::cluster.u32 %r6, %r2, %r5; // HERE",
        says: "block 1 of a cluster of one block",
        ..BASE
    },
    Misuse {
        name: "a cluster's barrier that not all arrive at",
        kind: Barrier,
        body: "@%p2 barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned; // HERE",
        says: "is never complete",
        ..BASE
    },
];

const INIT: &str = "@%p1 mbarrier.init.shared::cta.b64 [0], ";
const LOAD: &str = "@%p1 cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [1024], [%rd1], 256, [0];";
const PRODUCT: &str = "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%r10, %r11, %r12, %r13}, %rd7, %rd8, %p3, 1, 1, 0, 0;";
/// Zeros from 1024 to 5120, as the async proxy brings them; descriptors without a pattern: 128 bytes from one part of K to the next,
/// 256 from eight rows to the next.
const OPERANDS: &str = "@%p1 mbarrier.init.shared::cta.b64 [0], 1;
bar.sync 0;
@%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [0], 4096;
@%p1 cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [1024], [%rd3], 4096, [0];
WAIT 0
bar.sync 0;
mov.b64 %rd7, 0x1000080040;
mov.b64 %rd8, 0x1000080100;";

fn module(misuse: &Misuse, fixed: bool) -> String {
    let mut body = String::new();
    let mut waits = 0;
    let text = misuse.body.replace("OPERANDS", OPERANDS);
    for line in text.lines().filter(|line| fixed || !line.contains("// FIX")) {
        let (code, comment) = line.split_once("//").unwrap_or((line, ""));
        let code = code.trim();
        let code = if let Some(count) = code.strip_prefix("INIT ") {
            format!("{INIT}{count};")
        } else if let Some(parity) = code.strip_prefix("WAIT ") {
            waits += 1;
            format!(
                "wait{waits}: mbarrier.try_wait.parity.shared::cta.b64 %p5, [0], {parity}; // {comment}\n@!%p5 bra wait{waits};"
            )
        } else {
            code.replace("LOAD", LOAD).replace("PRODUCT", PRODUCT)
        };
        body += &format!("{code} //{comment}\n");
    }
    format!(
        ".version 8.0\n.target sm_90a\n.address_size 64\n.visible .entry misuse(.param .u64 p, .param .u64 q) {{
        .reg .pred %p<8>; .reg .b32 %r<30>; .reg .f32 %f<4>; .reg .b64 %rd<10>;
        ld.param.u64 %rd1, [p]; ld.param.u64 %rd3, [q]; mov.u32 %r1, %tid.x; setp.eq.u32 %p1, %r1, 0;
        setp.lt.u32 %p2, %r1, 32; mad.lo.u32 %r2, %r1, 4, 1024; setp.eq.u32 %p3, %r1, %r1;
        {body}\nret;\n}}"
    )
}

fn run(misuse: &Misuse, text: &str, seed: u64) -> Result<(), Box<Fault>> {
    let machine = Machine::new(text);
    machine.seed.set(seed);
    let places = [1, 0].map(|word| machine.u32s(&[word; 4096]));
    let shape = ([1, 1, 1], [misuse.threads, 1, 1], 8192);
    machine.launch("misuse", shape, &places.map(Arg::from)).map(|_| ())
}

#[test]
fn every_misuse_is_found_and_located() {
    for misuse in MISUSES {
        let (text, name) = (module(misuse, false), misuse.name);
        let as_named = Cell::new(false);
        for seed in (0..300).take_while(|seed| *seed < 8 || !as_named.get()) {
            let fault = *run(misuse, &text, seed).expect_err(name);
            let told = fault.to_string();
            // Where the reader comes before the writer, what is read was not there yet.
            let early = misuse.kind == SharedRace && fault.kind == Uninitialised;
            let pending = misuse.kind == SharedRace && fault.kind == AsyncCopyPending;
            assert!(fault.kind == misuse.kind || early || pending, "{name}: {told}\n{text}");
            as_named.set(as_named.get() || fault.kind == misuse.kind);
            let marked = |line: &str| line.contains("HERE");
            let line = text.lines().nth(fault.line as usize - 1).unwrap();
            assert!(!text.lines().any(marked) || marked(line), "{name}: {told}\n{text}");
            assert!(
                told.starts_with("kernel misuse, PTX line ") && !told.contains('\u{1}'),
                "{told}"
            );
            assert!(early || pending || told.contains(misuse.says), "{name}: {told}");
        }
        assert!(as_named.get(), "{name}: never found as what it is");
    }
}

#[test]
fn the_mended_kernels_run() {
    for misuse in MISUSES.iter().filter(|misuse| misuse.body.contains("// FIX")) {
        for seed in 0..8 {
            let text = module(misuse, true);
            if let Err(fault) = run(misuse, &text, seed) {
                panic!("{}: {fault}\n{text}", misuse.name);
            }
        }
    }
}

/// What is refused when a module is loaded, and why.
const REFUSED: &[(&str, &str)] = &[
    (
        "wgmma.mma_async.sync.aligned.m64n12k16.f32.bf16.bf16 {%r1}, %rd1, %rd1, %p1, 1, 1, 0, 0;",
        "expected a shape from .m64n8k16 to .m64n256k16",
    ),
    (
        "wgmma.mma_async.sync.aligned.m64n8k16.f16.bf16.bf16 {%r1, %r2}, %rd1, %rd1, %p1, 1, 1, 0, 0;",
        ".f16 sums of .bf16",
    ),
    (
        "wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e4m3 {%r1, %r2, %r3, %r4}, %rd1, %rd1, %p1, 1, 1, 0, 1;",
        "more operands than it has",
    ),
    (
        "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.u32 [%rd1], [%r1], 16;",
        "unsupported",
    ),
    (
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%r1], [%rd1], 16, [%r2], %r3;",
        "multicast::cluster",
    ),
    (
        "cp.async.bulk.tensor.3d.shared::cta.global.mbarrier::complete_tx::bytes [%r1], [%rd1, {%r1}], [%r2];",
        "expected 3 coordinates, found 1",
    ),
    ("setmaxnreg.inc.sync.aligned.u32 30;", "a multiple of 8 from 24 to 256"),
    ("mbarrier.arrive_drop.shared.b64 _, [%r1];", "unsupported: .arrive_drop"),
];

#[test]
fn what_is_not_supported_is_refused() {
    let load = |head: &str, body: &str| {
        let text = format!(
            ".version 8.0\n.target sm_90a\n.visible .entry k() {head} {{ .reg .pred %p<2>; .reg .b32 %r<5>; .reg .b64 %rd<3>;\n{body}\nret; }}"
        );
        let error = Machine::load(&text, "h100", 0).err().unwrap_or_else(|| panic!("{body}"));
        error.to_string()
    };
    for (body, says) in REFUSED {
        let told = load("", body);
        assert!(told.starts_with("PTX line 4: ") && told.contains(says), "{told}");
    }
    let told = load(".reqnctapercluster 2, 1, 1", "");
    assert!(told.contains("clusters of [2, 1, 1] blocks; only of one"), "{told}");
}
