//! What devices of capability 9.0 have beside, against results worked out here: bulk copies, tiles of tensors, `wgmma`.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_possible_wrap,
    clippy::cast_precision_loss,
    clippy::float_cmp,
    reason = "tests: sizes are small, results exact where compared"
)]

mod machine;

use half::{bf16, f16};
use halyard_sim_cuda_exec::{Class, Counters, TensorMap};
use machine::{Arg, Machine, words};

const REGISTERS: &str = ".reg .pred %p<8>; .reg .b32 %r<400>; .reg .b64 %rd<20>; mov.u32 %r1, %tid.x; setp.eq.u32 %p1, %r1, 0;";

fn kernel(params: &str, body: &str) -> Machine {
    Machine::new(&format!(
        ".version 8.0\n.target sm_90a\n.address_size 64\n.visible .entry k({params}) {{\n{REGISTERS}\n{body}\nret;\n}}"
    ))
}

/// Launches a block under several orders of its warps, and calls `check` after each.
fn launch(
    machine: &Machine,
    (threads, shared): (u32, u32),
    args: impl Fn() -> Vec<Arg>,
    check: impl Fn(Counters),
) {
    for seed in 1..6 {
        machine.seed.set(seed);
        let run = machine.launch("k", ([1; 3], [threads, 1, 1], shared), &args());
        check(run.unwrap_or_else(|fault| panic!("{fault}")));
    }
}

/// Waits for a parity of the barrier at 0.
fn wait(name: &str, parity: u32) -> String {
    format!(
        "{name}: mbarrier.try_wait.parity.shared::cta.b64 %p2, [0], {parity};\n@!%p2 bra {name};"
    )
}

#[test]
fn an_mbarrier_counts_phases_arrivals_and_bytes() {
    let body = "
        ld.param.u64 %rd1, [out];
        @!%p1 bra done;
        mbarrier.init.shared::cta.b64 [0], 3;
        mbarrier.arrive.shared::cta.b64 %rd2, [0];
        mbarrier.pending_count.b64 %r2, %rd2; st.global.u32 [%rd1], %r2;
        mbarrier.arrive.noComplete.release.cta.shared::cta.b64 %rd3, [0], 1;
        mbarrier.pending_count.b64 %r2, %rd3; st.global.u32 [%rd1+4], %r2;
        mbarrier.test_wait.shared::cta.b64 %p3, [0], %rd2; selp.b32 %r2, 1, 0, %p3; st.global.u32 [%rd1+8], %r2;
        mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 %rd4, [0], 32;
        mbarrier.test_wait.parity.shared::cta.b64 %p3, [0], 0; selp.b32 %r2, 1, 0, %p3; st.global.u32 [%rd1+12], %r2;
        mbarrier.complete_tx.relaxed.cta.shared::cta.b64 [0], 32;
        mbarrier.test_wait.shared::cta.b64 %p3, [0], %rd2; selp.b32 %r2, 1, 0, %p3; st.global.u32 [%rd1+16], %r2;
        mbarrier.test_wait.parity.acquire.cta.shared::cta.b64 %p3, [0], 0; selp.b32 %r2, 1, 0, %p3; st.global.u32 [%rd1+20], %r2;
        mbarrier.test_wait.parity.shared::cta.b64 %p3, [0], 1; selp.b32 %r2, 1, 0, %p3; st.global.u32 [%rd1+24], %r2;
        mbarrier.arrive.shared::cta.b64 %rd5, [0], 3;
        mbarrier.try_wait.shared::cta.b64 %p3, [0], %rd5, 1000; selp.b32 %r2, 1, 0, %p3; st.global.u32 [%rd1+28], %r2;
        mbarrier.inval.shared::cta.b64 [0];
        st.shared.u64 [0], %rd1; mbarrier.init.shared::cta.b64 [8], 1;
        done:";
    let machine = kernel(".param .u64 out", body);
    let out = machine.space(32);
    let check = |_| assert_eq!(machine.read(out, 8, u32::from_le_bytes), [3, 2, 0, 0, 1, 1, 0, 1]);
    launch(&machine, (32, 16), || vec![out.into()], check);
}

