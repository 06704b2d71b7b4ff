//! Races in global memory: a thread reads, or writes otherwise, what another thread of the launch wrote, and nothing orders the two.
//!
//! Between threads of a block a barrier does, as in shared memory. Between blocks nothing does but atomic updates, fences and accesses
//! that are volatile, acquire or release: a block that updates memory atomically, and every block of a kernel with one of the others, is
//! taken to know what it does from then on. Writes of the bytes that are there are no race.
//!
//! Reads are not remembered: where a write must come after a read, a launch in whose random order it does not shows the race.

use crate::fault::{FaultKind, Step, Trouble};
use crate::memory::Reach;
use crate::shared::{Instruction, Mark, Who};
use crate::warp::registers::{LANES, lanes};
use halyard_sim_memory::{Allocation, WORD};

/// The block that a worker executes, as a user of global memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    /// The launch, as an operation of a stream.
    pub(crate) op: u32,
    /// Which block, and of how many.
    pub(crate) block: [u32; 3],
    pub(crate) grid: [u32; 3],
    /// It orders itself with other blocks.
    pub(crate) ordered: bool,
}

/// The block, as far as a mark has room: bits of its number. All ones for one that orders itself, or has a number beyond.
const BLOCK_BITS: u32 = 28;
const ANY_BLOCK: u64 = (1 << BLOCK_BITS) - 1;

/// Which bytes of a word were written by which block of which launch: bits 0..28 block, 28..32 bytes, 32..64 operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place(u64);

impl Place {
    fn new(op: u32, block: u64, bytes: u64) -> Self {
        Self(block | bytes << BLOCK_BITS | u64::from(op) << 32)
    }

    fn op(self) -> u32 {
        (self.0 >> 32) as u32
    }

    fn block(self) -> u64 {
        self.0 & ANY_BLOCK
    }

    fn bytes(self) -> u64 {
        self.0 >> BLOCK_BITS & 15
    }
}

impl Part {
    /// The number of the block.
    fn number(&self) -> u64 {
        let [[x, y, z], [dx, dy, _]] = [self.block, self.grid].map(|of| of.map(u64::from));
        if self.ordered { ANY_BLOCK } else { (x + dx * (y + dy * z)).min(ANY_BLOCK) }
    }

    /// `%ctaid` of the block with this number.
    fn id(&self, number: u64) -> [u64; 3] {
        let [x, y, _] = self.grid.map(u64::from);
        [number % x, number / x % y, number / x / y]
    }

    /// Notes that the lanes of `reach` write their parts of `data`.
    pub(crate) fn write(
        &self,
        found: &Allocation,
        reach: &Reach<'_>,
        data: &[u8],
        who: &Who<'_>,
    ) -> Step {
        let number = self.number();
        for lane in lanes(reach.mask) {
            let (at, thread) = (offset(found, reach, lane), who.warp * 32 + lane as u32);
            let mark = Mark::new(who, thread, 0);
            for (word, bytes) in words(at, reach.bytes) {
                let writer = found.writers.entry(word);
                let [place, earlier] = writer.get();
                let place = Place(place);
                let mut written = bytes;
                if place.op() == self.op {
                    if self.clashes(place, bytes, Mark(earlier), (who, thread)) {
                        if !repeats(found, reach, data, (lane, Mark(earlier)), who) {
                            return Err(self.told("write", reach, lane, (place, Mark(earlier))));
                        }
                    } else if place.block() == number {
                        written |= place.bytes();
                    }
                }
                writer.set([Place::new(self.op, number, written).0, mark.0]);
            }
        }
        Ok(())
    }

