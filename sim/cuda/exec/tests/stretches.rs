//! Random straight code gives the same, compiled and interpreted, in whole warps and parts of them.
#![allow(clippy::unwrap_used, reason = "tests")]

mod machine;

use machine::Machine;
use std::fmt::Write;

const WORDS: usize = 10;
const FLOATS: usize = 12;
const LONGS: usize = 8;
/// Words that each thread begins with and leaves.
const STATE: usize = WORDS + FLOATS + 2 * LONGS;

struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from((self.0 >> 33) % bound as u64).unwrap()
    }
}

/// Instructions with places for operands: `R` a word, `F` a float, `L` a long, `H` a half of 16 bits, `P` a predicate, `#` a constant below 40,
/// `^` one of 16 below.
const INSTRUCTIONS: &[&str] = &[
    "mov.b32 R, R",
    "mov.b32 F, R",
    "mov.b32 F, F",
    "mov.b64 L, L",
    "mov.b32 R, #",
    "mov.b32 R, {H, H}",
    "mov.b32 {H, H}, R",
    "mov.b64 L, {R, R}",
    "mov.b64 {R, R}, L",
    "add.s32 R, R, R",
    "sub.s32 R, R, R",
    "mul.lo.s32 R, R, R",
    "mad.lo.s32 R, R, R, R",
    "min.s32 R, R, R",
    "min.u32 R, R, R",
    "max.s32 R, R, R",
    "max.u32 R, R, R",
    "and.b32 R, R, R",
    "or.b32 R, R, R",
    "xor.b32 R, R, R",
    "not.b32 R, R",
    "neg.s32 R, R",
    "shl.b32 R, R, R",
    "shr.u32 R, R, R",
    "shr.s32 R, R, R",
    "shl.b32 R, R, #",
    "shr.u32 R, R, #",
    "shr.s32 R, R, #",
    "add.s64 L, L, L",
    "sub.s64 L, L, L",
    "mul.lo.s64 L, L, L",
    "mad.lo.s64 L, L, L, L",
    "min.s64 L, L, L",
    "min.u64 L, L, L",
    "max.s64 L, L, L",
    "max.u64 L, L, L",
    "and.b64 L, L, L",
    "or.b64 L, L, L",
    "xor.b64 L, L, L",
    "shl.b64 L, L, R",
    "shr.u64 L, L, R",
    "shr.s64 L, L, R",
    "shl.b64 L, L, #",
    "mul.wide.s32 L, R, R",
    "mul.wide.u32 L, R, R",
    "mad.wide.s32 L, R, R, L",
    "mad.wide.u32 L, R, R, L",
    "add.s16 H, H, H",
    "sub.s16 H, H, H",
    "mul.lo.s16 H, H, H",
    "and.b16 H, H, H",
    "or.b16 H, H, H",
    "xor.b16 H, H, H",
    "lop3.b32 R, R, R, R, #",
    "lop3.b32 R, R, R, R, 0xe8",
    "lop3.b32 R, R, R, R, 0xca",
    "bfe.u32 R, R, ^, ^",
    "bfe.s32 R, R, ^, ^",
    "bfe.u32 R, R, R, #",
    "add.f32 F, F, F",
    "sub.f32 F, F, F",
    "mul.f32 F, F, F",
    "div.rn.f32 F, F, F",
    "fma.rn.f32 F, F, F, F",
    "fma.rn.f32 F, F, F, F",
    "fma.rn.f32 F, F, F, F",
    "min.f32 F, F, F",
    "max.f32 F, F, F",
    "neg.f32 F, F",
    "abs.f32 F, F",
    "sqrt.rn.f32 F, F",
    "rcp.rn.f32 F, F",
    "rsqrt.approx.f32 F, F",
    "setp.eq.s32 P, R, R",
    "setp.ne.s32 P, R, R",
    "setp.lt.s32 P, R, R",
    "setp.le.s32 P, R, R",
    "setp.gt.s32 P, R, R",
    "setp.ge.s32 P, R, R",
    "setp.lt.u32 P, R, R",
    "setp.ge.u32 P|P, R, R",
    "setp.lt.s64 P, L, L",
    "setp.gt.u64 P, L, L",
    "setp.eq.s64 P, L, L",
    "setp.eq.f32 P, F, F",
    "setp.ne.f32 P, F, F",
    "setp.lt.f32 P, F, F",
    "setp.le.f32 P, F, F",
    "setp.gt.f32 P, F, F",
    "setp.ge.f32 P, F, F",
    "setp.equ.f32 P, F, F",
    "setp.neu.f32 P, F, F",
    "setp.ltu.f32 P, F, F",
    "setp.leu.f32 P, F, F",
    "setp.gtu.f32 P, F, F",
    "setp.geu.f32 P, F, F",
    "setp.num.f32 P, F, F",
    "setp.nan.f32 P, F, F",
    "and.pred P, P, P",
    "or.pred P, P, P",
    "xor.pred P, P, P",
    "not.pred P, P",
    "selp.b32 R, R, R, P",
    "selp.f32 F, F, F, P",
    "selp.b64 L, L, L, P",
    "cvt.rn.f32.s32 F, R",
    "cvt.rn.f32.u32 F, R",
    "cvt.f32.f16 F, H",
    "cvt.rn.f16.f32 H, F",
    "cvt.rn.bf16.f32 H, F",
    "cvt.rn.bf16x2.f32 R, F, F",
    "cvt.u64.u32 L, R",
    "cvt.s64.s32 L, R",
    "cvt.u32.u64 R, L",
    "cvt.u16.u32 H, R",
    "cvt.u32.u16 R, H",
    "cvta.to.global.u64 L, L",
    "ld.param.u32 R, [extra]",
    "ld.param.u64 L, [extra+8]",
    "ld.param.v2.u32 {R, R}, [extra+8]",
];