#[test]
fn a_ring_of_bulk_copies_brings_every_part_in_its_phase() {
    // Warp 0 brings eight parts through two places, the others add 5 and bring them back.
    let fill = wait("full", 0).replace(", 0;", ", %r6;");
    let body = format!(
        "
        ld.param.u64 %rd1, [out]; ld.param.u64 %rd2, [from];
        @%p1 mbarrier.init.shared::cta.b64 [0], 1;
        @%p1 mbarrier.init.shared::cta.b64 [8], 96;
        fence.mbarrier_init.release.cluster; barrier.cluster.arrive.relaxed.aligned; barrier.cluster.wait.acquire.aligned;
        mov.u32 %r5, 0; mov.u32 %r6, 0; setp.lt.u32 %p4, %r1, 32;
        @%p4 bra producer;
        setmaxnreg.inc.sync.aligned.u32 240;
        sub.u32 %r7, %r1, 32; mul.lo.u32 %r8, %r7, 4; add.u32 %r9, %r8, 1024;
        consume:
        {fill}
        ld.shared::cta.u32 %r2, [%r9]; add.u32 %r2, %r2, 5;
        mad.lo.u32 %r3, %r5, 384, %r8; cvt.u64.u32 %rd3, %r3; add.s64 %rd3, %rd3, %rd1; st.global.u32 [%rd3], %r2;
        mbarrier.arrive.release.cta.shared::cta.b64 _, [8];
        add.u32 %r5, %r5, 1; xor.b32 %r6, %r6, 1; setp.lt.u32 %p5, %r5, 8;
        @%p5 bra consume;
        bra done;
        producer:
        setmaxnreg.dec.sync.aligned.u32 24;
        elect.sync %r2|%p3, -1;
        @!%p3 bra done;
        mov.u32 %r6, 1;
        produce:
        empty: mbarrier.try_wait.parity.shared::cta.b64 %p2, [8], %r6;
        @!%p2 bra empty;
        mbarrier.arrive.expect_tx.shared::cta.b64 _, [0], 384;
        cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [1024], [%rd2], 384, [0], %rd9;
        add.s64 %rd2, %rd2, 384; add.u32 %r5, %r5, 1; xor.b32 %r6, %r6, 1; setp.lt.u32 %p5, %r5, 8;
        @%p5 bra produce;
        done:
        griddepcontrol.launch_dependents;"
    );
    let machine = kernel(".param .u64 out, .param .u64 from", &body);
    let data: Vec<_> = words(768, 1).collect();
    let (out, from) = (machine.space(4 * 768), machine.u32s(&data));
    let want: Vec<_> = data.iter().map(|word| word.wrapping_add(5)).collect();
    let check = |counters: Counters| {
        assert_eq!(machine.read(out, 768, u32::from_le_bytes), want);
        assert_eq!((counters.read_sectors, counters.unique_written_sectors), (96, 96));
        assert_eq!(counters.of(Class::AsyncCopy), 8);
    };
    launch(&machine, (128, 2048), || vec![out.into(), from.into()], check);
}

#[test]
fn copies_of_cp_async_come_with_an_mbarrier() {
    for (form, count) in [(".noinc", 64), ("", 1)] {
        let body = format!(
            "
            ld.param.u64 %rd1, [out]; ld.param.u64 %rd2, [from];
            @%p1 mbarrier.init.shared::cta.b64 [0], {count};
            bar.sync 0;
            mul.wide.u32 %rd3, %r1, 4; add.s64 %rd2, %rd2, %rd3; mad.lo.u32 %r2, %r1, 4, 1024;
            cp.async.ca.shared.global [%r2], [%rd2], 4;
            cp.async.mbarrier.arrive{form}.shared::cta.b64 [0];
            bar.sync 0;
            {}
            {}
            xor.b32 %r2, %r2, 252; ld.shared.u32 %r3, [%r2];
            add.s64 %rd1, %rd1, %rd3; st.global.u32 [%rd1], %r3;",
            if count == 1 { "@%p1 mbarrier.arrive.shared::cta.b64 _, [0];" } else { "" },
            wait("full", 0)
        );
        let machine = kernel(".param .u64 out, .param .u64 from", &body);
        let mut data: Vec<_> = words(64, 2).collect();
        let (out, from) = (machine.space(256), machine.u32s(&data));
        data.reverse();
        let check = |_| assert_eq!(machine.read(out, 64, u32::from_le_bytes), data);
        launch(&machine, (64, 2048), || vec![out.into(), from.into()], check);
    }
}

