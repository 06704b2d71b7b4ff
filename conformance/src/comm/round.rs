//! Calls that move data: what each rank puts in, what it gets, and what it has to get.

use halyard_core::{DType, Device, DeviceBuffer, ReduceOp, Rows, Tensor};

use super::{
    Played,
    catalog::{CommCase, Data},
    numbers::{Want, combined, compare, random, size_of},
    ranks::{PATIENCE, Rank, on_all},
};
use crate::{compare::Comparison, execute::Trouble, rng::Rng};

/// Elements a row, where rows are moved.
const WIDTH: usize = 2;
/// Bytes before and after a tensor that must not change, and what they hold, as does memory before it is written.
const GUARD: usize = 256;
const POISON: u8 = 0xab;

/// Runs a case: its sizes, one after the other, on one communicator.
pub(super) fn run(
    devices: &[Device],
    case: &CommCase,
    kind: Data,
    seed: u64,
) -> Result<Comparison, Trouble> {
    let rounds = rounds(case, kind, seed);
    let got = on_all(devices, PATIENCE, |rank| {
        rounds.iter().map(|round| round.play(rank)).collect::<Result<Vec<_>, _>>()
    })?;
    let mut total = Comparison::empty("data");
    for (i, round) in rounds.iter().enumerate() {
        let wanted = round.wanted();
        for (rank, results) in got.iter().enumerate() {
            let what = format!("rank {rank}, {round}");
            // One for all, or one each.
            compare(&mut total, &what, &results[i], &wanted[rank % wanted.len()]);
            if round.is_the_same_everywhere() {
                let what = format!("{what}, the same bits as rank 0");
                compare(&mut total, &what, &results[i], &Want::Bytes(got[0][i].clone()));
            }
        }
    }
    Ok(total)
}

/// Runs a case on one rank of a communicator whose others are elsewhere.
pub(super) fn run_rank(
    rank: &mut Rank,
    case: &CommCase,
    kind: Data,
    seed: u64,
) -> Result<Played, Trouble> {
    let mut total = Comparison::empty("data");
    let mut shared = Vec::new();
    for round in rounds(case, kind, seed) {
        let got = round.play(rank)?;
        let wanted = round.wanted();
        let number = rank.number() as usize;
        let what = format!("rank {number}, {round}");
        compare(&mut total, &what, &got, &wanted[number % wanted.len()]);
        if round.is_the_same_everywhere() {
            shared.push(got);
        }
    }
    Ok((total, shared))
}

fn rounds(case: &CommCase, kind: Data, seed: u64) -> Vec<Round> {
    let may_be_in_place = matches!(kind, Data::AllReduce | Data::AllGather | Data::ReduceScatter);
    let places: &[bool] = if may_be_in_place { &[false, true] } else { &[false] };
    let world = case.world as usize;
    let round = |(n, &size): (usize, &usize), in_place: bool| {
        let (dtype, reduce) = (case.dtype, case.reduce);
        let label = format!("{}/{size}/{in_place}", case.name);
        Round { kind, world, dtype, reduce, size, in_place, root: n % world, seed, label }
    };
    let sizes = case.sizes.iter().enumerate();
    sizes.flat_map(|s| places.iter().map(move |&p| round(s, p))).collect()
}

/// One call on every rank.
#[derive(Clone, Debug)]
struct Round {
    kind: Data,
    world: usize,
    dtype: DType,
    reduce: ReduceOp,
    /// Elements or rows a rank.
    size: usize,
    in_place: bool,
    root: usize,
    seed: u64,
    /// Of its random numbers.
    label: String,
}

impl std::fmt::Display for Round {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "size {}{}", self.size, if self.in_place { " in place" } else { "" })
    }
}

impl Round {
    /// Elements that a rank puts in; `part` tells several of one rank apart.
    fn input(&self, rank: usize, part: usize, elements: usize) -> Vec<u8> {
        let label = format!("{}/{rank}/{part}", self.label);
        random(self.dtype, elements, &mut Rng::new(self.seed, &label))
    }

