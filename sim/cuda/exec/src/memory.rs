//! Global memory as one worker of a launch sees it: the allocations it has met, and the checks of every access.

use crate::counters::Counters;
use crate::fault::{FaultKind, Step, Trouble};
use crate::race::Part;
use crate::shared::Who;
use crate::warp::registers::{FULL, LANES, each, lanes};
use halyard_sim_memory::{Allocation, Fresh, Home, Memory, Order, SECTOR, stream_race};
use std::sync::{Arc, MutexGuard};

/// An access by the lanes of a warp: `bytes` bytes, 1 to 16, at each lane's address.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reach<'a> {
    pub(crate) addresses: &'a [u64; LANES],
    pub(crate) mask: u32,
    pub(crate) bytes: usize,
}

impl Reach<'_> {
    /// What the lanes use, if they are neighbours whose addresses are aligned and ascend by no more than a sector: then they use
    /// every sector from the first to the last.
    #[inline(always)]
    pub(crate) fn run(&self) -> Option<Run> {
        let first = self.mask.trailing_zeros() as usize & 31;
        let count = self.mask.count_ones() as usize;
        if self.mask >> first != FULL >> (LANES - count) {
            return None;
        }
        let bytes = self.bytes as u64;
        let (mut unaligned, mut apart, mut steep) = (0, 0, 0);
        let low = self.addresses[first];
        let start = low.wrapping_sub(first as u64 * bytes);
        for lane in 0..LANES {
            let taken = u64::from(self.mask >> lane & 1).wrapping_neg();
            let address = self.addresses[lane];
            unaligned |= address & taken;
            apart |= (address ^ start.wrapping_add(lane as u64 * bytes)) & taken;
        }
        let straight = apart == 0;
        if !straight {
            let pairs = self.mask & self.mask >> 1;
            for lane in 0..LANES - 1 {
                let taken = u64::from(pairs >> lane & 1).wrapping_neg();
                let step = self.addresses[lane + 1].wrapping_sub(self.addresses[lane]);
                steep |= u64::from(step > SECTOR as u64) & taken;
            }
        }
        let high = self.addresses[first + count - 1];
        let smooth = unaligned & (bytes - 1) == 0 && steep == 0 && high >= low;
        smooth.then(|| Run { first, count, low, len: (high - low) as usize + self.bytes, straight })
    }

    /// The lowest and highest address.
    #[inline(always)]
    fn bounds(&self) -> (u64, u64) {
        let (mut low, mut high) = (u64::MAX, 0);
        for lane in 0..LANES {
            let address = self.addresses[lane];
            let taken = self.mask >> lane & 1 != 0;
            low = low.min(if taken { address } else { u64::MAX });
            high = high.max(if taken { address } else { 0 });
        }
        (low, high)
    }

    /// A fault unless every address is a multiple of the size.
    #[inline(always)]
    pub(crate) fn aligned(&self, what: &str) -> Step {
        let mut bits = 0;
        for lane in 0..LANES {
            bits |= if self.mask >> lane & 1 != 0 { self.addresses[lane] } else { 0 };
        }
        if bits & (self.bytes as u64 - 1) == 0 { Ok(()) } else { Err(self.misaligned(what)) }
    }

    #[cold]
    fn misaligned(&self, what: &str) -> Box<Trouble> {
        let bytes = self.bytes;
        let wrong = |lane: &usize| self.addresses[*lane] & (bytes as u64 - 1) != 0;
        let lane = lanes(self.mask).find(wrong).unwrap_or(0);
        let address = self.addresses[lane];
        let text =
            format!("{what} of {bytes} bytes at {address:#x}, which is no multiple of {bytes}");
        Trouble::new(FaultKind::Misaligned, lane as u32, text)
    }

    /// Sectors that the lanes use, each counted once.
    fn sectors(&self) -> u64 {
        let mut seen = [0u64; LANES];
        let (mut count, mut highest) = (0, 0);
        for lane in lanes(self.mask) {
            let sector = self.addresses[lane] / SECTOR as u64;
            // Addresses mostly ascend: then a sector is new or the last one.
            if count == 0
                || sector > highest
                || sector < highest && !seen[..count].contains(&sector)
            {
                seen[count] = sector;
                count += 1;
            }
            highest = highest.max(sector);
        }
        count as u64
    }
}

