//! Calls: their checks, what ranks show each other of them, what they read and write.

use super::reduce::{Op, element_bytes, is_reducible, reduce};
use crate::code::{Code, Failure, Outcome};
use crate::runtime::{Device, Runtime};
use crate::stream::Site;
use halyard_sim_memory::MemoryError;

/// Which collective or message, with what only it has. Counts are of elements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    AllReduce {
        count: u64,
        op: Op,
    },
    Reduce {
        count: u64,
        op: Op,
        root: u32,
    },
    Broadcast {
        count: u64,
        root: u32,
    },
    /// `count` to each rank.
    Scatter {
        count: u64,
        root: u32,
    },
    Barrier,
    /// This rank gives `count`; from rank r come `counts[r]` to `offsets[r]`.
    AllGather {
        count: u64,
        counts: Vec<u64>,
        offsets: Vec<u64>,
    },
    /// Rank r gets `counts[r]` from `offsets[r]`.
    ReduceScatter {
        op: Op,
        counts: Vec<u64>,
        offsets: Vec<u64>,
    },
    /// Counts and offsets of what goes to and comes from each rank; the second type is that of what comes.
    AllToAll {
        to: [Vec<u64>; 2],
        from: [Vec<u64>; 2],
        from_dtype: u32,
    },
    Send {
        count: u64,
        peer: u32,
    },
    Recv {
        count: u64,
        peer: u32,
    },
}

/// A call of a function.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) name: &'static str,
    pub(crate) shape: Shape,
    pub(crate) dtype: u32,
    pub(crate) send: u64,
    pub(crate) recv: u64,
}

const DTYPES: [&str; 18] = [
    "INT8", "INT16", "INT32", "FP16", "FP32", "INT64", "UINT64", "UINT8", "UINT16", "UINT32",
    "FP64", "BFP16", "INT128", "13", "HIF8", "FP8E4M3", "FP8E5M2", "FP8E8M0",
];

fn dtype_name(dtype: u64) -> String {
    let known = usize::try_from(dtype).ok().and_then(|dtype| DTYPES.get(dtype));
    known.map_or_else(|| dtype.to_string(), |name| (*name).to_owned())
}

/// Equal parts of `count`.
pub(crate) fn even(world: u32, count: u64) -> [Vec<u64>; 2] {
    let offsets = (0..u64::from(world)).map(|rank| rank * count);
    [vec![count; world as usize], offsets.collect()]
}

/// Elements from the first to the last of some parts.
fn extent(counts: &[u64], offsets: &[u64]) -> Option<u64> {
    let ends = counts.iter().zip(offsets).map(|(count, offset)| match count {
        0 => Some(0),
        count => offset.checked_add(*count),
    });
    ends.collect::<Option<Vec<_>>>().map(|ends| ends.into_iter().max().unwrap_or(0))
}

/// A number of a shown header.
fn number(header: &[u8], index: usize) -> u64 {
    let bytes = header[index * 8..][..8].try_into();
    bytes.map_or(0, u64::from_le_bytes)
}

/// Whole elements of `bytes`, apart.
fn piece(bytes: &[u8], offset: u64, count: u64, size: usize) -> &[u8] {
    let (offset, count) =
        (usize::try_from(offset).unwrap_or(0), usize::try_from(count).unwrap_or(0));
    &bytes[offset * size..(offset + count) * size]
}

impl Call {
    /// Bytes of what ranks show each other: numbers of function, type, reduction, root, elements, bytes; then a hash of
    /// counts that all must have alike; then the name.
    pub(crate) const HEADER: usize = 7 * 8 + 32;

    pub(crate) fn is_message(&self) -> bool {
        matches!(self.shape, Shape::Send { .. } | Shape::Recv { .. })
    }

    pub(crate) fn sends(&self) -> bool {
        matches!(self.shape, Shape::Send { .. })
    }

    pub(crate) fn peer(&self) -> u32 {
        match self.shape {
            Shape::Send { peer, .. } | Shape::Recv { peer, .. } => peer,
            _ => 0,
        }
    }

    fn size(&self) -> usize {
        element_bytes(self.dtype).unwrap_or(1)
    }

    fn incoming_dtype(&self) -> u32 {
        match self.shape {
            Shape::AllToAll { from_dtype, .. } => from_dtype,
            _ => self.dtype,
        }
    }

    fn op(&self) -> Option<Op> {
        match self.shape {
            Shape::AllReduce { op, .. }
            | Shape::Reduce { op, .. }
            | Shape::ReduceScatter { op, .. } => Some(op),
            _ => None,
        }
    }

