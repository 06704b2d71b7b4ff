//! GGUF: typed metadata and the tensor table.
//!
//! [`Gguf::parse`] walks the file once, checks every count against the bytes that are left and keeps only offsets,
//! so a vocabulary of 150 000 tokens costs nothing until [`Metadata`] is asked for it.

use std::collections::HashMap;
use std::ops::Range;

use crate::error::{FormatError, shorten};
use crate::format::TensorFormat;

const MAGIC: &[u8; 4] = b"GGUF";
const DEFAULT_ALIGNMENT: u64 = 32;
const MAX_DIMENSIONS: u32 = 4;
/// Arrays of arrays are allowed by the format and used by nobody; a deeper file is an attack on the stack.
const MAX_NESTING: u32 = 4;
/// Tensor names are short; metadata keys may be at most this long by the format.
const MAX_NAME_BYTES: u64 = 65_535;

/// The parsed tables of one GGUF file. Values stay in the file.
#[derive(Debug, Clone)]
pub struct Gguf {
    version: u32,
    values: HashMap<String, Value>,
    tensors: Vec<GgufTensor>,
}

/// One row of the tensor table. Its bytes lie in the file and overlap no other tensor's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GgufTensor {
    /// The name as stored.
    pub name: String,
    /// Element or block type.
    pub format: TensorFormat,
    /// Row-major dimensions, outermost first: the file stores them the other way round.
    pub shape: Vec<u64>,
    /// Where the bytes start, from the beginning of the file.
    pub offset: u64,
    /// How many there are.
    pub num_bytes: u64,
}

#[derive(Debug, Clone)]
enum Value {
    Scalar { kind: Kind, range: Range<usize> },
    Array { kind: Kind, num_items: usize, range: Range<usize> },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    String,
    Array,
    U64,
    I64,
    F64,
}

impl Kind {
    fn from_id(id: u32) -> Option<Self> {
        use Kind::{Array, Bool, F32, F64, I8, I16, I32, I64, String, U8, U16, U32, U64};
        const KINDS: [Kind; 13] =
            [U8, I8, U16, I16, U32, I32, F32, Bool, String, Array, U64, I64, F64];
        KINDS.get(usize::try_from(id).ok()?).copied()
    }

    /// Bytes of one value; `None` for those that carry their own length.
    const fn fixed_bytes(self) -> Option<usize> {
        Some(match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 => 8,
            Self::String | Self::Array => return None,
        })
    }
}

impl Gguf {
    /// Whether a file starts like a GGUF.
    #[must_use]
    pub fn is_gguf(file: &[u8]) -> bool {
        file.starts_with(MAGIC)
    }

    /// Reads the tables of a whole file.
    ///
    /// # Errors
    /// The file is cut off, of another version, has impossible counts, a key or tensor twice, a tensor type that is
    /// not supported, or tensors out of bounds, misaligned or overlapping.
    pub fn parse(file: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader { file, position: 0 };
        let version = read_preamble(&mut reader)?;
        let num_tensors = reader.count("tensor count", 24)?;
        let num_values = reader.count("metadata count", 13)?;
        let mut values = HashMap::new();
        for _ in 0..num_values {
            let key = reader.name("metadata key")?;
            let kind = reader.kind(&key)?;
            let value = reader.value(&key, kind)?;
            if values.insert(key.clone(), value).is_some() {
                return Err(FormatError::Duplicate { what: "metadata key", name: shorten(key) });
            }
        }
        let mut gguf = Self { version, values, tensors: Vec::new() };
        let alignment = alignment(gguf.metadata(file))?;
        for _ in 0..num_tensors {
            gguf.tensors.push(reader.tensor(alignment)?);
        }
        let data_start = (reader.position as u64).next_multiple_of(alignment);
        place_tensors(&mut gguf.tensors, data_start, file.len() as u64)?;
        Ok(gguf)
    }

