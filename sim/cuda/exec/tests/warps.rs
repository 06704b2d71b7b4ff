//! What the lanes of a warp do together: exchange, tensor-core products, matrices from shared memory, atomics.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_possible_wrap,
    clippy::float_cmp,
    reason = "tests: sizes are small, results exact where compared"
)]

mod machine;

use half::{bf16, f16};
use machine::Machine;
use std::fmt::Write;

/// A kernel with `%r1` the lane, `%r2` a value (10 times the lane) and `%p1` whether the lane is even; it stores `%r0`.
fn exchange(body: &str) -> Vec<u32> {
    let text = format!(
        ".version 8.0\n.target sm_80\n.visible .entry k(.param .u64 out) {{
        .reg .pred %p<4>; .reg .b32 %r<8>; .reg .b64 %rd<4>;
        ld.param.u64 %rd1, [out]; mov.u32 %r1, %tid.x; mul.wide.u32 %rd2, %r1, 4; add.s64 %rd2, %rd2, %rd1;
        mul.lo.u32 %r2, %r1, 10; and.b32 %r3, %r1, 1; setp.eq.u32 %p1, %r3, 0; mov.u32 %r0, 0;
        {body}\nst.global.u32 [%rd2], %r0; ret; }}"
    );
    let machine = Machine::new(&text);
    let out = machine.space(128);
    machine.launch("k", ([1; 3], [32, 1, 1], 0), &[out.into()]).unwrap();
    machine.read(out, 32, u32::from_le_bytes)
}

type Lane = fn(u32) -> u32;

const EXCHANGES: &[(&str, Lane)] = &[
    ("shfl.sync.bfly.b32 %r0, %r2, 3, 31, -1;", |lane| (lane ^ 3) * 10),
    ("shfl.sync.down.b32 %r0, %r2, 4, 31, -1;", |lane| {
        if lane < 28 { (lane + 4) * 10 } else { lane * 10 }
    }),
    (
        "shfl.sync.up.b32 %r0, %r2, 4, 0, -1;",
        |lane| if lane >= 4 { (lane - 4) * 10 } else { lane * 10 },
    ),
    ("shfl.sync.idx.b32 %r0, %r2, 7, 31, -1;", |_| 70),
    // Segments of eight lanes: the mask is 24 << 8.
    ("shfl.sync.idx.b32 %r0, %r2, 2, 0x181f, -1;", |lane| (lane / 8 * 8 + 2) * 10),
    ("shfl.sync.down.b32 %r0|%p2, %r2, 1, 0x181f, -1;\nselp.b32 %r0, 1, 0, %p2;", |lane| {
        u32::from(lane % 8 != 7)
    }),
    ("vote.sync.ballot.b32 %r0, %p1, -1;", |_| 0x5555_5555),
    ("vote.sync.ballot.b32 %r0, !%p1, -1;", |_| 0xaaaa_aaaa),
    ("vote.sync.any.pred %p2, %p1, -1;\nselp.b32 %r0, 1, 0, %p2;", |_| 1),
    ("vote.sync.all.pred %p2, %p1, -1;\nselp.b32 %r0, 1, 0, %p2;", |_| 0),
    ("vote.sync.uni.pred %p2, %p1, -1;\nselp.b32 %r0, 1, 0, %p2;", |_| 0),
    ("match.any.sync.b32 %r0, %r3, -1;", |lane| 0x5555_5555 << (lane & 1)),
    ("match.all.sync.b32 %r0|%p2, %r3, -1;", |_| 0),
    // Values that differ in the high halves alone.
    ("mov.b64 %rd3, {%r0, %r3};\nmatch.any.sync.b64 %r0, %rd3, -1;", |lane| {
        0x5555_5555 << (lane & 1)
    }),
    ("mov.b64 %rd3, {%r1, %r0};\nmatch.any.sync.b64 %r0, %rd3, -1;", |lane| 1 << lane),
    (
        "mov.b64 %rd3, {%r0, %r3};\nmatch.all.sync.b64 %r0|%p2, %rd3, -1;\nselp.b32 %r0, 1, 0, %p2;",
        |_| 0,
    ),
    ("mov.b64 %rd3, 7;\nmatch.all.sync.b64 %r0|%p2, %rd3, -1;", |_| u32::MAX),
    ("bar.red.popc.u32 %r0, 0, %p1;", |_| 16),
    ("bar.red.popc.u32 %r0, 1, 32, !%p1;", |_| 16),
    ("bar.red.and.pred %p2, 0, %p1;\nselp.b32 %r0, 1, 0, %p2;", |_| 0),
    ("setp.lt.u32 %p3, %r1, 32;\nbar.red.and.pred %p2, 0, %p3;\nselp.b32 %r0, 1, 0, %p2;", |_| 1),
    ("bar.red.or.pred %p2, 0, %p1;\nselp.b32 %r0, 1, 0, %p2;", |_| 1),
    // Each half of the warp names itself alone, at one instruction.
    (
        "setp.lt.u32 %p2, %r1, 16;\nselp.b32 %r4, 0xffff, 0xffff0000, %p2;\nvote.sync.ballot.b32 %r0, %p1, %r4;\nbar.warp.sync %r4;",
        |lane| if lane < 16 { 0x5555 } else { 0x5555_0000 },
    ),
    ("redux.sync.add.u32 %r0, %r1, -1;", |_| 496),
    ("redux.sync.max.s32 %r0, %r2, -1;", |_| 310),
    ("redux.sync.xor.b32 %r0, %r1, -1;", |_| 0),
    ("activemask.b32 %r0;", |_| u32::MAX),
    // Half of the lanes go another way, exchange among themselves, and come back.
    (
        "@%p1 bra even;\nshfl.sync.bfly.b32 %r0, %r2, 2, 31, 0xaaaaaaaa;\nbra done;\neven:\nshfl.sync.bfly.b32 %r0, %r2, 4, 31, 0x55555555;\ndone:\nshfl.sync.idx.b32 %r0, %r0, 3, 31, -1;",
        |_| 10,
    ),
    // Two groups wait at different barriers of the warp for lanes that exit instead; lane 31 stores before it does.
    (
        "mov.u32 %r0, %r1;\nsetp.eq.u32 %p2, %r1, 31;\n@%p2 st.global.u32 [%rd2], %r0;\n@%p2 ret;\n@%p1 bra even;\nbar.warp.sync -1;\nbra done;\neven:\nbar.warp.sync -1;\ndone:",
        |lane| lane,
    ),
    // Lanes leave a loop one after the other.
    (
        "mov.u32 %r4, 0;\nagain:\nadd.u32 %r0, %r0, 2;\nadd.u32 %r4, %r4, 1;\nsetp.le.u32 %p2, %r4, %r1;\n@%p2 bra again;",
        |lane| 2 * (lane + 1),
    ),
];

