//! `mma` of 16-bit floats as vector code, for all lanes at once, with the bits that the interpreter's sums have.
//!
//! How lanes hold operands is said in `warp::tensor`. Four lanes of a row of A lie in a quarter of a vector, so that one element of each row is
//! had by a shuffle; an element of each column of B is spread over all rows by a permutation. Sums stay as they lie in registers.

use super::assembler::{
    ADD32, AND, Assembler, Base, F16_TO_F32, FMA231_F32, LOAD, NARROW_32, PERMUTE, Place, SHUFFLE,
    STORE, Way,
};
use crate::program::{Mma, OPERANDS, Slot};

/// Lanes of B that have columns 0, 2, 4 and 6, times four, one for each lane of a quarter.
const COLUMNS: [u32; 4] = [0, 8, 16, 24];

// Vector registers: 0 to 7 are the sums, 16 to 23 which lanes of B to take.
const FIRST_LANES: u8 = 16;
const TABLE: [u8; 2] = [8, 9];
const EVEN: [u8; 2] = [10, 11];
const ODD: [u8; 2] = [12, 13];
const ROWS: [u8; 2] = [14, 15];
const SPARE: u8 = 24;
const UPPER: u8 = 25;

/// The machine code of `op` on the registers `o`, if there is any.
pub(super) fn mma(op: Mma, o: &[Slot; OPERANDS]) -> Option<Vec<u8>> {
    let (blocks, half) = match op {
        Mma::Bf16K16 => (2, false),
        Mma::Bf16K8 => (1, false),
        Mma::F16K16 => (2, true),
        Mma::F16K8 => (1, true),
        _ => return None,
    };
    let mut code = Assembler::default();
    let place = |at: usize, part: usize| {
        Place::Memory(Base::Words, i32::from(o[at]) * 128 + 64 * part as i32)
    };
    code.constant(UPPER, 0xffff_0000);
    lanes_of_columns(&mut code);
    let sums = |register: usize, part: usize| (2 * register + part) as u8;
    let c = 4 + 3 * blocks;
    for (register, part) in pairs(4) {
        code.op(LOAD, sums(register, part), 0, place(c + register, part));
    }
    for (block, element) in
        (0..blocks).flat_map(|block| (0..4).map(move |element| (block, element)))
    {
        for (part, table) in TABLE.into_iter().enumerate() {
            code.op(LOAD, table, 0, place(4 + 2 * blocks + block, part));
        }
        for (odd, to) in [EVEN, ODD].into_iter().enumerate() {
            let lanes = FIRST_LANES + 4 * odd as u8 + element;
            code.op(LOAD, SPARE, 0, Place::Vector(lanes));
            code.op(PERMUTE, SPARE, TABLE[0], Place::Vector(TABLE[1]));
            unpack(&mut code, half, SPARE, to);
        }
        for (rows, part) in pairs(2) {
            let from = place(4 + 2 * block + rows, part);
            code.op_with(SHUFFLE, SPARE, 0, from, element * 0x55);
            unpack(&mut code, half, SPARE, ROWS);
            for k in 0..2 {
                for (odd, columns) in [EVEN, ODD].into_iter().enumerate() {
                    let sum = sums(2 * rows + odd, part);
                    code.op(FMA231_F32, sum, ROWS[k], Place::Vector(columns[k]));
                }
            }
        }
    }
    for (register, part) in pairs(4) {
        code.op(STORE, sums(register, part), 0, place(register, part));
    }
    Some(code.once())
}

/// Each of the first `count` numbers with 0, and with 1.
fn pairs(count: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..count).flat_map(|first| [(first, 0), (first, 1)])
}

/// The lanes of B that have the even columns of each element of `k`, and the odd ones.
fn lanes_of_columns(code: &mut Assembler) {
    code.quarters(SPARE, COLUMNS);
    for (odd, element) in (0..2).flat_map(|odd| (0..4).map(move |element| (odd, element))) {
        let to = FIRST_LANES + 4 * odd + element;
        code.constant(to, u32::from(4 * odd + element));
        code.op(ADD32, to, to, Place::Vector(SPARE));
    }
}

/// The two 16-bit floats of each lane as f32.
fn unpack(code: &mut Assembler, half: bool, from: u8, [low, high]: [u8; 2]) {
    if half {
        code.shift32(Way::RightUnsigned, high, from, 16);
        for (from, to) in [(from, low), (high, high)] {
            code.op(NARROW_32, from, 0, Place::Vector(to));
            code.op(F16_TO_F32, to, 0, Place::Vector(to));
        }
    } else {
        code.shift32(Way::Left, low, from, 16);
        code.op(AND, high, from, Place::Vector(UPPER));
    }
}