    /// The format's version: 2 or 3.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The tensor table, in the order of the bytes.
    #[must_use]
    pub fn tensors(&self) -> &[GgufTensor] {
        &self.tensors
    }

    /// The metadata, read from the `file` that was parsed.
    #[must_use]
    pub fn metadata<'a>(&'a self, file: &'a [u8]) -> Metadata<'a> {
        Metadata { gguf: self, file }
    }
}

fn read_preamble(reader: &mut Reader<'_>) -> Result<u32, FormatError> {
    let magic: [u8; 4] = reader.array("magic")?;
    if &magic != MAGIC {
        return Err(FormatError::invalid("magic", magic.escape_ascii(), "GGUF"));
    }
    let version = reader.u32("version")?;
    match version {
        2 | 3 => Ok(version),
        _ if matches!(version.swap_bytes(), 1..=3) => Err(FormatError::Unsupported {
            what: "byte order".to_owned(),
            value: "big-endian".to_owned(),
            supported: "little-endian",
        }),
        _ => Err(FormatError::Unsupported {
            what: "GGUF version".to_owned(),
            value: version.to_string(),
            supported: "2 and 3",
        }),
    }
}

fn alignment(metadata: Metadata<'_>) -> Result<u64, FormatError> {
    let Some(value) = metadata.value("general.alignment") else { return Ok(DEFAULT_ALIGNMENT) };
    metadata.u64("general.alignment").filter(|a| a.is_power_of_two() && *a <= 1 << 20).ok_or_else(
        || FormatError::invalid("general.alignment", value, "a power of two up to 2^20"),
    )
}

/// Turns offsets within the data section into offsets in the file and checks that each tensor has its own bytes.
fn place_tensors(
    tensors: &mut [GgufTensor],
    data_start: u64,
    file_bytes: u64,
) -> Result<(), FormatError> {
    let mut names = std::collections::HashSet::with_capacity(tensors.len());
    for tensor in &mut *tensors {
        let truncated = |offset| FormatError::Truncated {
            what: format!("tensor {}", tensor.name),
            offset,
            needed: tensor.num_bytes,
            available: file_bytes.saturating_sub(offset),
        };
        let start =
            data_start.checked_add(tensor.offset).ok_or_else(|| truncated(tensor.offset))?;
        if start.checked_add(tensor.num_bytes).is_none_or(|end| end > file_bytes) {
            return Err(truncated(start));
        }
        tensor.offset = start;
        if !names.insert(tensor.name.as_str()) {
            return Err(FormatError::Duplicate { what: "tensor", name: tensor.name.clone() });
        }
    }
    drop(names);
    tensors.sort_by_key(|tensor| (tensor.offset, tensor.num_bytes));
    for pair in tensors.windows(2) {
        if pair[0].offset + pair[0].num_bytes > pair[1].offset {
            return Err(FormatError::Overlap {
                first: pair[0].name.clone(),
                second: pair[1].name.clone(),
            });
        }
    }
    Ok(())
}

/// GGUF's numbers for tensor types, as far as they are supported.
fn format_from_id(id: u32) -> Option<TensorFormat> {
    Some(match id {
        0 => TensorFormat::F32,
        1 => TensorFormat::F16,
        2 => TensorFormat::Q4_0,
        3 => TensorFormat::Q4_1,
        6 => TensorFormat::Q5_0,
        7 => TensorFormat::Q5_1,
        8 => TensorFormat::Q8_0,
        10 => TensorFormat::Q2_K,
        11 => TensorFormat::Q3_K,
        12 => TensorFormat::Q4_K,
        13 => TensorFormat::Q5_K,
        14 => TensorFormat::Q6_K,
        20 => TensorFormat::IQ4_NL,
        24 => TensorFormat::I8,
        25 => TensorFormat::I16,
        26 => TensorFormat::I32,
        27 => TensorFormat::I64,
        28 => TensorFormat::F64,
        30 => TensorFormat::BF16,
        _ => return None,
    })
}

