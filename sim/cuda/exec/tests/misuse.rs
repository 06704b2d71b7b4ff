//! Kernels with one mistake each: it must be found, with kernel, line, block and thread. Where a line is marked `FIX`, the
//! kernel with it must run without a fault, whatever the order of warps.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_possible_wrap,
    clippy::float_cmp,
    reason = "tests: sizes are small, results exact where compared"
)]

mod machine;

use halyard_sim_cuda_exec::FaultKind::{self, *};
use halyard_sim_cuda_exec::{Fault, Home, Launch, LaunchError, Memory, Order, Profile};
use machine::Machine;
use std::cell::Cell;
use std::sync::Arc;

struct Misuse<'a> {
    name: &'static str,
    kind: FaultKind,
    /// Blocks, and threads of each.
    shape: (u32, u32),
    /// Bytes of dynamic shared memory.
    shared: u32,
    /// The mistake's line ends with `// HERE`; `p` is a buffer of 64 words, `%r1` the thread, `%rd2` its own word.
    body: &'a str,
    /// The block and thread to blame, where only one can be.
    thread: Option<(u32, u32)>,
    says: &'static str,
}

const BASE: Misuse<'static> =
    Misuse { name: "", kind: Trap, shape: (1, 32), shared: 0, body: "", thread: None, says: "" };

/// Each block writes a word a thread, and reads those of the other.
const OTHER_BLOCK: &str = "mov.u32 %r5, %ctaid.x;\nmul.lo.u32 %r5, %r5, 128;\ncvt.u64.u32 %rd3, %r5;\nadd.s64 %rd2, %rd2, %rd3;\nst.global.u32 [%rd2], %r1;\nxor.b32 %r5, %r5, 128;\nadd.u32 %r5, %r5, %r2;\ncvt.u64.u32 %rd3, %r5;\nadd.s64 %rd3, %rd3, %rd1;\nld.global.u32 %r5, [%rd3]; // HERE";

