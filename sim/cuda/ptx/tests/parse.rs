//! The grammar by example, what is refused and how, and that no text panics.

use halyard_sim_cuda_ptx::{
    Address, Initial, Instruction, Linkage, Operand, ScalarType, Space, Statement, parse,
};
use proptest::prelude::*;

const SMALL: &str = r#"
// A comment
.version 7.8
.target sm_80, debug
.address_size 64
.file 1 "kernel.cu"
.extern .shared .align 16 .b8 smem[];
.global .align 4 .u32 table[2][2] = {{1, 0x2}, {03, -1}};
.const .f32 half = 0f3F000000;
.visible .entry add(
    .param .u64 .ptr .global .align 1 out,
    .param .align 64 .b8 blob[128]
)
.maxntid 128, 1, 1
.minnctapersm 2
{
    .reg .pred %p<3>;
    .reg .b64 %rd<2>, wide;
    .loc 1 10 5
    ld.param.u64 %rd1, [out];
    @!%p1 bra $L_end;
    {
        .reg .pred P;
    again:
        mbarrier.try_wait.parity.shared::cta.b64 P, [%rd1 + 0], 1;
        @P bra again;
    }
    shfl.sync.bfly.b32 %r1|%p2, %r2, 1, 31, -1;
    mov.b32 {%rs1, _}, %r3;
    st.global.v2.f32 [%rd1+-8], {0f3F800000, %f1};
    cp.async.bulk.tensor.2d.shared::cluster.global [%r1], [%rd1, {%r2, %r3}], [%r4];
$L_end:
    ret;
}
.func (.param .align 8 .b8 result[16]) sums(.param .b32 x) {
    .reg.b16 half;
    cases: .branchtargets A, B;
    brx.idx %r1, cases;
A: call.uni (retval0), other, ();
B: ret;
}
.extern .func other;
.section .debug_str { .b8 1, 2 }
"#;

fn instructions<'m, 'a>(body: &'m [Statement<'a>], into: &mut Vec<&'m Instruction<'a>>) {
    for statement in body {
        match statement {
            Statement::Instruction(instruction) => into.push(instruction),
            Statement::Block(inner) => instructions(inner, into),
            _ => {}
        }
    }
}

#[test]
fn a_module_and_its_declarations() {
    let module = parse(SMALL).unwrap();
    assert_eq!((module.version, module.target), ((7, 8), "sm_80"));
    let [smem, table, half] = &module.variables[..] else { panic!("{:?}", module.variables) };
    assert_eq!((smem.space, smem.linkage, smem.count), (Space::Shared, Linkage::Extern, None));
    assert_eq!((table.count, table.bytes(), table.align), (Some(4), 16, 4));
    let bits = [1, 2, 3, u64::MAX].map(Initial::Bits);
    assert_eq!(table.init, bits);
    assert_eq!((half.space, half.ty), (Space::Const, ScalarType::F32));
    let kernel = &module.kernels[0];
    assert_eq!((kernel.name, kernel.line), ("add", 10));
    assert_eq!((kernel.params[0].bytes, kernel.params[0].align), (8, 8));
    assert_eq!((kernel.params[1].bytes, kernel.params[1].align), (128, 64));
    assert_eq!(kernel.limits.max_threads, Some([128, 1, 1]));
    assert_eq!(kernel.limits.min_blocks, Some(2));
}

#[test]
fn instructions_and_their_operands() {
    let module = parse(SMALL).unwrap();
    let mut all = Vec::new();
    instructions(&module.kernels[0].body, &mut all);
    let mnemonics: Vec<_> = all.iter().map(|instruction| instruction.mnemonic).collect();
    assert_eq!(mnemonics[..3], ["ld.param.u64", "bra", "mbarrier.try_wait.parity.shared::cta.b64"]);
    assert!(all[1].guard.unwrap().negated);
    assert_eq!(all[2].line, 25);
    let address = |base, offset| Address { base: Some(base), offset, coordinates: Vec::new() };
    assert_eq!(all[2].operands[1], Operand::Address(address("%rd1", 0)));
    let (first, second) = (Operand::Name("%r1"), Operand::Name("%p2"));
    assert_eq!(all[4].operands[0], Operand::Pair(Box::new(first), Box::new(second)));
    assert_eq!(all[4].operands[4], Operand::Int(u64::MAX));
    assert_eq!(all[5].operands[0], Operand::Vector(vec![Operand::Name("%rs1"), Operand::Sink]));
    assert_eq!(all[6].operands[0], Operand::Address(address("%rd1", -8)));
    let Operand::Address(tensor) = &all[7].operands[1] else { panic!("{:?}", all[7]) };
    assert_eq!(tensor.coordinates.len(), 2);
}