fn instruction(random: &mut Random) -> String {
    let template = INSTRUCTIONS[random.below(INSTRUCTIONS.len())];
    let mut text = String::new();
    let mut before = ' ';
    for (at, letter) in template.char_indices() {
        let alone = matches!(before, ' ' | '{' | '|');
        match letter {
            'R' if alone => write!(text, "%r{}", random.below(WORDS)).unwrap(),
            'F' if alone => write!(text, "%f{}", random.below(FLOATS)).unwrap(),
            'L' if alone => write!(text, "%l{}", random.below(LONGS)).unwrap(),
            'H' if alone => write!(text, "%h{}", random.below(4)).unwrap(),
            'P' if alone && at > 0 => write!(text, "%p{}", random.below(4)).unwrap(),
            '#' => write!(text, "{}", random.below(40)).unwrap(),
            '^' => write!(text, "{}", 1 + random.below(16)).unwrap(),
            _ => text.push(letter),
        }
        before = letter;
    }
    text
}

/// A kernel whose threads read their state, execute `body`, the first `taken` of them, and write it.
fn kernel(body: &[String], taken: usize) -> String {
    let mut text = String::from(
        ".version 7.8\n.target sm_90\n.address_size 64\n.visible .entry k(.param .u64 from, .param .u64 to, .param .align 8 .b8 extra[16]) {\n",
    );
    let registers = format!(
        ".reg .b32 %r<{WORDS}>; .reg .f32 %f<{FLOATS}>; .reg .b64 %l<{LONGS}>; .reg .b16 %h<4>; .reg .pred %p<4>; .reg .b64 %at, %to; .reg .b32 %t; .reg .pred %others;\n"
    );
    text += &registers;
    let bytes = 4 * STATE;
    text += "ld.param.u64 %at, [from]; ld.param.u64 %to, [to]; mov.u32 %t, %tid.x;\n";
    for place in ["at", "to"] {
        writeln!(text, "mad.wide.u32 %{place}, %t, {bytes}, %{place};").unwrap();
    }
    let mut states = Vec::new();
    states.extend((0..LONGS).map(|at| (format!("b64 %l{at}"), 8 * at)));
    states.extend((0..WORDS).map(|at| (format!("b32 %r{at}"), 8 * LONGS + 4 * at)));
    states.extend((0..FLOATS).map(|at| (format!("f32 %f{at}"), 8 * LONGS + 4 * (WORDS + at))));
    for (register, at) in &states {
        let (ty, name) = register.split_once(' ').unwrap();
        writeln!(text, "ld.global.{ty} {name}, [%at+{at}];").unwrap();
    }
    for at in 0..4 {
        writeln!(text, "cvt.u16.u32 %h{at}, %r{at}; setp.lt.u32 %p{at}, %r{at}, %r5;").unwrap();
    }
    writeln!(text, "setp.ge.u32 %others, %t, {taken};\n@%others bra REST;").unwrap();
    body.iter().for_each(|line| writeln!(text, "{line};").unwrap());
    text += "REST:\n";
    for (register, at) in &states {
        let (ty, name) = register.split_once(' ').unwrap();
        writeln!(text, "st.global.{ty} [%to+{at}], {name};").unwrap();
    }
    // Halves and predicates are seen in the first words.
    for at in 0..4 {
        writeln!(
            text,
            "cvt.u32.u16 %r{at}, %h{at}; st.global.b32 [%to+{}], %r{at};",
            8 * LONGS + 4 * at
        )
        .unwrap();
        writeln!(
            text,
            "selp.b32 %r5, 1, 2, %p{at}; st.global.b32 [%to+{}], %r5;",
            8 * LONGS + 4 * (4 + at)
        )
        .unwrap();
    }
    text + "ret;\n}\n"
}

/// Whether both are the same word, or NaN where they are floats.
fn alike(at: usize, a: u32, b: u32) -> bool {
    let float = at >= 2 * LONGS + WORDS;
    a == b || float && f32::from_bits(a).is_nan() && f32::from_bits(b).is_nan()
}