    fn is_the_same_everywhere(&self) -> bool {
        matches!(self.kind, Data::AllReduce | Data::AllGather | Data::Broadcast)
    }

    /// Makes the calls on one rank; gives what it got.
    fn play(&self, rank: &mut Rank) -> Result<Vec<u8>, Trouble> {
        match self.kind {
            Data::AllReduce => self.all_reduce(rank),
            Data::AllGather => self.all_gather(rank),
            Data::ReduceScatter => self.reduce_scatter(rank),
            Data::Broadcast => self.broadcast(rank),
            Data::AllToAllV => self.all_to_all_v(rank),
            Data::Messages => self.messages(rank),
            Data::Ring => self.ring(rank),
            Data::Group => self.group(rank),
        }
    }

    /// What every rank has to get: one for all, or one each.
    fn wanted(&self) -> Vec<Want> {
        let rows = self.size * WIDTH;
        let inputs = |elements| -> Vec<Vec<u8>> {
            (0..self.world).map(|rank| self.input(rank, 0, elements)).collect()
        };
        let each = |want: &dyn Fn(usize) -> Vec<u8>| {
            (0..self.world).map(|rank| Want::Bytes(want(rank))).collect()
        };
        match self.kind {
            Data::AllReduce => vec![self.combined(&inputs(self.size), 0, self.size)],
            Data::AllGather => vec![Want::Bytes(inputs(rows).concat())],
            Data::ReduceScatter => {
                let inputs = inputs(rows * self.world);
                let part = |rank| self.combined(&inputs, rank * rows, rows);
                (0..self.world).map(part).collect()
            }
            Data::Broadcast => vec![Want::Bytes(self.input(self.root, 0, self.size))],
            Data::AllToAllV => each(&|rank| self.received(rank)),
            Data::Messages => each(&|rank| {
                let from = |peer| [self.message(peer, rank, 0), self.message(peer, rank, 1)];
                (0..self.world).flat_map(from).flatten().collect()
            }),
            Data::Ring => each(&|rank| {
                let before = (rank + self.world - 1) % self.world;
                [0, 1].map(|n| self.message(before, rank, n)).concat()
            }),
            Data::Group => {
                let shared = self.input(self.root, 1, self.size);
                let Want::Bytes(sum) = self.combined(&inputs(self.size), 0, self.size) else {
                    unreachable!("groups are of integers")
                };
                each(&|rank| {
                    let before = (rank + self.world - 1) % self.world;
                    [&sum[..], &shared, &self.message(before, rank, 0)].concat()
                })
            }
        }
    }

    /// The combination of `count` elements from `from` on of each part.
    fn combined(&self, parts: &[Vec<u8>], from: usize, count: usize) -> Want {
        let op = if self.reduce.name().is_some() { self.reduce } else { ReduceOp::SUM };
        let size = size_of(self.dtype);
        let parts: Vec<&[u8]> = parts.iter().map(|p| &p[from * size..][..count * size]).collect();
        combined(self.dtype, op, &parts)
    }

    fn all_reduce(&self, rank: &mut Rank) -> Result<Vec<u8>, Trouble> {
        let input = self.input(rank.number() as usize, 0, self.size);
        let src = Guarded::holding(rank, self.dtype, &[self.size], &input)?;
        if self.in_place {
            rank.comm.all_reduce(&rank.stream, &src.tensor, &src.tensor, self.reduce)?;
            return src.read(rank);
        }
        let dst = Guarded::poisoned(rank, self.dtype, &[self.size])?;
        rank.comm.all_reduce(&rank.stream, &src.tensor, &dst.tensor, self.reduce)?;
        src.holds(rank, &input)?;
        dst.read(rank)
    }

