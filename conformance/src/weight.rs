//! Random weights whose every row can be made on its own, in its scheme's bytes.
//!
//! A pool of random blocks is made once; a row is a run of it that starts at a place of the row's own. So a weight of any size costs
//! a copy, never exists as floats, and an oracle can have just the rows it needs.

use half::{bf16, f16};
use halyard_core::{DType, Device, DeviceError, Scheme, Stream, Weight, WeightDesc};

use crate::rng::{Rng, mix};

/// Blocks in a pool; prime, so that rows do not fall into step.
const POOL: usize = 8_191;
/// Most bytes handed over in one fill.
const CHUNK: u64 = 4 << 20;

/// Where a weight's rows come from.
#[derive(Clone, Debug)]
pub(crate) struct WeightSource {
    desc: WeightDesc<'static>,
    seed: u64,
    pool: Vec<u8>,
    /// Bytes of a block.
    unit: usize,
    /// Blocks of a row.
    units: usize,
    /// Which `(group, row)` of the whole weight each row is, if this is a part of one.
    picked: Option<Vec<(u32, u64)>>,
}

impl WeightSource {
    /// A weight whose product with inputs of variance 1 has a variance of about 1.
    ///
    /// `Err` says why there are no such weights.
    pub(crate) fn new(desc: WeightDesc<'static>, rng: &mut Rng) -> Result<Self, String> {
        let (elements, unit) = match desc.scheme {
            Scheme::DENSE => (1, (desc.dtype.bits().unwrap_or(0) / 8) as usize),
            scheme => match scheme.gguf_block() {
                Some((elements, bytes)) => (elements, bytes as usize),
                None => return Err(format!("no random weights of scheme {scheme}")),
            },
        };
        if unit == 0 || !desc.k.is_multiple_of(elements) {
            return Err(format!(
                "no weights of {} {} with rows of {}",
                desc.scheme, desc.dtype, desc.k
            ));
        }
        let deviation = 1.0 / (desc.k as f64).sqrt().max(1.0);
        let mut pool = Vec::with_capacity(POOL * unit);
        for _ in 0..POOL {
            match desc.scheme {
                Scheme::DENSE => pool.extend(element(desc.dtype, deviation * rng.normal())),
                scheme => pool.extend(block(scheme, unit, deviation, rng)),
            }
        }
        let units = (desc.k / elements) as usize;
        Ok(Self { desc, seed: rng.next(), pool, unit, units, picked: None })
    }

    pub(crate) fn desc(&self) -> &WeightDesc<'static> {
        &self.desc
    }

    /// A smaller weight of some rows, the same number in each of `groups` groups.
    pub(crate) fn pick(&self, groups: u32, rows: Vec<(u32, u64)>) -> Self {
        let n = rows.len() as u64 / u64::from(groups.max(1));
        let desc = WeightDesc { groups, n, ..self.desc };
        Self { desc, picked: Some(rows), ..self.clone() }
    }

    fn row_bytes(&self) -> u64 {
        (self.units * self.unit) as u64
    }

    /// Appends a row.
    fn row(&self, group: u32, row: u64, out: &mut Vec<u8>) {
        let (group, row) = match &self.picked {
            Some(rows) => rows[(u64::from(group) * self.desc.n + row) as usize],
            None => (group, row),
        };
        let place = mix(self.seed ^ mix(u64::from(group) << 40 ^ row));
        let mut from = (place % POOL as u64) as usize;
        let mut missing = self.units;
        while missing > 0 {
            let run = missing.min(POOL - from);
            out.extend_from_slice(&self.pool[from * self.unit..(from + run) * self.unit]);
            (missing, from) = (missing - run, 0);
        }
    }

    /// Packs the weight on a device: in pieces of uneven size, last rows first, since any order is allowed.
    pub(crate) fn load(&self, device: &Device, stream: &Stream) -> Result<Weight, DeviceError> {
        let mut builder = device.weight(self.desc)?;
        let most = (CHUNK / self.row_bytes().max(1)).max(1);
        let piece = if self.desc.n > 4 { most.min(self.desc.n / 2 + 1) } else { most };
        let mut bytes = Vec::new();
        for group in (0..self.desc.groups).rev() {
            let mut end = self.desc.n;
            while end > 0 {
                let start = end.saturating_sub(piece);
                bytes.clear();
                for row in start..end {
                    self.row(group, row, &mut bytes);
                }
                builder.fill(stream, group, start, end - start, &[&bytes])?;
                end = start;
            }
        }
        builder.seal(stream)
    }
}

