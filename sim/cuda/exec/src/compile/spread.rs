//! What lanes load, lane after lane, put into registers, one after the other.

use super::assembler::{
    Assembler, BLEND32, Base, LOAD, PERMUTE, Place, SHUFFLE_QUARTERS, STORE, TAKEN,
};
use crate::program::{Access, OPERANDS, Room, Slot};

/// Which elements of two vectors a permutation takes: the first of all of 8 lanes and then the second, the third and the fourth of lanes that
/// have four; the first and the second of 16 lanes that have two.
pub(super) static TABLE: [[u32; 16]; 4] = [
    [0, 4, 8, 12, 16, 20, 24, 28, 1, 5, 9, 13, 17, 21, 25, 29],
    [2, 6, 10, 14, 18, 22, 26, 30, 3, 7, 11, 15, 19, 23, 27, 31],
    [0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30],
    [1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31],
];

/// The machine code that spreads what a load brings, two or four words a lane, for all lanes or for those of a mask. It has [`TABLE`] where
/// others have longs, and the loaded bytes where others have parameters.
pub(super) fn load(a: Access, o: &[Slot; OPERANDS], whole: bool) -> Option<Vec<u8>> {
    if !matches!(a.room, Room::Global | Room::Shared) || a.bytes != 4 || a.long_data {
        return None;
    }
    let mut code = Assembler::default();
    for half in 0..2 {
        if !whole {
            code.take_half();
        }
        match a.count {
            2 => pairs(&mut code, (half, whole), o),
            4 => fours(&mut code, (half, whole), o),
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

/// Sets half of the lanes of a register.
fn set(code: &mut Assembler, slot: Slot, (half, whole): (i32, bool), vector: u8) {
    const OLD: u8 = 5;
    let register = Place::Memory(Base::Words, i32::from(slot) * 128 + 64 * half);
    if !whole {
        code.op(LOAD, OLD, 0, register);
        code.op_masked(BLEND32, vector, OLD, Place::Vector(vector), TAKEN);
    }
    code.op(STORE, vector, 0, register);
}

fn pairs(code: &mut Assembler, lanes: (i32, bool), o: &[Slot; OPERANDS]) {
    let half = lanes.0;
    code.op(LOAD, 0, 0, loaded(2 * half));
    for part in 0..2 {
        code.op(LOAD, 1, 0, numbers(2 + part));
        code.op(PERMUTE, 1, 0, loaded(2 * half + 1));
        set(code, o[1 + part as usize], lanes, 1);
    }
}

fn fours(code: &mut Assembler, lanes: (i32, bool), o: &[Slot; OPERANDS]) {
    let half = lanes.0;
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
            set(code, o[1 + 2 * two as usize + part], lanes, 4);
        }
    }
}
