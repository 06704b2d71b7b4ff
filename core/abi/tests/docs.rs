//! `docs/ops.md`: the catalogue for people, made from its data and from the comments beside it.
//!
//! `cargo xtask docs` writes it; this test compares.

#![expect(clippy::unwrap_used, reason = "helpers of a test, outside its functions")]

use std::{fmt::Write, fs, path::Path};

use halyard_abi::{
    AttrKey, DType, OpKind,
    c::ABI_VERSION,
    module::OPSET,
    ops::{
        Access, AttrSchema, OpSchema,
        attrs::{self, Value},
        catalogue::CATALOGUE,
        schema::{Dim, Layout, Shape, Slot, Types, WeightSlot},
    },
};

const CATALOGUE_SOURCE: &str = include_str!("../src/ops/catalogue.rs");
const SYMBOLS_SOURCE: &str = include_str!("../src/ops/schema.rs");
const SCHEMES_SOURCE: &str = include_str!("../src/scheme.rs");

const HEAD: &str = "\
<!-- Written by `cargo xtask docs` from core/abi/src/ops and core/abi/src/scheme.rs; a test compares. Change those, not this. -->
# The op catalogue

What each operation takes, means and returns: opset OPSET. `docs/abi.md` says how an op crosses the boundary; this page says what it is.
Identifiers are those of `halyard_backend.h` (`HALYARD_OP_LINEAR`, `HALYARD_ATTR_EPS`) and of `halyard_abi` (`OpKind::LINEAR`,
`AttrKey::EPS`).

**Reference semantics.** Inputs are widened to f32, arithmetic is f32 with accumulation in f32 or better (the oracle: f64), and each
written tensor is rounded once, to nearest even. Rows whose index is negative are padding: their outputs are 0.

**Slots** are positional. *in* is read, *out* is written, *in/out* both; one marked `?` may be absent (dtype NONE, trailing ones may be left
out). Within one op, a symbol has one value everywhere; `*` stands for the same one to four dims in every slot that has it, `…*` for
the last of those. Dtypes: *compute* is f32, f16 or bf16, the same in all slots so marked; *float* is any of the three; *cache* is one
of them, f8e4m3 or i8, *float cache* one of the three, each the same in all slots so marked; *codes* is i8 or f8e4m3; *any* is any dtype of whole
bytes. Strides: *rows* has a contiguous last dim and any others; *packed* has no gaps; *any* is any, 0 included where it is read; *opaque*
is arranged as the backend's `kv_layout` said. A slot that is written has no stride of 0.

**Attributes** that are left out have their default. *Since* is the op's revision that brought it; what came after revision 1 is sent only
where it differs from its default. Types are those of `halyard_attr.ty`.

";

#[test]
fn the_page_of_the_catalogue_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/ops.md");
    let page = page();
    if std::env::var_os("HALYARD_WRITE_DOCS").is_some() {
        fs::write(&path, &page).unwrap();
    }
    let there = fs::read_to_string(&path).unwrap_or_default();
    let differs = there.lines().zip(page.lines()).position(|(a, b)| a != b);
    let line = differs.unwrap_or_else(|| there.lines().count().min(page.lines().count())) + 1;
    assert!(there == page, "docs/ops.md is out of date from line {line} on: cargo xtask docs");
}

#[test]
fn the_page_of_the_boundary_is_of_this_version() {
    let page = include_str!("../../../docs/abi.md");
    let (major, minor) = ABI_VERSION;
    assert!(page.contains(&format!("| ABI `{major}.{minor}` |")), "docs/abi.md and the version");
    assert!(page.contains(&format!("| opset `{OPSET}` |")), "docs/abi.md and the opset");
}

fn page() -> String {
    let mut page = HEAD.replace("OPSET", &OPSET.to_string());
    page += "## Symbols\n\n| | |\n|---|---|\n";
    for (name, doc) in symbols() {
        writeln!(page, "| `{name}` | {doc} |").unwrap();
    }
    page += "\n## Ops\n\n";
    for schema in CATALOGUE {
        page += &section(schema);
    }
    page += "## Parts of a weight\n\nWhat `weight_fill` hands over, by scheme; the formulas are beside `HALYARD_SCHEME_*` in the header.\n\n";
    for line in SCHEMES_SOURCE.lines().filter_map(|l| l.strip_prefix("//! |")) {
        writeln!(page, "|{line}").unwrap();
    }
    page
}

fn section(schema: &OpSchema) -> String {
    let constant = constant(schema.kind);
    let mut text = format!("### {constant}\n\n");
    let number = schema.kind.0;
    let number = if number < 0x100 { number.to_string() } else { format!("{number:#x}") };
    writeln!(text, "Id {number}, revision {}.\n", schema.revision).unwrap();
    writeln!(text, "{}\n", formula(constant)).unwrap();
    text += "| slot | | dtype | dims | strides |\n|---|---|---|---|---|\n";
    for (i, slot) in schema.slots.iter().enumerate() {
        text += &row_of_slot(i, slot);
    }
    for (i, weight) in schema.weights.iter().enumerate() {
        writeln!(text, "| w{i} `{}` | weight | | {} | |", weight.name, dims_of_weight(weight))
            .unwrap();
    }
    text.push('\n');
    let attributes = attrs::schema(schema.kind);
    if !attributes.is_empty() {
        text += "| attribute | type | default | since | |\n|---|---|---|---|---|\n";
        attributes.iter().for_each(|a| text += &row_of_attribute(a));
        text.push('\n');
    }
    for (what, names) in [("Scalars", schema.scalars), ("Host arrays", schema.host)] {
        if !names.is_empty() {
            writeln!(text, "{what}: {}.\n", code_list(names)).unwrap();
        }
    }
    for &(out, input) in schema.may_alias {
        let (out, input) = (schema.slots[out].name, schema.slots[input].name);
        writeln!(text, "`{out}` may be `{input}`.\n").unwrap();
    }
    text
}