/// Each thread's word of shared memory at `%r2`, its neighbour's at `%r3` and that of the other warp at `%r4`.
const MISUSES: &[Misuse<'static>] = &[
    Misuse {
        name: "a read one past the end",
        kind: OutOfBounds,
        shape: (2, 64),
        body: "ld.global.u32 %r5, [%rd2+4]; // HERE",
        thread: Some((0, 63)),
        says: "read of 4 bytes at 0x1000000000100: 0 bytes past the end of the 256 bytes allocated at",
        ..BASE
    },
    Misuse {
        name: "a write across the end",
        kind: OutOfBounds,
        shape: (1, 64),
        body: "add.s64 %rd3, %rd2, 4;\nsetp.ne.u32 %p1, %r1, 61;\n@%p1 bra done;\nst.global.v4.u32 [%rd2+12], {%r1, %r1, %r1, %r1}; // HERE\ndone:",
        thread: Some((0, 61)),
        says: "past the end",
        ..BASE
    },
    Misuse {
        name: "a null pointer",
        kind: OutOfBounds,
        body: "mov.u64 %rd3, 0;\nld.global.u32 %r5, [%rd3]; // HERE",
        thread: Some((0, 0)),
        says: "read of 4 bytes at 0x0: no memory is allocated there",
        ..BASE
    },
    Misuse {
        name: "an address of the host",
        kind: OutOfBounds,
        body: "mov.u64 %rd3, 0x7fff00001000;\nst.global.u32 [%rd3], %r1; // HERE",
        says: "no memory is allocated there",
        ..BASE
    },
    Misuse {
        name: "a misaligned word",
        kind: Misaligned,
        body: "ld.global.u32 %r5, [%rd2+2]; // HERE",
        thread: Some((0, 0)),
        says: "which is no multiple of 4",
        ..BASE
    },
    Misuse {
        name: "a misaligned vector",
        kind: Misaligned,
        body: "ld.global.v4.u32 {%r5, %r6, %r7, %r8}, [%rd1+8]; // HERE",
        says: "read of 16 bytes",
        ..BASE
    },
    Misuse {
        name: "a read of global memory that nothing wrote",
        kind: Uninitialised,
        body: "ld.param.u64 %rd3, [q];\nld.global.u8 %r5, [%rd3+7]; // HERE",
        thread: Some((0, 0)),
        says: "byte 7 of the 64 bytes allocated",
        ..BASE
    },
    Misuse {
        name: "a use after free",
        kind: UseAfterFree,
        body: "ld.param.u64 %rd3, [gone];\nst.global.u32 [%rd3+4], %r1; // HERE",
        says: "freed memory (64 bytes at",
        ..BASE
    },
    Misuse {
        name: "shared memory that the block has not",
        kind: OutOfBounds,
        shared: 128,
        body: "st.shared.u32 [%r2+4], %r1; // HERE",
        thread: Some((0, 31)),
        says: "access to 4 bytes of shared memory at 0x80: the block has 128",
        ..BASE
    },
    Misuse {
        name: "misaligned shared memory",
        kind: Misaligned,
        shared: 256,
        body: "st.shared.u64 [%r2], %rd1; // HERE",
        thread: Some((0, 1)),
        ..BASE
    },
    Misuse {
        name: "a read of shared memory that nothing wrote",
        kind: Uninitialised,
        shared: 256,
        body: "st.shared.u32 [%r2], %r1; // FIX\nld.shared.u32 %r5, [%r2]; // HERE",
        says: "which nothing wrote",
        ..BASE
    },
    Misuse {
        name: "no barrier before another warp's word is read",
        kind: SharedRace,
        shape: (1, 64),
        shared: 256,
        body: "st.shared.u32 [%r2], %r1; // HERE TOO\nbar.sync 0; // FIX\nld.shared.u32 %r5, [%r4]; // HERE",
        ..BASE
    },
    Misuse {
        name: "no bar.warp.sync before a neighbour's word is read",
        kind: SharedRace,
        shared: 256,
        body: "st.shared.u32 [%r2], %r1;\nbar.warp.sync -1; // FIX\nld.shared.u32 %r5, [%r3]; // HERE",
        thread: Some((0, 0)),
        says: "which thread 1 wrote at line",
        ..BASE
    },
    Misuse {
        name: "no barrier before a word that others read is written again",
        kind: SharedRace,
        shape: (1, 64),
        shared: 256,
        body: "st.shared.u32 [%r2], %r1;\nbar.sync 0;\nld.shared.u32 %r5, [%r4]; // HERE TOO\nbar.sync 0; // FIX\nst.shared.u32 [%r2], %r5; // HERE",
        ..BASE
    },
    Misuse {
        name: "two threads write one word",
        kind: SharedRace,
        shape: (1, 32),
        shared: 256,
        body: "mov.u32 %r2, 16;\nst.shared.u32 [%r2], %r1; // HERE",
        says: "write of 4 bytes of shared memory at 0x10, which thread 0 wrote",
        ..BASE
    },
    Misuse {
        name: "two threads write one word, in bytes that differ in one place",
        kind: SharedRace,
        shared: 256,
        body: "mov.u32 %r2, 16;\nshr.u32 %r5, %r1, 4;\nmov.u32 %r5, 7; // FIX\nst.shared.u32 [%r2], %r5; // HERE",
        thread: Some((0, 16)),
        says: "write of 4 bytes of shared memory at 0x10, which thread 15 wrote",
        ..BASE
    },
    Misuse {
        name: "no barrier before a word that two warps wrote alike is written otherwise",
        kind: SharedRace,
        shape: (1, 64),
        shared: 256,
        body: "mov.u32 %r2, 16;\nst.shared.u32 [%r2], 7; // HERE TOO\nbar.sync 0; // FIX\nsetp.ne.u32 %p1, %r1, 0;\n@%p1 bra out;\nst.shared.u32 [%r2], 8; // HERE\nout:",
        ..BASE
    },
    Misuse {
        name: "no barrier before a word that two warps wrote alike is read",
        kind: SharedRace,
        shape: (1, 96),
        shared: 256,
        body: "mov.u32 %r2, 16;\nsetp.ge.u32 %p1, %r1, 64;\n@%p1 bra other;\nst.shared.u32 [%r2], 7;\nother:\nbar.sync 0; // FIX\n@!%p1 bra out;\nld.shared.u32 %r5, [%r2]; // HERE\nout:",
        ..BASE
    },
    Misuse {
        name: "a named barrier that leaves a warp out",
        kind: SharedRace,
        shape: (1, 96),
        shared: 512,
        body: "setp.ge.u32 %p1, %r1, 64;\nst.shared.u32 [%r2], %r1; // HERE TOO\n@%p1 bra out;\nbar.sync 1, 64;\nld.shared.u32 %r5, [%r4];\nld.shared.u32 %r5, [256]; // HERE\nout:",
        ..BASE
    },
    Misuse {
        name: "cp.async is read before its wait",
        kind: AsyncCopyPending,
        shared: 512,
        body: "cp.async.ca.shared.global [%r2], [%rd2], 4;\ncp.async.commit_group;\ncp.async.wait_group 0; // FIX\nld.shared.u32 %r5, [%r2]; // HERE",
        thread: Some((0, 0)),
        says: "has not delivered",
        ..BASE
    },
    Misuse {
        name: "cp.async is waited for a group too late",
        kind: AsyncCopyPending,
        shared: 512,
        body: "cp.async.ca.shared.global [%r2], [%rd2], 4;\ncp.async.commit_group;\ncp.async.ca.shared.global [%r2+256], [%rd2], 4;\ncp.async.commit_group;\ncp.async.wait_group 1;\ncp.async.wait_all; // FIX\nld.shared.u32 %r5, [%r2+256]; // HERE",
        ..BASE
    },
    Misuse {
        name: "cp.async of another thread without a barrier",
        kind: SharedRace,
        shape: (1, 64),
        shared: 512,
        body: "cp.async.ca.shared.global [%r2], [%rd2], 4;\ncp.async.wait_all;\nbar.sync 0; // FIX\nld.shared.u32 %r5, [%r4]; // HERE",
        ..BASE
    },
    Misuse {
        name: "cp.async over a tile that is still read",
        kind: SharedRace,
        shape: (1, 64),
        shared: 512,
        body: "st.shared.u32 [%r2], %r1;\nbar.sync 0;\nld.shared.u32 %r5, [%r4]; // HERE TOO\nbar.sync 0; // FIX\ncp.async.ca.shared.global [%r2], [%rd2], 4; // HERE",
        ..BASE
    },
    Misuse {
        name: "cp.async reads past the end",
        kind: OutOfBounds,
        shape: (1, 64),
        shared: 2048,
        body: "mul.lo.u32 %r2, %r1, 16;\nmul.wide.u32 %rd3, %r1, 16;\nadd.s64 %rd3, %rd3, %rd1;\ncp.async.cg.shared.global [%r2], [%rd3], 16; // HERE",
        thread: None,
        says: "past the end",
    },
    Misuse {
        name: "a barrier that lanes of a warp meet at different places",
        kind: Barrier,
        shape: (1, 64),
        body: "setp.lt.u32 %p1, %r1, 16;\n@%p1 bra other;\nbar.sync 0; // HERE TOO\nbra done;\nother:\nbar.sync 0; // HERE\ndone:",
        says: "divergent barrier",
        ..BASE
    },
    Misuse {
        name: "a barrier after threads have exited",
        kind: Barrier,
        shape: (1, 64),
        body: "setp.lt.u32 %p1, %r1, 40;\n@!%p1 ret;\nbar.sync 0; // HERE",
        thread: Some((0, 0)),
        says: "barrier 0 is never complete: 40 of 64 threads wait; thread (40, 0, 0) has exited",
        ..BASE
    },
    Misuse {
        name: "a barrier that waits for more threads than come",
        kind: Barrier,
        shape: (1, 32),
        body: "bar.sync 2, 64; // HERE",
        says: "32 of 64 threads wait",
        ..BASE
    },
    Misuse {
        name: "two barriers that wait for each other's warps",
        kind: Barrier,
        shape: (1, 64),
        body: "setp.lt.u32 %p1, %r1, 32;\n@%p1 bra first;\nbar.sync 2; // HERE TOO\nbra done;\nfirst:\nbar.sync 1; // HERE\ndone:",
        says: "thread (32, 0, 0) waits at line",
        ..BASE
    },
    Misuse {
        name: "a shuffle whose mask leaves out a lane that executes it",
        kind: WarpSync,
        body: "shfl.sync.bfly.b32 %r5, %r1, 1, 31, 0xffff; // HERE",
        thread: Some((0, 16)),
        says: "its mask 0xffff leaves out",
        ..BASE
    },
    Misuse {
        name: "a shuffle that half of its mask never reaches",
        kind: WarpSync,
        body: "setp.lt.u32 %p1, %r1, 16;\n@%p1 bra low;\nshfl.sync.bfly.b32 %r5, %r1, 1, 31, -1;\nbra done;\nlow:\nshfl.sync.bfly.b32 %r5, %r1, 1, 31, -1;\ndone:",
        says: "which never come",
        ..BASE
    },
    Misuse {
        name: "a tensor-core product without all lanes",
        kind: WarpSync,
        body: "setp.lt.u32 %p1, %r1, 31;\n@!%p1 ret;\nmma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%r5, %r6, %r7, %r8}, {%r1, %r1}, {%r1}, {%r1, %r1, %r1, %r1}; // HERE",
        says: "needs all 32 lanes",
        ..BASE
    },
    Misuse {
        name: "local memory beyond the variable",
        kind: OutOfBounds,
        body: ".local .align 4 .b8 stack[16];\nst.local.u32 [stack+16], %r1; // HERE",
        says: "the thread has 16",
        ..BASE
    },
    Misuse {
        name: "an atomic past the end",
        kind: OutOfBounds,
        shape: (1, 64),
        body: "atom.global.add.u32 %r5, [%rd2+4], 1; // HERE",
        thread: Some((0, 63)),
        says: "atomic update of 4 bytes",
        ..BASE
    },
    Misuse {
        name: "an atomic and a plain use of one word",
        kind: SharedRace,
        shape: (1, 64),
        shared: 256,
        body: "setp.eq.u32 %p1, %r1, 0;\n@%p1 st.shared.u32 [0], 0;\nbar.sync 0;\natom.shared.add.u32 %r5, [0], 1; // HERE TOO\nbar.sync 0; // FIX\nld.shared.u32 %r5, [0]; // HERE",
        ..BASE
    },
    Misuse {
        name: "a generic address beyond shared memory",
        kind: OutOfBounds,
        shared: 64,
        body: "mov.u64 %rd3, 64;\ncvta.shared.u64 %rd3, %rd3;\nst.u32 [%rd3], %r1; // HERE",
        says: "the block has 64",
        ..BASE
    },
    Misuse {
        name: "a word that another warp wrote in global memory",
        kind: GlobalRace,
        shape: (1, 64),
        body: "st.global.u32 [%rd2], %r1;\nbar.sync 0; // FIX\nxor.b32 %r5, %r2, 128;\ncvt.u64.u32 %rd3, %r5;\nadd.s64 %rd3, %rd3, %rd1;\nld.global.u32 %r5, [%rd3]; // HERE",
        says: "of the block wrote at line 8: no barrier between",
        ..BASE
    },
    Misuse {
        name: "a word that another block wrote",
        kind: GlobalRace,
        shape: (2, 32),
        body: OTHER_BLOCK,
        says: "0, 0) wrote at line 12: nothing orders the blocks of a launch",
        ..BASE
    },
    Misuse {
        name: "a byte that two blocks write",
        kind: GlobalRace,
        shape: (2, 1),
        body: "mov.u32 %r5, %ctaid.x;\nst.global.u8 [%rd1+5], %r5; // HERE",
        says: "write of 1 bytes at",
        ..BASE
    },
    Misuse { name: "a trap", kind: Trap, body: "trap; // HERE", says: "trap", ..BASE },
];

