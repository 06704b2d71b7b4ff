//! `include/halyard_backend.h` against a C and a C++ compiler, and against this crate's constants.

use std::{collections::BTreeMap, path::Path, process::Command};

use halyard_abi::{
    AttrKey, Code, DType, InfoKey, MetricKey, OpKind, PropKey, ReduceOp, Role, Scheme, c, module,
    traits, types,
};

const HEADER: &str = include_str!("../include/halyard_backend.h");

/// A program that takes a table and an entry, as a backend does.
const PROGRAM: &str = r#"
#include "halyard_backend.h"
static halyard_backend_api api;
const halyard_backend_api *halyard_backend_v1(const halyard_host_api *host, halyard_error *err) {
  api.struct_size = sizeof api;
  api.abi_major = HALYARD_ABI_MAJOR;
  err->code = HALYARD_CODE_OK;
  return host->struct_size > 0 ? &api : NULL;
}
"#;

#[test]
fn it_compiles_as_c99_c11_and_cpp11_without_a_warning() {
    let folder = std::env::temp_dir().join(format!("halyard-header-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let include = Path::new(env!("CARGO_MANIFEST_DIR")).join("include");
    for (compiler, language, file) in
        [("cc", "-std=c99", "use.c"), ("cc", "-std=c11", "use.c"), ("c++", "-std=c++11", "use.cc")]
    {
        let source = folder.join(file);
        std::fs::write(&source, PROGRAM).unwrap();
        let mut command = Command::new(compiler);
        command.args([language, "-Wall", "-Wextra", "-Werror", "-pedantic", "-c", "-o"]);
        command.arg(folder.join("use.o")).arg("-I").arg(&include).arg(&source);
        let done = command.output().expect("a C compiler is installed");
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{compiler} {language}:\n{said}");
    }
    std::fs::remove_dir_all(folder).unwrap();
}

/// `#define NAME value` of the header.
fn defines() -> BTreeMap<&'static str, i64> {
    let value = |text: &str| {
        let text = text.trim_end_matches('u');
        match text.strip_prefix("0x") {
            Some(hex) => i64::from_str_radix(hex, 16).ok(),
            None => text.parse().ok(),
        }
    };
    let define = |line: &'static str| {
        let mut words = line.strip_prefix("#define ")?.split_whitespace();
        Some((words.next()?, value(words.next()?)?))
    };
    HEADER.lines().filter_map(define).collect()
}

#[test]
fn every_identifier_has_the_same_number_on_both_sides() {
    let mut theirs = defines();
    let mut ours: Vec<(String, i64)> = Vec::new();
    macro_rules! set {
        ($($prefix:literal $set:ident)*) => {$(
            for (name, id) in $set::CONSTANTS {
                ours.push((format!("HALYARD_{}_{name}", $prefix), i64::from(id.0)));
            }
        )*};
    }
    set! {
        "DTYPE" DType "SCHEME" Scheme "ROLE" Role "OP" OpKind "ATTR" AttrKey "PROP" PropKey
        "INFO" InfoKey "METRIC" MetricKey "REDUCE" ReduceOp "CODE" Code
    }
    macro_rules! single {
        ($($name:literal $value:expr;)*) => {
            ours.extend([$((format!("HALYARD_{}", $name), i64::try_from($value).unwrap())),*]);
        };
    }
    single! {
        "ABI_MAJOR" c::ABI_VERSION.0; "ABI_MINOR" c::ABI_VERSION.1; "OPSET" module::OPSET;
        "MAX_RANK" types::MAX_RANK; "MESSAGE_BYTES" c::MESSAGE_BYTES;
        "FLAG_HOST" types::FLAG_HOST; "FLAG_OPAQUE" types::FLAG_OPAQUE;
        "MEM_HOST" types::mem::HOST; "MEM_DEVICE" types::mem::DEVICE;
        "MEM_PINNED" types::mem::PINNED; "MEM_MANAGED" types::mem::MANAGED;
        "WEIGHT_ZERO" types::WEIGHT_ZERO; "WEIGHT_PERM" types::WEIGHT_PERM;
        "KV_STANDARD" types::KV_STANDARD; "KV_MLA" types::KV_MLA;
        "KERNEL_CAPTURABLE" traits::CAPTURABLE; "KERNEL_DETERMINISTIC" traits::DETERMINISTIC;
        "KERNEL_HOST_LENGTHS" traits::HOST_LENGTHS; "KERNEL_BATCH_INVARIANT" traits::BATCH_INVARIANT;
        "KERNEL_PLAN_UPDATE" traits::PLAN_UPDATE;
        "SUPPORT_NO" traits::SUPPORT_NO; "SUPPORT_SLOW" traits::SUPPORT_SLOW;
        "SUPPORT_NATIVE" traits::SUPPORT_NATIVE; "SUPPORT_TUNED" traits::SUPPORT_TUNED;
        "TYPE_I64" 1; "TYPE_F64" 2; "TYPE_BOOL" 3; "TYPE_ID" 4;
    }
    for (name, value) in ours {
        assert_eq!(theirs.remove(name.as_str()), Some(value), "{name}");
    }
    assert!(theirs.is_empty(), "identifiers that Rust does not have: {theirs:?}");
}
