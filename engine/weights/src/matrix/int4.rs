//! Four-bit codes packed eight to a 32-bit word, as three tools do it, brought to rows with the low nibble first.
//!
//! | | codes | nibble `i` of a word | zeros | scales |
//! |---|---|---|---|---|
//! | AWQ "gemm" | `qweight` `[K, N / 8]` | output `8 n + [0, 2, 4, 6, 1, 3, 5, 7][i]` | `qzeros` `[K / G, N / 8]`, likewise | `[K / G, N]` |
//! | GPTQ | `qweight` `[K / 8, N]` | input `8 k + i` | `qzeros` `[K / G, N / 8]`, output `8 n + i`, one less | `[K / G, N]` |
//! | compressed-tensors | `weight_packed` `[N, K / 8]` | input `8 k + i` | `weight_zero_point` `[N / 8, K / G]`, output `8 n + i` | `[N, K / G]` |

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use super::{MatrixForm, Opener, columns_of, rows_of};
use crate::checkpoint::TensorData;
use crate::error::WeightsError;
use crate::format::TensorFormat;

/// Codes in a word.
const PACKED: usize = 8;
/// Which nibble of a word AWQ keeps an output in, by the output's number modulo 8.
const AWQ_NIBBLE: [usize; PACKED] = [0, 4, 1, 5, 2, 6, 3, 7];
/// Words that are unpacked together: a cache line of the file for each input.
const LINE: usize = 16;

/// Far beyond any layer, and within the 32 bits of a permutation.
const MAX_COLUMNS: usize = 1 << 24;

/// How a tool packs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Packing {
    Awq,
    Gptq,
    Compressed,
}

/// A tool's format: its packing, and what the tensors are called.
#[derive(Clone, Copy, Debug)]
pub(super) struct Format {
    packing: Packing,
    pub(super) codes: &'static str,
    scale: &'static str,
    zero: Option<&'static str>,
    group_index: Option<&'static str>,
    /// `None`: a row is one group.
    group_size: Option<u64>,
    /// What stored zeros are short of.
    zero_offset: u8,
}

impl Format {
    pub(super) fn awq(group_size: Option<u64>) -> Self {
        Self { packing: Packing::Awq, group_index: None, ..Self::gptq(group_size, 0) }
    }

    pub(super) fn gptq(group_size: Option<u64>, zero_offset: u8) -> Self {
        Self {
            packing: Packing::Gptq,
            codes: "qweight",
            scale: "scales",
            zero: Some("qzeros"),
            group_index: Some("g_idx"),
            group_size,
            zero_offset,
        }
    }

    pub(super) fn compressed(group_size: Option<u64>, symmetric: bool) -> Self {
        Self {
            packing: Packing::Compressed,
            codes: "weight_packed",
            scale: "weight_scale",
            zero: (!symmetric).then_some("weight_zero_point"),
            group_index: Some("weight_g_idx"),
            group_size,
            zero_offset: 0,
        }
    }
}

/// A packed matrix.
#[derive(Debug)]
pub(super) struct Int4<'a> {
    format: Format,
    pub(super) rows: usize,
    pub(super) columns: usize,
    group_size: usize,
    pub(super) codes: TensorData<'a>,
    scale: TensorData<'a>,
    zero: Option<TensorData<'a>>,
    /// Input of each column, if they are not in order.
    perm: Option<Arc<[i32]>>,
}

impl<'a> Int4<'a> {
    pub(super) fn open(opener: &Opener<'a, '_>, format: Format) -> Result<Self, WeightsError> {
        let codes = opener.tensor(format.codes)?;
        opener.check_format(&codes, &[TensorFormat::I32])?;
        let [outer, inner] = opener.matrix_dims(&codes)?;
        let (rows, columns) = match format.packing {
            Packing::Awq => (inner * PACKED, outer),
            Packing::Gptq => (inner, outer * PACKED),
            Packing::Compressed => (outer, inner * PACKED),
        };
        let group_size = match format.group_size {
            Some(size) => usize::try_from(size).unwrap_or(usize::MAX),
            None => columns,
        };
        let whole = columns.is_multiple_of(group_size) && columns.is_multiple_of(2);
        if !whole || columns > MAX_COLUMNS {
            let expected =
                format!("an even number of whole groups of {group_size}, at most {MAX_COLUMNS}");
            return Err(opener.wrong(&codes, "number of inputs", columns, expected));
        }
        let groups = columns / group_size;
        let scale = opener.tensor(format.scale)?;
        opener.check_format(&scale, &[TensorFormat::F32, TensorFormat::F16, TensorFormat::BF16])?;
        let transposed = format.packing != Packing::Compressed;
        let scale_dims = if transposed { [groups, rows] } else { [rows, groups] };
        opener.check_shape(&scale, &scale_dims)?;
        let zero = format.zero.map(|leaf| opener.tensor(leaf)).transpose()?;
        if let Some(zero) = &zero {
            opener.check_format(zero, &[TensorFormat::I32])?;
            let packed = rows.div_ceil(PACKED);
            let dims = if transposed { [groups, packed] } else { [packed, groups] };
            opener.check_shape(zero, &dims)?;
        }
        let perm = match format.group_index.map(|leaf| opener.optional(leaf)).transpose()? {
            Some(Some(group_index)) => permutation(opener, &group_index, columns, group_size)?,
            _ => None,
        };
        Ok(Self { format, rows, columns, group_size, codes, scale, zero, perm })
    }