fn module(misuse: &Misuse<'_>, fixed: bool) -> String {
    let lines = misuse.body.lines().filter(|line| fixed || !line.contains("// FIX"));
    let body: Vec<_> = lines.collect();
    format!(
        ".version 7.8\n.target sm_80\n.address_size 64\n.visible .entry misuse(.param .u64 p, .param .u64 q, .param .u64 gone) {{
        .reg .pred %p<4>; .reg .b32 %r<10>; .reg .b64 %rd<6>;
        ld.param.u64 %rd1, [p]; mov.u32 %r1, %tid.x; mul.wide.u32 %rd2, %r1, 4; add.s64 %rd2, %rd2, %rd1;
        mul.lo.u32 %r2, %r1, 4; xor.b32 %r3, %r2, 4; xor.b32 %r4, %r2, 128;
        {}\nret;\n}}",
        body.join("\n")
    )
}

fn run(misuse: &Misuse<'_>, text: &str, seed: u64) -> Result<(), Box<Fault>> {
    let machine = Machine::new(text);
    machine.seed.set(seed);
    let buffer = machine.u32s(&[1; 64]);
    let (fresh, gone) = (machine.space(64), machine.space(64));
    machine.free(gone);
    let (blocks, threads) = misuse.shape;
    let args = [buffer.into(), fresh.into(), gone.into()];
    let shape = ([blocks, 1, 1], [threads, 1, 1], misuse.shared);
    machine.launch("misuse", shape, &args).map(|_| ())
}