#[test]
fn functions_with_their_bodies() {
    let module = parse(SMALL).unwrap();
    let [sums, other] = &module.functions[..] else { panic!("{:?}", module.functions) };
    assert_eq!((sums.name, sums.line, sums.results[0].bytes), ("sums", 35, 16));
    assert_eq!((sums.params[0].name, sums.params[0].bytes), ("x", 4));
    let body = sums.body.as_ref().unwrap();
    assert!(matches!(body[0], Statement::Reg(of) if of.ty == ScalarType::B16 && of.name == "half"));
    assert!(matches!(&body[1], Statement::Targets("cases", labels) if labels[..] == ["A", "B"]));
    let mut all = Vec::new();
    instructions(body, &mut all);
    assert_eq!(all[1].operands[2], Operand::Vector(Vec::new()));
    assert!(other.name == "other" && other.body.is_none());
}

/// Text, line, and what was expected.
const REFUSED: &[(&str, u32, &str)] = &[
    (".version seven", 1, "a version such as 7.8"),
    (".version 7.8\n.address_size 32", 2, "an address size of 64"),
    ("\n\nadd.s32 %r1, %r2;", 3, "a directive or a state space"),
    (".entry k {\n add.s32 %r1 %r2;\n}", 2, "','"),
    (".entry k {\n add.s32 %r1, ;\n}", 2, "an operand"),
    (".entry k {\n ret;\n", 2, "an instruction, a directive or '}'"),
    (".entry k {\n .reg .b33 %r<2>;\n}", 2, "a type such as .b32"),
    (".entry k {\n .reg .b32 %r<9999999>;\n}", 2, "at most 2^20 registers"),
    (".entry k (.param .b8 p[40000]) { ret; }", 1, "a parameter of at most 32764 bytes"),
    (".entry k .maxthreads 4 { ret; }", 1, "a performance directive or '{'"),
    (".global .b8 a[2] = {1, 2, 3};", 1, "at most as many initial values as elements"),
    (".global .align 3 .b8 a;", 1, "a power of two up to 4096"),
    (".entry k {\n ld.u32 %r1, [%rd1+x];\n}", 2, "a number"),
    (".entry k {\n a: .branchtargets ;\n}", 2, "a label"),
    (".func f (.param .b32 x) {\n .reg.b33 %r;\n}", 2, "a type such as .b32"),
    ("/* no end", 1, "the end of /*"),
    (".file 1 \"no end", 1, "a closing quote on the same line"),
];

#[test]
fn refusals_say_where_and_what() {
    for (text, line, expected) in REFUSED {
        let error = parse(text).unwrap_err();
        assert_eq!((error.line, error.expected.as_str()), (*line, *expected), "{text}");
    }
}

#[test]
fn deep_nesting_is_refused() {
    let braces = "{".repeat(100_000);
    assert!(parse(&format!(".entry k {braces}")).is_err());
    assert!(parse(&format!(".global .b8 a[9] = {braces}")).is_err());
}

proptest! {
    /// Any text at all.
    #[test]
    fn never_panics(text in ".{0,200}") {
        _ = parse(&text);
    }

    /// Text that is nearly PTX: a sequence of the grammar's own words.
    #[test]
    fn never_panics_on_words(picks in prop::collection::vec(0usize..26, 0..60)) {
        let words = [
            ".entry", ".reg", ".b32", "%r", "<", "4", ">", ";", "{", "}", "[", "]", "(", ")", ",", "+",
            "-", "0f3F800000", "k", ".param", ".global", ".align", "=", "@", "|", "\n",
        ];
        let text: Vec<_> = picks.iter().map(|pick| words[*pick]).collect();
        _ = parse(&text.join(" "));
    }

    /// A cut or changed text of a real module.
    #[test]
    fn never_panics_on_damage(at in 0usize..900, with in ".{0,3}") {
        let mut text = SMALL.to_owned();
        let at = (0..=at.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap();
        text.insert_str(at, &with);
        _ = parse(&text);
        _ = parse(&text[..at]);
    }
}