#[test]
fn lanes_exchange() {
    for (body, want) in EXCHANGES {
        assert_eq!(exchange(body), (0..32).map(want).collect::<Vec<_>>(), "{body}");
    }
}

/// One shape of `mma`: how elements are encoded, and how many a register holds.
struct Product {
    mnemonic: &'static str,
    k: usize,
    per: usize,
    encode: fn(f64) -> u32,
    whole: bool,
}

fn small_f8(value: f64) -> u32 {
    // Exact for 0, ±1, ±2, ±3: four exponent bits of bias 7, three of mantissa.
    let magnitude = match value.abs() as u32 {
        0 => 0,
        1 => 0x38,
        2 => 0x40,
        _ => 0x44,
    };
    magnitude | if value < 0.0 { 0x80 } else { 0 }
}

const PRODUCTS: &[Product] = &[
    Product {
        mnemonic: "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32",
        k: 16,
        per: 2,
        encode: |x| bf16::from_f64(x).to_bits().into(),
        whole: false,
    },
    Product {
        mnemonic: "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32",
        k: 16,
        per: 2,
        encode: |x| f16::from_f64(x).to_bits().into(),
        whole: false,
    },
    Product {
        mnemonic: "mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32",
        k: 8,
        per: 2,
        encode: |x| bf16::from_f64(x).to_bits().into(),
        whole: false,
    },
    Product {
        mnemonic: "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32",
        k: 8,
        per: 1,
        encode: |x| (x as f32).to_bits(),
        whole: false,
    },
    Product {
        mnemonic: "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32",
        k: 32,
        per: 4,
        encode: small_f8,
        whole: false,
    },
    Product {
        mnemonic: "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32",
        k: 32,
        per: 4,
        encode: |x| (x as i32 as u32) & 0xff,
        whole: true,
    },
];

/// A whole number from -3 to 3.
fn element(row: usize, column: usize, salt: usize) -> f64 {
    ((row * 31 + column * 17 + salt * 7 + row * column) % 7) as f64 - 3.0
}

/// A register of `per` elements that follow each other.
fn pack(product: &Product, values: impl Fn(usize) -> f64) -> u32 {
    let bits = 32 / product.per;
    (0..product.per).fold(0, |word, at| word | (product.encode)(values(at)) << (bits * at))
}