/// Neighbouring lanes whose addresses ascend slowly.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    /// The first lane.
    pub(crate) first: usize,
    /// Lanes.
    pub(crate) count: usize,
    /// The first lane's address.
    pub(crate) low: u64,
    /// Bytes from there to the end of what the last lane uses.
    pub(crate) len: usize,
    /// Each lane's bytes lie right behind those of the lane before.
    pub(crate) straight: bool,
}

const RECENT: usize = 256;

#[derive(Debug)]
pub(crate) struct View<'l> {
    memory: &'l Memory,
    order: &'l Order,
    device: u32,
    /// A bit for each other device whose memory may be used.
    peers: u64,
    met: Vec<Arc<Allocation>>,
    /// The allocation that each instruction, modulo their number, used last: it mostly uses it again.
    recent: [u16; RECENT],
    /// The instruction that is executed.
    pub(crate) pc: u32,
    fresh: Fresh,
    /// The block whose accesses they are.
    pub(crate) part: Part,
    /// The last load came where the launch has written before.
    saw_written: bool,
}

impl<'l> View<'l> {
    pub(crate) fn new(memory: &'l Memory, order: &'l Order, device: u32, peers: u64) -> Self {
        let part = Part { op: order.op, block: [0; 3], grid: [1; 3], ordered: false };
        let (met, recent, pc, fresh) = (Vec::new(), [0; RECENT], 0, Fresh::default());
        Self { memory, order, device, peers, met, recent, pc, fresh, part, saw_written: false }
    }

    /// Whether the last load must be looked at by [`Self::check_order`].
    #[inline(always)]
    pub(crate) fn saw_written(&mut self) -> bool {
        std::mem::take(&mut self.saw_written)
    }

    /// Looks whether the lanes may read what they just did.
    #[inline(never)]
    pub(crate) fn check_order(&mut self, reach: &Reach<'_>, who: &Who<'_>) -> Step {
        self.parts_of(reach, |part, found, reach| part.read(found, reach, who))
    }

