//! Writes GGUF and safetensors files, right ones and wrong ones.
#![allow(dead_code, reason = "each test binary uses a part")]

/// One metadata value.
#[derive(Debug, Clone)]
pub(crate) enum Value {
    U32(u32),
    F32(f32),
    Bool(bool),
    Str(String),
    Strings(Vec<String>),
    I32s(Vec<i32>),
}

/// A GGUF under construction.
#[derive(Debug, Clone, Default)]
pub(crate) struct Builder {
    values: Vec<(String, Value)>,
    tensors: Vec<(String, Vec<u64>, u32, Vec<u8>)>,
}

impl Builder {
    pub(crate) fn value(mut self, key: &str, value: Value) -> Self {
        self.values.push((key.to_owned(), value));
        self
    }

    /// A tensor by its row-major shape and GGUF's number of its type.
    pub(crate) fn tensor(mut self, name: &str, shape: &[u64], kind: u32, bytes: Vec<u8>) -> Self {
        self.tensors.push((name.to_owned(), shape.to_vec(), kind, bytes));
        self
    }

    pub(crate) fn f32s(self, name: &str, shape: &[u64], values: &[f32]) -> Self {
        self.tensor(name, shape, 0, values.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    pub(crate) fn build(&self) -> Vec<u8> {
        let mut file = b"GGUF".to_vec();
        file.extend(3_u32.to_le_bytes());
        file.extend((self.tensors.len() as u64).to_le_bytes());
        file.extend((self.values.len() as u64).to_le_bytes());
        for (key, value) in &self.values {
            string(&mut file, key);
            match value {
                Value::U32(v) => typed(&mut file, 4, &v.to_le_bytes()),
                Value::F32(v) => typed(&mut file, 6, &v.to_le_bytes()),
                Value::Bool(v) => typed(&mut file, 7, &[u8::from(*v)]),
                Value::Str(v) => {
                    typed(&mut file, 8, &[]);
                    string(&mut file, v);
                }
                Value::Strings(list) => {
                    array(&mut file, 8, list.len());
                    list.iter().for_each(|v| string(&mut file, v));
                }
                Value::I32s(list) => {
                    array(&mut file, 5, list.len());
                    list.iter().for_each(|v| file.extend(v.to_le_bytes()));
                }
            }
        }
        let mut offset = 0;
        for (name, shape, kind, bytes) in &self.tensors {
            string(&mut file, name);
            typed(&mut file, u32::try_from(shape.len()).expect("few dimensions"), &[]);
            shape.iter().rev().for_each(|dim| file.extend(dim.to_le_bytes()));
            file.extend(kind.to_le_bytes());
            file.extend((offset as u64).to_le_bytes());
            offset = (offset + bytes.len()).next_multiple_of(32);
        }
        for (.., bytes) in &self.tensors {
            file.resize(file.len().next_multiple_of(32), 0);
            file.extend(bytes);
        }
        file
    }
}

fn typed(file: &mut Vec<u8>, kind: u32, bytes: &[u8]) {
    file.extend(kind.to_le_bytes());
    file.extend(bytes);
}

fn array(file: &mut Vec<u8>, kind: u32, len: usize) {
    typed(file, 9, &kind.to_le_bytes());
    file.extend((len as u64).to_le_bytes());
}

fn string(file: &mut Vec<u8>, text: &str) {
    file.extend((text.len() as u64).to_le_bytes());
    file.extend(text.as_bytes());
}

/// A tensor of a safetensors file.
#[derive(Debug, Clone)]
pub(crate) struct StTensor<'a> {
    pub(crate) name: &'a str,
    dtype: &'a str,
    shape: Vec<u64>,
    bytes: Vec<u8>,
}

impl<'a> StTensor<'a> {
    pub(crate) fn new(name: &'a str, dtype: &'a str, shape: &[u64], bytes: Vec<u8>) -> Self {
        Self { name, dtype, shape: shape.to_vec(), bytes }
    }
}

pub(crate) fn write_safetensors(path: &std::path::Path, tensors: &[StTensor<'_>]) {
    let mut end = 0;
    let entries = tensors.iter().map(|StTensor { name, dtype, shape, bytes }| {
        let start = end;
        end += bytes.len();
        format!(
            r#""{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{start},{end}]}}"#
        )
    });
    let header = format!("{{{}}}", entries.collect::<Vec<_>>().join(","));
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    tensors.iter().for_each(|tensor| file.extend(&tensor.bytes));
    std::fs::write(path, file).expect("writes");
}