#[test]
fn tensor_cores_multiply_tiles_of_every_type() {
    for product in PRODUCTS {
        let (k, per) = (product.k, product.per);
        let blocks = k / (4 * per);
        // Lane 4g + t: A rows g and g + 8, B column g; a register of block b starts at k = (4b + t) · per.
        let mut registers = Vec::new();
        for lane in 0..32 {
            let (g, t) = (lane / 4, lane % 4);
            for block in 0..blocks {
                for row in [g, g + 8] {
                    registers.push(pack(product, |at| element(row, (4 * block + t) * per + at, 1)));
                }
            }
            for block in 0..blocks {
                registers.push(pack(product, |at| element((4 * block + t) * per + at, g, 2)));
            }
            for (row, column) in [(g, 2 * t), (g, 2 * t + 1), (g + 8, 2 * t), (g + 8, 2 * t + 1)] {
                let value = element(row, column, 3);
                registers.push(if product.whole {
                    value as i32 as u32
                } else {
                    (value as f32).to_bits()
                });
            }
        }
        let results = run_product(product, &registers, 3 * blocks + 4);
        for (at, bits) in results.iter().enumerate() {
            let (lane, part) = (at / 4, at % 4);
            let (row, column) = (lane / 4 + part / 2 * 8, lane % 4 * 2 + part % 2);
            let want = (0..k).fold(element(row, column, 3), |sum, i| {
                sum + element(row, i, 1) * element(i, column, 2)
            });
            let got = if product.whole {
                f64::from(*bits as i32)
            } else {
                f64::from(f32::from_bits(*bits))
            };
            assert_eq!(got, want, "{} row {row}, column {column}", product.mnemonic);
        }
    }
}

/// Runs one product whose sources are `count` registers a lane; the four results of each lane.
fn run_product(product: &Product, registers: &[u32], count: usize) -> Vec<u32> {
    let mut body = String::new();
    for at in 0..count {
        writeln!(body, "ld.global.u32 %r{}, [%rd2+{}];", 10 + at, 4 * at).unwrap();
    }
    let list = |from: usize, count: usize| {
        let names: Vec<_> = (from..from + count).map(|at| format!("%r{}", 10 + at)).collect();
        format!("{{{}}}", names.join(", "))
    };
    let sources = count - 4;
    let (a, b, c) =
        (list(0, sources / 3 * 2), list(sources / 3 * 2, sources / 3), list(sources, 4));
    let text = format!(
        ".version 8.4\n.target sm_89\n.visible .entry k(.param .u64 in, .param .u64 out) {{
        .reg .b32 %r<40>; .reg .b64 %rd<5>;
        ld.param.u64 %rd1, [in]; ld.param.u64 %rd3, [out]; mov.u32 %r1, %tid.x;
        mul.wide.u32 %rd2, %r1, {}; add.s64 %rd2, %rd2, %rd1;
        mul.wide.u32 %rd4, %r1, 16; add.s64 %rd4, %rd4, %rd3;
        {body}{} {{%r2, %r3, %r4, %r5}}, {a}, {b}, {c};
        st.global.v4.u32 [%rd4], {{%r2, %r3, %r4, %r5}}; ret; }}",
        4 * count,
        product.mnemonic
    );
    let machine = Machine::new(&text);
    let (input, out) = (machine.u32s(registers), machine.space(512));
    machine.launch("k", ([1; 3], [32, 1, 1], 0), &[input.into(), out.into()]).unwrap();
    machine.read(out, 128, u32::from_le_bytes)
}

/// Signed numbers are extended to the register's width; of a wider register the low bytes are stored.
#[test]
fn registers_may_be_wider_than_what_is_loaded_and_stored() {
    let text = ".version 7.8\n.target sm_80\n.visible .entry k(.param .u64 in, .param .u64 out) {
        .reg .b64 %rd<8>;
        ld.param.u64 %rd1, [in]; ld.param.u64 %rd2, [out];
        ld.global.s32 %rd3, [%rd1]; ld.global.u32 %rd4, [%rd1]; ld.global.s16 %rd5, [%rd1+2];
        st.global.v2.u64 [%rd2], {%rd3, %rd4}; st.global.u64 [%rd2+16], %rd5;
        st.global.v2.u32 [%rd2+24], {%rd3, %rd4}; st.global.u16 [%rd2+32], %rd4; ret; }";
    let machine = Machine::new(text);
    let (input, out) = (machine.u32s(&[0xfffe_0003]), machine.space(34));
    machine.launch("k", ([1; 3], [1; 3], 0), &[input.into(), out.into()]).unwrap();
    let halves = machine.read(out, 17, u16::from_le_bytes);
    let want = [
        [0x0003, 0xfffe, 0xffff, 0xffff],
        [0x0003, 0xfffe, 0, 0],
        [0xfffe, 0xffff, 0xffff, 0xffff],
        [0x0003, 0xfffe, 0x0003, 0xfffe],
    ];
    assert_eq!(halves, [&want.concat()[..], &[0x0003]].concat());
}