#[test]
fn a_threads_fence_is_enough_for_what_it_wrote() {
    // One thread fills 32 bytes, and brings out half of them itself; another warp's thread the other half.
    let body = "
        ld.param.u64 %rd1, [out]; setp.eq.u32 %p3, %r1, 32;
        @!%p1 bra second;
        st.shared.v4.u32 [1024], {%r1, %r1, %r1, %r1};
        st.shared.v4.u32 [1040], {%r1, %r1, %r1, %r1};
        fence.proxy.async.shared::cta;
        cp.async.bulk.global.shared::cta.bulk_group [%rd1], [1024], 16;
        cp.async.bulk.commit_group;
        second:
        bar.sync 0;
        @!%p3 bra done;
        cp.async.bulk.global.shared::cta.bulk_group [%rd1+16], [1040], 16;
        cp.async.bulk.commit_group;
        done:
        cp.async.bulk.wait_group 0;";
    let machine = kernel(".param .u64 out", body);
    let out = machine.space(32);
    let check = |_| assert_eq!(machine.read(out, 8, u32::from_le_bytes), [0; 8]);
    launch(&machine, (64, 2048), || vec![out.into()], check);
}

/// Where byte `at` of a tile lies in memory whose rows of 128 bytes are permuted.
fn permuted(at: usize, swizzle: usize) -> usize {
    let (row, chunk, byte) = (at / 128, at / 16 % 8, at % 16);
    let chunk = match swizzle {
        1 => chunk ^ (row & 1),
        2 => chunk ^ (row & 3),
        3 => chunk ^ (row & 7),
        _ => chunk,
    };
    row * 128 + chunk * 16 + byte
}

/// Brings a tile of so many bytes, takes it to another tensor, and writes all of it out as it lies in shared memory.
fn tile_body(starts: &[i32], bytes: usize) -> String {
    let rank = starts.len();
    let registers: Vec<_> = (10..10 + rank).map(|register| format!("%r{register}")).collect();
    let coordinates = registers.join(", ");
    let set: String =
        registers.iter().zip(starts).map(|(to, start)| format!("mov.u32 {to}, {start};")).collect();
    format!(
        "
        ld.param.u64 %rd1, [out]; mov.b64 %rd2, map; cvta.param.u64 %rd2, %rd2; mov.b64 %rd3, other; cvta.param.u64 %rd3, %rd3;
        {set}
        @%p1 mbarrier.init.shared::cta.b64 [0], 1;
        prefetch.tensormap [%rd2];
        @!%p1 bra there;
        mbarrier.arrive.expect_tx.shared::cta.b64 _, [0], {bytes};
        cp.async.bulk.tensor.{rank}d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [1024], [%rd2, {{{coordinates}}}], [0];
        {wait}
        cp.async.bulk.tensor.{rank}d.global.shared::cta.tile.bulk_group [%rd3, {{{coordinates}}}], [1024];
        cp.async.bulk.commit_group;
        cp.async.bulk.wait_group.read 0;
        cp.async.bulk.global.shared::cta.bulk_group [%rd1], [1024], {bytes};
        cp.async.bulk.commit_group;
        cp.async.bulk.wait_group 0;
        there:",
        wait = wait("full", 0)
    )
}

