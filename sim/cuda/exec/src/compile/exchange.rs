//! Exchange between all lanes as vector code.

use super::assembler::{Assembler, Base, LOAD, MaskOp, Place, SHUFFLE, SHUFFLE_QUARTERS, STORE};
use crate::program::{OPERANDS, Slot};
use std::collections::HashMap;

/// `shfl.bfly` of the whole warp by a power of two: swaps lanes, pairs, quarters of vectors, or vectors.
pub(super) fn butterfly(o: &[Slot; OPERANDS], constants: &HashMap<Slot, u32>) -> Option<Vec<u8>> {
    let (by, control) = (constants.get(&o[3])? & 31, constants.get(&o[4])?);
    if control & 0x1f1f != 31 || !by.is_power_of_two() {
        return None;
    }
    let mut code = Assembler::default();
    let place =
        |slot: Slot, part: i32| Place::Memory(Base::Words, i32::from(slot) * 128 + 64 * part);
    for part in 0..2 {
        code.op(LOAD, part, 0, place(o[2], part.into()));
    }
    // Neighbours, and neighbours of neighbours.
    let pattern = if by == 1 || by == 4 { 0b10_11_00_01 } else { 0b01_00_11_10 };
    for part in 0..2 {
        let from = Place::Vector(part);
        match by {
            1 | 2 => code.op_with(SHUFFLE, part, 0, from, pattern),
            4 | 8 => code.op_with(SHUFFLE_QUARTERS, part, part, from, pattern),
            _ => {}
        }
        let to = if by == 16 { 1 - part } else { part };
        code.op(STORE, part, 0, place(o[0], to.into()));
    }
    // Every lane had another to take from.
    code.masks(MaskOp::Same, 1, 1, 1);
    for part in 0..2 {
        code.store_mask(1, i32::from(o[1]) * 4 + 2 * part);
    }
    Some(code.once())
}