#[test]
fn matrices_are_loaded_as_they_are_and_transposed() {
    for transposed in [false, true] {
        let variant = if transposed { ".trans" } else { "" };
        let text = format!(
            ".version 7.8\n.target sm_80\n.visible .entry k(.param .u64 in, .param .u64 out) {{
            .reg .b32 %r<8>; .reg .b64 %rd<5>; .shared .align 16 .b8 tile[512];
            ld.param.u64 %rd1, [in]; ld.param.u64 %rd3, [out]; mov.u32 %r1, %tid.x;
            mul.wide.u32 %rd2, %r1, 16; add.s64 %rd1, %rd1, %rd2; add.s64 %rd3, %rd3, %rd2;
            mov.u32 %r2, tile; mad.lo.u32 %r2, %r1, 16, %r2;
            ld.global.v4.u32 {{%r3, %r4, %r5, %r6}}, [%rd1];
            st.shared.v4.u32 [%r2], {{%r3, %r4, %r5, %r6}};
            bar.warp.sync -1;
            ldmatrix.sync.aligned.m8n8.x4{variant}.shared.b16 {{%r3, %r4, %r5, %r6}}, [%r2];
            st.global.v4.u32 [%rd3], {{%r3, %r4, %r5, %r6}}; ret; }}"
        );
        let machine = Machine::new(&text);
        // Element c of row r of matrix m is 64 m + 8 r + c.
        let input = machine.buffer(&(0..256).collect::<Vec<u16>>(), u16::to_le_bytes);
        let out = machine.space(512);
        machine.launch("k", ([1; 3], [32, 1, 1], 0), &[input.into(), out.into()]).unwrap();
        for (at, got) in machine.read(out, 256, u16::from_le_bytes).into_iter().enumerate() {
            let (lane, matrix, part) = (at / 8, at % 8 / 2, at % 2);
            let (row, column) = (lane / 4, lane % 4 * 2 + part);
            let (row, column) = if transposed { (column, row) } else { (row, column) };
            assert_eq!(
                usize::from(got),
                64 * matrix + 8 * row + column,
                "lane {lane}, matrix {matrix}"
            );
        }
    }
}

/// Operation, initial word, and the word after all 64 threads.
const ATOMICS: &[(&str, u32, u32)] = &[
    ("add.u32 %r5, [ADDR], %r1", 5, 5 + 63 * 32),
    ("min.s32 %r5, [ADDR], %r1", 9, 0),
    ("max.u32 %r5, [ADDR], %r1", 9, 63),
    ("or.b32 %r5, [ADDR], %r1", 0, 63),
    ("and.b32 %r5, [ADDR], %r1", u32::MAX, 0),
    ("xor.b32 %r5, [ADDR], %r1", 7, 7),
    ("inc.u32 %r5, [ADDR], 9", 0, 4),
    ("cas.b32 %r5, [ADDR], 3, 8", 3, 8),
    ("add.f32 %r5, [ADDR], 0f3F800000", 0, 0x4280_0000),
    ("add.noftz.bf16x2 %r5, [ADDR], 0x3f803f80", 0, 0x4280_4280),
];

#[test]
fn atomics_lose_nothing() {
    for (update, first, want) in ATOMICS {
        for (space, address) in [("global", "%rd1"), ("shared", "word")] {
            let update = update.replace("ADDR", address);
            let (name, rest) = update.split_once(' ').unwrap();
            let text = format!(
                ".version 7.8\n.target sm_90\n.visible .entry k(.param .u64 p) {{
                .reg .pred %p<2>; .reg .b32 %r<8>; .reg .b64 %rd<3>; .shared .align 4 .b32 word;
                ld.param.u64 %rd1, [p]; mov.u32 %r1, %tid.x; setp.eq.u32 %p1, %r1, 0;
                @%p1 ld.global.u32 %r3, [%rd1];
                @%p1 st.shared.u32 [word], %r3;
                bar.sync 0;
                atom.{space}.{name} {rest};
                bar.sync 0;
                @%p1 ld.shared.u32 %r4, [word];
                @%p1 ld.global.u32 %r6, [%rd1];
                @%p1 st.global.v2.u32 [%rd1+8], {{%r6, %r4}};
                ret; }}"
            );
            let machine = Machine::new(&text);
            let buffer = machine.u32s(&[*first, 0, 0, 0]);
            machine.launch("k", ([1; 3], [64, 1, 1], 0), &[buffer.into()]).unwrap();
            let words = machine.read(buffer, 4, u32::from_le_bytes);
            let got = if space == "global" { words[2] } else { words[3] };
            assert_eq!(got, *want, "{space} {update}");
        }
    }
}