#[test]
fn tiles_of_one_to_five_dimensions_come_and_go() {
    let extents = [21u32, 5, 4, 3, 2];
    let tile = [16u32, 2, 3, 2, 2];
    let starts: [i32; 5] = [8, -1, 2, 1, 0];
    for (rank, swizzle) in [(1, 0), (2, 1), (2, 3), (3, 2), (4, 3), (5, 0), (5, 1)] {
        let row = 4 * extents[0].next_multiple_of(4) as usize;
        let mut strides = [0u64; 4];
        let mut bytes = row;
        for at in 1..rank {
            strides[at - 1] = bytes as u64;
            bytes *= extents[at] as usize;
        }
        // Rows of 64 bytes do not fit a pattern of 32.
        let inner = if swizzle == 1 { 8 } else { 16 };
        let tile = [inner, tile[1], tile[2], tile[3], tile[4]];
        let count: usize = tile[..rank].iter().product::<u32>() as usize;
        let room = (4 * count).next_multiple_of(128);
        let body = tile_body(&starts[..rank], 4 * count);
        let params =
            ".param .u64 out, .param .align 64 .b8 map[128], .param .align 64 .b8 other[128]";
        let machine = kernel(params, &body);
        let data: Vec<_> = words(bytes / 4, rank as u64).collect();
        let (out, from, to) =
            (machine.space(room), machine.u32s(&data), machine.u32s(&vec![7; bytes / 4]));
        let map = |address| TensorMap {
            address,
            rank,
            element: 2,
            extents,
            strides,
            tile,
            steps: [1; 5],
            interleave: 0,
            swizzle,
            fill: 0,
        };
        let place = |at: usize| -> Option<usize> {
            let (mut rest, mut word) = (at, 0);
            for dim in 0..rank {
                let index = starts[dim] + (rest % tile[dim] as usize) as i32;
                rest /= tile[dim] as usize;
                if index < 0 || index >= extents[dim] as i32 {
                    return None;
                }
                word += index as usize * if dim == 0 { 1 } else { strides[dim - 1] as usize / 4 };
            }
            Some(word)
        };
        let want: Vec<u32> = (0..count).map(|at| place(at).map_or(0, |word| data[word])).collect();
        let mut taken = vec![7; data.len()];
        (0..count).filter_map(place).for_each(|word| taken[word] = data[word]);
        let args = || vec![out.into(), map(from).encode().into(), map(to).encode().into()];
        let check = |_| {
            let got = machine.read(out, count, u32::from_le_bytes);
            let got: Vec<u32> =
                (0..count).map(|at| got[permuted(4 * at, usize::from(swizzle)) / 4]).collect();
            assert_eq!(got, want, "rank {rank}, swizzle {swizzle}");
            assert_eq!(machine.read(to, data.len(), u32::from_le_bytes), taken, "rank {rank}");
        };
        launch(&machine, (32, 1024 + room as u32), args, check);
    }
}

#[test]
fn stmatrix_stores_what_ldmatrix_loads() {
    // What is in row 2 and column 5 of the second matrix.
    for (form, element) in [("", 10), (".trans", 23)] {
        let body = format!(
            "
            ld.param.u64 %rd1, [out]; mad.lo.u32 %r2, %r1, 16, 1024;
            mad.lo.u32 %r3, %r1, 7, 1; mad.lo.u32 %r4, %r1, 65537, 2; mov.u32 %r5, %r1; not.b32 %r6, %r1;
            stmatrix.sync.aligned.m8n8.x4{form}.shared.b16 [%r2], {{%r3, %r4, %r5, %r6}};
            bar.warp.sync -1;
            ldmatrix.sync.aligned.m8n8.x4{form}.shared.b16 {{%r13, %r14, %r15, %r16}}, [%r2];
            sub.u32 %r3, %r3, %r13; sub.u32 %r4, %r4, %r14; sub.u32 %r5, %r5, %r15; sub.u32 %r6, %r6, %r16;
            or.b32 %r3, %r3, %r4; or.b32 %r3, %r3, %r5; or.b32 %r3, %r3, %r6;
            ld.shared.u16 %r7, [1194]; shl.b32 %r7, %r7, 16; or.b32 %r3, %r3, %r7;
            mul.wide.u32 %rd2, %r1, 4; add.s64 %rd1, %rd1, %rd2; st.global.u32 [%rd1], %r3;"
        );
        let machine = kernel(".param .u64 out", &body);
        let out = machine.space(128);
        let check = |_| assert_eq!(machine.read(out, 32, u32::from_le_bytes), [element << 16; 32]);
        launch(&machine, (32, 2048), || vec![out.into()], check);
    }
}