    /// Held while lanes write: a write by another worker that is noted, but not done yet, could not be compared with.
    #[inline(always)]
    pub(crate) fn writing(&self) -> MutexGuard<'l, ()> {
        self.memory.writing()
    }

    /// Looks whether the lanes may write, and notes that they do.
    #[inline(never)]
    pub(crate) fn note_order(&mut self, reach: &Reach<'_>, data: &[u8], who: &Who<'_>) -> Step {
        self.parts_of(reach, |part, found, reach| part.write(found, reach, data, who))
    }

    /// Shows `each` the lanes of every allocation; none where there is no memory, which the access itself tells.
    fn parts_of(
        &mut self,
        reach: &Reach<'_>,
        mut each: impl FnMut(&Part, &Allocation, &Reach<'_>) -> Step,
    ) -> Step {
        if let Some(index) = self.one(reach) {
            return each(&self.part, &self.met[index], reach);
        }
        for lane in lanes(reach.mask) {
            let one = Reach { mask: 1 << lane, ..*reach };
            if let Some(index) = self.one(&one) {
                each(&self.part, &self.met[index], &one)?;
            }
        }
        Ok(())
    }

    /// Ends the worker's part of the launch: what is written by now need not be asked for again.
    pub(crate) fn finish(&mut self, counters: &mut Counters) {
        counters.unique_read_sectors += self.fresh.read;
        counters.unique_written_sectors += self.fresh.written;
        self.fresh = Fresh::default();
        self.met.iter().for_each(|allocation| allocation.settle());
    }

    #[inline(always)]
    pub(crate) fn load(
        &mut self,
        reach: &Reach<'_>,
        into: &mut [u8],
        counters: &mut Counters,
    ) -> Step {
        let Some((index, run)) = self.smooth(reach, false) else {
            return self.load_apart(reach, into, counters);
        };
        let found = &*self.met[index];
        let at = (run.low - found.base) as usize;
        counters.read_sectors += sectors(at, run.len);
        match (run.straight && run.count == LANES, reach.bytes) {
            (true, 2) => into[..64].copy_from_slice(&found.data.load::<64>(at)),
            (true, 4) => into[..128].copy_from_slice(&found.data.load::<128>(at)),
            (true, 8) => into[..256].copy_from_slice(&found.data.load::<256>(at)),
            (true, 16) => into[..512].copy_from_slice(&found.data.load::<512>(at)),
            (_, 4) if run.len <= 128 => near(found, reach, run, into),
            (_, 2) => gather::<2>(found, reach, into),
            (_, 4) => gather::<4>(found, reach, into),
            (_, 8) => gather::<8>(found, reach, into),
            (_, 16) => gather::<16>(found, reach, into),
            _ => gather::<1>(found, reach, into),
        }
        Ok(())
    }

    #[inline(always)]
    pub(crate) fn store(
        &mut self,
        reach: &Reach<'_>,
        from: &[u8; 512],
        counters: &mut Counters,
    ) -> Step {
        let Some((index, run)) = self.smooth(reach, true).filter(|(_, run)| run.straight) else {
            return self.store_apart(reach, from, counters);
        };
        let found = &*self.met[index];
        let at = (run.low - found.base) as usize;
        counters.written_sectors += sectors(at, run.len);
        let bytes = reach.bytes;
        found.data.store_slice(at, &from[run.first * bytes..(run.first + run.count) * bytes]);
        Ok(())
    }

    /// Checks and notes a read of all of the `len` bytes at `low`, which begin at a multiple of `bytes`: gives the allocation and the
    /// offset. `None` where something is wrong with it.
    #[inline(always)]
    pub(crate) fn read_span(
        &mut self,
        low: u64,
        (len, bytes): (usize, usize),
        counters: &mut Counters,
    ) -> Option<(&Allocation, usize)> {
        if low & (bytes as u64 - 1) != 0 {
            return None;
        }
        let index = self.locate(low, len)?;
        let found = &*self.met[index];
        let at = (low - found.base) as usize;
        if !found.is_complete() && found.unwritten(at, len).is_some() {
            return None;
        }
        // What the launch wrote is looked at lane by lane.
        if found.touch((at, len), false, self.order, &mut self.fresh).ok()? {
            return None;
        }
        counters.read_sectors += sectors(at, len);
        // Loops mostly go on right behind.
        found.prefetch(at + len, len);
        Some((found, at))
    }

    /// Checks and notes what lanes use that lie in a run, all at once: gives the allocation. `None` where it is no such run or something is
    /// wrong with it: whoever looks at the lanes one by one knows what.
    #[inline(always)]
    fn smooth(&mut self, reach: &Reach<'_>, write: bool) -> Option<(usize, Run)> {
        let run = reach.run()?;
        if write && !run.straight {
            return None;
        }
        let index = self.locate(run.low, run.len)?;
        let found = &*self.met[index];
        let at = (run.low - found.base) as usize;
        if !found.is_complete() {
            if write {
                found.mark_written(at, run.len);
            } else if found.unwritten(at, run.len).is_some() {
                return None;
            }
        }
        let wrote = found.touch((at, run.len), write, self.order, &mut self.fresh).ok()?;
        self.saw_written |= wrote && !write;
        Some((index, run))
    }

    #[inline(never)]
    fn load_apart(&mut self, reach: &Reach<'_>, into: &mut [u8], counters: &mut Counters) -> Step {
        let bytes = reach.bytes;
        self.visit(reach, ("read", false), counters, |found, at, lane, len| {
            fetch(found, at, len, &mut into[lane * bytes..]);
        })
    }

    #[inline(never)]
    fn store_apart(
        &mut self,
        reach: &Reach<'_>,
        from: &[u8; 512],
        counters: &mut Counters,
    ) -> Step {
        let bytes = reach.bytes;
        self.visit(reach, ("write", true), counters, |found, at, lane, len| {
            put(found, at, len, &from[lane * bytes..]);
        })
    }

    /// Reads bytes for a bulk copy of `lane`.
    pub(crate) fn read_range(
        &mut self,
        (lane, address): (usize, u64),
        into: &mut [u8],
        counters: &mut Counters,
    ) -> Step {
        let Some((index, at)) = self.range((lane, address), into.len(), ("bulk copy", false))?
        else {
            return Ok(());
        };
        counters.read_sectors += sectors(at, into.len());
        self.met[index].data.load_slice(at, into);
        Ok(())
    }

    /// Writes bytes for a bulk copy of `lane`.
    pub(crate) fn write_range(
        &mut self,
        (lane, address): (usize, u64),
        from: &[u8],
        counters: &mut Counters,
    ) -> Step {
        let Some((index, at)) = self.range((lane, address), from.len(), ("bulk copy", true))?
        else {
            return Ok(());
        };
        counters.written_sectors += sectors(at, from.len());
        self.met[index].data.store_slice(at, from);
        Ok(())
    }

    /// Checks and notes the use of `bytes` bytes: allocation and offset. `None` for no bytes.
    fn range(
        &mut self,
        (lane, address): (usize, u64),
        bytes: usize,
        (what, writes): (&str, bool),
    ) -> Step<Option<(usize, usize)>> {
        if bytes == 0 {
            return Ok(None);
        }
        let addresses = [address; LANES];
        let reach = Reach { addresses: &addresses, mask: 1 << lane, bytes };
        let index = self.locate(address, bytes).ok_or_else(|| self.outside(&reach, what))?;
        let found = &*self.met[index];
        let at = (address - found.base) as usize;
        use_range(found, (at, bytes), writes, self.order, &mut self.fresh)
            .map_err(|trouble| trouble.in_lane(|_| lane))?;
        Ok(Some((index, at)))
    }

    /// Checks what the lanes reach, and shows `each` run of neighbouring lanes that use neighbouring bytes: where it lies, its first lane and
    /// its bytes.
    #[inline(always)]
    fn visit(
        &mut self,
        reach: &Reach<'_>,
        (verb, writes): (&str, bool),
        counters: &mut Counters,
        mut each: impl FnMut(&Allocation, usize, usize, usize),
    ) -> Step {
        reach.aligned(verb)?;
        if let Some(index) = self.one(reach) {
            return self.check(index, reach, writes, counters, &mut each);
        }
        for lane in lanes(reach.mask) {
            let part = Reach { mask: 1 << lane, ..*reach };
            let index = self.one(&part).ok_or_else(|| self.outside(&part, verb))?;
            self.check(index, &part, writes, counters, &mut each)?;
        }
        Ok(())
    }

    /// The word that an atomic update of one lane uses: its allocation and offset.
    pub(crate) fn word(
        &mut self,
        reach: &Reach<'_>,
        counters: &mut Counters,
    ) -> Step<(&Allocation, usize)> {
        reach.aligned("atomic update")?;
        let index = self.one(reach).ok_or_else(|| self.outside(reach, "atomic update"))?;
        self.check(index, reach, false, counters, |_, _, _, _| ())?;
        self.check(index, reach, true, counters, |_, _, _, _| ())?;
        self.part.ordered = true;
        let found = &self.met[index];
        let lane = reach.mask.trailing_zeros() as usize & 31;
        Ok((found, (reach.addresses[lane] - found.base) as usize))
    }

    /// The one allocation that all lanes use, if it is one.
    #[inline(always)]
    fn one(&mut self, reach: &Reach<'_>) -> Option<usize> {
        let (low, high) = reach.bounds();
        self.locate(low, (high - low) as usize + reach.bytes)
    }

    #[inline(always)]
    fn locate(&mut self, address: u64, bytes: usize) -> Option<usize> {
        let holds = |found: &Allocation| {
            address >= found.base
                && (address - found.base) as usize <= found.bytes
                && bytes <= found.bytes - (address - found.base) as usize
                && !found.is_freed()
        };
        let recent = usize::from(self.recent[self.pc as usize % RECENT]);
        if self.met.get(recent).is_some_and(|found| holds(found)) {
            return Some(recent);
        }
        let index = self.met.iter().position(|found| holds(found));
        let index = index.or_else(|| self.meet(address, bytes))?;
        self.recent[self.pc as usize % RECENT] = u16::try_from(index).unwrap_or(0);
        Some(index)
    }

    #[cold]
    fn meet(&mut self, address: u64, bytes: usize) -> Option<usize> {
        let found = self.memory.containing(address)?;
        let allowed = match found.home {
            Home::Host => true,
            Home::Device(device) => device == self.device || self.peers >> device.min(63) & 1 != 0,
        };
        if !allowed || bytes > found.bytes - (address - found.base) as usize {
            return None;
        }
        self.met.push(found);
        Some(self.met.len() - 1)
    }

    /// Checks and notes a use inside the allocation `index`, and shows its runs.
    #[inline(always)]
    fn check(
        &mut self,
        index: usize,
        reach: &Reach<'_>,
        write: bool,
        counters: &mut Counters,
        mut each: impl FnMut(&Allocation, usize, usize, usize),
    ) -> Step {
        let found = &*self.met[index];
        let at = |lane: usize| (reach.addresses[lane] - found.base) as usize;
        let mut rest = reach.mask;
        while rest != 0 {
            // Neighbouring lanes that use neighbouring bytes are checked as one.
            let first = rest.trailing_zeros() as usize;
            let mut count = 1;
            while rest >> (first + count - 1) & 2 != 0
                && at(first + count) == at(first) + count * reach.bytes
            {
                count += 1;
            }
            rest &= !(FULL >> (LANES - count) << first);
            let range = (at(first), count * reach.bytes);
            let used = use_range(found, range, write, self.order, &mut self.fresh);
            let wrote = used.map_err(|trouble| {
                trouble.in_lane(|offset| first + offset.saturating_sub(range.0) / reach.bytes)
            })?;
            self.saw_written |= wrote && !write;
            each(found, range.0, first, range.1);
        }
        let sectors = reach.sectors();
        if write {
            counters.written_sectors += sectors;
        } else {
            counters.read_sectors += sectors;
        }
        Ok(())
    }

    /// Says why no allocation holds what a lane wants.
    #[cold]
    fn outside(&self, reach: &Reach<'_>, what: &str) -> Box<Trouble> {
        let lane = reach.mask.trailing_zeros();
        let address = reach.addresses[lane as usize & 31];
        let (freed, mut text) = self.memory.describe(address, reach.bytes, &format!("{what} of"));
        if let Some((base, bytes, Home::Device(owner))) = self.memory.lookup(address)
            && owner != self.device
            && self.peers >> owner.min(63) & 1 == 0
        {
            let device = self.device;
            text = format!(
                "{what} at {address:#x}, in the {bytes} bytes allocated at {base:#x} on device {owner}, to which device \
                 {device} has no peer access"
            );
        }
        let kind = if freed { FaultKind::UseAfterFree } else { FaultKind::OutOfBounds };
        Trouble::new(kind, lane, text)
    }
}

