//! The catalogue against the prototypes of the headers and documentation, written apart from it.

use halyard_sim_ascend_ops::{Kind, Since, find, ops};

/// A line an operator: its name, the release, and its parameters. `T` is a tensor, `TL` a list of them, `IA` an array
/// of the host, `Sc` a scalar, `dt` a dtype, `s` a text, `b` a bool; `?` may be null and `!` is not const.
const PROTOTYPES: &str = include_str!("catalogue.txt");

fn kind(code: &str) -> Kind {
    match code {
        "T" => Kind::Tensor,
        "TL" => Kind::TensorList,
        "IA" => Kind::IntArray,
        "Sc" => Kind::Scalar,
        "i8" => Kind::I8,
        "i32" => Kind::I32,
        "i64" => Kind::I64,
        "f64" => Kind::F64,
        "b" => Kind::Bool,
        "s" => Kind::Text,
        "dt" => Kind::DataType,
        other => panic!("{other}"),
    }
}

#[test]
fn parameters_are_those_of_the_prototypes() {
    let mut named = Vec::new();
    for line in PROTOTYPES.lines() {
        let mut words = line.split(' ');
        let name = words.next().unwrap();
        let op = find(name).unwrap_or_else(|| panic!("no {name}"));
        named.push(name);
        let since = match words.next().unwrap() {
            "8.1" => Since::V8_1,
            "8.5" => Since::V8_5,
            _ => Since::V9_1,
        };
        assert_eq!(op.since, since, "{name}");
        let params: Vec<&str> = words.collect();
        assert_eq!(op.params.len(), params.len(), "{name}");
        for (param, word) in op.params.iter().zip(params) {
            let (code, wanted) = word.split_once(':').unwrap();
            assert_eq!(param.name, wanted.trim_end_matches('?'), "{name}");
            assert_eq!(param.kind, kind(code.trim_end_matches('!')), "{name}: {}", param.name);
            let pointer = matches!(
                param.kind,
                Kind::Tensor | Kind::TensorList | Kind::IntArray | Kind::Text | Kind::Scalar
            );
            assert!(param.optional || !wanted.ends_with('?') || !pointer, "{name}: {}", param.name);
            assert!(
                !param.writes || matches!(param.kind, Kind::Tensor | Kind::TensorList),
                "{name}"
            );
        }
        assert!(op.params.iter().any(|p| p.writes), "{name} writes nothing");
    }
    for op in ops() {
        assert_eq!(named.iter().filter(|name| **name == op.name).count(), 1, "{}", op.name);
    }
}