    fn all_gather(&self, rank: &mut Rank) -> Result<Vec<u8>, Trouble> {
        let number = rank.number() as usize;
        let input = self.input(number, 0, self.size * WIDTH);
        let dst = Guarded::poisoned(rank, self.dtype, &[self.size * self.world, WIDTH])?;
        if self.in_place {
            let own = dst.tensor.narrow(0, number * self.size, self.size)?;
            dst.write(rank, number * input.len(), &input)?;
            rank.comm.all_gather(&rank.stream, &own, &dst.tensor)?;
            return dst.read(rank);
        }
        let src = Guarded::holding(rank, self.dtype, &[self.size, WIDTH], &input)?;
        rank.comm.all_gather(&rank.stream, &src.tensor, &dst.tensor)?;
        src.holds(rank, &input)?;
        dst.read(rank)
    }

    fn reduce_scatter(&self, rank: &mut Rank) -> Result<Vec<u8>, Trouble> {
        let number = rank.number() as usize;
        let rows = self.size * self.world;
        let mut input = self.input(number, 0, rows * WIDTH);
        let src = Guarded::holding(rank, self.dtype, &[rows, WIDTH], &input)?;
        if !self.in_place {
            let dst = Guarded::poisoned(rank, self.dtype, &[self.size, WIDTH])?;
            rank.comm.reduce_scatter(&rank.stream, &src.tensor, &dst.tensor, self.reduce)?;
            src.holds(rank, &input)?;
            return dst.read(rank);
        }
        let own = src.tensor.narrow(0, number * self.size, self.size)?;
        rank.comm.reduce_scatter(&rank.stream, &src.tensor, &own, self.reduce)?;
        let bytes = self.size * WIDTH * size_of(self.dtype);
        let got = src.read(rank)?[number * bytes..][..bytes].to_vec();
        // The others' parts are input only.
        input[number * bytes..][..bytes].copy_from_slice(&got);
        src.holds(rank, &input)?;
        Ok(got)
    }

    fn broadcast(&self, rank: &mut Rank) -> Result<Vec<u8>, Trouble> {
        let input = self.input(rank.number() as usize, 0, self.size);
        let buf = Guarded::holding(rank, self.dtype, &[self.size], &input)?;
        rank.comm.broadcast(&rank.stream, &buf.tensor, self.root as u32)?;
        buf.read(rank)
    }

    /// Rows from one rank to another: none, half or all of the size.
    fn count(&self, from: usize, to: usize) -> usize {
        self.size * ((from + 2 * to) % 3) / 2
    }

    /// Where rows to each peer lie: the last peer's first, a row between them. Gives all rows, too.
    fn sent_from(&self, rank: usize) -> (Vec<usize>, usize) {
        let mut at = 1;
        let mut places = vec![0; self.world];
        for (peer, place) in places.iter_mut().enumerate().rev() {
            *place = at;
            at += self.count(rank, peer) + 1;
        }
        (places, at)
    }

    /// Where rows from each peer go: in the order of peers, two rows between them.
    fn received_at(&self, rank: usize) -> (Vec<usize>, usize) {
        let mut at = 2;
        let place = |peer| {
            let place = at;
            at += self.count(peer, rank) + 2;
            place
        };
        ((0..self.world).map(place).collect(), at)
    }

    fn all_to_all_v(&self, rank: &mut Rank) -> Result<Vec<u8>, Trouble> {
        let number = rank.number() as usize;
        let peers = 0..self.world;
        let words = |values: Vec<usize>| values.into_iter().map(|v| v as u64).collect::<Vec<_>>();
        let ((send_at, send_rows), (recv_at, recv_rows)) =
            (self.sent_from(number), self.received_at(number));
        let input = self.input(number, 0, send_rows * WIDTH);
        let send = Guarded::holding(rank, self.dtype, &[send_rows, WIDTH], &input)?;
        let recv = Guarded::poisoned(rank, self.dtype, &[recv_rows, WIDTH])?;
        let rows = Rows {
            send_counts: &words(peers.clone().map(|p| self.count(number, p)).collect()),
            send_displs: &words(send_at),
            recv_counts: &words(peers.map(|p| self.count(p, number)).collect()),
            recv_displs: &words(recv_at),
        };
        rank.comm.all_to_all_v(&rank.stream, &send.tensor, &recv.tensor, rows)?;
        send.holds(rank, &input)?;
        recv.read(rank)
    }

