//! How a reduction that a library only moves is cut: what every rank combines, and what each combines a slice of.

/// Bytes for what the ranks exchange at a time.
pub const SCRATCH: u64 = 16 << 20;
/// Bytes of all ranks up to which everybody gets everything, which takes one exchange; beyond it slices are combined by one rank each, which
/// moves fewer bytes.
const AT_ONCE: u64 = 2 << 20;

/// Elements that are combined together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    /// So many, by every rank.
    AtOnce(u64),
    /// So many by each rank.
    Slices(u64),
}

/// The pieces of an all-reduce of `count` elements of `size` bytes, with where they begin. Ranks' parts of a piece fit [`SCRATCH`], and so do
/// slices with the combined one behind them. Of nothing there is one, so that ranks that
/// disagree are told.
pub fn pieces(count: u64, size: u64, world: u32) -> impl Iterator<Item = (u64, Piece)> {
    let world = u64::from(world);
    let most = SCRATCH / (world + 1) / size;
    let mut next = Some(0);
    std::iter::from_fn(move || {
        let from = next?;
        let left = count - from;
        if left * size * world <= AT_ONCE {
            next = None;
            return Some((from, Piece::AtOnce(left)));
        }
        let slice = most.min(left / world);
        next = Some(from + slice * world).filter(|&end| end < count);
        Some((from, Piece::Slices(slice)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_everything_once_and_fit_the_scratch_memory() {
        for world in [1u32, 2, 3, 8, 64] {
            for count in [0, 1, 63, 4096, 100_000, 1_000_003, 2 << 20, 30_000_001] {
                for size in [1, 2, 4] {
                    let mut end = 0;
                    for (from, piece) in pieces(count, size, world) {
                        assert_eq!(from, end, "{count} of {size} bytes, {world} ranks");
                        let wide = u64::from(world);
                        let (elements, scratch) = match piece {
                            Piece::AtOnce(n) => (n, n * size * wide),
                            Piece::Slices(n) => (n * wide, n * size * (wide + 1)),
                        };
                        assert!(elements > 0 || count == 0);
                        assert!(scratch <= SCRATCH, "{piece:?} of {size} bytes, {world} ranks");
                        end += elements;
                    }
                    assert_eq!(end, count);
                }
            }
        }
    }

    #[test]
    fn short_messages_are_one_exchange() {
        let all = |count| pieces(count, 2, 8).map(|(_, piece)| piece).collect::<Vec<_>>();
        assert_eq!(all(0), [Piece::AtOnce(0)]);
        assert_eq!(all(4096 * 32), [Piece::AtOnce(4096 * 32)]);
        assert_eq!(all(1_000_003), [Piece::Slices(125_000), Piece::AtOnce(3)]);
    }
}