/// What these do orders blocks, or needs no order.
#[test]
fn blocks_may_share_what_they_order() {
    let read = "ld.global.u32 %r5, [%rd3]; // HERE";
    let atomic = format!("atom.global.add.u32 %r6, [%rd1+128], 0;\n{read}");
    let wrote = "st.global.u32 [%rd2], %r1;";
    for body in [
        OTHER_BLOCK.replace(read, &format!("membar.gl;\n{read}")),
        OTHER_BLOCK.replace("ld.global", "ld.acquire.gpu.global"),
        OTHER_BLOCK.replace(wrote, "atom.global.exch.b32 %r6, [%rd2], %r1;").replace(read, &atomic),
        "st.global.u32 [%rd2], %r1;".to_owned(),
        "mov.u32 %r5, %ctaid.x;\ncvt.u64.u32 %rd3, %r5;\nadd.s64 %rd3, %rd3, %rd1;\nst.global.u8 [%rd3], %r5;".to_owned(),
    ] {
        let misuse = Misuse { shape: (2, 32), body: &body, ..BASE };
        for seed in 0..8 {
            if let Err(fault) = run(&misuse, &module(&misuse, true), seed) {
                panic!("{fault}\n{body}");
            }
        }
    }
}

/// Whichever worker comes first: what two blocks write is compared when it is written.
#[test]
fn blocks_may_write_the_same_bytes() {
    let body = "mov.u32 %r5, 7;\nst.global.u32 [%rd2], %r5;";
    let text = module(&Misuse { body, ..BASE }, true);
    for seed in 0..50 {
        let machine = Machine::with_helpers(&text, 3);
        machine.seed.set(seed);
        let args = [machine.u32s(&[1; 64]).into(), 0u64.into(), 0u64.into()];
        machine.launch("misuse", ([200, 1, 1], [64, 1, 1], 0), &args).unwrap();
    }
}