/// Sectors that `len` bytes from `at` lie in.
#[inline(always)]
fn sectors(at: usize, len: usize) -> u64 {
    ((at + len - 1) / SECTOR - at / SECTOR + 1) as u64
}

/// Gives each lane its four bytes of a run of 128 or less.
#[inline(always)]
fn near(found: &Allocation, reach: &Reach<'_>, run: Run, into: &mut [u8]) {
    let mut bytes = [0; 128];
    let at = (run.low - found.base) as usize;
    // What is behind the run is not looked at, but loading it with the run takes no loop.
    if at + 128 <= found.bytes {
        bytes = found.data.load::<128>(at);
    } else {
        found.data.load_slice(at, &mut bytes[..run.len]);
    }
    let words: [u32; LANES] = each(|word| {
        u32::from_le_bytes([
            bytes[4 * word],
            bytes[4 * word + 1],
            bytes[4 * word + 2],
            bytes[4 * word + 3],
        ])
    });
    let into = &mut into[..4 * LANES];
    for lane in 0..LANES {
        // Of lanes that take no part, any.
        let word = words[(reach.addresses[lane].wrapping_sub(run.low) / 4) as usize % LANES];
        into[lane * 4..(lane + 1) * 4].copy_from_slice(&word.to_le_bytes());
    }
}