/// One product, as the text of an instruction has it.
struct Case {
    types: &'static str,
    columns: usize,
    /// Bytes of an element.
    bytes: usize,
    swizzle: usize,
    /// A is in registers.
    registers: bool,
    negated: [bool; 2],
    transposed: [bool; 2],
    add: bool,
}

const CASE: Case = Case {
    types: "f32.bf16.bf16",
    columns: 8,
    bytes: 2,
    swizzle: 0,
    registers: false,
    negated: [false; 2],
    transposed: [false; 2],
    add: true,
};

/// A small number that every type has, as `types` encodes it.
fn number(word: u32, ty: &str) -> (Vec<u8>, f64) {
    let small = (word % 15) as i32 - 7;
    let value = f64::from(small);
    let bytes = match ty {
        "bf16" => bf16::from_f64(value).to_le_bytes().to_vec(),
        "f16" => f16::from_f64(value).to_le_bytes().to_vec(),
        "tf32" => (small as f32).to_le_bytes().to_vec(),
        "s8" => vec![small as u8],
        "u8" => return (vec![(word % 200) as u8], f64::from(word % 200)),
        _ => {
            // Eight bits: the exponent behind the sign, with a fraction of three bits or two.
            let fraction = if ty == "e4m3" { 3 } else { 2 };
            let whole = small.unsigned_abs() & if fraction == 2 { 6 } else { 7 };
            let sign = if small < 0 { 0x80 } else { 0 };
            if whole == 0 {
                return (vec![0], 0.0);
            }
            let exponent = whole.ilog2();
            let bias = (1 << (6 - fraction)) - 1;
            let part = (whole << fraction >> exponent) & ((1 << fraction) - 1);
            let bits = sign | (exponent + bias) << fraction | part;
            let value = if small < 0 { -f64::from(whole) } else { f64::from(whole) };
            return (vec![bits as u8], value);
        }
    };
    (bytes, value)
}

/// Puts a matrix of `rows` by K into memory as a descriptor says, and gives the descriptor.
fn lay_out(
    case: &Case,
    (start, rows, transposed): (usize, usize, bool),
    elements: &[Vec<u8>],
    memory: &mut [u8],
) -> u64 {
    let (bytes, depth) = (case.bytes, 32 / case.bytes);
    let row = 16 << case.swizzle;
    let (leading, stride) = match (transposed, case.swizzle) {
        // Eight rows of 16 bytes are a part; parts of K are neighbours.
        (false, 0) => (128, 256),
        (false, _) => (16, 8 * row),
        (true, 0) => (128 * (rows / 8), 128),
        (true, _) => (16 * row, 8 * row),
    };
    for at in 0..rows {
        for k in 0..depth {
            let offset = match (transposed, case.swizzle) {
                (false, 0) => {
                    at / 8 * stride + k * bytes / 16 * leading + at % 8 * 16 + k * bytes % 16
                }
                (false, _) => at / 8 * stride + at % 8 * row + k * bytes,
                (true, 0) => at / 8 * stride + k / 8 * leading + k % 8 * 16 + at % 8 * 2,
                (true, _) => {
                    at * bytes / row * leading + k / 8 * stride + k % 8 * row + at * bytes % row
                }
            };
            let to = permuted(offset, case.swizzle);
            memory[start + to..start + to + bytes].copy_from_slice(&elements[at * depth + k]);
        }
    }
    let mode = [0, 3, 2, 1][case.swizzle] as u64;
    (start as u64 >> 4) | (leading as u64 >> 4) << 16 | (stride as u64 >> 4) << 32 | mode << 62
}

