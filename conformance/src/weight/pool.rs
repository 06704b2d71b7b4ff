//! The random units that the rows of one part are runs of.

use std::ops::Range;

use half::{bf16, f16};
use halyard_abi::{
    fp8::{E4M3_MAX, e4m3_from_f64, e4m3_to_f32},
    scheme::{Part, Rows},
};
use halyard_core::{DType, Scheme, WeightDesc};

use super::gguf;
use crate::rng::Rng;

/// Units in a pool; prime, so that rows do not fall into step.
pub(super) const POOL: usize = 8_191;

/// Where the rows of one part come from.
#[derive(Clone, Debug)]
pub(super) struct Pool {
    /// How often the part has a row.
    pub(super) rows: Rows,
    bytes: Vec<u8>,
    /// Bytes of a unit: an element, two nibbles, or a block of a GGUF scheme; all of a permutation.
    unit: usize,
    /// Units of a row.
    units: usize,
}

impl Pool {
    pub(super) fn new(desc: &WeightDesc<'_>, part: &Part, rng: &mut Rng) -> Self {
        if part.name == "perm" {
            return Self::permutations(part, rng);
        }
        let columns = part.columns as usize;
        let (unit, units) = match (desc.scheme.gguf_block(), part.dtype) {
            (Some((_, bytes)), _) => (bytes as usize, columns / bytes as usize),
            (None, DType::U4) => (1, columns / 2),
            (None, dtype) => ((dtype.bits().unwrap_or(8) / 8) as usize, columns),
        };
        let mut bytes = Vec::with_capacity(POOL * unit);
        for _ in 0..POOL {
            bytes.extend(random_unit(desc, part, unit, rng));
        }
        Self { rows: part.rows, bytes, unit, units }
    }

    /// Orders of the columns, a different one for most groups.
    fn permutations(part: &Part, rng: &mut Rng) -> Self {
        const ORDERS: usize = 17;
        let columns = part.columns as usize;
        let orders = (0..ORDERS).flat_map(|_| rng.distinct(columns, columns));
        let bytes = orders.flat_map(|c| (c as i32).to_le_bytes()).collect();
        Self { rows: part.rows, bytes, unit: 4 * columns, units: 1 }
    }

    pub(super) fn row_bytes(&self) -> usize {
        self.units * self.unit
    }

    /// Appends the row that a random number stands for.
    pub(super) fn row(&self, random: u64, out: &mut Vec<u8>) {
        let pool = self.bytes.len() / self.unit;
        let mut from = (random % pool as u64) as usize;
        let mut missing = self.units;
        while missing > 0 {
            let run = missing.min(pool - from);
            out.extend_from_slice(&self.bytes[from * self.unit..(from + run) * self.unit]);
            (missing, from) = (missing - run, 0);
        }
    }
}

/// The deviation of random codes, which scales divide by.
fn code_deviation(scheme: Scheme) -> f64 {
    match scheme {
        Scheme::FP8_BLOCK | Scheme::FP8_CHANNEL => FP8_DEVIATION,
        Scheme::INT8_CHANNEL => 73.9,
        // The difference of two independent numbers of 0..16, or of one and 8.
        _ => 5.6,
    }
}

/// No random weight of this description is larger.
pub(crate) fn largest(desc: &WeightDesc<'_>) -> f64 {
    let codes = match desc.scheme {
        Scheme::FP8_BLOCK | Scheme::FP8_CHANNEL => E4M3_MAX,
        Scheme::INT8_CHANNEL => 127.0,
        Scheme::INT4_GROUP => 16.0,
        // Of normal numbers not one in 10^11 is beyond seven deviations; what files of GGUF hold stays below five.
        _ => return 7.0 * deviation(desc),
    };
    SCALES.end * codes / code_deviation(desc.scheme) * deviation(desc)
}

fn deviation(desc: &WeightDesc<'_>) -> f64 {
    1.0 / (desc.k as f64).sqrt().max(1.0)
}

/// The share of its usual size that a scale has.
const SCALES: Range<f64> = 0.5..1.5;

/// Leaves room for the largest codes, which come up now and then, to be outliers.
const FP8_DEVIATION: f64 = 64.0;

fn random_unit(desc: &WeightDesc<'_>, part: &Part, unit: usize, rng: &mut Rng) -> Vec<u8> {
    let deviation = deviation(desc);
    match (part.name, part.dtype) {
        // One in 32 is zero, as where a whole group is.
        ("scale", dtype) => {
            let zero = rng.below(32) == 0;
            let scale =
                deviation / code_deviation(desc.scheme) * rng.between(SCALES.start, SCALES.end);
            element(dtype, if zero { 0.0 } else { scale })
        }
        // GPTQ files hold zero points of 1 to 16.
        ("zero", _) => vec![rng.below(17) as u8],
        (_, DType::F8E4M3) => vec![fp8_code(rng)],
        (_, DType::I8) => vec![(rng.below(255) as i8).wrapping_sub(127).cast_unsigned()],
        (_, DType::U4) => vec![rng.next() as u8],
        _ if desc.scheme == Scheme::DENSE => element(part.dtype, deviation * rng.normal()),
        _ => gguf::block(desc.scheme, unit, deviation, rng),
    }
}

/// Normally distributed; one in 256 any number, the largest and the subnormal ones among them.
fn fp8_code(rng: &mut Rng) -> u8 {
    if rng.below(256) > 0 {
        return e4m3_from_f64(FP8_DEVIATION * rng.normal());
    }
    let code = rng.next() as u8;
    if e4m3_to_f32(code).is_nan() { 0 } else { code }
}

fn element(dtype: DType, value: f64) -> Vec<u8> {
    match dtype {
        DType::F16 => f16::from_f64(value).to_le_bytes().to_vec(),
        DType::BF16 => bf16::from_f64(value).to_le_bytes().to_vec(),
        _ => (value as f32).to_le_bytes().to_vec(),
    }
}