/// The names of the types that exist and are not supported: a number alone would not tell a user what to do.
fn unsupported_name(id: u32) -> String {
    let name = match id {
        9 => "Q8_1",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        _ => return id.to_string(),
    };
    name.to_owned()
}

/// A cursor that never reads past the end.
struct Reader<'a> {
    file: &'a [u8],
    position: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, what: &str, num_bytes: usize) -> Result<&'a [u8], FormatError> {
        let rest = self.file.get(self.position..).unwrap_or_default();
        let Some(bytes) = rest.get(..num_bytes) else {
            return Err(FormatError::Truncated {
                what: what.to_owned(),
                offset: self.position as u64,
                needed: num_bytes as u64,
                available: rest.len() as u64,
            });
        };
        self.position += num_bytes;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], FormatError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(what, N)?);
        Ok(array)
    }

    fn u32(&mut self, what: &str) -> Result<u32, FormatError> {
        self.array(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &str) -> Result<u64, FormatError> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A count of things that take at least `least_bytes` each, checked against what is left of the file.
    fn count(&mut self, what: &str, least_bytes: usize) -> Result<usize, FormatError> {
        let offset = self.position as u64;
        let count = self.u64(what)?;
        let available = self.file.len() - self.position;
        usize::try_from(count)
            .ok()
            .filter(|count| count.checked_mul(least_bytes).is_some_and(|n| n <= available))
            .ok_or_else(|| FormatError::Truncated {
                what: format!("{what} of {count}"),
                offset,
                needed: count.saturating_mul(least_bytes as u64),
                available: available as u64,
            })
    }

    fn name(&mut self, what: &str) -> Result<String, FormatError> {
        let length = self.count(what, 1)?;
        if length as u64 > MAX_NAME_BYTES {
            return Err(FormatError::invalid(
                format!("{what} length"),
                length,
                "at most 65535 bytes",
            ));
        }
        let bytes = self.take(what, length)?;
        String::from_utf8(bytes.to_vec())
            .map_err(|_| FormatError::invalid(what, bytes.escape_ascii(), "UTF-8"))
    }

    fn kind(&mut self, key: &str) -> Result<Kind, FormatError> {
        let id = self.u32("value type")?;
        Kind::from_id(id).ok_or_else(|| {
            FormatError::invalid(format!("type of {}", shorten(key.to_owned())), id, "0 to 12")
        })
    }

    fn value(&mut self, key: &str, kind: Kind) -> Result<Value, FormatError> {
        if kind != Kind::Array {
            return Ok(Value::Scalar { kind, range: self.skip(key, kind, 0)? });
        }
        let kind = self.kind(key)?;
        let num_items = self.count(key, least_bytes(kind))?;
        let range = self.skip_items(key, kind, num_items, 1)?;
        Ok(Value::Array { kind, num_items, range })
    }

    /// Steps over one value and gives its bytes' range, without a string's length.
    fn skip(&mut self, key: &str, kind: Kind, depth: u32) -> Result<Range<usize>, FormatError> {
        match kind {
            Kind::String => {
                let length = self.count(key, 1)?;
                self.take(key, length)?;
                Ok(self.position - length..self.position)
            }
            Kind::Array if depth >= MAX_NESTING => Err(FormatError::invalid(
                shorten(key.to_owned()),
                format!("an array nested more than {MAX_NESTING} deep"),
                "less",
            )),
            Kind::Array => {
                let kind = self.kind(key)?;
                let num_items = self.count(key, least_bytes(kind))?;
                self.skip_items(key, kind, num_items, depth + 1)
            }
            _ => self.skip_items(key, kind, 1, depth),
        }
    }

    fn skip_items(
        &mut self,
        key: &str,
        kind: Kind,
        num_items: usize,
        depth: u32,
    ) -> Result<Range<usize>, FormatError> {
        let start = self.position;
        if let Some(bytes) = kind.fixed_bytes() {
            // `count` has checked that the product fits.
            self.take(key, num_items.saturating_mul(bytes))?;
        } else {
            for _ in 0..num_items {
                self.skip(key, kind, depth)?;
            }
        }
        Ok(start..self.position)
    }

    fn tensor(&mut self, alignment: u64) -> Result<GgufTensor, FormatError> {
        let name = self.name("tensor name")?;
        let num_dimensions = self.u32("tensor dimensions")?;
        if num_dimensions > MAX_DIMENSIONS {
            return Err(FormatError::invalid(
                format!("tensor {name} dimensions"),
                num_dimensions,
                "at most 4",
            ));
        }
        let mut shape = Vec::new();
        for _ in 0..num_dimensions {
            shape.push(self.u64("tensor dimension")?);
        }
        shape.reverse();
        let id = self.u32("tensor type")?;
        let format = format_from_id(id).ok_or_else(|| FormatError::Unsupported {
            what: format!("tensor {name} type"),
            value: unsupported_name(id),
            supported: "F32, F16, BF16, F64, I8, I16, I32, I64, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, \
                        Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL",
        })?;
        let num_bytes = format.tensor_bytes(&shape).ok_or_else(|| {
            FormatError::invalid(
                format!("tensor {name} shape"),
                format!("{shape:?}"),
                format!("rows of whole {format:?} blocks and fewer than 2^64 bytes"),
            )
        })?;
        let offset = self.u64("tensor offset")?;
        if !offset.is_multiple_of(alignment) {
            return Err(FormatError::invalid(
                format!("tensor {name} offset"),
                offset,
                format!("a multiple of {alignment}"),
            ));
        }
        Ok(GgufTensor { name, format, shape, offset, num_bytes })
    }
}

