//! The safetensors header: a length, JSON, then the bytes of all tensors without gaps.

use std::collections::HashSet;
use std::fmt;

use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

use crate::error::{FormatError, shorten};
use crate::format::TensorFormat;

/// The format's own limit for the header.
const MAX_HEADER_BYTES: u64 = 100_000_000;
const LENGTH_BYTES: u64 = 8;

/// One tensor of a safetensors file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SafetensorsEntry {
    /// The name as stored.
    pub name: String,
    /// Element type.
    pub format: TensorFormat,
    /// Row-major dimensions.
    pub shape: Vec<u64>,
    /// Where the bytes start, from the beginning of the file.
    pub offset: u64,
    /// How many there are.
    pub num_bytes: u64,
}

/// Reads the header of a whole file; every entry returned lies within `file` and overlaps no other.
///
/// # Errors
/// The header is cut off, too long or not JSON of the right form; a tensor is there twice, has an unsupported
/// element type, or its bytes are not those of its shape; the tensors leave gaps or don't end where the file ends.
pub fn parse_safetensors(file: &[u8]) -> Result<Vec<SafetensorsEntry>, FormatError> {
    let file_bytes = file.len() as u64;
    let truncated = |what: &str, offset, needed| FormatError::Truncated {
        what: what.to_owned(),
        offset,
        needed,
        available: file_bytes.saturating_sub(offset),
    };
    let length =
        file.first_chunk::<8>().ok_or_else(|| truncated("header length", 0, LENGTH_BYTES))?;
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER_BYTES {
        return Err(FormatError::invalid("header length", length, "at most 100000000 bytes"));
    }
    let data_start = LENGTH_BYTES + length;
    let header = usize::try_from(data_start)
        .ok()
        .and_then(|end| file.get(8..end))
        .ok_or_else(|| truncated("header", LENGTH_BYTES, length))?;
    let mut json = serde_json::Deserializer::from_slice(header);
    let raw = json
        .deserialize_map(HeaderVisitor)
        .and_then(|raw| json.end().map(|()| raw))
        .map_err(|error| FormatError::Safetensors(shorten(error.to_string())))?;
    let mut entries =
        raw.into_iter().map(|raw| raw.check(data_start)).collect::<Result<Vec<_>, _>>()?;
    entries.sort_by_key(|entry| (entry.offset, entry.num_bytes));
    check_layout(&entries, data_start, file_bytes)?;
    Ok(entries)
}

/// The bytes of the tensors must follow each other without gaps up to the end of the file.
fn check_layout(
    entries: &[SafetensorsEntry],
    data_start: u64,
    file_bytes: u64,
) -> Result<(), FormatError> {
    let mut names = HashSet::with_capacity(entries.len());
    let mut end = data_start;
    let mut previous = "";
    for entry in entries {
        if !names.insert(entry.name.as_str()) {
            return Err(FormatError::Duplicate { what: "tensor", name: entry.name.clone() });
        }
        if entry.offset < end {
            return Err(FormatError::Overlap {
                first: previous.to_owned(),
                second: entry.name.clone(),
            });
        }
        if entry.offset > end {
            return Err(FormatError::invalid(
                format!("tensor {} start", entry.name),
                entry.offset,
                format!("{end}, where the tensor before it ends"),
            ));
        }
        end =
            entry.offset.checked_add(entry.num_bytes).filter(|&end| end <= file_bytes).ok_or_else(
                || FormatError::Truncated {
                    what: format!("tensor {}", entry.name),
                    offset: entry.offset,
                    needed: entry.num_bytes,
                    available: file_bytes.saturating_sub(entry.offset),
                },
            )?;
        previous = &entry.name;
    }
    if end != file_bytes {
        return Err(FormatError::invalid("file length", file_bytes, format!("{end} bytes")));
    }
    Ok(())
}