/// Gives each lane its `N` bytes.
#[inline(always)]
fn gather<const N: usize>(found: &Allocation, reach: &Reach<'_>, into: &mut [u8]) {
    for lane in lanes(reach.mask) {
        let at = (reach.addresses[lane] - found.base) as usize;
        into[lane * N..(lane + 1) * N].copy_from_slice(&found.data.load::<N>(at));
    }
}

/// A mistake in a range; the lane follows from the offset.
struct RangeTrouble {
    kind: FaultKind,
    offset: usize,
    text: String,
}

impl RangeTrouble {
    #[cold]
    fn in_lane(self, lane: impl Fn(usize) -> usize) -> Box<Trouble> {
        Trouble::new(self.kind, lane(self.offset).min(LANES - 1) as u32, self.text)
    }
}

fn use_range(
    found: &Allocation,
    (at, len): (usize, usize),
    write: bool,
    order: &Order,
    fresh: &mut Fresh,
) -> Result<bool, Box<RangeTrouble>> {
    if !found.is_complete() {
        if write {
            found.mark_written(at, len);
        } else if let Some(offset) = found.unwritten(at, len) {
            return Err(uninitialised(found, offset));
        }
    }
    found.touch((at, len), write, order, fresh).map_err(|conflict| {
        let what = if write { "write" } else { "read" };
        let text = stream_race(found, what, conflict).to_string();
        Box::new(RangeTrouble { kind: FaultKind::StreamRace, offset: conflict.offset, text })
    })
}