/// The least that one value of a kind takes in the file: an empty string its length, an array type and count.
const fn least_bytes(kind: Kind) -> usize {
    match kind.fixed_bytes() {
        Some(bytes) => bytes,
        None if matches!(kind, Kind::String) => 8,
        None => 12,
    }
}

/// Typed access to a GGUF file's key-value pairs. A getter gives `None` if the key is absent or of another type.
#[derive(Debug, Clone, Copy)]
pub struct Metadata<'a> {
    gguf: &'a Gguf,
    file: &'a [u8],
}

impl<'a> Metadata<'a> {
    /// All keys, in no order.
    pub fn keys(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        self.gguf.values.keys().map(String::as_str)
    }

    /// Whether the key is there, whatever its type.
    #[must_use]
    pub fn contains(&self, key: &str) -> bool {
        self.gguf.values.contains_key(key)
    }

    /// A short text of the value, for error messages.
    #[must_use]
    pub fn value(&self, key: &str) -> Option<String> {
        Some(match self.gguf.values.get(key)? {
            Value::Array { kind, num_items, .. } => format!("an array of {num_items} {kind:?}"),
            Value::Scalar { kind: Kind::String, range } => {
                shorten(format!("{:?}", String::from_utf8_lossy(self.file.get(range.clone())?)))
            }
            Value::Scalar { kind: Kind::F32 | Kind::F64, .. } => self.f64(key)?.to_string(),
            Value::Scalar { kind: Kind::Bool, .. } => self.bool(key)?.to_string(),
            Value::Scalar { kind, range } => self.integer(*kind, range)?.to_string(),
        })
    }