fn constant(kind: OpKind) -> &'static str {
    OpKind::CONSTANTS.iter().find(|(_, k)| *k == kind).expect("the catalogue has known ops").0
}

fn row_of_slot(index: usize, slot: &Slot) -> String {
    let access = match slot.access {
        Access::In => "in",
        Access::Out => "out",
        Access::InOut => "in/out",
    };
    let optional = if slot.optional { "?" } else { "" };
    let types = match slot.types {
        Types::Is(dtype) => name_of(dtype),
        Types::Float => "float",
        Types::Compute => "compute",
        Types::Cache => "cache",
        Types::FloatCache => "float cache",
        Types::Quantised => "codes",
        Types::Any => "any",
    };
    let shape = match slot.shape {
        Shape::Dims(dims) => list(dims.iter().copied()),
        Shape::Same => "`*`".into(),
        Shape::Trailing => "`…*`".into(),
    };
    let layout = match slot.layout {
        Layout::Any => "any",
        Layout::Rows => "rows",
        Layout::Packed => "packed",
        Layout::Opaque => "opaque",
    };
    format!("| {index} `{}`{optional} | {access} | {types} | {shape} | {layout} |\n", slot.name)
}

fn name_of(dtype: DType) -> &'static str {
    dtype.name().expect("the catalogue has known dtypes")
}

fn dims_of_weight(weight: &WeightSlot) -> String {
    list(weight.groups.into_iter().chain([weight.n, weight.k]))
}

fn list(dims: impl Iterator<Item = Dim>) -> String {
    let dim = |dim| match dim {
        Dim::Is(sym) => format!("{sym:?}"),
        Dim::PlusOne(sym) => format!("{sym:?} + 1"),
        Dim::Twice(sym) => format!("2 {sym:?}"),
        Dim::Const(number) => number.to_string(),
    };
    format!("`[{}]`", dims.map(dim).collect::<Vec<_>>().join(", "))
}

fn row_of_attribute(a: &AttrSchema) -> String {
    let key = AttrKey::CONSTANTS.iter().find(|(_, k)| *k == a.key).expect("a known key").0;
    let (ty, default) = match a.default {
        Value::Int(v) => ("I64", v.to_string()),
        Value::Float(v) => ("F64", format!("{v:?}")),
        // A choice of two by number, as the header has it.
        Value::Bool(v) => ("BOOL", u8::from(v).to_string()),
        Value::Id(v) => ("ID", v.to_string()),
    };
    format!("| {key} = {} | {ty} | {default} | {} | {} |\n", a.key.0, a.since, plain(a.doc))
}

fn code_list(names: &[&str]) -> String {
    names.iter().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ")
}

/// The comment of an op's entry.
fn formula(constant: &str) -> String {
    let entry = format!("pub const {constant}: OpSchema");
    let at = CATALOGUE_SOURCE.find(&entry).unwrap_or_else(|| panic!("no entry {constant}"));
    let mut lines: Vec<&str> = CATALOGUE_SOURCE[..at]
        .lines()
        .rev()
        .map_while(|line| line.strip_prefix("///"))
        .map(str::trim)
        .collect();
    lines.reverse();
    assert!(!lines.is_empty(), "{constant} has no formula");
    plain(&lines.join("\n"))
}

/// Each symbol that has a meaning of its own, and which.
fn symbols() -> Vec<(&'static str, &'static str)> {
    let start = SYMBOLS_SOURCE.find("pub enum Sym {").expect("the symbols are there");
    let body = SYMBOLS_SOURCE[start..].split_once('}').expect("they end").0;
    let lines: Vec<&str> = body.lines().map(str::trim).collect();
    let pairs = lines.windows(2).filter_map(|pair| {
        Some((pair[1].strip_suffix(',')?, pair[0].strip_prefix("/// ")?.trim_end_matches('.')))
    });
    pairs.filter(|(name, _)| *name != "D0").collect()
}

/// Without the links of Rust's documentation: ``[`LINEAR`]`` and ``[`Linear::act_quant`](…)``.
fn plain(text: &str) -> String {
    let (mut rest, mut out) = (text, String::new());
    while let Some((before, link)) = rest.split_once("[`") {
        let Some((name, after)) = link.split_once("`]") else { break };
        write!(out, "{before}`{name}`").unwrap();
        rest = after;
        if let Some(target) = after.strip_prefix('(') {
            rest = target.split_once(')').expect("a link ends").1;
        }
    }
    out + rest
}