/// The mistake's lines are marked; every loop is left by what another block would write, or not at all.
const ENDLESS: [&str; 3] = [
    "again: // HERE\nbra again; // HERE",
    "again: // HERE\nbar.sync 0; // HERE\nbra again; // HERE",
    "again: // HERE\nld.volatile.global.u32 %r5, [%rd1]; // HERE\nsetp.eq.u32 %p1, %r5, 1; // HERE\n@%p1 bra again; // HERE",
];

#[test]
fn a_kernel_that_does_not_end_is_ended() {
    for body in ENDLESS {
        let text = module(&Misuse { body, ..BASE }, false);
        let mut machine = Machine::new(&text);
        machine.executor = machine.executor.with_limit(5000);
        let args = [machine.u32s(&[1; 64]).into(), 0u64.into(), 0u64.into()];
        let fault = machine.launch("misuse", ([3, 1, 1], [64, 1, 1], 0), &args).expect_err(body);
        let told = fault.to_string();
        assert_eq!(fault.kind, Endless, "{told}");
        assert!(is_marked(&text, fault.line), "{told}\n{text}");
        assert!(told.starts_with("kernel misuse, PTX line "), "{told}");
        assert!(told.contains("does not end: the block's warps have executed 5000"), "{told}");
    }
}

/// The limit is a block's, however many of them a launch has.
#[test]
fn many_short_blocks_are_not_endless() {
    let text = module(&BASE, false);
    let mut machine = Machine::with_helpers(&text, 0);
    machine.executor = machine.executor.with_limit(100);
    let args = [machine.u32s(&[1; 64]).into(), 0u64.into(), 0u64.into()];
    let counters = machine.launch("misuse", ([64, 1, 1], [64, 1, 1], 0), &args).unwrap();
    assert!(counters.issued() > 500, "{}", counters.issued());
}

