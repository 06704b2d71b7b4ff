//! Which values of a stretch are in vector registers.
//!
//! A value that an instruction made stays in its register until another needs it or the stretch ends; only then is it
//! written to the warp's file, unless the stretch has overwritten it by then. A move gives a register another name.

use super::assembler::{Assembler, BLEND32, BLEND64, Base, LOAD, Place, STORE, TAKEN, TAKEN_HIGH};
use crate::program::Slot;

/// What a vector register can hold: half of the lanes of a 32-bit register, a quarter of a 64-bit one's, or a constant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Name {
    Word(Slot),
    /// The first eight of 16 lanes.
    Low(Slot),
    High(Slot),
    Constant(u32),
}

impl Name {
    fn place(self) -> Option<Place> {
        Some(match self {
            Self::Word(slot) => Place::Memory(Base::Words, i32::from(slot) * 128),
            Self::Low(slot) => Place::Memory(Base::Longs, i32::from(slot) * 256),
            Self::High(slot) => Place::Memory(Base::Longs, i32::from(slot) * 256 + 64),
            Self::Constant(_) => return None,
        })
    }
}

#[derive(Debug, Default)]
struct Vector {
    /// What it holds, and whether memory does not have that.
    names: Vec<(Name, bool)>,
    /// The instruction that is translated uses it.
    taken: bool,
    last_use: usize,
}

/// The vector registers, as they are at one point of a stretch.
#[derive(Debug)]
pub(super) struct Vectors {
    all: [Vector; 31],
    time: usize,
    /// All lanes take part.
    whole: bool,
}

/// The vector register that is not given out.
const SPARE: u8 = 31;

impl Vectors {
    pub(super) fn new(whole: bool) -> Self {
        Self { all: std::array::from_fn(|_| Vector::default()), time: 0, whole }
    }

    fn find(&self, name: Name) -> Option<u8> {
        let holds = |vector: &Vector| vector.names.iter().any(|held| held.0 == name);
        self.all.iter().position(holds).map(|at| at as u8)
    }

    fn take(&mut self, vector: u8) -> u8 {
        let time = self.time;
        let taken = &mut self.all[usize::from(vector)];
        (taken.taken, taken.last_use) = (true, time);
        vector
    }

    /// A register for a value of the current instruction.
    pub(super) fn fresh(&mut self, to: &mut Assembler) -> u8 {
        let free = |vector: &Vector| vector.names.is_empty() && !vector.taken;
        if let Some(at) = self.all.iter().position(free) {
            return self.take(at as u8);
        }
        let vectors = self.all.iter().enumerate().filter(|(_, vector)| !vector.taken);
        // An instruction takes fewer registers than there are.
        let oldest =
            vectors.min_by_key(|(_, vector)| vector.last_use).map_or(0, |(at, _)| at as u8);
        self.write_back(oldest, to);
        self.all[usize::from(oldest)].names.clear();
        self.take(oldest)
    }

    fn write_back(&mut self, vector: u8, to: &mut Assembler) {
        let names = &mut self.all[usize::from(vector)].names;
        for (name, changed) in names {
            if std::mem::take(changed)
                && let Some(place) = name.place()
            {
                let (blend, mask) = match name {
                    Name::High(_) => (BLEND64, TAKEN_HIGH),
                    Name::Low(_) => (BLEND64, TAKEN),
                    _ => (BLEND32, TAKEN),
                };
                if self.whole {
                    to.op(STORE, vector, 0, place);
                } else {
                    to.op(LOAD, SPARE, 0, place);
                    to.op_masked(blend, SPARE, SPARE, Place::Vector(vector), mask);
                    to.op(STORE, SPARE, 0, place);
                }
            }
        }
    }

    /// A value in a register.
    pub(super) fn vector(&mut self, name: Name, to: &mut Assembler) -> u8 {
        if let Some(vector) = self.find(name) {
            return self.take(vector);
        }
        let vector = self.fresh(to);
        match (name, name.place()) {
            (_, Some(place)) => to.op(LOAD, vector, 0, place),
            (Name::Constant(value), None) => to.constant(vector, value),
            _ => {}
        }
        self.all[usize::from(vector)].names.push((name, false));
        vector
    }

    /// A value where it is, or in a register if it is used `again`.
    pub(super) fn place(&mut self, name: Name, again: bool, to: &mut Assembler) -> Place {
        match name.place() {
            Some(place) if !again && self.find(name).is_none() => place,
            _ => Place::Vector(self.vector(name, to)),
        }
    }

    /// The register of a value that nobody needs any more under any name, if it is in one.
    pub(super) fn last_of(&mut self, name: Name) -> Option<u8> {
        let vector = self.find(name)?;
        if self.all[usize::from(vector)].names.len() > 1 {
            return None;
        }
        self.all[usize::from(vector)].names.clear();
        Some(self.take(vector))
    }

    /// `vector` holds the new value of `name`.
    pub(super) fn define(&mut self, name: Name, vector: u8) {
        self.forget(name);
        self.all[usize::from(vector)].names.push((name, true));
    }

    /// Nobody needs the value of `name`.
    pub(super) fn forget(&mut self, name: Name) {
        for vector in &mut self.all {
            vector.names.retain(|held| held.0 != name);
        }
    }

    /// Ends an instruction.
    pub(super) fn release(&mut self) {
        self.time += 1;
        self.all.iter_mut().for_each(|vector| vector.taken = false);
    }

    /// Writes to memory whatever it does not have.
    pub(super) fn finish(&mut self, to: &mut Assembler) {
        (0..self.all.len() as u8).for_each(|vector| self.write_back(vector, to));
    }
}
