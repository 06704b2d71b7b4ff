//! The register files of a warp, and loops over its lanes.

use crate::program::{OPERANDS, Slot};

/// Lanes of a warp.
pub(crate) const LANES: usize = 32;
/// Every lane.
pub(crate) const FULL: u32 = u32::MAX;

/// What registers hold that nothing wrote: a NaN, and as an index far outside.
pub(crate) const POISON: u32 = 0x7fba_dbad;

/// One 32-bit register of all lanes.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
pub(crate) struct Words(pub(crate) [u32; LANES]);

/// One 64-bit register of all lanes.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
pub(crate) struct Longs(pub(crate) [u64; LANES]);

/// The files. A predicate is a mask of the lanes where it holds.
#[derive(Debug)]
pub(crate) struct Registers {
    pub(crate) words: Vec<Words>,
    pub(crate) longs: Vec<Longs>,
    pub(crate) predicates: Vec<u32>,
}

/// Slots of an instruction.
pub(crate) type O = [Slot; OPERANDS];

/// `f` of every lane. As `array::from_fn`, which is not always inlined: then it would be compiled without the vector
/// instructions of the function around it.
#[inline(always)]
pub(crate) fn each<T: Copy + Default>(mut f: impl FnMut(usize) -> T) -> [T; LANES] {
    let mut all = [T::default(); LANES];
    let mut lane = 0;
    while lane < LANES {
        all[lane] = f(lane);
        lane += 1;
    }
    all
}

/// The lanes of `mask`.
#[inline(always)]
pub(crate) fn lanes(mut mask: u32) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let lane = mask.trailing_zeros();
        (mask != 0).then(|| {
            mask &= mask - 1;
            lane as usize
        })
    })
}

/// A mask of the lanes where `f` holds.
#[inline(always)]
pub(crate) fn mask_of(f: impl Fn(usize) -> bool) -> u32 {
    let mut mask = 0;
    let mut lane = 0;
    while lane < LANES {
        mask |= u32::from(f(lane)) << lane;
        lane += 1;
    }
    mask
}

impl Registers {
    #[inline(always)]
    pub(crate) fn word(&self, slot: Slot) -> &[u32; LANES] {
        &self.words[usize::from(slot)].0
    }

    #[inline(always)]
    pub(crate) fn long(&self, slot: Slot) -> &[u64; LANES] {
        &self.longs[usize::from(slot)].0
    }

    #[inline(always)]
    pub(crate) fn predicate(&self, slot: Slot) -> u32 {
        self.predicates[usize::from(slot)]
    }

    /// Sets a 32-bit register in the lanes of `mask`.
    #[inline(always)]
    pub(crate) fn set_word(&mut self, slot: Slot, mask: u32, values: &[u32; LANES]) {
        let to = &mut self.words[usize::from(slot)].0;
        if mask == FULL {
            *to = *values;
        } else {
            // Arithmetic, which becomes vector code; a choice became 32 branches.
            *to = each(|lane| {
                let taken = (mask >> lane & 1).wrapping_neg();
                values[lane] & taken | to[lane] & !taken
            });
        }
    }

    #[inline(always)]
    pub(crate) fn set_long(&mut self, slot: Slot, mask: u32, values: &[u64; LANES]) {
        let to = &mut self.longs[usize::from(slot)].0;
        if mask == FULL {
            *to = *values;
        } else {
            *to = each(|lane| {
                let taken = u64::from(mask >> lane & 1).wrapping_neg();
                values[lane] & taken | to[lane] & !taken
            });
        }
    }

    #[inline(always)]
    pub(crate) fn set_predicate(&mut self, slot: Slot, mask: u32, values: u32) {
        let to = &mut self.predicates[usize::from(slot)];
        *to = *to & !mask | values & mask;
    }

    /// `o[0] = f(o[1])`, 32 bits.
    #[inline(always)]
    pub(crate) fn map1(&mut self, m: u32, o: &O, f: impl Fn(u32) -> u32) {
        let x = self.word(o[1]);
        let z = each(|lane| f(x[lane]));
        self.set_word(o[0], m, &z);
    }

    /// `o[0] = f(o[1], o[2])`, 32 bits.
    #[inline(always)]
    pub(crate) fn map2(&mut self, m: u32, o: &O, f: impl Fn(u32, u32) -> u32) {
        let (x, y) = (self.word(o[1]), self.word(o[2]));
        let z = each(|lane| f(x[lane], y[lane]));
        self.set_word(o[0], m, &z);
    }

    /// `o[0] = f(o[1], o[2], o[3])`, 32 bits.
    #[inline(always)]
    pub(crate) fn map3(&mut self, m: u32, o: &O, f: impl Fn(u32, u32, u32) -> u32) {
        let (x, y, w) = (self.word(o[1]), self.word(o[2]), self.word(o[3]));
        let z = each(|lane| f(x[lane], y[lane], w[lane]));
        self.set_word(o[0], m, &z);
    }

    /// `o[0] = f(o[1])`, 64 bits.
    #[inline(always)]
    pub(crate) fn map1_long(&mut self, m: u32, o: &O, f: impl Fn(u64) -> u64) {
        let x = self.long(o[1]);
        let z = each(|lane| f(x[lane]));
        self.set_long(o[0], m, &z);
    }

    /// `o[0] = f(o[1], o[2])`, 64 bits.
    #[inline(always)]
    pub(crate) fn map2_long(&mut self, m: u32, o: &O, f: impl Fn(u64, u64) -> u64) {
        let (x, y) = (self.long(o[1]), self.long(o[2]));
        let z = each(|lane| f(x[lane], y[lane]));
        self.set_long(o[0], m, &z);
    }

    /// `o[0] = f(o[1], o[2], o[3])`, 64 bits.
    #[inline(always)]
    pub(crate) fn map3_long(&mut self, m: u32, o: &O, f: impl Fn(u64, u64, u64) -> u64) {
        let (x, y, w) = (self.long(o[1]), self.long(o[2]), self.long(o[3]));
        let z = each(|lane| f(x[lane], y[lane], w[lane]));
        self.set_long(o[0], m, &z);
    }

    /// A mask of the lanes where `f` holds for 32-bit sources.
    #[inline(always)]
    pub(crate) fn test(&self, (a, b): (Slot, Slot), f: impl Fn(u32, u32) -> bool) -> u32 {
        let (x, y) = (self.word(a), self.word(b));
        mask_of(|lane| f(x[lane], y[lane]))
    }

    /// A mask of the lanes where `f` holds for 64-bit sources.
    #[inline(always)]
    pub(crate) fn test_long(&self, (a, b): (Slot, Slot), f: impl Fn(u64, u64) -> bool) -> u32 {
        let (x, y) = (self.long(a), self.long(b));
        mask_of(|lane| f(x[lane], y[lane]))
    }
}