/// Whether the fault's line is one that is marked, if any is.
fn is_marked(text: &str, line: u32) -> bool {
    let marked = |line: &str| line.contains("// HERE");
    !text.lines().any(marked) || text.lines().nth(line as usize - 1).is_some_and(marked)
}

#[test]
fn every_misuse_is_found_and_located() {
    for misuse in MISUSES {
        let as_named = Cell::new(false);
        // A race is met only in some orders: go on until one has it.
        for seed in (0..300).take_while(|seed| *seed < 8 || !as_named.get()) {
            let text = module(misuse, false);
            let name = misuse.name;
            let fault = *run(misuse, &text, seed).expect_err(name);
            let told = fault.to_string();
            // Where the reader comes before the writer, what is read was not there yet.
            let early = matches!(fault.kind, AsyncCopyPending | Uninitialised);
            as_named.set(as_named.get() || fault.kind == misuse.kind);
            assert!(
                fault.kind == misuse.kind || misuse.kind == SharedRace && early,
                "{name}: {told}"
            );
            assert!(is_marked(&text, fault.line), "{name}: {told}\n{text}");
            assert!(
                told.starts_with("kernel misuse, PTX line ") && !told.contains('\u{1}'),
                "{told}"
            );
            if let Some((_, thread)) = misuse.thread {
                assert_eq!(fault.thread, [thread, 0, 0], "{name}: {told}");
            }
            // Addresses differ from run to run of the allocator, what is said about them does not.
            let says = misuse.says.split("0x1000000000100").collect::<Vec<_>>();
            assert!(says.iter().all(|part| told.contains(part)), "{name}: {told}");
        }
        assert!(as_named.get(), "{}: never found as what it is", misuse.name);
    }
}

#[test]
fn the_mended_kernels_run() {
    for misuse in MISUSES.iter().filter(|misuse| misuse.body.contains("// FIX")) {
        for seed in 0..8 {
            if let Err(fault) = run(misuse, &module(misuse, true), seed) {
                panic!("{}: {fault}", misuse.name);
            }
        }
    }
}

/// Text inside a kernel, the line of the error, and what it says.
const REFUSED: &[(&str, u32, &str)] = &[
    ("frob.s32 %r1, %r2;", 4, "unsupported: frob of type .b32"),
    ("add.s32.wild %r1, %r2, %r2;", 4, "modifier .wild"),
    ("add.s32 %r1, %r2;", 4, "expected 3 operands, found 2"),
    ("add.s32 %r1, %r9, %r2;", 4, "'%r9' is not declared"),
    ("add.s32 %r1, %rd1, %r2;", 4, "register '%rd1' is not as wide"),
    ("bra nowhere;", 4, "branch to 'nowhere'"),
    (
        "mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%rd1}, {%rd1}, {%rd1}, {%rd1};",
        4,
        "this shape of these types",
    ),
    ("ld.param.u64 %rd1, [p+8];", 4, "outside the kernel's parameters"),
    ("call helper, (%r1);", 4, "'helper' is no function"),
    ("call printed;", 4, "function 'printed', which has no body here"),
    ("call again;", 3, "function 'again', which calls itself"),
    ("call (%r1), given, ();", 4, "'given' wants 0 parameters or results, not 1"),
    ("call %rd1;", 4, "a call through an address"),
    ("{ .param .b32 a; mov.u64 %rd1, a; }", 4, "the address of 'a', a parameter of a call"),
    ("{ .param .b32 a; st.param.b32 [a+4], %r1; }", 4, "outside the parameter 'a'"),
    ("st.param.b32 [p], %r1;", 4, "writing a kernel's parameters"),
    ("brx.idx %r1, nowhere;", 4, "'nowhere' is no list"),
    ("add.rz.f64 %rd1, %rd1, %rd1;", 4, "this rounding of this operation"),
];

