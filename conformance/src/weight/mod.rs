//! Random weights whose every row can be made on its own, in its scheme's bytes.
//!
//! Each part of a scheme has a pool of random units, made once; a row is a run of it that starts at a place of the row's own. So a
//! weight of any size costs a copy, never exists as floats, and an oracle can have just the rows it needs.

mod gguf;
mod pool;

use halyard_abi::scheme::{self, FP8_BLOCK, Rows};
use halyard_core::{Device, DeviceBuffer, DeviceError, Stream, Weight, WeightDesc};

use crate::rng::{Rng, mix};
use pool::Pool;
pub(crate) use pool::largest;

/// Most bytes handed over in one fill.
const CHUNK: u64 = 4 << 20;

/// Where a weight's rows come from.
#[derive(Clone, Debug)]
pub(crate) struct WeightSource {
    desc: WeightDesc<'static>,
    seed: u64,
    parts: Vec<Pool>,
    /// Which `(group, row)` of the whole weight each row is, if this is a part of one.
    picked: Option<Vec<(u32, u64)>>,
}

impl WeightSource {
    /// A weight whose product with inputs of variance 1 has a variance of about 1.
    ///
    /// `Err` says why there are no such weights.
    pub(crate) fn new(desc: WeightDesc<'static>, rng: &mut Rng) -> Result<Self, String> {
        let parts = scheme::parts(&desc).map_err(|e| e.message.to_string())?;
        let parts = parts.iter().map(|part| Pool::new(&desc, part, rng)).collect();
        Ok(Self { desc, seed: rng.next(), parts, picked: None })
    }

    pub(crate) fn desc(&self) -> &WeightDesc<'static> {
        &self.desc
    }

    /// A smaller weight of some rows, the same number in each of `groups` groups. Rows that share a scale must stay together: blocks of
    /// [`Scheme::FP8_BLOCK`](halyard_core::Scheme::FP8_BLOCK) begin at multiples of 128 rows here as there.
    pub(crate) fn pick(&self, groups: u32, rows: Vec<(u32, u64)>) -> Self {
        let n = rows.len() as u64 / u64::from(groups.max(1));
        let desc = WeightDesc { groups, n, ..self.desc };
        Self { desc, picked: Some(rows), ..self.clone() }
    }

    /// The row of the whole weight that a row of this one is.
    fn origin(&self, group: u32, row: u64) -> (u32, u64) {
        match &self.picked {
            Some(rows) => rows[(u64::from(group) * self.desc.n + row) as usize],
            None => (group, row),
        }
    }

    /// Appends what one part has for rows `start..end`.
    fn fill(&self, part: usize, group: u32, (start, end): (u64, u64), out: &mut Vec<u8>) {
        let pool = &self.parts[part];
        let seed = mix(self.seed ^ part as u64);
        let mut append = |(group, row): (u32, u64)| {
            pool.row(mix(seed ^ mix(u64::from(group) << 40 ^ row)), out);
        };
        match pool.rows {
            Rows::Each | Rows::Scalar => {
                (start..end).for_each(|row| append(self.origin(group, row)));
            }
            Rows::Blocks => {
                for row in (start..end).step_by(FP8_BLOCK as usize) {
                    let (group, row) = self.origin(group, row);
                    append((group, row / FP8_BLOCK));
                }
            }
            Rows::Shared => append((self.origin(group, start).0, 0)),
        }
    }

    /// Packs the weight on a device, in memory that `place` finds: in pieces of uneven size, one of them a single row, last rows first,
    /// and those of all groups in turn, since any order is allowed.
    pub(crate) fn load(
        &self,
        device: &Device,
        stream: &Stream,
        place: &mut dyn FnMut(u64, u64) -> Result<(DeviceBuffer, u64), DeviceError>,
    ) -> Result<Weight, DeviceError> {
        let mut builder = device.weight_in(self.desc, place)?;
        let mut bytes = vec![Vec::new(); self.parts.len()];
        for (start, end) in self.pieces() {
            for group in (0..self.desc.groups).rev() {
                for (part, bytes) in bytes.iter_mut().enumerate() {
                    bytes.clear();
                    self.fill(part, group, (start, end), bytes);
                }
                let parts: Vec<&[u8]> = bytes.iter().map(Vec::as_slice).collect();
                builder.fill(stream, group, start, end - start, &parts)?;
            }
        }
        builder.seal(stream)
    }

    /// Packs rows twice, then a weight with rows missing. Says what of that was no error.
    pub(crate) fn load_wrong(
        &self,
        device: &Device,
        stream: &Stream,
    ) -> Result<Option<&'static str>, DeviceError> {
        let rows = self.pieces().last().map_or((0, 0), |&piece| piece);
        let mut bytes = vec![Vec::new(); self.parts.len()];
        for (part, bytes) in bytes.iter_mut().enumerate() {
            self.fill(part, 0, rows, bytes);
        }
        let parts: Vec<&[u8]> = bytes.iter().map(Vec::as_slice).collect();
        let mut builder = device.weight(self.desc)?;
        builder.fill(stream, 0, rows.0, rows.1 - rows.0, &parts)?;
        if builder.fill(stream, 0, rows.0, rows.1 - rows.0, &parts).is_ok() && stream.sync().is_ok()
        {
            return Ok(Some("rows that came twice were taken"));
        }
        if rows.1 == self.desc.n && self.desc.groups == 1 {
            return Ok(None);
        }
        let mut builder = device.weight(self.desc)?;
        builder.fill(stream, 0, rows.0, rows.1 - rows.0, &parts)?;
        let sealed = builder.seal(stream).is_ok() && stream.sync().is_ok();
        Ok(sealed.then_some("a weight was sealed with rows missing"))
    }

    /// The rows of each fill.
    fn pieces(&self) -> Vec<(u64, u64)> {
        let row_bytes: usize = self.parts.iter().map(Pool::row_bytes).sum();
        let most = (CHUNK / (row_bytes as u64).max(1)).max(1);
        let uneven = if self.desc.n > 4 { [self.desc.n / 2 + 1, 1] } else { [most; 2] };
        let mut sizes = uneven.into_iter().chain(std::iter::repeat(most));
        let in_blocks = scheme::parts(&self.desc).is_ok_and(|parts| scheme::in_blocks(&parts));
        let step = if in_blocks { FP8_BLOCK } else { 1 };
        let (mut pieces, mut end) = (Vec::new(), self.desc.n);
        while end > 0 {
            let piece = sizes.next().unwrap_or(most).min(most);
            let start = end.saturating_sub(piece) / step * step;
            pieces.push((start, end));
            end = start;
        }
        pieces
    }
}

