//! What lies in each device's memory from the start: the mask of attention's causal modes, and numbers that operators take as tensors.

use halyard_ascend_sys::types::ACL_INT8;
use halyard_sdk::Result;

use super::args::{Kind, Place};
use crate::driver::{self, Memory, Tensor};

/// Side of the mask that attention's causal modes take, whatever the lengths.
const MASK: usize = 2048;

/// Numbers, in the order in which they lie behind the mask.
const FLOATS: [f32; 3] = [0.0, 1.0, f32::NEG_INFINITY];
const WHOLE: [i64; 3] = [0, 1, -1];

/// Bytes from number to number.
const STEP: usize = 8;

/// Constants in device memory.
#[derive(Debug)]
pub(crate) struct Constants {
    memory: Memory,
}

impl Constants {
    /// Ones above the mask's diagonal, and the numbers.
    pub(crate) fn new(on: &driver::Stream) -> Result<Self> {
        let mut bytes: Vec<u8> = (0..MASK * MASK).map(|i| u8::from(i % MASK > i / MASK)).collect();
        for number in FLOATS {
            bytes.extend_from_slice(&number.to_le_bytes());
            bytes.resize(bytes.len() + STEP - 4, 0);
        }
        WHOLE.iter().for_each(|number| bytes.extend_from_slice(&number.to_le_bytes()));
        let memory = Memory::filled(on, &bytes)?;
        Ok(Self { memory })
    }

    /// The mask as attention takes it.
    pub(super) fn mask(&self) -> Tensor {
        let side = [MASK as i64; 2];
        Tensor::new((ACL_INT8, 1), &side, &[side[0], 1], (self.memory.start(), 0))
    }

    fn place(&self, kind: Kind, number: usize) -> Place {
        let base = self.memory.start() + (MASK * MASK) as u64;
        let each = STEP as i64 / kind.bytes();
        let numbers = (FLOATS.len() + WHOLE.len()) as i64;
        let all = Place::contiguous(base, kind, &[numbers * each]);
        all.slice(0, number as i64 * each, 1)
    }

    /// An f32 to broadcast, if it is among the constants.
    pub(super) fn float(&self, value: f32) -> Option<Place> {
        let at = FLOATS.iter().position(|number| number.to_bits() == value.to_bits())?;
        Some(self.place(Kind::F32, at))
    }

    /// An i64 to broadcast, if it is among the constants.
    pub(super) fn whole(&self, value: i64) -> Option<Place> {
        let at = WHOLE.iter().position(|number| *number == value)?;
        Some(self.place(Kind::I64, FLOATS.len() + at))
    }
}