#[test]
fn what_is_not_supported_is_refused_with_its_line() {
    for (body, line, says) in REFUSED {
        let text = format!(
            ".version 7.8 .target sm_80\n.extern .func printed; .func given () {{ ret; }}\n.func again () {{ call again; ret; }} .visible .entry k(.param .u64 p) {{ .reg .b32 %r<3>; .reg .b64 %rd<3>;\n{body}\nret; }}"
        );
        let error = Machine::load(&text, "a100-80g", 0).err().unwrap_or_else(|| panic!("{body}"));
        let told = error.to_string();
        assert!(told.contains(says), "{told}");
        assert!(told.starts_with(&format!("PTX line {line}: ")), "{told}");
    }
    let newer = Machine::load(".version 8.0\n.target sm_90a\n", "a100-80g", 0).err().unwrap();
    assert_eq!(newer.to_string(), "PTX for sm_90a, which a device of capability 8.0 does not run");
}

/// Grid, block, shared memory, and what the refusal says.
const LAUNCHES: &[([u32; 3], [u32; 3], u32, &str)] = &[
    ([1, 1, 1], [64, 0, 1], 0, "must not be empty"),
    ([1, 70_000, 1], [64, 1, 1], 0, "at most [2147483647, 65535, 65535]"),
    ([1, 1, 1], [1024, 2, 1], 0, "at most 1024 threads"),
    ([1, 1, 1], [96, 1, 1], 0, "at most Some(64) by its .maxntid"),
    ([1, 1, 1], [64, 1, 1], 50_000, "50000 bytes of shared memory a block, 49152 allowed"),
];

#[test]
fn launches_beyond_the_limits_are_refused() {
    let text = ".version 7.8\n.target sm_80\n.visible .entry k() .maxntid 64, 1, 1 { ret; }";
    let machine = Machine::new(text);
    for (grid, block, shared_bytes, says) in LAUNCHES {
        let launch = Launch {
            kernel: machine.image.kernel("k").unwrap().clone(),
            grid: *grid,
            block: *block,
            shared_bytes: *shared_bytes,
            params: Vec::new(),
            device: 0,
            peers: 0,
            order: Order::default(),
            seed: 0,
        };
        let error: LaunchError = launch.check(Profile::named("a100-80g").unwrap(), 0).unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
    }
}

#[test]
fn memory_runs_out_where_the_device_says() {
    let memory = Arc::new(Memory::new(vec![Profile::named("rtx4090").unwrap().memory_bytes]));
    let first = memory.allocate(1 << 30, Home::Device(0)).unwrap();
    let error = memory.allocate(24 << 30, Home::Device(0)).unwrap_err();
    assert_eq!(error.to_string(), "25769803776 bytes wanted, 24696061952 of device 0 free");
    memory.free(first, &Order { op: 1, ..Order::default() }).unwrap();
    let again = memory.free(first, &Order { op: 2, ..Order::default() }).unwrap_err();
    assert!(again.to_string().contains("freed memory"), "{again}");
}

/// Words that stand in for others.
const STRAYS: [&str; 8] =
    ["%r1", "{", "}", ";", "[%rd1+", "0x7fffffffffffffff", ".b64", "ld.global.v4.u32"];

#[test]
fn damaged_modules_are_loaded_or_refused_but_never_panic() {
    let kernels = [
        include_str!("../../kernels/ptx/gemm.sm_80.ptx"),
        include_str!("../../kernels/ptx/paged_decode.sm_80.ptx"),
        include_str!("triton/matmul_of_maps.sm_90.ptx"),
        include_str!("triton/matmul_of_descriptors.sm_90.ptx"),
    ];
    let mut refused = 0;
    for (at, seed) in (0..800usize).map(|seed| (seed * 7919, seed)) {
        let words: Vec<_> = kernels[seed % 4].split_inclusive(char::is_whitespace).collect();
        let mut damaged = words.clone();
        let place = at % words.len();
        match seed % 3 {
            0 => damaged[place] = STRAYS[seed % STRAYS.len()],
            1 => damaged.swap(place, (at / 3 + 1) % words.len()),
            _ => damaged.truncate(place),
        }
        refused += usize::from(Machine::load(&damaged.concat(), "h100", 0).is_err());
    }
    assert!(refused > 400, "only {refused} of 800 were refused");
}
