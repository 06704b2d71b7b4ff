//! Tensor maps: what a copy of a tile needs to know of the tensor in global memory, in the 128 bytes of `CUtensorMap`.
//!
//! What is where in these bytes is this simulator's own: programs get them from `cuTensorMapEncodeTiled` and change them by
//! `tensormap.replace`. Bytes that are zero are a field's default.

/// A tensor map of tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorMap {
    /// Address of the tensor.
    pub address: u64,
    /// Dimensions, from 1 to 5.
    pub rank: usize,
    /// Type of an element, as `tensormap.replace` numbers it.
    pub element: u8,
    /// Elements of each dimension, the innermost first.
    pub extents: [u32; 5],
    /// Bytes from one index of the dimensions 1 to 4 to the next.
    pub strides: [u64; 4],
    /// Elements of a tile in each dimension.
    pub tile: [u32; 5],
    /// From how many elements one is taken, in each dimension.
    pub steps: [u32; 5],
    /// 0 for none.
    pub interleave: u8,
    /// 0 for none, or 1, 2, 3 for patterns of 32, 64 and 128 bytes.
    pub swizzle: u8,
    /// 0 for zeros outside the tensor.
    pub fill: u8,
}

/// Bytes of the types, as `tensormap.replace` numbers them: u8, u16, u32, s32, u64, s64, f16, f32, f32 flushed, f64, bf16, tf32,
/// tf32 flushed.
const ELEMENT_BYTES: [u32; 13] = [1, 2, 4, 4, 8, 8, 2, 4, 4, 8, 2, 4, 4];

/// Where fields are.
pub(crate) mod offset {
    pub(crate) const ADDRESS: usize = 0;
    pub(crate) const STRIDES: usize = 8;
    pub(crate) const EXTENTS: usize = 40;
    pub(crate) const TILE: usize = 60;
    pub(crate) const STEPS: usize = 80;
    pub(crate) const RANK: usize = 100;
    pub(crate) const ELEMENT: usize = 101;
    pub(crate) const INTERLEAVE: usize = 102;
    pub(crate) const SWIZZLE: usize = 103;
    pub(crate) const FILL: usize = 104;
}

/// Alignment of a map.
pub(crate) const MAP_ALIGN: u64 = 64;

impl TensorMap {
    /// Bytes of an encoded map.
    pub const BYTES: usize = 128;

    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(offset::ADDRESS, &self.address.to_le_bytes());
        for (at, stride) in self.strides.iter().enumerate() {
            put(offset::STRIDES + 8 * at, &stride.to_le_bytes());
        }
        for at in 0..5 {
            put(offset::EXTENTS + 4 * at, &self.extents[at].to_le_bytes());
            put(offset::TILE + 4 * at, &self.tile[at].to_le_bytes());
            put(offset::STEPS + 4 * at, &self.steps[at].to_le_bytes());
        }
        put(
            offset::RANK,
            &[self.rank as u8 - 1, self.element, self.interleave, self.swizzle, self.fill],
        );
        bytes
    }

    /// The map that `bytes` encode, checked.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn decode(bytes: &[u8; Self::BYTES]) -> Result<Self, String> {
        let word = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let long = |at: usize| u64::from(word(at + 4)) << 32 | u64::from(word(at));
        let words = |from: usize| std::array::from_fn(|at| word(from + 4 * at));
        let map = Self {
            address: long(offset::ADDRESS),
            rank: usize::from(bytes[offset::RANK]) + 1,
            element: bytes[offset::ELEMENT],
            extents: words(offset::EXTENTS),
            strides: std::array::from_fn(|at| long(offset::STRIDES + 8 * at)),
            tile: words(offset::TILE),
            steps: words(offset::STEPS),
            interleave: bytes[offset::INTERLEAVE],
            swizzle: bytes[offset::SWIZZLE],
            fill: bytes[offset::FILL],
        };
        map.check().map(|()| map)
    }

    /// Whether a copy can follow it.
    ///
    /// # Errors
    /// What it may not say, or what is not supported of it.
    pub fn check(&self) -> Result<(), String> {
        if !(1..=5).contains(&self.rank) {
            return Err(format!("{} dimensions: from 1 to 5", self.rank));
        }
        let Some(element) = ELEMENT_BYTES.get(usize::from(self.element)).copied() else {
            return Err(format!("elements of type {}: from 0 to 12", self.element));
        };
        if self.address == 0 || !self.address.is_multiple_of(16) {
            return Err(format!("a tensor at {:#x}, which is no multiple of 16", self.address));
        }
        for at in 0..self.rank {
            let (extent, tile) = (self.extents[at], self.tile[at]);
            if extent == 0 {
                return Err(format!("no elements in dimension {at}"));
            }
            if !(1..=256).contains(&tile) {
                return Err(format!("tiles of {tile} elements in dimension {at}: from 1 to 256"));
            }
            if self.steps[at] != 1 {
                return Err(format!(
                    "unsupported: a stride of {} elements in dimension {at}; only 1",
                    self.steps[at]
                ));
            }
        }
        for (at, stride) in self.strides[..self.rank - 1].iter().enumerate() {
            if stride % 16 != 0 || *stride >= 1 << 40 {
                return Err(format!(
                    "a stride of {stride} bytes in dimension {}: a multiple of 16 below 2^40",
                    at + 1
                ));
            }
        }
        self.check_row(element)
    }

    fn check_row(&self, element: u32) -> Result<(), String> {
        let row = element * self.tile[0];
        if !row.is_multiple_of(16) {
            return Err(format!("tiles with rows of {row} bytes, which is no multiple of 16"));
        }
        if self.interleave != 0 || self.fill != 0 {
            return Err("unsupported: interleaved tensors, and other than zeros outside".to_owned());
        }
        match self.swizzle {
            0 => Ok(()),
            mode @ 1..=3 if row <= 16 << mode => Ok(()),
            mode @ 1..=3 => {
                Err(format!("rows of {row} bytes in a pattern of {} bytes", 16 << mode))
            }
            mode => Err(format!("unsupported: swizzle mode {mode}; from 0 to 3")),
        }
    }

    /// Bytes of an element; of a map that was checked.
    pub(crate) fn element_bytes(&self) -> usize {
        ELEMENT_BYTES.get(usize::from(self.element)).map_or(1, |bytes| *bytes as usize)
    }

    /// Bytes of a row of a tile.
    pub(crate) fn row_bytes(&self) -> usize {
        self.element_bytes() * self.tile[0] as usize
    }

    /// Rows of a tile.
    pub(crate) fn rows(&self) -> usize {
        self.tile[1..self.rank].iter().map(|extent| *extent as usize).product()
    }

    /// What of the tile's row `row` lies in the tensor, if the tile begins at `start`: the offset in the row, the address, and
    /// bytes.
    pub(crate) fn piece(&self, start: &[i32], row: usize) -> Option<(usize, u64, usize)> {
        let (mut rest, mut address) = (row, self.address);
        for (at, start) in start.iter().enumerate().take(self.rank).skip(1) {
            let tile = self.tile[at] as usize;
            let index = i64::from(*start) + (rest % tile) as i64;
            rest /= tile;
            if index < 0 || index >= i64::from(self.extents[at]) {
                return None;
            }
            address =
                address.wrapping_add(self.strides[at - 1].wrapping_mul(index.cast_unsigned()));
        }
        let first = i64::from(start[0]);
        let from = first.max(0);
        let to = (first + i64::from(self.tile[0])).min(self.extents[0].into());
        let bytes = self.element_bytes();
        (from < to).then(|| {
            let offset = (from - first) as usize * bytes;
            (offset, address + from as u64 * bytes as u64, (to - from) as usize * bytes)
        })
    }
}