    fn root(&self) -> Option<u32> {
        match self.shape {
            Shape::Reduce { root, .. }
            | Shape::Broadcast { root, .. }
            | Shape::Scatter { root, .. } => Some(root),
            _ => None,
        }
    }

    /// Elements of the two buffers as this rank uses them: read, written.
    fn elements(&self, rank: u32, world: u32) -> Option<(u64, u64)> {
        let world = u64::from(world);
        let is_root = self.root() == Some(rank);
        Some(match &self.shape {
            Shape::Barrier => (0, 0),
            Shape::AllReduce { count, .. } => (*count, *count),
            Shape::Reduce { count, .. } => (*count, if is_root { *count } else { 0 }),
            Shape::Broadcast { count, .. } => {
                if is_root {
                    (*count, 0)
                } else {
                    (0, *count)
                }
            }
            Shape::Scatter { count, .. } => {
                (if is_root { count.checked_mul(world)? } else { 0 }, *count)
            }
            Shape::AllGather { count, counts, offsets } => (*count, extent(counts, offsets)?),
            Shape::ReduceScatter { counts, offsets, .. } => {
                (extent(counts, offsets)?, counts[rank as usize])
            }
            Shape::AllToAll {
                to: [counts, offsets], from: [from_counts, from_offsets], ..
            } => (extent(counts, offsets)?, extent(from_counts, from_offsets)?),
            Shape::Send { count, .. } => (*count, 0),
            Shape::Recv { count, .. } => (0, *count),
        })
    }

    /// What this rank's arguments tell.
    pub(crate) fn check(
        &self,
        (runtime, device): (&Runtime, &Device),
        rank: u32,
        world: u32,
    ) -> Outcome {
        for (argument, dtype) in [("dataType", self.dtype), ("recvType", self.incoming_dtype())] {
            if element_bytes(dtype).is_none() {
                return Err(Failure::argument(argument, format!("{dtype} is no HcclDataType")));
            }
        }
        if let Some(op) = self.op()
            && !is_reducible(self.dtype, op)
        {
            let what =
                format!("{} is not combined by {op:?} on a 910B", dtype_name(self.dtype.into()));
            return Err(Failure::argument("dataType", what).coded(Code::HCCL_NOT_SUPPORT));
        }
        if let Some(root) = self.root().filter(|root| *root >= world) {
            return Err(Failure::argument("root", format!("{root} of {world} ranks")));
        }
        if self.is_message() && (self.peer() >= world || self.peer() == rank) {
            let argument = if self.sends() { "destRank" } else { "srcRank" };
            let what = format!("{} for rank {rank} of {world}", self.peer());
            return Err(Failure::argument(argument, what));
        }
        let elements = self.elements(rank, world);
        let too_many = || Failure::argument("count", "more elements than there are numbers");
        let (read, written) = elements.ok_or_else(too_many)?;
        let sizes = [
            ("sendBuf", self.send, read.checked_mul(self.size() as u64)),
            (
                "recvBuf",
                self.recv,
                written.checked_mul(element_bytes(self.incoming_dtype()).unwrap_or(1) as u64),
            ),
        ];
        let mut spans = Vec::new();
        for (argument, address, bytes) in sizes {
            let bytes = bytes.ok_or_else(too_many)?;
            if bytes > 0 && address == 0 {
                return Err(Failure::null(argument));
            }
            if bytes > 0 {
                let checked = runtime.check_device_range(device, address, bytes);
                checked.map_err(|what| Failure::argument(argument, what))?;
            }
            spans.push((address, bytes));
        }
        self.check_overlap(spans[0], spans[1])
    }

    fn check_overlap(&self, send: (u64, u64), recv: (u64, u64)) -> Outcome {
        let overlap =
            send.1 > 0 && recv.1 > 0 && send.0 < recv.0 + recv.1 && recv.0 < send.0 + send.1;
        let in_place = match self.shape {
            Shape::AllToAll { .. } => false,
            Shape::AllReduce { .. } | Shape::Reduce { .. } => send.0 == recv.0,
            // In place is where both begin at the same byte of the larger one, whichever rank's.
            _ => (send.0.abs_diff(recv.0)).is_multiple_of(self.size() as u64),
        };
        if overlap && !in_place {
            return Err(Failure::argument("recvBuf", "it overlaps sendBuf, and not in place"));
        }
        Ok(())
    }

