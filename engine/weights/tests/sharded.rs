//! Checkpoints of several safetensors files.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::path::Path;

use halyard_weights::{Checkpoint, WeightsError};

/// A safetensors file with `f32` scalars.
fn write(path: &Path, tensors: &[(&str, f32)]) {
    let entries: Vec<String> = tensors
        .iter()
        .enumerate()
        .map(|(i, (name, _))| {
            format!(
                r#""{name}":{{"dtype":"F32","shape":[1],"data_offsets":[{},{}]}}"#,
                4 * i,
                4 * i + 4
            )
        })
        .collect();
    let header = format!("{{{}}}", entries.join(","));
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend(tensors.iter().flat_map(|(_, value)| value.to_le_bytes()));
    std::fs::write(path, file).unwrap();
}

fn sharded(index: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    write(&dir.path().join("model-00001-of-00002.safetensors"), &[("a", 1.0), ("b", 2.0)]);
    write(&dir.path().join("model-00002-of-00002.safetensors"), &[("c", 3.0), ("a", 4.0)]);
    let index = index.replace("ONE", "model-00001-of-00002.safetensors");
    let index = index.replace("TWO", "model-00002-of-00002.safetensors");
    std::fs::write(dir.path().join("model.safetensors.index.json"), index).unwrap();
    dir
}

#[test]
fn the_index_says_which_file() {
    let dir = sharded(r#"{"metadata":{},"weight_map":{"a":"TWO","b":"ONE","c":"TWO"}}"#);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let value = |name: &str| checkpoint.tensor(name).unwrap().dequantize().unwrap();
    assert_eq!([value("a"), value("b"), value("c")].concat(), vec![4.0, 2.0, 3.0]);
    assert_eq!(checkpoint.names().count(), 3);
}

#[test]
fn an_index_that_does_not_fit() {
    let missing = sharded(r#"{"weight_map":{"d":"ONE"}}"#);
    let error = Checkpoint::open(missing.path()).unwrap_err();
    assert!(matches!(error, WeightsError::MissingTensor { .. }), "{error}");
    let no_file = sharded(r#"{"weight_map":{"a":"model-3.safetensors"}}"#);
    assert!(matches!(Checkpoint::open(no_file.path()), Err(WeightsError::Io { .. })));
    for index in ["[]", "{", r#"{"weight_map":{"a":3}}"#] {
        assert!(matches!(
            Checkpoint::open(sharded(index).path()),
            Err(WeightsError::Format { .. })
        ));
    }
}

#[test]
fn without_an_index_all_files_count_and_doubles_are_refused() {
    let dir = sharded("{}");
    std::fs::remove_file(dir.path().join("model.safetensors.index.json")).unwrap();
    let error = Checkpoint::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("tensor a is there twice"), "{error}");
    write(&dir.path().join("model.safetensors"), &[("a", 5.0)]);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(checkpoint.tensor("a").unwrap().dequantize().unwrap(), [5.0]);
    assert_eq!(checkpoint.names().count(), 1);
}

#[test]
fn a_truncated_file_is_an_error_at_open_and_after() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    write(&path, &[("a", 1.0), ("b", 2.0)]);
    let checkpoint = Checkpoint::open(&path).unwrap();
    let whole = std::fs::metadata(&path).unwrap().len();
    std::fs::File::options().write(true).open(&path).unwrap().set_len(whole - 4).unwrap();
    assert!(matches!(checkpoint.tensor("a"), Err(WeightsError::FileShrank { .. })));
    assert!(matches!(Checkpoint::open(&path), Err(WeightsError::Format { .. })));
}