#[cold]
fn uninitialised(found: &Allocation, offset: usize) -> Box<RangeTrouble> {
    let (base, bytes) = (found.base, found.bytes);
    let text = format!(
        "read of memory that nothing wrote, at {:#x}: byte {offset} of the {bytes} bytes allocated at {base:#x}",
        base + offset as u64
    );
    Box::new(RangeTrouble { kind: FaultKind::Uninitialised, offset, text })
}

#[inline(always)]
fn fetch(found: &Allocation, at: usize, bytes: usize, into: &mut [u8]) {
    match bytes {
        4 => into[..4].copy_from_slice(&found.data.load::<4>(at)),
        8 => into[..8].copy_from_slice(&found.data.load::<8>(at)),
        16 => into[..16].copy_from_slice(&found.data.load::<16>(at)),
        2 => into[..2].copy_from_slice(&found.data.load::<2>(at)),
        _ => found.data.load_slice(at, &mut into[..bytes]),
    }
}

#[inline(always)]
fn put(found: &Allocation, at: usize, bytes: usize, from: &[u8]) {
    match from[..bytes] {
        [a, b] => found.data.store(at, [a, b]),
        [a, b, c, d] => found.data.store(at, [a, b, c, d]),
        _ => found.data.store_slice(at, &from[..bytes]),
    }
}
