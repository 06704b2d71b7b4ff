//! One instruction a case, with results worked out by hand or from the PTX manual: `cases/*.txt`.
//!
//! A line is `mnemonic | sources | results`; a source is a number of the type that the mnemonic wants, results are the bits
//! in hexadecimal. `|` lines that start with `#` are comments. Each case runs in all 32 lanes of a warp, and with half
//! of them switched off by a guard.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_possible_wrap,
    clippy::float_cmp,
    reason = "tests: sizes are small, results exact where compared"
)]

mod machine;

use machine::Machine;
use std::fmt::Write;

const CASES: &[(&str, &str)] = &[
    ("integer", include_str!("cases/integer.txt")),
    ("float", include_str!("cases/float.txt")),
    ("convert", include_str!("cases/convert.txt")),
];

struct Case<'a> {
    mnemonic: &'a str,
    sources: Vec<&'a str>,
    results: Vec<u64>,
}

fn parse(line: &str) -> Case<'_> {
    let parts: Vec<_> = line.split('|').map(str::trim).collect();
    let [mnemonic, sources, results] = parts[..] else { panic!("three parts: {line}") };
    let bits = |text: &str| {
        u64::from_str_radix(text, 16).unwrap_or_else(|_| panic!("hexadecimal: {line}"))
    };
    let sources = sources.split_whitespace().collect();
    Case { mnemonic, sources, results: results.split_whitespace().map(bits).collect() }
}

/// Register type for an operand of `mnemonic`: its own type, or the one that the case names.
fn width(bits: u32) -> (&'static str, &'static str) {
    match bits {
        64 => (".b64", "%rd"),
        16 => (".b16", "%rs"),
        _ => (".b32", "%r"),
    }
}

/// Bits of the result and of sources: from the types in the mnemonic.
fn widths(mnemonic: &str) -> (u32, u32) {
    let bits = |ty: &str| match ty {
        "s64" | "u64" | "b64" | "f64" => Some(64),
        "s16" | "u16" | "b16" | "f16" | "bf16" | "e4m3x2" | "e5m2x2" => Some(16),
        "s8" | "u8" | "s32" | "u32" | "b32" | "f32" | "f16x2" | "bf16x2" | "tf32" => Some(32),
        _ => None,
    };
    let types: Vec<_> = mnemonic.split('.').filter_map(bits).collect();
    let base = mnemonic.split('.').next().unwrap();
    match base {
        "cvt" => (types[0], types[1]),
        "popc" | "clz" => (32, types[0]),
        "mul" | "mad" if mnemonic.contains(".wide") => (2 * types[0], types[0]),
        _ => (types[0], types[0]),
    }
}

/// Whether source `index` is 32 bits wide whatever the others are.
fn is_word(mnemonic: &str, index: usize) -> bool {
    let base = mnemonic.split('.').next().unwrap();
    matches!((base, index), ("shl" | "shr", 1) | ("bfe", 1..) | ("bfi", 2..) | ("lop3", 3))
}

/// A kernel that computes every case and stores its result in eight bytes of each thread.
fn module(cases: &[Case<'_>]) -> String {
    let mut body = String::new();
    for (index, case) in cases.iter().enumerate() {
        let (result, source) = widths(case.mnemonic);
        let wide = case.mnemonic.starts_with("mad.wide");
        let mut operands = String::new();
        for (at, value) in case.sources.iter().enumerate() {
            let bits = if is_word(case.mnemonic, at) {
                32
            } else if wide && at == 2 {
                result
            } else {
                source
            };
            // Constants may be operands themselves; registers are the usual form.
            if case.mnemonic.starts_with("lop3") && at == 3 {
                write!(operands, ", {value}").unwrap();
                continue;
            }
            let (ty, register) = width(bits);
            writeln!(body, "mov{ty} {register}{}, {value};", at + 1).unwrap();
            write!(operands, ", {register}{}", at + 1).unwrap();
        }
        let (ty, register) = width(result);
        writeln!(body, "mov{ty} {register}0, 0;").unwrap();
        writeln!(body, "@%p1 {} {register}0{operands};", case.mnemonic).unwrap();
        let store = match result {
            64 => "st.global.b64",
            16 => "st.global.b16",
            _ => "st.global.b32",
        };
        writeln!(body, "{store} [%rd9+{}], {register}0;", index * 8).unwrap();
    }
    format!(
        ".version 8.4\n.target sm_90\n.address_size 64\n.visible .entry cases(.param .u64 out, .param .u32 stride, .param .u32 lanes) {{
        .reg .pred %p<2>; .reg .b16 %rs<5>; .reg .b32 %r<12>; .reg .b64 %rd<12>;
        ld.param.u64 %rd8, [out]; ld.param.u32 %r10, [stride]; ld.param.u32 %r9, [lanes];
        mov.u32 %r8, %tid.x; setp.lt.u32 %p1, %r8, %r9;
        mul.wide.u32 %rd9, %r8, %r10; add.s64 %rd9, %rd9, %rd8;\n{body}ret; }}"
    )
}

#[test]
fn instructions_give_what_the_manual_says() {
    for (name, text) in CASES {
        let lines = text.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty());
        let cases: Vec<_> = lines.map(parse).collect();
        let machine = Machine::new(&module(&cases));
        let stride = cases.len() * 8;
        for active in [32usize, 13] {
            let out = machine.u32s(&vec![0; 32 * stride / 4]);
            let args = [out.into(), (stride as u32).into(), (active as u32).into()];
            machine.launch("cases", ([1; 3], [32, 1, 1], 0), &args).unwrap();
            let results = machine.read(out, 32 * cases.len(), u64::from_le_bytes);
            for (at, got) in results.iter().enumerate() {
                let (lane, case) = (at / cases.len(), &cases[at % cases.len()]);
                let want = if lane < active { case.results[0] } else { 0 };
                assert_eq!(
                    *got, want,
                    "{name}: {} {:?}: {got:x} for {want:x} in lane {lane}",
                    case.mnemonic, case.sources
                );
            }
        }
    }
}
