//! Frames between the processes of ranks: a length, a kind, fields. Everything is little-endian; both ends are the same program.
//!
//! What comes in is never trusted: a frame that is cut off, too long or does not mean anything is an error.

use std::io::{self, Read};

/// Of everything here and in `message`; both ends must have the same.
pub(crate) const VERSION: u32 = 1;

/// Most bytes of a frame.
pub(crate) const MAX_BYTES: usize = 1 << 28;

/// Bytes before the fields: the number of bytes after these, and the kind.
const HEAD: usize = 5;

/// A frame that does not mean anything.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a frame that means nothing: {0}")]
pub(crate) struct Malformed(pub(crate) &'static str);

impl From<Malformed> for io::Error {
    fn from(error: Malformed) -> Self {
        Self::new(io::ErrorKind::InvalidData, error)
    }
}

/// Writes frames. Keeps its memory from one to the next.
#[derive(Debug, Default)]
pub(crate) struct FrameWriter(Vec<u8>);

impl FrameWriter {
    pub(crate) fn with_capacity(bytes: usize) -> Self {
        Self(Vec::with_capacity(bytes))
    }

    /// A frame of what `fields` writes.
    ///
    /// # Errors
    /// It is longer than frames may be.
    pub(crate) fn frame(
        &mut self,
        kind: u8,
        fields: impl FnOnce(&mut Self),
    ) -> Result<&[u8], Malformed> {
        self.0.clear();
        self.0.extend_from_slice(&[0; HEAD]);
        self.0[HEAD - 1] = kind;
        fields(self);
        let bytes = self.0.len() - HEAD;
        let bytes = u32::try_from(bytes).ok().filter(|_| bytes <= MAX_BYTES);
        let bytes = bytes.ok_or(Malformed("it is longer than frames may be"))?;
        self.0[..HEAD - 1].copy_from_slice(&bytes.to_le_bytes());
        Ok(&self.0)
    }

    pub(crate) fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    pub(crate) fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn size(&mut self, value: usize) {
        self.u64(value as u64);
    }

    /// Their number, and they.
    pub(crate) fn bytes(&mut self, values: &[u8]) {
        self.size(values.len());
        self.0.extend_from_slice(values);
    }

    pub(crate) fn i32s(&mut self, values: &[i32]) {
        self.size(values.len());
        self.0.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    }

    pub(crate) fn i64s(&mut self, values: &[i64]) {
        self.size(values.len());
        self.0.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    }
}

/// Reads frames. Keeps its memory from one to the next.
#[derive(Debug, Default)]
pub(crate) struct FrameReader(Vec<u8>);

impl FrameReader {
    /// The next frame; `None` at the end.
    ///
    /// # Errors
    /// The end comes within a frame, the frame is too long, or `from` fails.
    pub(crate) fn next(&mut self, from: &mut impl Read) -> io::Result<Option<(u8, Fields<'_>)>> {
        let mut head = [0; HEAD];
        let first = loop {
            match from.read(&mut head) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read?,
            }
        };
        if first == 0 {
            return Ok(None);
        }
        from.read_exact(&mut head[first..])?;
        let [a, b, c, d, kind] = head;
        let bytes = u32::from_le_bytes([a, b, c, d]) as usize;
        if bytes > MAX_BYTES {
            return Err(Malformed("it is longer than frames may be").into());
        }
        self.0.clear();
        // No more memory than there are bytes, whatever the length says.
        let read = from.by_ref().take(bytes as u64).read_to_end(&mut self.0)?;
        if read < bytes {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(Some((kind, Fields(&self.0))))
    }
}

/// The fields of a frame that have not been read yet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(Malformed("it is too short"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(Malformed("it is too short"))?;
        self.0 = rest;
        Ok(*taken)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Malformed> {
        self.array().map(u8::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn size(&mut self) -> Result<usize, Malformed> {
        usize::try_from(self.u64()?).map_err(|_| Malformed("a size beyond this machine's"))
    }

    pub(crate) fn bytes(&mut self) -> Result<&'a [u8], Malformed> {
        let count = self.size()?;
        self.take(count)
    }

    pub(crate) fn text(&mut self) -> Result<String, Malformed> {
        let bytes = self.bytes()?.to_vec();
        String::from_utf8(bytes).map_err(|_| Malformed("a text that is not UTF-8"))
    }

    pub(crate) fn flag(&mut self) -> Result<bool, Malformed> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed("a flag that is neither 0 nor 1")),
        }
    }

    pub(crate) fn i32s(&mut self, into: &mut Vec<i32>) -> Result<(), Malformed> {
        let values = self.elements::<4>()?;
        into.clear();
        into.extend(values.iter().map(|bytes| i32::from_le_bytes(*bytes)));
        Ok(())
    }

    pub(crate) fn i64s(&mut self, into: &mut Vec<i64>) -> Result<(), Malformed> {
        let values = self.elements::<8>()?;
        into.clear();
        into.extend(values.iter().map(|bytes| i64::from_le_bytes(*bytes)));
        Ok(())
    }

    fn elements<const N: usize>(&mut self) -> Result<&'a [[u8; N]], Malformed> {
        let count = self.size()?;
        let bytes = count.checked_mul(N).ok_or(Malformed("it is too short"))?;
        Ok(self.take(bytes)?.as_chunks().0)
    }

    /// Nothing may be left.
    pub(crate) fn end(self) -> Result<(), Malformed> {
        if self.0.is_empty() { Ok(()) } else { Err(Malformed("it is too long")) }
    }
}
