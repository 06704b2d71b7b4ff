//! Registers to slots: compilers name a new register for nearly every value, and a file with all of them would not fit the
//! processor's cache.
//!
//! Two registers share a slot if no lane can need the values of both at a time. A register that may be read before it is
//! written keeps what it had at the start, which is poison.

use super::scope::File;
use crate::program::{
    Bits, Convert, F32, F64, Flow, Half, Hopper, Ins, Int, Kind, Lanes, Left, Logic, Mma, Move, Op,
    Product, Room, Slot, Together, Update, Vote, Width,
};
use halyard_sim_cuda_ptx::ScalarType as T;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// The slots of one file.
pub(super) struct Allocation {
    /// Each register's slot.
    slots: Vec<Slot>,
    /// Slots in all.
    pub(super) count: usize,
    /// Slots that may be read before they are written.
    pub(super) poisoned: Vec<Slot>,
}

impl Allocation {
    /// The slot of `register`.
    pub(super) fn slot(&self, register: Slot) -> Slot {
        self.slots[usize::from(register)]
    }
}

/// Gives the `count` registers of `file` slots, and rewrites `code` and `products` to name them. The `constant` ones have slots of their own, and are
/// written by nobody.
pub(super) fn allocate(
    (code, products): (&mut [Ins], &mut [Product]),
    file: File,
    count: usize,
    constant: &[Slot],
) -> Allocation {
    let uses: Vec<Uses> = code.iter().map(|ins| Uses::of(ins, products, file)).collect();
    let spans = Spans::of(code, &uses, count);
    let allocation = spans.scan(constant);
    for (ins, uses) in code.iter_mut().zip(&uses) {
        for at in uses.places() {
            ins.o[at] = allocation.slot(ins.o[at]);
        }
        if let (Together::Mask(slot), File::Word) = (&mut ins.together, file) {
            *slot = allocation.slot(*slot);
        }
    }
    for product in products {
        let slots: Vec<&mut Slot> = match file {
            File::Word => {
                let left = match &mut product.left {
                    Left::Registers(all) => &mut all[..],
                    Left::Shared(_) => &mut [],
                };
                product.sums_in.iter_mut().chain(left).collect()
            }
            File::Long => match &mut product.left {
                Left::Shared(left) => vec![left, &mut product.right],
                Left::Registers(_) => vec![&mut product.right],
            },
            File::Predicate => Vec::new(),
        };
        slots.into_iter().for_each(|slot| *slot = allocation.slot(*slot));
    }
    allocation
}

/// What an instruction does with registers of one file.
pub(super) struct Uses {
    /// Bits of the places in `o` that are read, and written.
    read: u16,
    written: u16,
    registers: [Slot; crate::program::OPERANDS],
    mask: Option<Slot>,
    /// Of a `wgmma`: what it reads and writes, and what it reads.
    sums: Vec<Slot>,
    sources: Vec<Slot>,
    /// A lane that comes to it may not execute it.
    guarded: bool,
}

impl Uses {
    pub(super) fn of(ins: &Ins, products: &[Product], file: File) -> Self {
        let (mut read, mut written) = (0, 0);
        for (at, role) in roles(ins.op).into_iter().enumerate() {
            read |= u16::from(role == Role::Read(file)) << at;
            written |= u16::from(role == Role::Write(file)) << at;
        }
        let mask = match ins.together {
            Together::Mask(slot) if file == File::Word => Some(slot),
            _ => None,
        };
        let (mut sums, mut sources) = (Vec::new(), Vec::new());
        if let Op::Hopper(Hopper::Product { .. }) = ins.op {
            let product = &products[ins.imm as usize];
            match (file, product.left) {
                (File::Word, _) => {
                    sums.clone_from(&product.sums_in);
                    sources.extend(product.left_words());
                }
                (File::Long, Left::Shared(left)) => sources.extend([left, product.right]),
                (File::Long, _) => sources.push(product.right),
                (File::Predicate, _) => {}
            }
        }
        let (registers, guarded) = (ins.o, ins.guard.is_some());
        Self { read, written, registers, mask, sums, sources, guarded }
    }

    fn places(&self) -> impl Iterator<Item = usize> {
        let all = self.read | self.written;
        (0..crate::program::OPERANDS).filter(move |at| all >> at & 1 != 0)
    }

