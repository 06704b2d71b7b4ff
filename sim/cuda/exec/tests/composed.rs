//! Instructions that are several others in a row, and functions that are called.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "tests: sizes are small, results exact where compared"
)]

mod machine;

use halyard_sim_cuda_exec::{Fault, FaultKind};
use machine::Machine;

/// Functions that the kernels below call. `sums` gives x + y and x - y, the latter only of even x.
const FUNCTIONS: &str = "
    .shared .b32 seen[32];
    .extern .func __assertfail (.param .b64 text);
    .func (.param .b64 twice_result) twice (.param .b64 twice_x) {
        .reg .b64 %rd<3>;
        ld.param.b64 %rd1, [twice_x]; add.s64 %rd2, %rd1, %rd1; st.param.b64 [twice_result], %rd2; ret;
    }
    .func (.param .align 8 .b8 result[16]) sums (.param .b32 x, .param .b64 y) {
        .reg .pred %p<2>; .reg .b32 %r<4>; .reg .b64 %rd<6>;
        ld.param.u32 %r1, [x]; ld.param.b64 %rd1, [y]; cvt.u64.u32 %rd2, %r1;
        add.s64 %rd3, %rd2, %rd1; st.param.b64 [result+0], %rd3; st.param.b64 [result+8], 0;
        and.b32 %r2, %r1, 1; setp.eq.u32 %p1, %r2, 1; @%p1 ret;
        sub.s64 %rd4, %rd2, %rd1; st.param.b64 [result+8], %rd4; ret;
    }
    .func leave_seen () {
        .reg .b32 %r<4>;
        mov.u32 %r1, %tid.x; shl.b32 %r2, %r1, 2; mov.u32 %r3, seen; add.u32 %r2, %r2, %r3;
        st.shared.u32 [%r2], %r1; ret;
    }";

/// A kernel with `%r1` the lane and `%rd1` that in 64 bits, which stores `%rd0`.
fn run(body: &str) -> Result<Vec<u64>, Box<Fault>> {
    let text = format!(
        ".version 8.0\n.target sm_80\n{FUNCTIONS}\n.visible .entry k(.param .u64 out) {{
        .reg .pred %p<4>; .reg .b32 %r<12>; .reg .b64 %rd<12>;
        ld.param.u64 %rd10, [out]; mov.u32 %r1, %tid.x; cvt.u64.u32 %rd1, %r1;
        mul.wide.u32 %rd11, %r1, 8; add.s64 %rd11, %rd11, %rd10; mov.u64 %rd0, 0;
        {body}\nst.global.u64 [%rd11], %rd0; ret; }}"
    );
    let machine = Machine::new(&text);
    let out = machine.space(256);
    machine.launch("k", ([1; 3], [32, 1, 1], 0), &[out.into()])?;
    Ok(machine.read(out, 32, u64::from_le_bytes))
}

type Lane = fn(u64) -> u64;