    /// Of all columns, or of some that [`column_unit`](Self::column_unit) allows.
    pub(super) fn form(&self, columns: Option<&Range<usize>>) -> MatrixForm {
        let columns = columns.map_or(self.columns, Range::len);
        MatrixForm::Int4Group {
            group_size: u32::try_from(self.group_size.min(columns)).expect("at most the columns"),
            scale: self.scale.format,
            zero: self.zero.is_some(),
            perm: self.perm.clone(),
        }
    }

    pub(super) fn is_sorted_by_group(&self) -> bool {
        self.perm.is_some()
    }

    /// Columns that stay together: whole groups, unless a row is one group, and whole words.
    pub(super) fn column_unit(&self) -> u64 {
        let unit = if self.group_size == self.columns { 1 } else { self.group_size };
        // The least common multiple with eight, a power of two.
        let twos = (unit.trailing_zeros() as usize).min(PACKED.trailing_zeros() as usize);
        (unit * (PACKED >> twos)) as u64
    }

    pub(super) fn is_transposed(&self) -> bool {
        self.format.packing != Packing::Compressed
    }

    pub(super) fn stored(&self) -> Vec<&'a [u8]> {
        let zero = self.zero.as_ref().map(|zero| zero.bytes);
        [self.codes.bytes, self.scale.bytes].into_iter().chain(zero).collect()
    }

    pub(super) fn parts(&self, rows: Range<usize>, columns: Range<usize>) -> Vec<Cow<'a, [u8]>> {
        assert!(rows.end <= self.rows, "rows {rows:?} of {}", self.rows);
        let groups = columns.start / self.group_size..columns.end.div_ceil(self.group_size);
        let scales = self.scales(rows.clone(), groups.clone());
        let mut parts = vec![self.codes(rows.clone(), columns), scales];
        if let Some(zero) = &self.zero {
            parts.push(Cow::Owned(self.zeros(zero.bytes, rows, &groups)));
        }
        if let Some(perm) = &self.perm {
            parts.push(Cow::Owned(perm.iter().flat_map(|column| column.to_le_bytes()).collect()));
        }
        parts
    }

    fn codes(&self, rows: Range<usize>, columns: Range<usize>) -> Cow<'a, [u8]> {
        let codes = match self.format.packing {
            Packing::Compressed => {
                let codes = rows_of(self.codes.bytes, self.rows, rows);
                columns_of(codes, self.columns / 2, columns.start / 2..columns.end / 2)
            }
            Packing::Gptq => Cow::Owned(self.gather_words(rows, &columns)),
            Packing::Awq => Cow::Owned(self.gather_nibbles(rows, columns)),
        };
        match &self.perm {
            None => codes,
            Some(perm) => Cow::Owned(sorted_columns(&codes, perm)),
        }
    }

    /// GPTQ: a row's words lie one below the other.
    fn gather_words(&self, rows: Range<usize>, columns: &Range<usize>) -> Vec<u8> {
        let (words, _) = self.codes.bytes.as_chunks::<4>();
        let (first, row_words) = (columns.start / PACKED, columns.len() / PACKED);
        let mut out = vec![[0; 4]; rows.len() * row_words];
        for lines in rows.clone().step_by(LINE) {
            for word in 0..row_words {
                for row in lines..rows.end.min(lines + LINE) {
                    let from = words[(first + word) * self.rows + row];
                    out[(row - rows.start) * row_words + word] = from;
                }
            }
        }
        out.into_flattened()
    }

    /// AWQ: a word has the codes of eight rows.
    fn gather_nibbles(&self, rows: Range<usize>, columns: Range<usize>) -> Vec<u8> {
        let (words, _) = self.codes.bytes.as_chunks::<4>();
        let (row_words, row_bytes) = (self.rows / PACKED, columns.len() / 2);
        let mut out = vec![0; rows.len() * row_bytes];
        for lines in rows.clone().step_by(LINE * PACKED) {
            for (at, column) in columns.clone().enumerate() {
                for row in lines..rows.end.min(lines + LINE * PACKED) {
                    let word = words[column * row_words + row / PACKED];
                    let code = nibble(word, AWQ_NIBBLE[row % PACKED]);
                    out[(row - rows.start) * row_bytes + at / 2] |= code << (at % 2 * 4);
                }
            }
        }
        out
    }

    fn scales(&self, rows: Range<usize>, of: Range<usize>) -> Cow<'a, [u8]> {
        let bytes = self.scale.bytes;
        let groups = self.columns / self.group_size;
        let size = bytes.len() / (groups * self.rows);
        if !self.is_transposed() {
            let rows = rows_of(bytes, self.rows, rows);
            return columns_of(rows, groups * size, of.start * size..of.end * size);
        }
        let element = |row, group| &bytes[(group * self.rows + row) * size..][..size];
        let of_row = |row| of.clone().flat_map(move |group| element(row, group));
        Cow::Owned(rows.flat_map(of_row).copied().collect())
    }

    /// A byte each.
    fn zeros(&self, packed: &[u8], rows: Range<usize>, of: &Range<usize>) -> Vec<u8> {
        let (words, _) = packed.as_chunks::<4>();
        let groups = self.columns / self.group_size;
        let row_words = self.rows.div_ceil(PACKED);
        let zero = |row: usize, group: usize| {
            let (word, at) = (row / PACKED, row % PACKED);
            match self.format.packing {
                Packing::Awq => nibble(words[group * row_words + word], AWQ_NIBBLE[at]),
                // Four bits, so that a zero point of 0 is stored as 15.
                Packing::Gptq => {
                    (nibble(words[group * row_words + word], at) + self.format.zero_offset) & 15
                }
                Packing::Compressed => nibble(words[word * groups + group], at),
            }
        };
        rows.flat_map(|row| of.clone().map(move |group| zero(row, group))).collect()
    }
}