    /// Looks whether the lanes of `reach` may read what the launch wrote.
    pub(crate) fn read(&self, found: &Allocation, reach: &Reach<'_>, who: &Who<'_>) -> Step {
        for lane in lanes(reach.mask) {
            let thread = who.warp * 32 + lane as u32;
            for (word, bytes) in words(offset(found, reach, lane), reach.bytes) {
                let Some(writer) = found.writers.find(word) else { continue };
                let [place, mark] = writer.get();
                let (place, mark) = (Place(place), Mark(mark));
                if place.op() == self.op && self.clashes(place, bytes, mark, (who, thread)) {
                    return Err(self.told("read", reach, lane, (place, mark)));
                }
            }
        }
        Ok(())
    }

    /// Whether nothing orders the write of `place` with a use of `bytes` by a thread of this block.
    fn clashes(
        &self,
        place: Place,
        bytes: u64,
        mark: Mark,
        (who, thread): (&Who<'_>, u32),
    ) -> bool {
        if place.bytes() & bytes == 0 || self.ordered || place.block() == ANY_BLOCK {
            return false;
        }
        place.block() != self.number() || !mark.allows(who, thread)
    }

    #[cold]
    fn told(
        &self,
        verb: &str,
        reach: &Reach<'_>,
        lane: usize,
        (place, mark): (Place, Mark),
    ) -> Box<Trouble> {
        let (bytes, address) = (reach.bytes, reach.addresses[lane]);
        let line = Instruction(mark.pc());
        let (thread, block) = (mark.thread(), place.block());
        let other = if block == self.number() {
            format!("thread {thread} of the block wrote at {line}: no barrier between")
        } else {
            let [x, y, z] = self.id(block);
            format!(
                "thread {thread} of block ({x}, {y}, {z}) wrote at {line}: nothing orders the blocks of a launch"
            )
        };
        let text = format!("{verb} of {bytes} bytes at {address:#x}, which {other}");
        Trouble::new(FaultKind::GlobalRace, lane as u32, text)
    }
}

fn offset(found: &Allocation, reach: &Reach<'_>, lane: usize) -> usize {
    (reach.addresses[lane] - found.base) as usize
}

/// Whether a lane writes the bytes that are there, or that the lane `before` it writes there by the same instruction.
fn repeats(
    found: &Allocation,
    reach: &Reach<'_>,
    data: &[u8],
    (lane, before): (usize, Mark),
    who: &Who<'_>,
) -> bool {
    let of = |lane: usize| &data[lane * reach.bytes..][..reach.bytes];
    let earlier = before.thread() as usize % LANES;
    let together = before == Mark::new(who, who.warp * 32 + earlier as u32, 0) && earlier < lane;
    if together && reach.mask >> earlier & 1 != 0 {
        return reach.addresses[earlier] == reach.addresses[lane] && of(earlier) == of(lane);
    }
    let mut there = [0; 16];
    found.data.load_slice(offset(found, reach, lane), &mut there[..reach.bytes]);
    there[..reach.bytes] == *of(lane)
}

/// The words of `len` bytes from `at`, each with a bit for each of its bytes among them.
fn words(at: usize, len: usize) -> impl Iterator<Item = (usize, u64)> {
    (at / WORD..(at + len).div_ceil(WORD)).map(move |word| {
        let from = at.saturating_sub(word * WORD);
        let to = (at + len - word * WORD).min(WORD);
        (word, (1 << to) - (1 << from))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_have_the_bytes_that_are_used() {
        let all = |at, len| words(at, len).collect::<Vec<_>>();
        assert_eq!(all(4, 8), [(1, 15), (2, 15)]);
        assert_eq!(all(6, 2), [(1, 0b1100)]);
        assert_eq!(all(3, 1), [(0, 0b1000)]);
    }

    #[test]
    fn blocks_are_numbered_as_the_grid_says() {
        let part = Part { op: 3, block: [2, 1, 4], grid: [3, 2, 5], ordered: false };
        assert_eq!(part.id(part.number()), [2, 1, 4]);
        let place = Place::new(3, part.number(), 0b0110);
        assert_eq!((place.op(), place.block(), place.bytes()), (3, part.number(), 6));
    }
}