#[cfg(test)]
mod tests {
    use super::{pool::POOL, *};
    use halyard_abi::{
        fp8::e4m3_to_f32,
        types::{WEIGHT_PERM, WEIGHT_ZERO},
    };
    use halyard_core::{DType, Scheme};

    fn part(source: &WeightSource, part: usize, group: u32, rows: (u64, u64)) -> Vec<u8> {
        let mut bytes = Vec::new();
        source.fill(part, group, rows, &mut bytes);
        bytes
    }

    #[test]
    fn memory_that_is_no_room_for_a_weight_is_refused() {
        let device = crate::oracle().unwrap();
        let stream = device.stream(0).unwrap();
        let desc = WeightDesc::linear(Scheme::DENSE, DType::F32, 4, 64);
        let source = WeightSource::new(desc, &mut Rng::new(1, "weights")).unwrap();
        let place = |more: i64, offset: u64, of: &Device| {
            source.load(&device, &stream, &mut |bytes, align| {
                let all = (bytes + offset).checked_add_signed(more).unwrap();
                Ok((of.alloc_aligned(all, align)?, offset))
            })
        };
        assert!(place(0, 0, &device).is_ok() && place(0, 4096, &device).is_ok());
        assert!(place(-1, 0, &device).is_err() && place(-1, 4096, &device).is_err());
        assert!(place(4096, 1, &device).is_err(), "not aligned");
        let other = crate::oracle().unwrap();
        assert!(place(0, 0, &other).is_err(), "memory of another device");
    }

    #[test]
    fn a_part_has_the_same_rows_as_the_whole() {
        let mut rng = Rng::new(1, "weights");
        let desc = WeightDesc::experts(Scheme::GGUF_Q4_K, DType::NONE, 3, 5, 512);
        let whole = WeightSource::new(desc, &mut rng).unwrap();
        let some = whole.pick(2, vec![(2, 4), (0, 1), (1, 1), (1, 0)]);
        assert_eq!((some.desc().groups, some.desc().n), (2, 2));
        let row = |source: &WeightSource, group, row| part(source, 0, group, (row, row + 1));
        assert_eq!(row(&some, 0, 0), row(&whole, 2, 4));
        assert_eq!(row(&some, 1, 0), row(&whole, 1, 1));
        assert_ne!(row(&whole, 0, 1), row(&whole, 0, 2));
        assert_eq!(row(&whole, 0, 0).len(), 288);
    }