const CASES: &[(&str, Lane)] = &[
    // (2^64 - 5 + lane) + 2 lanes in two halves: the carry.
    (
        "mov.u64 %rd2, -5; add.s64 %rd2, %rd2, %rd1; add.cc.u64 %rd3, %rd2, %rd1; addc.u64 %rd0, 0, 0;",
        |lane| u64::from((u64::MAX - 4).wrapping_add(lane).checked_add(lane).is_none()),
    ),
    // A carry in and out at once: 0xffffffff + 0xffffffff + 1.
    (
        "add.cc.u32 %r2, -1, 1; addc.cc.u32 %r3, -1, -1; addc.u32 %r4, %r1, 0; mov.b64 %rd0, {%r3, %r4};",
        |lane| (lane + 1) << 32 | 0xffff_ffff,
    ),
    // A product of 64 bits by parts.
    (
        "mad.lo.cc.u32 %r2, %r1, 0x89abcdef, 0xffffffff; madc.hi.u32 %r3, %r1, 0x89abcdef, 7; mov.b64 %rd0, {%r2, %r3};",
        |lane| lane * 0x89ab_cdef + 0xffff_ffff + (7 << 32),
    ),
    // 2^32 * 3 - lane in two halves.
    ("sub.cc.u32 %r2, 0, %r1; subc.u32 %r3, 3, 0; mov.b64 %rd0, {%r2, %r3};", |lane| {
        (3 << 32) - lane
    }),
    // 5 - lane in three words; what is left of the borrow is the complement of a carry.
    (
        "sub.cc.u32 %r2, 5, %r1; subc.cc.u32 %r3, 0, 0; subc.cc.u32 %r4, 0, 0; addc.u32 %r5, 0, 0; cvt.u64.u32 %rd0, %r5;",
        |lane| u64::from(lane <= 5),
    ),
    // Registers that are wider than the types of a conversion.
    ("mov.u64 %rd2, 0x1fffffffe; cvt.s64.s32 %rd0, %rd2;", |_| u64::MAX - 1),
    ("mov.u64 %rd2, 0x1ff80; cvt.s32.s8 %rd0, %rd2;", |_| u64::MAX - 127),
    ("mov.u64 %rd2, 0x1ff80; cvt.u16.u8 %rd0, %rd2;", |_| 0x80),
    // Time goes on.
    (
        "mov.u64 %rd2, %globaltimer; mov.u32 %r2, %clock; nanosleep.u32 20;\nmov.u64 %rd3, %clock64;\nbar.warp.sync -1;\nmov.u64 %rd4, %clock64; setp.gt.u64 %p1, %rd4, %rd2; selp.b64 %rd0, 1, 0, %p1;",
        |_| 1,
    ),
    // Each lane its own way.
    (
        "and.b32 %r2, %r1, 3;\nways: .branchtargets A, B, C, A;\nbrx.idx %r2, ways;\nA: mov.u64 %rd0, 10; bra.uni D;\nB: mov.u64 %rd0, 20; bra.uni D;\nC: mov.u64 %rd0, 30;\nD: add.s64 %rd0, %rd0, %rd1;",
        |lane| [10, 20, 30, 10][lane as usize & 3] + lane,
    ),
    // Calls: two results, of which odd lanes get one; a function in two places; under a guard.
    (
        "{ .param .b32 p0; .param .b64 p1; .param .align 8 .b8 r[16]; st.param.b32 [p0+0], %r1; st.param.b64 [p1+0], 3;\ncall.uni (r), sums, (p0, p1);\nld.param.b64 %rd2, [r+0]; ld.param.b64 %rd3, [r+8]; }\nshl.b64 %rd3, %rd3, 8; or.b64 %rd0, %rd2, %rd3;",
        |lane| (lane + 3) | (if lane & 1 == 0 { lane.wrapping_sub(3) } else { 0 }) << 8,
    ),
    (
        "{ .param .b64 p; .param .b64 r; st.param.b64 [p], %rd1; call (r), twice, (p); ld.param.b64 %rd0, [r]; }\n{ .param .b64 p; .param .b64 r; st.param.b64 [p], %rd0; call (r), twice, (p); ld.param.b64 %rd0, [r]; }",
        |lane| 4 * lane,
    ),
    (
        "{ .param .b64 p; .param .b64 r; st.param.b64 [p], %rd1; st.param.b64 [r], 99; setp.lt.u32 %p1, %r1, 9; @%p1 call (r), twice, (p); ld.param.b64 %rd0, [r]; }",
        |lane| if lane < 9 { 2 * lane } else { 99 },
    ),
    // A function's shared memory is the module's.
    (
        "call leave_seen;\nbar.sync 0;\nxor.b32 %r2, %r1, 1; shl.b32 %r2, %r2, 2; mov.u32 %r3, seen; add.u32 %r2, %r2, %r3; ld.shared.u32 %r4, [%r2]; cvt.u64.u32 %rd0, %r4;",
        |lane| lane ^ 1,
    ),
];

#[test]
fn they_do_what_the_manual_says() {
    for (body, want) in CASES {
        let got = run(body).unwrap_or_else(|fault| panic!("{body}: {fault}"));
        assert_eq!(got, (0..32).map(want).collect::<Vec<_>>(), "{body}");
    }
}

#[test]
fn assertions_and_jumps_beyond_the_list_end_the_launch() {
    let assertion = "setp.eq.u32 %p1, %r1, 7;\n{ .param .b64 p; st.param.b64 [p], 0; @%p1 call __assertfail, (p); }";
    let fault = run(assertion).unwrap_err();
    assert_eq!((fault.kind, fault.thread), (FaultKind::Assert, [7, 0, 0]), "{fault}");
    let jump = "ways: .branchtargets A, A;\nbrx.idx %r1, ways;\nA: mov.u64 %rd0, 1;";
    let fault = run(jump).unwrap_err();
    assert_eq!((fault.kind, fault.thread), (FaultKind::Trap, [2, 0, 0]), "{fault}");
}