/// Where the 16 bytes at `at` of shared memory lie in a pattern: bits of their address from bit 7 on change as many from bit 4 on. Modes
/// 1 to 3 are patterns of 32, 64 and 128 bytes.
pub(crate) fn swizzled(at: usize, mode: u8) -> usize {
    at ^ (at >> 7 & ((1 << mode) - 1)) << 4
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map() -> TensorMap {
        TensorMap {
            address: 0x1000,
            rank: 3,
            element: 10,
            extents: [100, 7, 3, 0, 0],
            strides: [256, 4096, 0, 0],
            tile: [64, 4, 2, 0, 0],
            steps: [1, 1, 1, 0, 0],
            interleave: 0,
            swizzle: 3,
            fill: 0,
        }
    }

    #[test]
    fn a_map_is_what_was_encoded() {
        assert_eq!(TensorMap::decode(&map().encode()), Ok(map()));
    }

    #[test]
    fn tiles_end_where_the_tensor_does() {
        assert_eq!((map().rows(), map().row_bytes()), (8, 128));
        assert_eq!(map().piece(&[64, 5, 1], 0), Some((0, 0x1000 + 4096 + 5 * 256 + 128, 72)));
        assert_eq!(map().piece(&[-3, 5, 1], 1), Some((6, 0x1000 + 4096 + 6 * 256, 122)));
        assert_eq!(map().piece(&[0, 5, 1], 2), None);
        assert_eq!(map().piece(&[0, 5, 2], 4), None);
        assert_eq!(map().piece(&[100, 0, 0], 0), None);
    }

    #[test]
    fn what_a_copy_cannot_follow_is_told() {
        let says = |map: TensorMap| TensorMap::decode(&map.encode()).unwrap_err();
        assert!(says(TensorMap { address: 0x1008, ..map() }).contains("no multiple of 16"));
        assert!(
            says(TensorMap { tile: [64, 0, 2, 0, 0], ..map() })
                .contains("tiles of 0 elements in dimension 1")
        );
        assert!(
            says(TensorMap { strides: [200, 4096, 0, 0], ..map() })
                .contains("a stride of 200 bytes")
        );
        assert!(
            says(TensorMap { swizzle: 2, ..map() })
                .contains("rows of 128 bytes in a pattern of 64")
        );
        assert!(says(TensorMap { element: 13, ..map() }).contains("type 13"));
    }

    #[test]
    fn patterns_repeat_after_eight_rows() {
        assert_eq!(swizzled(0x100, 0), 0x100);
        assert_eq!(swizzled(0x090, 1), 0x080);
        assert_eq!(swizzled(0x180, 2), 0x1b0);
        assert_eq!(swizzled(0x780, 3), 0x7f0);
        assert_eq!(swizzled(0x810, 3), 0x810);
    }
}