    /// A string; `None` also if it is not UTF-8.
    #[must_use]
    pub fn str(&self, key: &str) -> Option<&'a str> {
        match self.gguf.values.get(key)? {
            Value::Scalar { kind: Kind::String, range } => {
                std::str::from_utf8(self.file.get(range.clone())?).ok()
            }
            _ => None,
        }
    }

    /// An integer of any width that is not negative.
    #[must_use]
    pub fn u64(&self, key: &str) -> Option<u64> {
        match self.gguf.values.get(key)? {
            Value::Scalar { kind, range } => u64::try_from(self.integer(*kind, range)?).ok(),
            Value::Array { .. } => None,
        }
    }

    /// An integer of any width that fits.
    #[must_use]
    pub fn u32(&self, key: &str) -> Option<u32> {
        self.u64(key).and_then(|value| value.try_into().ok())
    }

    /// A float of either width, or an integer.
    #[must_use]
    pub fn f64(&self, key: &str) -> Option<f64> {
        let Value::Scalar { kind, range } = self.gguf.values.get(key)? else { return None };
        let bytes = self.file.get(range.clone())?;
        match kind {
            Kind::F32 => Some(f32::from_le_bytes(bytes.try_into().ok()?).into()),
            Kind::F64 => Some(f64::from_le_bytes(bytes.try_into().ok()?)),
            _ => i32::try_from(self.integer(*kind, range)?).ok().map(f64::from),
        }
    }

    /// A truth value.
    #[must_use]
    pub fn bool(&self, key: &str) -> Option<bool> {
        match self.gguf.values.get(key)? {
            Value::Scalar { kind: Kind::Bool, range } => {
                Some(*self.file.get(range.clone())?.first()? != 0)
            }
            _ => None,
        }
    }

    /// An array of strings; `None` also if one of them is not UTF-8.
    #[must_use]
    pub fn str_array(&self, key: &str) -> Option<Vec<&'a str>> {
        let Value::Array { kind: Kind::String, num_items, range } = self.gguf.values.get(key)?
        else {
            return None;
        };
        let mut reader = Reader { file: self.file.get(..range.end)?, position: range.start };
        let mut strings = Vec::with_capacity(*num_items);
        for _ in 0..*num_items {
            let length = reader.count(key, 1).ok()?;
            strings.push(std::str::from_utf8(reader.take(key, length).ok()?).ok()?);
        }
        Some(strings)
    }

    /// An array of integers of any width.
    #[must_use]
    pub fn i64_array(&self, key: &str) -> Option<Vec<i64>> {
        self.numbers(key, |kind, bytes| i64::try_from(integer(kind, bytes)?).ok())
    }

    /// An array of `f32`.
    #[must_use]
    pub fn f32_array(&self, key: &str) -> Option<Vec<f32>> {
        self.numbers(key, |kind, bytes| match kind {
            Kind::F32 => Some(f32::from_le_bytes(bytes.try_into().ok()?)),
            _ => None,
        })
    }

    fn numbers<T>(&self, key: &str, read: impl Fn(Kind, &[u8]) -> Option<T>) -> Option<Vec<T>> {
        let Value::Array { kind, range, .. } = self.gguf.values.get(key)? else { return None };
        let bytes = self.file.get(range.clone())?;
        bytes.chunks_exact(kind.fixed_bytes()?).map(|chunk| read(*kind, chunk)).collect()
    }

    fn integer(&self, kind: Kind, range: &Range<usize>) -> Option<i128> {
        integer(kind, self.file.get(range.clone())?)
    }
}

fn integer(kind: Kind, bytes: &[u8]) -> Option<i128> {
    Some(match kind {
        Kind::U8 => u8::from_le_bytes(bytes.try_into().ok()?).into(),
        Kind::I8 => i8::from_le_bytes(bytes.try_into().ok()?).into(),
        Kind::U16 => u16::from_le_bytes(bytes.try_into().ok()?).into(),
        Kind::I16 => i16::from_le_bytes(bytes.try_into().ok()?).into(),
        Kind::U32 => u32::from_le_bytes(bytes.try_into().ok()?).into(),
        Kind::I32 => i32::from_le_bytes(bytes.try_into().ok()?).into(),
        Kind::U64 => u64::from_le_bytes(bytes.try_into().ok()?).into(),
        Kind::I64 => i64::from_le_bytes(bytes.try_into().ok()?).into(),
        Kind::F32 | Kind::F64 | Kind::Bool | Kind::String | Kind::Array => return None,
    })
}