/// Brings shared memory from 1024 on, multiplies ones plus A by B, and writes each thread's registers out.
fn product_body(case: &Case, registers: usize, [left, right]: [u64; 2]) -> String {
    let types: Vec<_> = case.types.split('.').collect();
    let (depth, halves) = (32 / case.bytes, types[0] == "f16");
    let list = |count: usize| {
        (0..count).map(|at| format!("%r{}", 100 + at)).collect::<Vec<_>>().join(", ")
    };
    let mut flags = "%p3".to_owned();
    if types[0] != "s32" {
        case.negated.iter().for_each(|negated| flags += if *negated { ", -1" } else { ", 1" });
    }
    if case.bytes == 2 && types[1].ends_with("f16") {
        let skipped = usize::from(case.registers);
        case.transposed[skipped..]
            .iter()
            .for_each(|trans| flags += if *trans { ", 1" } else { ", 0" });
    }
    let a_operand = if case.registers { "{%r90, %r91, %r92, %r93}" } else { "%rd7" };
    let load_a: String = (0..4)
        .map(|part| {
            format!(
                "ld.global.b32 %r{}, [%rd6+{}];\n",
                90 + part,
                part % 2 * 8 * 32 + part / 2 * 16
            )
        })
        .collect();
    let one = if types[0] == "f32" {
        "0f3F800000"
    } else if halves {
        "0x3c003c00"
    } else {
        "1"
    };
    let start: String =
        (0..registers).map(|at| format!("mov.b32 %r{}, {one};\n", 100 + at)).collect();
    let store: String = (0..registers)
        .map(|at| format!("st.global.b32 [%rd5+{}], %r{};\n", 512 * at, 100 + at))
        .collect();
    format!(
        "
        ld.param.u64 %rd1, [out]; ld.param.u64 %rd2, [from]; ld.param.u64 %rd3, [rows];
        @%p1 mbarrier.init.shared::cta.b64 [0], 1;
        bar.sync 0;
        @!%p1 bra ready;
        mbarrier.arrive.expect_tx.shared::cta.b64 _, [0], 52224;
        add.s64 %rd2, %rd2, 1024;
        cp.async.bulk.shared::cta.global.mbarrier::complete_tx::bytes [1024], [%rd2], 52224, [0];
        ready:
        {wait}
        mul.wide.u32 %rd5, %r1, 4; add.s64 %rd5, %rd5, %rd1;
        shr.u32 %r2, %r1, 5; mul.lo.u32 %r2, %r2, 512; and.b32 %r3, %r1, 31; shr.u32 %r4, %r3, 2;
        mad.lo.u32 %r2, %r4, 32, %r2; and.b32 %r3, %r3, 3; mad.lo.u32 %r2, %r3, 4, %r2;
        cvt.u64.u32 %rd6, %r2; add.s64 %rd6, %rd6, %rd3;
        {load_a}
        mov.b64 %rd7, {left}; mov.b64 %rd8, {right}; setp.eq.u32 %p3, {add}, 1;
        {start}
        wgmma.fence.sync.aligned;
        wgmma.mma_async.sync.aligned.m64n{columns}k{depth}.{types} {{{list}}}, {a_operand}, %rd8, {flags};
        wgmma.commit_group.sync.aligned;
        wgmma.wait_group.sync.aligned 0;
        {store}",
        wait = wait("full", 0),
        add = u32::from(case.add),
        columns = case.columns,
        types = case.types,
        list = list(registers)
    )
}

/// The result at a place, of the registers of 128 threads each.
fn element(ty: &str, registers: &[u32], row: usize, column: usize) -> f64 {
    let thread = row / 16 * 32 + row % 8 * 4 + column % 8 / 2;
    let half = row % 16 / 8;
    if ty == "f16" {
        let word = registers[(column / 8 * 2 + half) * 128 + thread];
        return f16::from_bits((word >> (16 * (column % 2))) as u16).to_f64();
    }
    let word = registers[(column / 8 * 4 + half * 2 + column % 2) * 128 + thread];
    if ty == "s32" { f64::from(word as i32) } else { f32::from_bits(word).into() }
}