    fn among(&self, places: u16) -> impl Iterator<Item = usize> {
        let at = (0..crate::program::OPERANDS).filter(move |at| places >> at & 1 != 0);
        at.map(|at| usize::from(self.registers[at]))
    }

    pub(super) fn reads(&self) -> impl Iterator<Item = usize> {
        let more = self.sums.iter().chain(&self.sources).chain(&self.mask);
        self.among(self.read).chain(more.map(|slot| usize::from(*slot)))
    }

    pub(super) fn writes(&self) -> impl Iterator<Item = usize> {
        self.among(self.written).chain(self.sums.iter().map(|slot| usize::from(*slot)))
    }
}

/// From which instruction to which each register is needed; those that may be read before they are written from the first.
struct Spans {
    spans: Vec<Option<(usize, usize)>>,
    unwritten: Vec<bool>,
}

/// A set of registers.
#[derive(Clone, PartialEq, Eq)]
struct Set(Vec<u64>);

impl Set {
    fn insert(&mut self, register: usize) {
        self.0[register / 64] |= 1 << (register % 64);
    }

    fn remove(&mut self, register: usize) {
        self.0[register / 64] &= !(1 << (register % 64));
    }

    fn union(&mut self, other: &Self) {
        self.0.iter_mut().zip(&other.0).for_each(|(word, other)| *word |= other);
    }

    fn iter(&self) -> impl Iterator<Item = usize> {
        let bits = |(at, word): (usize, &u64)| {
            let word = *word;
            (0..64).filter(move |bit| word >> bit & 1 != 0).map(move |bit| at * 64 + bit)
        };
        self.0.iter().enumerate().flat_map(bits)
    }
}

impl Spans {
    fn of(code: &[Ins], uses: &[Uses], count: usize) -> Self {
        let blocks = blocks(code);
        let empty = Set(vec![0; count.div_ceil(64)]);
        let mut needed = vec![empty.clone(); blocks.len()];
        let mut changed = true;
        while changed {
            changed = false;
            for (at, block) in blocks.iter().enumerate().rev() {
                let mut set = block.leaving(&needed, &empty);
                for uses in uses[block.first..block.end].iter().rev() {
                    if !uses.guarded {
                        uses.writes().for_each(|register| set.remove(register));
                    }
                    uses.reads().for_each(|register| set.insert(register));
                }
                changed |= set != needed[at];
                needed[at] = set;
            }
        }
        let mut all = Self { spans: vec![None; count], unwritten: vec![false; count] };
        for (at, block) in blocks.iter().enumerate() {
            needed[at].iter().for_each(|register| all.cover(register, block.first));
            let leaving = block.leaving(&needed, &empty);
            leaving.iter().for_each(|register| all.cover(register, block.end - 1));
            for (at, uses) in uses[block.first..block.end].iter().enumerate() {
                let used = uses.reads().chain(uses.writes());
                used.for_each(|register| all.cover(register, block.first + at));
            }
        }
        if let Some(first) = needed.first() {
            first.iter().for_each(|register| all.unwritten[register] = true);
        }
        all
    }

    fn cover(&mut self, register: usize, at: usize) {
        let span = self.spans[register].get_or_insert((at, at));
        *span = (span.0.min(at), span.1.max(at));
    }

    /// Gives slots to the registers in the order in which they begin.
    fn scan(&self, constant: &[Slot]) -> Allocation {
        let mut allocation =
            Allocation { slots: vec![0; self.spans.len()], count: 0, poisoned: Vec::new() };
        let mut pinned = vec![false; self.spans.len()];
        for register in constant {
            pinned[usize::from(*register)] = true;
            allocation.slots[usize::from(*register)] = allocation.count as Slot;
            allocation.count += 1;
        }
        let mut order: Vec<_> = (self.spans.iter().enumerate())
            .filter(|(register, _)| !pinned[*register])
            .filter_map(|(register, span)| span.map(|(from, to)| (from, to, register)))
            .collect();
        order.sort_unstable();
        let mut free: Vec<Slot> = Vec::new();
        let mut taken = BinaryHeap::new();
        for (from, to, register) in order {
            while let Some(Reverse((end, slot))) = taken.peek().copied()
                && end < from
            {
                taken.pop();
                free.push(slot);
            }
            let slot = free.pop().unwrap_or_else(|| {
                allocation.count += 1;
                (allocation.count - 1) as Slot
            });
            taken.push(Reverse((to, slot)));
            allocation.slots[register] = slot;
            if self.unwritten[register] {
                allocation.poisoned.push(slot);
            }
        }
        // Places that an opcode does not use name slot 0.
        allocation.count = allocation.count.max(1);
        allocation
    }
}