    #[test]
    fn rows_longer_than_the_pool_wrap_around() {
        let mut rng = Rng::new(1, "weights");
        let desc = WeightDesc::linear(Scheme::DENSE, DType::F32, 1, 20_000);
        let source = WeightSource::new(desc, &mut rng).unwrap();
        let bytes = part(&source, 0, 0, (0, 1));
        assert_eq!(bytes.len(), 80_000);
        assert_eq!(bytes[..4], bytes[POOL * 4..POOL * 4 + 4]);
    }

    #[test]
    fn every_part_has_the_bytes_that_its_rows_need() {
        let linear = |scheme, dtype| WeightDesc::linear(scheme, dtype, 300, 256);
        let int4 = WeightDesc { group_size: 64, ..linear(Scheme::INT4_GROUP, DType::F16) };
        for desc in [
            linear(Scheme::FP8_BLOCK, DType::F32),
            linear(Scheme::FP8_CHANNEL, DType::F32),
            linear(Scheme::INT8_CHANNEL, DType::F32),
            int4,
            WeightDesc { flags: WEIGHT_ZERO | WEIGHT_PERM, ..int4 },
        ] {
            let source = WeightSource::new(desc, &mut Rng::new(1, "parts")).unwrap();
            for (at, described) in scheme::parts(&desc).unwrap().iter().enumerate() {
                let bytes = part(&source, at, 0, (128, 300)).len();
                assert_eq!(Some(bytes as u64), described.bytes(172), "{described:?}");
            }
        }
    }

    #[test]
    fn no_weight_is_larger_than_the_largest() {
        let f32s = |bytes: Vec<u8>| -> Vec<f64> {
            let words = bytes.as_chunks().0.iter();
            words.map(|&word| f64::from(f32::from_le_bytes(word))).collect()
        };
        let most = |values: Vec<f64>| values.into_iter().fold(0.0, |most, v| v.abs().max(most));
        let source = |scheme| {
            let desc = WeightDesc::linear(scheme, DType::F32, 256, 512);
            WeightSource::new(desc, &mut Rng::new(1, "weights")).unwrap()
        };
        let (dense, int8, fp8) =
            (source(Scheme::DENSE), source(Scheme::INT8_CHANNEL), source(Scheme::FP8_CHANNEL));
        let part = |source, at| part(source, at, 0, (0, 256));
        let scale = |source| most(f32s(part(source, 1)));
        let codes = part(&int8, 0).into_iter().map(|code| f64::from(code.cast_signed())).collect();
        let e4m3 = part(&fp8, 0).into_iter().map(|code| f64::from(e4m3_to_f32(code))).collect();
        for (source, found) in [
            (&dense, most(f32s(part(&dense, 0)))),
            (&int8, most(codes) * scale(&int8)),
            (&fp8, most(e4m3) * scale(&fp8)),
        ] {
            let largest = largest(source.desc());
            assert!((0.4 * largest..=largest).contains(&found), "{found} of {largest}");
        }
    }

    #[test]
    fn a_permutation_has_every_column_once_and_rows_of_a_block_share_a_scale() {
        let int4 = WeightDesc::experts(Scheme::INT4_GROUP, DType::F32, 2, 4, 32);
        let int4 = WeightDesc { group_size: 32, flags: WEIGHT_PERM, ..int4 };
        let source = WeightSource::new(int4, &mut Rng::new(1, "perm")).unwrap();
        let order = |group| -> Vec<u8> {
            part(&source, 2, group, (0, 4)).chunks(4).map(|word| word[0]).collect()
        };
        let mut sorted = order(0);
        sorted.sort_unstable();
        assert_eq!(sorted, (0..32).collect::<Vec<u8>>());
        assert_ne!(order(0), order(1));
        assert_eq!(part(&source, 2, 0, (0, 1)), part(&source, 2, 0, (3, 4)));

        let fp8 = WeightDesc::linear(Scheme::FP8_BLOCK, DType::F32, 300, 256);
        let source = WeightSource::new(fp8, &mut Rng::new(1, "blocks")).unwrap();
        let scales = part(&source, 1, 0, (0, 300));
        assert_eq!(scales[8..16], part(&source, 1, 0, (128, 129)));
        let last = source.pick(1, (256..300).map(|row| (0, row)).collect());
        assert_eq!(scales[16..], part(&last, 1, 0, (0, 44)));
    }
}