    /// Elements that all ranks must have alike, and bytes that this one gives.
    fn totals(&self, world: u32) -> (u64, u64) {
        let size = self.size() as u64;
        match &self.shape {
            Shape::Barrier | Shape::Send { .. } | Shape::Recv { .. } => (0, 0),
            Shape::AllReduce { count, .. }
            | Shape::Reduce { count, .. }
            | Shape::Broadcast { count, .. } => (*count, count * size),
            Shape::Scatter { count, .. } => (*count, count * size * u64::from(world)),
            Shape::AllGather { count, counts, .. } => (counts.iter().sum(), count * size),
            Shape::ReduceScatter { counts, .. } => {
                let total: u64 = counts.iter().sum();
                (total, total * size)
            }
            // Each rank has its own: the counts go along with the bytes.
            Shape::AllToAll { to: [counts, _], .. } => {
                (0, counts.len() as u64 * 8 + counts.iter().sum::<u64>() * size)
            }
        }
    }

    /// A number that differs where counts of ranks differ.
    fn hash(&self) -> u64 {
        match &self.shape {
            Shape::AllGather { counts, .. } | Shape::ReduceScatter { counts, .. } => counts
                .iter()
                .fold(1, |all: u64, count| all.wrapping_mul(0x0100_0000_01b3).wrapping_add(*count)),
            _ => 0,
        }
    }

    /// What this rank shows the others.
    pub(crate) fn header(&self, world: u32) -> Vec<u8> {
        let (elements, bytes) = self.totals(world);
        let op = self.op().map_or(0, |op| op as u64 + 1);
        let root = self.root().map_or(0, |root| u64::from(root) + 1);
        let kind = 1;
        let numbers = [kind, self.dtype.into(), op, root, elements, self.hash(), bytes];
        let mut header: Vec<u8> = numbers.iter().flat_map(|n: &u64| n.to_le_bytes()).collect();
        header.extend(self.name.bytes());
        header.resize(Self::HEADER, 0);
        header
    }

    /// Bytes that the rank of this header gives.
    pub(crate) fn payload_bytes(header: &[u8]) -> usize {
        usize::try_from(number(header, 6)).unwrap_or(usize::MAX)
    }

    /// The ranks' calls belong together.
    pub(crate) fn compare(&self, rank: u32, headers: &[&[u8]]) -> Outcome {
        let own = headers[rank as usize];
        // The bytes that a rank gives may differ where its count may.
        let comparable = |header: &[u8]| [&header[..6 * 8], &header[7 * 8..]].concat();
        let other = headers.iter().position(|header| comparable(header) != comparable(own));
        let Some(other) = other else { return Ok(()) };
        let text = format!(
            "rank {rank} calls {}, but rank {other} calls {}",
            describe(own),
            describe(headers[other])
        );
        Err(Failure::new(Code::HCCL_PARA, text))
    }

    /// Reads what this rank gives.
    pub(crate) fn read(&self, site: &Site<'_>, rank: u32, world: u32) -> Outcome<Vec<u8>> {
        let (elements, _) = self.elements(rank, world).unwrap_or_default();
        let mut bytes = vec![0; usize::try_from(elements).unwrap_or(0) * self.size()];
        if let Shape::AllToAll { to: [counts, offsets], .. } = &self.shape {
            let mut packed: Vec<u8> = counts.iter().flat_map(|count| count.to_le_bytes()).collect();
            for (count, offset) in counts.iter().zip(offsets) {
                let mut part = vec![0; usize::try_from(*count).unwrap_or(0) * self.size()];
                read(site, self.send + offset * self.size() as u64, &mut part)?;
                packed.extend(part);
            }
            return Ok(packed);
        }
        read(site, self.send, &mut bytes)?;
        Ok(bytes)
    }

