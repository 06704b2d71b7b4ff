//! What lanes load, lane after lane, put into registers, one after the other.

use super::assembler::{Assembler, Base, LOAD, PERMUTE, Place, SHUFFLE_QUARTERS, STORE};
use crate::program::{Access, OPERANDS, Room, Slot};

/// Which elements of two vectors a permutation takes: the first of all of 8 lanes and then the second, the third and the fourth of lanes that
/// have four; the first and the second of 16 lanes that have two.
pub(super) static TABLE: [[u32; 16]; 4] = [
    [0, 4, 8, 12, 16, 20, 24, 28, 1, 5, 9, 13, 17, 21, 25, 29],
    [2, 6, 10, 14, 18, 22, 26, 30, 3, 7, 11, 15, 19, 23, 27, 31],
    [0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30],
    [1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31],
];

/// The machine code that spreads what a load brings for all lanes, two or four words each. It has [`TABLE`] where others have longs, and the
/// loaded bytes where others have parameters.
pub(super) fn load(a: Access, o: &[Slot; OPERANDS]) -> Option<Vec<u8>> {
    if a.room != Room::Global || a.bytes != 4 || a.long_data {
        return None;
    }
    let mut code = Assembler::default();
    for half in 0..2 {
        match a.count {
            2 => pairs(&mut code, half, o),
            4 => fours(&mut code, half, o),
            _ => return None,
        }
    }
    Some(code.once())
}

fn numbers(at: i32) -> Place {
    Place::Memory(Base::Longs, 64 * at)
}

fn loaded(vector: i32) -> Place {
    Place::Memory(Base::Params, 64 * vector)
}

fn register(slot: Slot, half: i32) -> Place {
    Place::Memory(Base::Words, i32::from(slot) * 128 + 64 * half)
}

fn pairs(code: &mut Assembler, half: i32, o: &[Slot; OPERANDS]) {
    code.op(LOAD, 0, 0, loaded(2 * half));
    for part in 0..2 {
        code.op(LOAD, 1, 0, numbers(2 + part));
        code.op(PERMUTE, 1, 0, loaded(2 * half + 1));
        code.op(STORE, 1, 0, register(o[1 + part as usize], half));
    }
}

fn fours(code: &mut Assembler, half: i32, o: &[Slot; OPERANDS]) {
    for first in 0..2 {
        code.op(LOAD, first, 0, loaded(4 * half + 2 * i32::from(first)));
    }
    for two in 0..2 {
        for eight in 0..2 {
            code.op(LOAD, 2 + eight, 0, numbers(two));
            code.op(PERMUTE, 2 + eight, eight, loaded(4 * half + 2 * i32::from(eight) + 1));
        }
        // The lower halves of both are one element of 16 lanes, the upper ones the next.
        for (part, pattern) in [(0, 0b01_00_01_00), (1, 0b11_10_11_10)] {
            code.op_with(SHUFFLE_QUARTERS, 4, 2, Place::Vector(3), pattern);
            code.op(STORE, 4, 0, register(o[1 + 2 * two as usize + part], half));
        }
    }
}