fn element(dtype: DType, value: f64) -> Vec<u8> {
    match dtype {
        DType::F16 => f16::from_f64(value).to_le_bytes().to_vec(),
        DType::BF16 => bf16::from_f64(value).to_le_bytes().to_vec(),
        _ => (value as f32).to_le_bytes().to_vec(),
    }
}

/// Where a scheme's f16 scales lie, by what they are multiplied; the rest of a block may be any bytes.
struct Scales {
    /// Offset of `d`, and the standard deviation of what it multiplies.
    d: (usize, f64),
    /// Offset of the second scale, and its ratio to `d` that centres the values.
    m: Option<(usize, f64)>,
}

fn scales(scheme: Scheme) -> Scales {
    let (d, m) = match scheme {
        Scheme::GGUF_Q4_0 => ((0, 4.6), None),
        Scheme::GGUF_Q4_1 => ((0, 4.6), Some((2, -7.5))),
        Scheme::GGUF_Q5_0 => ((0, 9.2), None),
        Scheme::GGUF_Q5_1 => ((0, 9.2), Some((2, -15.5))),
        Scheme::GGUF_Q8_0 => ((0, 74.0), None),
        Scheme::GGUF_Q2_K => ((80, 13.0), Some((82, 1.5))),
        Scheme::GGUF_Q3_K => ((108, 42.0), None),
        Scheme::GGUF_Q4_K => ((0, 240.0), Some((2, 7.5))),
        Scheme::GGUF_Q5_K => ((0, 490.0), Some((2, 15.5))),
        Scheme::GGUF_Q6_K => ((208, 1370.0), None),
        // IQ4_NL.
        _ => ((0, 71.0), None),
    };
    Scales { d, m }
}

/// A random block: random codes and inner scales, f16 scales such that the values have about this deviation. One in 32 has a scale
/// of zero, as in files where a whole block is zero.
fn block(scheme: Scheme, bytes: usize, deviation: f64, rng: &mut Rng) -> Vec<u8> {
    let mut block: Vec<u8> = (0..bytes).map(|_| rng.next() as u8).collect();
    let scales = scales(scheme);
    let mut put = |at: usize, value: f64| {
        block[at..at + 2].copy_from_slice(&f16::from_f64(value).to_le_bytes());
    };
    let sign = if rng.below(2) == 0 { 1.0 } else { -1.0 };
    let zero = rng.below(32) == 0;
    let d = if zero { 0.0 } else { sign * deviation / scales.d.1 * rng.between(0.5, 1.5) };
    put(scales.d.0, d);
    if let Some((at, ratio)) = scales.m {
        put(at, d * ratio * rng.between(0.8, 1.2));
    }
    block
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_has_the_same_rows_as_the_whole() {
        let mut rng = Rng::new(1, "weights");
        let desc = WeightDesc::experts(Scheme::GGUF_Q4_K, DType::NONE, 3, 5, 512);
        let whole = WeightSource::new(desc, &mut rng).unwrap();
        let part = whole.pick(2, vec![(2, 4), (0, 1), (1, 1), (1, 0)]);
        assert_eq!((part.desc().groups, part.desc().n), (2, 2));
        let row = |source: &WeightSource, group, row| {
            let mut bytes = Vec::new();
            source.row(group, row, &mut bytes);
            bytes
        };
        assert_eq!(row(&part, 0, 0), row(&whole, 2, 4));
        assert_eq!(row(&part, 1, 0), row(&whole, 1, 1));
        assert_ne!(row(&whole, 0, 1), row(&whole, 0, 2));
        assert_eq!(row(&whole, 0, 0).len(), 288);
    }

    #[test]
    fn rows_longer_than_the_pool_wrap_around() {
        let mut rng = Rng::new(1, "weights");
        let desc = WeightDesc::linear(Scheme::DENSE, DType::F32, 1, 20_000);
        let source = WeightSource::new(desc, &mut rng).unwrap();
        let mut bytes = Vec::new();
        source.row(0, 0, &mut bytes);
        assert_eq!(bytes.len(), 80_000);
        assert_eq!(bytes[..4], bytes[POOL * 4..POOL * 4 + 4]);
    }
}