/// Compares for threads of a block and those of them that take part.
fn compare(body: &[String], cases: &[(u32, usize)], random: &mut Random) {
    let interesting = [
        0,
        1,
        31,
        32,
        0x7f,
        0x8000,
        0xffff,
        1 << 31,
        u32::MAX,
        0x3f80_0000,
        0xff80_0000,
        0x7fc0_0000,
        0x3380_0000,
    ];
    let mut value = || match random.below(4) {
        0 => interesting[random.below(interesting.len())],
        1 => (random.below(2000) as f32 / 100.0 - 10.0).to_bits(),
        _ => u32::try_from(random.below(1 << 31)).unwrap() << 1,
    };
    let state: Vec<u32> = (0..32 * STATE).map(|_| value()).collect();
    for (threads, taken) in cases.iter().copied() {
        let ptx = kernel(body, taken);
        let machines = [Machine::new(&ptx), Machine::new(&ptx).interpreting()];
        let [a, b] = machines.map(|machine| {
            let (from, to) = (machine.u32s(&state), machine.u32s(&vec![7; 32 * STATE]));
            let mut extra = machine::Arg::from(0x1234_5678u32);
            extra.extend([1, 2, 0x8765_4321]);
            let args = [from.into(), to.into(), extra];
            machine.launch("k", ([1; 3], [threads, 1, 1], 0), &args).unwrap();
            machine.read(to, 32 * STATE, u32::from_le_bytes)
        });
        for (at, (a, b)) in a.iter().zip(&b).enumerate() {
            let (thread, place) = (at / STATE, at % STATE);
            assert!(alike(place, *a, *b), "thread {thread}, {place}: {a:#x} for {b:#x}\n{ptx}");
        }
    }
}

const CASES: &[(u32, usize)] = &[(32, 32), (32, 11), (27, 32)];

#[test]
fn products() {
    let mut random = Random(0x0fed_cba9_8765_4321);
    for (shape, registers) in [("m16n8k16", (4, 2)), ("m16n8k8", (2, 1))] {
        for ty in ["bf16", "f16"] {
            for _ in 0..20 {
                let mut list = |letter: &str, count: usize, of: usize| {
                    let names: Vec<_> =
                        (0..count).map(|_| format!("%{letter}{}", random.below(of))).collect();
                    format!("{{{}}}", names.join(", "))
                };
                let operands = [
                    "{%f0, %f1, %f2, %f3}".to_owned(),
                    list("r", registers.0, WORDS),
                    list("r", registers.1, WORDS),
                    list("f", 4, FLOATS),
                ];
                let operands = operands.join(", ");
                let body =
                    [format!("mma.sync.aligned.{shape}.row.col.f32.{ty}.{ty}.f32 {operands}")];
                compare(&body, &[(32, 32)], &mut random);
            }
        }
    }
}

#[test]
fn butterflies() {
    let mut random = Random(0x0123_4567_89ab_cdef);
    for by in 0..32 {
        let body = [format!("shfl.sync.bfly.b32 %r1|%p2, %r2, {by}, 31, -1")];
        compare(&body, &[(32, 32)], &mut random);
    }
}

/// Loads of several words by all lanes, by the first of them, and by those of a predicate.
#[test]
fn wide_loads() {
    let mut random = Random(0x0bad_cafe_1234_5679);
    for (count, words) in [(2, "{%r6, %r7}"), (4, "{%r6, %r7, %r8, %r9}")] {
        // From lane to lane, in bytes.
        for step in [0, 4 * count, 32, 48] {
            for guard in ["", "@%p1 "] {
                let body = [
                    "ld.param.u64 %l0, [from]".to_owned(),
                    format!("mad.wide.u32 %l0, %t, {step}, %l0"),
                    format!("{guard}ld.global.v{count}.b32 {words}, [%l0]"),
                ];
                compare(&body, CASES, &mut random);
                let body = [
                    ".shared .align 16 .b8 room[2048]".to_owned(),
                    "mov.u32 %r5, room".to_owned(),
                    format!("mad.lo.u32 %r5, %t, {step}, %r5"),
                    "@%p1 mov.b32 %r6, %t".to_owned(),
                    "st.shared.v4.b32 [%r5], {%r6, %r7, %r8, %r9}".to_owned(),
                    "xor.b32 %r6, %r6, %r7".to_owned(),
                    format!("{guard}ld.shared.v{count}.b32 {words}, [%r5]"),
                ];
                // Lanes that write the same bytes race.
                if step >= 16 {
                    compare(&body, CASES, &mut random);
                }
            }
        }
    }
}

#[test]
fn each_instruction() {
    let mut random = Random(0x1234_5678_9abc_def1);
    for template in INSTRUCTIONS {
        let of = |random: &mut Random| {
            std::iter::repeat_with(|| instruction(random))
                .find(|text| text.starts_with(template.split(' ').next().unwrap()))
                .unwrap()
        };
        // A stretch has several instructions.
        let body: Vec<String> = (0..3).map(|_| of(&mut random)).collect();
        compare(&body, CASES, &mut random);
    }
}

#[test]
fn random_code() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for length in [4, 9, 20, 50, 100, 200, 400] {
        for _ in 0..12 {
            let body: Vec<String> = (0..length).map(|_| instruction(&mut random)).collect();
            compare(&body, CASES, &mut random);
        }
    }
}