#[derive(serde::Deserialize)]
struct RawInfo {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

struct RawEntry {
    name: String,
    info: RawInfo,
}

impl RawEntry {
    fn check(self, data_start: u64) -> Result<SafetensorsEntry, FormatError> {
        let Self { name, info } = self;
        let format = format_of(&info.dtype).ok_or_else(|| FormatError::Unsupported {
            what: format!("tensor {name} dtype"),
            value: shorten(info.dtype.clone()),
            supported: "F32, F16, BF16, F64, F8_E4M3, F8_E5M2, I8, U8, I16, U16, I32, U32, I64, U64, BOOL",
        })?;
        let (start, end) = info.data_offsets;
        let num_bytes = format.tensor_bytes(&info.shape).ok_or_else(|| {
            FormatError::invalid(
                format!("tensor {name} shape"),
                shorten(format!("{:?}", info.shape)),
                "a product below 2^64 bytes",
            )
        })?;
        if end.checked_sub(start) != Some(num_bytes) {
            return Err(FormatError::invalid(
                format!("tensor {name} data_offsets"),
                format!("[{start}, {end}]"),
                format!("{num_bytes} bytes, as its shape and dtype say"),
            ));
        }
        let offset = data_start.checked_add(start).ok_or_else(|| {
            FormatError::invalid(
                format!("tensor {name} data_offsets"),
                start,
                "an offset in the file",
            )
        })?;
        Ok(SafetensorsEntry { name, format, shape: info.shape, offset, num_bytes })
    }
}

/// Collects the entries in order, duplicates included: a map type would silently keep the last one.
struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Vec<RawEntry>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                map.next_value::<IgnoredAny>()?;
            } else {
                entries.push(RawEntry { name, info: map.next_value()? });
            }
        }
        Ok(entries)
    }
}

fn format_of(dtype: &str) -> Option<TensorFormat> {
    Some(match dtype {
        "F32" => TensorFormat::F32,
        "F16" => TensorFormat::F16,
        "BF16" => TensorFormat::BF16,
        "F64" => TensorFormat::F64,
        "F8_E4M3" => TensorFormat::F8E4M3,
        "F8_E5M2" => TensorFormat::F8E5M2,
        "I8" => TensorFormat::I8,
        "U8" => TensorFormat::U8,
        "I16" => TensorFormat::I16,
        "U16" => TensorFormat::U16,
        "I32" => TensorFormat::I32,
        "U32" => TensorFormat::U32,
        "I64" => TensorFormat::I64,
        "U64" => TensorFormat::U64,
        "BOOL" => TensorFormat::Bool,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str, data: usize) -> Vec<u8> {
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend_from_slice(header.as_bytes());
        file.resize(file.len() + data, 0);
        file
    }

    fn message(header: &str, data: usize) -> String {
        parse_safetensors(&file(header, data)).unwrap_err().to_string()
    }

    const A: &str = r#""a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}"#;

    #[test]
    fn entries_in_file_order() {
        let header = format!(
            r#"{{"__metadata__":{{"format":"pt"}},"b":{{"dtype":"BF16","shape":[3],"data_offsets":[16,22]}},{A}}}"#
        );
        let entries = parse_safetensors(&file(&header, 22)).unwrap();
        assert_eq!(entries[0].name, "a");
        assert_eq!(entries[1].format, TensorFormat::BF16);
        assert_eq!(entries[1].offset, 8 + header.len() as u64 + 16);
        assert_eq!(parse_safetensors(&file("{}", 0)).unwrap(), []);
    }

    #[test]
    fn mistakes_are_named() {
        assert!(message(&format!("{{{A},{A}}}"), 16).contains("there twice"));
        assert!(message(&format!("{{{A}}}"), 15).contains("tensor a"));
        assert!(message(&format!("{{{A}}}"), 17).contains("file length"));
        let overlap = A.replace("\"a\"", "\"b\"").replace("[0,16]", "[8,24]");
        assert!(message(&format!("{{{A},{overlap}}}"), 24).contains("overlap"));
        let gap = A.replace("\"a\"", "\"b\"").replace("[0,16]", "[20,36]");
        assert!(message(&format!("{{{A},{gap}}}"), 36).contains("where the tensor before it ends"));
        assert!(message(&format!("{{{}}}", A.replace("F32", "F4")), 16).contains("dtype"));
        assert!(
            message(&format!("{{{}}}", A.replace("[0,16]", "[0,12]")), 12).contains("16 bytes")
        );
        assert!(message("[]", 0).contains("header"));
    }

    #[test]
    fn huge_numbers_do_not_overflow() {
        let max = u64::MAX;
        message(&A.replace("[2,2]", &format!("[{max},{max}]")), 16);
        message(&A.replace("[0,16]", &format!("[{},{max}]", max - 16)), 16);
        let mut huge = u64::MAX.to_le_bytes().to_vec();
        huge.push(b'{');
        assert!(parse_safetensors(&huge).is_err());
        assert!(parse_safetensors(&[1, 2, 3]).is_err());
    }
}