    fn received(&self, rank: usize) -> Vec<u8> {
        let row = WIDTH * size_of(self.dtype);
        let (places, rows) = self.received_at(rank);
        let mut all = vec![POISON; rows * row];
        for (peer, at) in places.into_iter().enumerate() {
            let (sent_at, sent_rows) = self.sent_from(peer);
            let input = self.input(peer, 0, sent_rows * WIDTH);
            let count = self.count(peer, rank) * row;
            all[at * row..][..count].copy_from_slice(&input[sent_at[rank] * row..][..count]);
        }
        all
    }

    /// One of two messages from one rank to another: sizes differ from pair to pair.
    fn message(&self, from: usize, to: usize, number: usize) -> Vec<u8> {
        let elements = match number {
            0 => self.size + (3 * from + to) % 5,
            _ => (from + to) % 3,
        };
        self.input(from, 2 + 2 * to + number, elements)
    }

    /// Memory with a message, and memory for one.
    fn message_memory(
        &self,
        rank: &Rank,
        ends: (usize, usize),
        number: usize,
    ) -> Result<Guarded, Trouble> {
        let message = self.message(ends.0, ends.1, number);
        let dims = [message.len() / size_of(self.dtype)];
        if ends.0 == rank.number() as usize {
            return Guarded::holding(rank, self.dtype, &dims, &message);
        }
        Guarded::poisoned(rank, self.dtype, &dims)
    }

    /// Two messages between all pairs; each rank has an order of its own.
    fn messages(&self, rank: &mut Rank) -> Result<Vec<u8>, Trouble> {
        let me = rank.number() as usize;
        let mut peers: Vec<usize> = (0..self.world).map(|i| (i + me) % self.world).collect();
        let (mut sent, mut got) = (Vec::new(), Vec::new());
        for peer in 0..self.world {
            for n in 0..2 {
                sent.push(self.message_memory(rank, (me, peer), n)?);
                let message = self.message(peer, me, n);
                let dims = [message.len() / size_of(self.dtype)];
                got.push(Guarded::poisoned(rank, self.dtype, &dims)?);
            }
        }
        let sends_first = me.is_multiple_of(2);
        if sends_first {
            peers.reverse();
        }
        let Rank { stream, comm, .. } = rank;
        comm.group(|comm| {
            let send_all = |comm: &mut halyard_core::Communicator| {
                peers
                    .iter()
                    .flat_map(|p| [2 * p, 2 * p + 1])
                    .try_for_each(|at| comm.send(stream, &sent[at].tensor, (at / 2) as u32))
            };
            if sends_first {
                send_all(comm)?;
            }
            for at in peers.iter().rev().flat_map(|p| [2 * p, 2 * p + 1]) {
                comm.recv(stream, &got[at].tensor, (at / 2) as u32)?;
            }
            if !sends_first {
                send_all(comm)?;
            }
            Ok(())
        })?;
        let mut all = Vec::new();
        for message in &got {
            all.extend(message.read(rank)?);
        }
        Ok(all)
    }

    /// Two messages to the next rank, without a group: even ranks send first.
    fn ring(&self, rank: &mut Rank) -> Result<Vec<u8>, Trouble> {
        let me = rank.number() as usize;
        let (next, before) = ((me + 1) % self.world, (me + self.world - 1) % self.world);
        let (mut sent, mut got) = (Vec::new(), Vec::new());
        for n in 0..2 {
            sent.push(self.message_memory(rank, (me, next), n)?);
            got.push(self.message_memory(rank, (before, me), n)?);
        }
        let sends_first = me.is_multiple_of(2);
        for sends in [sends_first, !sends_first] {
            for n in 0..2 {
                match sends {
                    true => rank.comm.send(&rank.stream, &sent[n].tensor, next as u32)?,
                    false => rank.comm.recv(&rank.stream, &got[n].tensor, before as u32)?,
                }
            }
        }
        Ok([got[0].read(rank)?, got[1].read(rank)?].concat())
    }