/// Instructions that are executed one after the other, and which blocks may come next.
struct Block {
    first: usize,
    end: usize,
    next: Vec<usize>,
}

impl Block {
    /// What is needed behind it, given what each block needs.
    fn leaving(&self, needed: &[Set], empty: &Set) -> Set {
        self.next.iter().fold(empty.clone(), |mut set, next| {
            set.union(&needed[*next]);
            set
        })
    }
}

fn blocks(code: &[Ins]) -> Vec<Block> {
    let mut begins = vec![false; code.len() + 1];
    begins[0] = true;
    for (at, ins) in code.iter().enumerate() {
        if let Op::Flow(flow) = ins.op {
            begins[at + 1] = true;
            if flow == Flow::Branch {
                begins[ins.imm as usize] = true;
            }
        }
    }
    let firsts: Vec<usize> = (0..code.len()).filter(|at| begins[*at]).collect();
    let number = |at: usize| firsts.binary_search(&at).ok();
    let ends = firsts.iter().copied().skip(1).chain([code.len()]);
    firsts
        .iter()
        .zip(ends)
        .map(|(first, end)| {
            let last = &code[end - 1];
            let falls = !matches!(last.op, Op::Flow(Flow::Branch | Flow::Exit | Flow::Trap));
            let mut next = Vec::new();
            if falls || last.guard.is_some() {
                next.extend(number(end));
            }
            if last.op == Op::Flow(Flow::Branch) {
                next.extend(number(last.imm as usize));
            }
            Block { first: *first, end, next }
        })
        .collect()
}

/// What an opcode does with a place in `o`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Unused,
    Read(File),
    Write(File),
}

/// The roles of the places in `o`, in order; those behind are unused.
pub(crate) fn roles(op: Op) -> Vec<Role> {
    use File::{Long, Predicate, Word};
    use Role::{Read, Write};
    let all = |to: File, from: File, sources: usize| {
        let mut roles = vec![Read(from); sources + 1];
        roles[0] = Write(to);
        roles
    };
    match op {
        Op::Nop | Op::AsyncCommit | Op::AsyncWait => Vec::new(),
        Op::Move(op) => moves(op),
        Op::Int(Int::Shl | Int::ShrS | Int::ShrU, width) => {
            vec![Write(file(width)), Read(file(width)), Read(Word)]
        }
        Op::Int(op, width) => all(file(width), file(width), int_sources(op)),
        Op::Wide(op) => {
            let to = if op.from == Width::W32 { Long } else { Word };
            let mut roles = all(to, Word, 2);
            roles.extend(op.add.then_some(Read(to)));
            roles
        }
        Op::Bits(op) => bits(op),
        Op::Logic(op) => all(Predicate, Predicate, if op == Logic::Not { 1 } else { 2 }),
        Op::F32(op, _) => all(Word, Word, f32_sources(op)),
        Op::F64(op) => all(Long, Long, f64_sources(op)),
        Op::Half(op, _) => all(Word, Word, half_sources(op)),
        Op::Compare(op) => {
            let wide = matches!(op.kind, Kind::S64 | Kind::U64 | Kind::F64);
            let from = Read(if wide { Long } else { Word });
            vec![Write(Predicate), Write(Predicate), from, from, Read(Predicate)]
        }
        Op::Select(width) => {
            vec![Write(file(width)), Read(file(width)), Read(file(width)), Read(Predicate)]
        }
        Op::Convert(op) => converts(op),
        Op::Load(a) => {
            let address = match a.room {
                Room::Param => Role::Unused,
                _ => Read(if a.long { Long } else { Word }),
            };
            let element = Write(if a.long_data { Long } else { Word });
            std::iter::once(address)
                .chain(std::iter::repeat_n(element, usize::from(a.count)))
                .collect()
        }
        Op::Store(a) => {
            let address = Read(if a.long { Long } else { Word });
            let element = Read(if a.long_data { Long } else { Word });
            std::iter::once(address)
                .chain(std::iter::repeat_n(element, usize::from(a.count)))
                .collect()
        }
        Op::Atomic(a) => {
            let value = if a.wide { Long } else { Word };
            let address = if a.long { Long } else { Word };
            let mut roles = vec![Write(value), Read(address), Read(value)];
            roles.extend((a.update == Update::CompareSwap).then_some(Read(value)));
            roles
        }
        Op::AsyncCopy(_) => vec![Read(Word), Read(Long), Read(Word)],
        Op::LoadMatrix { count, .. } => std::iter::once(Read(Word))
            .chain(std::iter::repeat_n(Write(Word), usize::from(count)))
            .collect(),
        Op::Mma(op) => {
            let sources = if matches!(op, Mma::Bf16K8 | Mma::F16K8) { 7 } else { 10 };
            [vec![Write(Word); 4], vec![Read(Word); sources]].concat()
        }
        Op::Lanes(op) => lanes(op),
        Op::Clock(width) => vec![Write(file(width))],
        Op::Flow(op) => flow(op),
        Op::Hopper(op) => hopper(op),
    }
}