    /// Writes what this rank gets of what all gave.
    pub(crate) fn write(&self, site: &Site<'_>, rank: u32, parts: &[&[u8]]) -> Outcome {
        let (size, me) = (self.size(), rank as usize);
        let put = |offset: u64, bytes: &[u8]| write(site, self.recv + offset * size as u64, bytes);
        match &self.shape {
            Shape::AllReduce { op, .. } => put(0, &reduce(self.dtype, *op, parts)),
            Shape::Reduce { op, root, .. } if *root == rank => {
                put(0, &reduce(self.dtype, *op, parts))
            }
            Shape::Broadcast { root, .. } if *root != rank => put(0, parts[*root as usize]),
            Shape::Scatter { count, root } => {
                put(0, piece(parts[*root as usize], u64::from(rank) * count, *count, size))
            }
            Shape::AllGather { counts, offsets, .. } => {
                let pieces = parts.iter().zip(counts.iter().zip(offsets));
                pieces.into_iter().try_for_each(|(part, (count, offset))| {
                    put(*offset, piece(part, 0, *count, size))
                })
            }
            Shape::ReduceScatter { op, counts, offsets } => {
                let own: Vec<&[u8]> =
                    parts.iter().map(|part| piece(part, offsets[me], counts[me], size)).collect();
                put(0, &reduce(self.dtype, *op, &own))
            }
            Shape::AllToAll { from: [counts, offsets], from_dtype, .. } => {
                let size = element_bytes(*from_dtype).unwrap_or(1) as u64;
                for (other, part) in parts.iter().enumerate() {
                    let given = incoming(part, me, parts.len(), self.size());
                    let wanted = counts[other] * size;
                    if given.len() as u64 != wanted {
                        let text = format!(
                            "rank {rank} wants {wanted} bytes of rank {other} (argument `recvCounts`), which sends {}",
                            given.len()
                        );
                        return Err(Failure::new(Code::HCCL_PARA, text));
                    }
                    write(site, self.recv + offsets[other] * size, given)?;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// What the two sides of a message must have alike.
    pub(crate) fn message_header(&self) -> Vec<u8> {
        let count = match self.shape {
            Shape::Send { count, .. } | Shape::Recv { count, .. } => count,
            _ => 0,
        };
        [u64::from(self.dtype), count].iter().flat_map(|n| n.to_le_bytes()).collect()
    }

    /// What was sent is what was expected.
    pub(crate) fn compare_message(&self, header: &[u8]) -> Outcome {
        let own = self.message_header();
        if self.sends() || own == header {
            return Ok(());
        }
        let say = |header: &[u8]| {
            format!("{} elements of {}", number(header, 1), dtype_name(number(header, 0)))
        };
        let text = format!(
            "{}: {} were expected of rank {}, which sent {}",
            self.name,
            say(&own),
            self.peer(),
            say(header)
        );
        Err(Failure::new(Code::HCCL_PARA, text))
    }

    /// The bytes of a message, or room for them.
    pub(crate) fn message(&self, site: &Site<'_>) -> Outcome<Vec<u8>> {
        let count = number(&self.message_header(), 1);
        let mut bytes = vec![0; usize::try_from(count).unwrap_or(0) * self.size()];
        if self.sends() {
            read(site, self.send, &mut bytes)?;
        }
        Ok(bytes)
    }

    /// Writes a message that came.
    pub(crate) fn deliver(&self, site: &Site<'_>, bytes: &[u8]) -> Outcome {
        if self.sends() { Ok(()) } else { write(site, self.recv, bytes) }
    }
}

/// What `part`, of a rank in an all-to-all, has for rank `me`.
fn incoming(part: &[u8], me: usize, world: usize, size: usize) -> &[u8] {
    let count = |rank: usize| usize::try_from(number(part, rank)).unwrap_or(0) * size;
    let before: usize = (0..me).map(count).sum();
    &part[world * 8 + before..][..count(me)]
}

/// A call as its header tells it.
fn describe(header: &[u8]) -> String {
    let name = String::from_utf8_lossy(&header[7 * 8..]).trim_end_matches('\0').to_owned();
    let [dtype, op, root, elements] = [1, 2, 3, 4].map(|index| number(header, index));
    let mut text = format!("{name} of {elements} elements of {}", dtype_name(dtype));
    if op > 0 {
        let op = u32::try_from(op - 1).ok().and_then(Op::named);
        text += &op.map_or_else(String::new, |op| format!(" with {op:?}"));
    }
    if root > 0 {
        text += &format!(" with root {}", root - 1);
    }
    text
}

fn read(site: &Site<'_>, address: u64, bytes: &mut [u8]) -> Outcome {
    if bytes.is_empty() {
        return Ok(());
    }
    site.runtime
        .memory
        .read_written(address, bytes, site.order)
        .map_err(|e| in_memory(site, "sendBuf", e))
}

fn write(site: &Site<'_>, address: u64, bytes: &[u8]) -> Outcome {
    if bytes.is_empty() {
        return Ok(());
    }
    site.runtime
        .memory
        .write_bytes(address, bytes, site.order)
        .map_err(|e| in_memory(site, "recvBuf", e))
}

fn in_memory(site: &Site<'_>, argument: &str, error: MemoryError) -> Failure {
    let failure = site.runtime.explain(error).coded(Code::HCCL_RUNTIME);
    failure.within(format!("argument `{argument}`"))
}