    /// A sum, a broadcast, and a message around the ring, all in one group.
    fn group(&self, rank: &mut Rank) -> Result<Vec<u8>, Trouble> {
        let me = rank.number() as usize;
        let (next, before) = ((me + 1) % self.world, (me + self.world - 1) % self.world);
        let dims = [self.size];
        let sum = Guarded::holding(rank, self.dtype, &dims, &self.input(me, 0, self.size))?;
        let shared = Guarded::holding(rank, self.dtype, &dims, &self.input(me, 1, self.size))?;
        let sent = self.message_memory(rank, (me, next), 0)?;
        let message = self.message(before, me, 0);
        let got = Guarded::poisoned(rank, self.dtype, &[message.len() / size_of(self.dtype)])?;
        let (root, stream, receives_first) = (self.root as u32, &rank.stream, me.is_multiple_of(2));
        rank.comm.group(|comm| {
            if receives_first {
                comm.recv(stream, &got.tensor, before as u32)?;
            }
            comm.all_reduce(stream, &sum.tensor, &sum.tensor, ReduceOp::SUM)?;
            comm.send(stream, &sent.tensor, next as u32)?;
            comm.broadcast(stream, &shared.tensor, root)?;
            if !receives_first {
                comm.recv(stream, &got.tensor, before as u32)?;
            }
            Ok(())
        })?;
        Ok([sum.read(rank)?, shared.read(rank)?, got.read(rank)?].concat())
    }
}

/// A tensor between guard zones, off any alignment but its elements'.
#[derive(Debug)]
struct Guarded {
    buffer: DeviceBuffer,
    tensor: Tensor,
    start: usize,
    bytes: usize,
}

impl Guarded {
    fn poisoned(rank: &Rank, dtype: DType, dims: &[usize]) -> Result<Self, Trouble> {
        let size = size_of(dtype);
        let (start, bytes) = (GUARD + size, dims.iter().product::<usize>() * size);
        let buffer = rank.device.alloc((start + bytes + GUARD) as u64)?;
        buffer.write(&rank.stream, 0, &vec![POISON; start + bytes + GUARD])?;
        let tensor = Tensor::in_buffer(&buffer, dtype, dims, start as u64)?;
        Ok(Self { buffer, tensor, start, bytes })
    }

    fn holding(
        rank: &Rank,
        dtype: DType,
        dims: &[usize],
        contents: &[u8],
    ) -> Result<Self, Trouble> {
        let this = Self::poisoned(rank, dtype, dims)?;
        this.write(rank, 0, contents)?;
        Ok(this)
    }

    /// Fills it from a byte of it on.
    fn write(&self, rank: &Rank, from: usize, contents: &[u8]) -> Result<(), Trouble> {
        Ok(self.buffer.write(&rank.stream, (self.start + from) as u64, contents)?)
    }

    /// The elements, after all work of the stream; the guards must be whole.
    fn read(&self, rank: &Rank) -> Result<Vec<u8>, Trouble> {
        let mut all = vec![0; self.start + self.bytes + GUARD];
        self.buffer.read(&rank.stream, 0, &mut all)?;
        let end = self.start + self.bytes;
        if all[..self.start].iter().chain(&all[end..]).any(|&b| b != POISON) {
            return Err(Trouble::Violation("memory beside a tensor was written".into()));
        }
        Ok(all[self.start..end].to_vec())
    }

    /// Checks that it holds what it held.
    fn holds(&self, rank: &Rank, contents: &[u8]) -> Result<(), Trouble> {
        if self.read(rank)? == contents {
            return Ok(());
        }
        Err(Trouble::Violation("a tensor that is only read was written".into()))
    }
}