fn flow(op: Flow) -> Vec<Role> {
    use File::{Long, Predicate, Word};
    use Role::{Read, Write};
    match op {
        Flow::Barrier { counted, vote: None, .. } => {
            vec![Read(Word); 1 + usize::from(counted)]
        }
        Flow::Barrier { counted, vote: Some(vote), .. } => {
            let count = if counted { Read(Word) } else { Role::Unused };
            let result = Write(if vote == Vote::Count { Word } else { Predicate });
            vec![Read(Word), count, Read(Predicate), result]
        }
        Flow::WarpBarrier => vec![Read(Word)],
        Flow::BarrierWait { .. } => {
            vec![Write(Predicate), Read(Word), Read(Word), Read(Long)]
        }
        Flow::Branch | Flow::Exit | Flow::Trap => Vec::new(),
    }
}

fn hopper(op: Hopper) -> Vec<Role> {
    use File::{Long, Predicate, Word};
    use Role::{Read, Write};
    match op {
        Hopper::BarrierInit | Hopper::BarrierExpect { .. } => vec![Read(Word); 2],
        Hopper::BarrierInval | Hopper::CopiesArrive { .. } => vec![Read(Word)],
        Hopper::BarrierArrive { .. } => vec![Write(Long), Read(Word), Read(Word), Read(Word)],
        Hopper::BarrierTest { .. } => vec![Write(Predicate), Read(Word), Read(Word), Read(Long)],
        Hopper::BarrierPending => vec![Write(Word), Read(Long)],
        Hopper::ProxyFence
        | Hopper::BulkCommit
        | Hopper::BulkWait
        | Hopper::ProductFence
        | Hopper::ProductCommit
        | Hopper::ProductWait
        | Hopper::Product { .. } => Vec::new(),
        Hopper::StoreMatrix { count, .. } => vec![Read(Word); 1 + usize::from(count)],
        Hopper::BulkLoad => vec![Read(Word), Read(Long), Read(Word), Read(Word)],
        Hopper::BulkStore => vec![Read(Long), Read(Word), Read(Word)],
        Hopper::TileLoad(rank) => {
            let start = std::iter::repeat_n(Read(Word), usize::from(rank));
            [Read(Word), Read(Long), Read(Word)].into_iter().chain(start).collect()
        }
        Hopper::TileStore(rank) => {
            let start = std::iter::repeat_n(Read(Word), usize::from(rank));
            [Read(Long), Read(Word)].into_iter().chain(start).collect()
        }
        Hopper::MapCopy => vec![Read(Long), Read(Word)],
        Hopper::MapAddress { long: false } => vec![Write(Word), Read(Word), Read(Word)],
        Hopper::MapAddress { long: true } => vec![Write(Long), Read(Long), Read(Word)],
    }
}

fn file(width: Width) -> File {
    if width == Width::W64 { File::Long } else { File::Word }
}