fn product(case: &Case) {
    let types: Vec<_> = case.types.split('.').collect();
    let depth = 32 / case.bytes;
    let elements = |rows: usize, ty: &str, seed: u64| -> Vec<(Vec<u8>, f64)> {
        words(rows * depth, seed).map(|word| number(word >> 3, ty)).collect()
    };
    let (a, b) = (elements(64, types[1], 5), elements(case.columns, types[2], 6));
    let bytes_of =
        |of: &[(Vec<u8>, f64)]| of.iter().map(|element| element.0.clone()).collect::<Vec<_>>();
    let mut memory = vec![0u8; 52 * 1024];
    let left = lay_out(case, (1024, 64, case.transposed[0]), &bytes_of(&a), &mut memory[..]);
    let right = lay_out(
        case,
        (17 * 1024, case.columns, case.transposed[1]),
        &bytes_of(&b),
        &mut memory[..],
    );
    let halves = types[0] == "f16";
    let registers = case.columns / if halves { 4 } else { 2 };
    let body = product_body(case, registers, [left, right]);
    let machine = kernel(".param .u64 out, .param .u64 from, .param .u64 rows", &body);
    let out = machine.space(512 * registers);
    let from = machine.buffer(&memory, u8::to_le_bytes);
    let rows = machine.buffer(&bytes_of(&a).concat(), u8::to_le_bytes);
    let sign = if case.negated[0] == case.negated[1] { 1.0 } else { -1.0 };
    let want = |row: usize, column: usize| -> f64 {
        let sum: f64 = (0..depth).map(|k| a[row * depth + k].1 * b[column * depth + k].1).sum();
        sign * sum + f64::from(u8::from(case.add))
    };
    let check = |counters: Counters| {
        let got = machine.read(out, 128 * registers, u32::from_le_bytes);
        for row in 0..64 {
            for column in 0..case.columns {
                let got = element(types[0], &got, row, column);
                let place = format!("{}, row {row}, column {column}", case.types);
                assert_eq!(got, want(row, column), "{place}, swizzle {}", case.swizzle);
            }
        }
        let done = (counters.tensor_ops, counters.tensor_ops_fp8, counters.tensor_ops_int8);
        let ops = 2 * 64 * (case.columns * depth) as u64;
        assert_eq!(done.0 + done.1 + done.2, ops);
    };
    launch(&machine, (128, 52 * 1024), || vec![out.into(), from.into(), rows.into()], check);
}

#[test]
fn products_of_every_type_and_layout() {
    for swizzle in 0..4 {
        product(&Case { columns: 24, swizzle, ..CASE });
        product(&Case { columns: 128, swizzle, transposed: [false, true], ..CASE });
        product(&Case {
            columns: 64,
            swizzle,
            transposed: [true, true],
            types: "f32.f16.f16",
            ..CASE
        });
        product(&Case { columns: 64, swizzle, transposed: [true, false], ..CASE });
        product(&Case { columns: 40, bytes: 4, swizzle, types: "f32.tf32.tf32", ..CASE });
        product(&Case { columns: 32, bytes: 1, swizzle, types: "s32.s8.u8", ..CASE });
        product(&Case { columns: 16, bytes: 1, swizzle, types: "f32.e4m3.e5m2", ..CASE });
    }
    product(&Case { columns: 256, swizzle: 3, ..CASE });
    product(&Case { add: false, ..CASE });
    product(&Case { negated: [true, false], ..CASE });
    product(&Case { negated: [true, true], add: false, ..CASE });
    product(&Case { types: "f16.f16.f16", columns: 16, ..CASE });
    product(&Case { types: "f16.e5m2.e4m3", columns: 16, bytes: 1, ..CASE });
    for (types, bytes) in
        [("f32.bf16.bf16", 2), ("f32.tf32.tf32", 4), ("s32.u8.s8", 1), ("f32.e5m2.e5m2", 1)]
    {
        product(&Case { registers: true, types, bytes, columns: 32, swizzle: 1, ..CASE });
    }
    product(&Case { registers: true, transposed: [false, true], columns: 64, swizzle: 2, ..CASE });
}