/// Nibble `i` of a word, the lowest first.
fn nibble(word: [u8; 4], i: usize) -> u8 {
    word[i / 2] >> (i % 2 * 4) & 15
}

/// Rows whose column `j` is what column `perm[j]` was.
fn sorted_columns(codes: &[u8], perm: &[i32]) -> Vec<u8> {
    let mut out = vec![0; codes.len()];
    let row_bytes = perm.len() / 2;
    for (from, to) in codes.chunks_exact(row_bytes).zip(out.chunks_exact_mut(row_bytes)) {
        for (j, &column) in perm.iter().enumerate() {
            let column = column.cast_unsigned() as usize;
            let code = from[column / 2] >> (column % 2 * 4) & 15;
            to[j / 2] |= code << (j % 2 * 4);
        }
    }
    out
}

/// The inputs sorted by their group, in order within it; `None` if they are so already.
fn permutation(
    opener: &Opener<'_, '_>,
    group_index: &TensorData<'_>,
    columns: usize,
    group_size: usize,
) -> Result<Option<Arc<[i32]>>, WeightsError> {
    opener.check_format(group_index, &[TensorFormat::I32])?;
    opener.check_shape(group_index, &[columns])?;
    let (words, _) = group_index.bytes.as_chunks();
    let of_input: Vec<i32> = words.iter().map(|word| i32::from_le_bytes(*word)).collect();
    let groups = columns / group_size;
    let mut sizes = vec![0; groups];
    for &group in &of_input {
        let size = usize::try_from(group).ok().and_then(|group| sizes.get_mut(group));
        let expected = || format!("0 to {}", groups - 1);
        *size.ok_or_else(|| opener.wrong(group_index, "a group", group, expected()))? += 1;
    }
    if let Some(group) = sizes.iter().position(|&size| size != group_size) {
        let what = format!("number of inputs in group {group}");
        return Err(opener.wrong(group_index, &what, sizes[group], group_size.to_string()));
    }
    if of_input.is_sorted() {
        return Ok(None);
    }
    let inputs = i32::try_from(columns).expect("at most 2^24");
    let mut perm: Vec<i32> = (0..inputs).collect();
    perm.sort_by_key(|&input| of_input[input.cast_unsigned() as usize]);
    Ok(Some(perm.into()))
}