fn moves(op: Move) -> Vec<Role> {
    use File::{Long, Predicate, Word};
    use Role::{Read, Write};
    match op {
        Move::Word => vec![Write(Word), Read(Word)],
        Move::Long | Move::Window => vec![Write(Long), Read(Long)],
        Move::Predicate => vec![Write(Predicate), Read(Predicate)],
        Move::Pack16x2 => vec![Write(Word), Read(Word), Read(Word)],
        Move::Unpack16x2 => vec![Read(Word), Write(Word), Write(Word)],
        Move::Pack32x2 => vec![Write(Long), Read(Word), Read(Word)],
        Move::Unpack32x2 => vec![Read(Long), Write(Word), Write(Word)],
        Move::Pack16x4 => vec![Write(Long), Read(Word), Read(Word), Read(Word), Read(Word)],
        Move::Unpack16x4 => vec![Read(Long), Write(Word), Write(Word), Write(Word), Write(Word)],
    }
}

fn bits(op: Bits) -> Vec<Role> {
    use File::{Long, Word};
    use Role::{Read, Write};
    match op {
        Bits::Popc32 | Bits::Clz32 | Bits::Brev32 | Bits::Find { .. } => {
            vec![Write(Word), Read(Word)]
        }
        Bits::Popc64 | Bits::Clz64 => vec![Write(Word), Read(Long)],
        Bits::Brev64 => vec![Write(Long), Read(Long)],
        Bits::Extract64 { .. } => vec![Write(Long), Read(Long), Read(Word), Read(Word)],
        Bits::Insert32 => vec![Write(Word), Read(Word), Read(Word), Read(Word), Read(Word)],
        Bits::Insert64 => vec![Write(Long), Read(Long), Read(Long), Read(Word), Read(Word)],
        Bits::Lop3(_)
        | Bits::Permute
        | Bits::FunnelLeft { .. }
        | Bits::FunnelRight { .. }
        | Bits::ExtractS
        | Bits::ExtractU
        | Bits::Dot4 { .. } => vec![Write(Word), Read(Word), Read(Word), Read(Word)],
    }
}

fn int_sources(op: Int) -> usize {
    match op {
        Int::AbsS | Int::Neg | Int::Not => 1,
        Int::Mad | Int::MadHiS | Int::MadHiU => 3,
        _ => 2,
    }
}

fn f32_sources(op: F32) -> usize {
    match op {
        F32::Fma => 3,
        F32::Add | F32::Sub | F32::Mul | F32::Div => 2,
        F32::Min | F32::Max | F32::MinNan | F32::MaxNan => 2,
        _ => 1,
    }
}

fn f64_sources(op: F64) -> usize {
    match op {
        F64::Fma => 3,
        F64::Neg | F64::Abs | F64::Sqrt | F64::Rcp | F64::Rsqrt => 1,
        _ => 2,
    }
}

fn half_sources(op: Half) -> usize {
    match op {
        Half::Fma => 3,
        Half::Neg | Half::Abs => 1,
        _ => 2,
    }
}

fn converts(op: Convert) -> Vec<Role> {
    let of = |ty: T| if ty.bytes() == 8 { File::Long } else { File::Word };
    let pair = matches!(op.to, T::F16x2 | T::Bf16x2 | T::E4m3x2 | T::E5m2x2) && op.from == T::F32;
    let mut roles = vec![Role::Read(of(op.from)); 2 + usize::from(pair)];
    roles[0] = Role::Write(of(op.to));
    roles
}

fn lanes(op: Lanes) -> Vec<Role> {
    use File::{Predicate, Word};
    use Role::{Read, Write};
    match op {
        Lanes::ShuffleUp | Lanes::ShuffleDown | Lanes::ShuffleXor | Lanes::ShuffleIndex => {
            vec![Write(Word), Write(Predicate), Read(Word), Read(Word), Read(Word)]
        }
        Lanes::Ballot => vec![Write(Word), Read(Predicate)],
        Lanes::Any | Lanes::All | Lanes::Uniform => vec![Write(Predicate), Read(Predicate)],
        Lanes::MatchAny | Lanes::MatchAll => vec![Write(Word), Write(Predicate), Read(Word)],
        Lanes::Active => vec![Write(Word)],
        Lanes::Elect => vec![Write(Word), Write(Predicate)],
        Lanes::ReduceAdd
        | Lanes::ReduceMinS
        | Lanes::ReduceMinU
        | Lanes::ReduceMaxS
        | Lanes::ReduceMaxU
        | Lanes::ReduceAnd
        | Lanes::ReduceOr
        | Lanes::ReduceXor => vec![Write(Word), Read(Word)],
    }
}
