//! Bulk copies, and tensor maps.

use super::mnemonic::Mnemonic;
use super::scope::File;
use super::{Decoded, Decoder, Slots, exactly};
use crate::program::{Access, Class, Hopper, Int, Op, Room, Slot, Together, Width};
use crate::tensor_map::offset;
use halyard_sim_cuda_ptx::{Address, Operand, ScalarType};

use ScalarType as T;

impl<'a> Decoder<'a, '_> {
    /// What follows `cp.async.bulk`.
    pub(super) fn bulk(&mut self, m: &mut Mnemonic<'_>, operands: &[Operand<'a>]) -> Decoded {
        if m.take("commit_group") {
            self.push(Op::Hopper(Hopper::BulkCommit), Class::AsyncCopy);
            return Ok(());
        }
        if m.take("wait_group") {
            // Copies have written when they have read.
            m.take("read");
            let [Operand::Int(groups)] = operands else {
                return Err("expected a constant number of groups".to_owned());
            };
            let groups = i64::try_from(*groups).map_err(|_| "expected a number of groups")?;
            self.push(Op::Hopper(Hopper::BulkWait), Class::AsyncCopy).imm = groups;
            return Ok(());
        }
        let rank = match m.take("tensor") {
            true => Some(rank(m)?),
            false => None,
        };
        m.take("tile");
        if m.take("prefetch") {
            m.take("L2");
            m.take("global");
            self.push(Op::Nop, Class::AsyncCopy);
            return Ok(());
        }
        let shared = m.take("shared::cta") | m.take("shared::cluster");
        if !(shared & m.take("global")) {
            return Err("unsupported: only between global and shared memory".to_owned());
        }
        let slots = match (m.take("mbarrier::complete_tx::bytes"), m.take("bulk_group")) {
            (true, false) => self.bulk_load(rank, operands)?,
            (false, true) => self.bulk_store(rank, operands)?,
            _ => return Err("expected .mbarrier::complete_tx::bytes or .bulk_group".to_owned()),
        };
        let (op, slots) = slots;
        self.push_with(Op::Hopper(op), Class::AsyncCopy, slots);
        Ok(())
    }

    fn bulk_load(
        &mut self,
        rank: Option<u8>,
        operands: &[Operand<'a>],
    ) -> Decoded<(Hopper, Slots)> {
        let mut slots = Slots::default();
        // A policy of the cache may follow.
        match (rank, operands) {
            (None, [to, from, bytes, barrier] | [to, from, bytes, barrier, _]) => {
                let slot = self.shared_address(to)?;
                slots.push(slot)?;
                slots.push(self.global_address(from)?)?;
                slots.push(self.word(bytes, T::U32)?)?;
                slots.push(self.shared_address(barrier)?)?;
                Ok((Hopper::BulkLoad, slots))
            }
            (Some(rank), [to, from, barrier] | [to, from, barrier, _]) => {
                let to = self.shared_address(to)?;
                let (map, start) = self.tile(from, rank)?;
                let barrier = self.shared_address(barrier)?;
                for slot in [to, map, barrier].into_iter().chain(start) {
                    slots.push(slot)?;
                }
                Ok((Hopper::TileLoad(rank), slots))
            }
            _ => Err("expected addresses, a size unless it is a tile, and an mbarrier".to_owned()),
        }
    }

    fn bulk_store(
        &mut self,
        rank: Option<u8>,
        operands: &[Operand<'a>],
    ) -> Decoded<(Hopper, Slots)> {
        let mut slots = Slots::default();
        match (rank, operands) {
            (None, [to, from, bytes] | [to, from, bytes, _]) => {
                slots.push(self.global_address(to)?)?;
                slots.push(self.shared_address(from)?)?;
                slots.push(self.word(bytes, T::U32)?)?;
                Ok((Hopper::BulkStore, slots))
            }
            (Some(rank), [to, from] | [to, from, _]) => {
                let (map, start) = self.tile(to, rank)?;
                let from = self.shared_address(from)?;
                for slot in [map, from].into_iter().chain(start) {
                    slots.push(slot)?;
                }
                Ok((Hopper::TileStore(rank), slots))
            }
            _ => Err("expected addresses, and a size unless it is a tile".to_owned()),
        }
    }

    /// A tensor map's address and coordinates.
    fn tile(&mut self, operand: &Operand<'a>, rank: u8) -> Decoded<(Slot, Vec<Slot>)> {
        let Operand::Address(Address { base, offset, coordinates }) = operand else {
            return Err("expected a tensor map and coordinates".to_owned());
        };
        if coordinates.len() != usize::from(rank) {
            return Err(format!("expected {rank} coordinates, found {}", coordinates.len()));
        }
        let plain = Address { base: *base, offset: *offset, coordinates: Vec::new() };
        let map = self.global_address(&Operand::Address(plain))?;
        let start = coordinates.iter().map(|coordinate| self.word(coordinate, T::S32));
        Ok((map, start.collect::<Decoded<_>>()?))
    }

    /// A global or generic address as a 64-bit register.
    fn global_address(&mut self, operand: &Operand<'a>) -> Decoded<Slot> {
        let Operand::Address(address) = operand else {
            return Err("expected an address".to_owned());
        };
        let (base, true) = self.base(address)? else {
            return Err("expected a 64-bit address".to_owned());
        };
        if address.offset == 0 {
            return Ok(base);
        }
        let sum = self.names.slot(File::Long)?;
        let mut slots = Slots::default();
        slots.push(sum)?;
        slots.push(base)?;
        slots.push(self.long_constant(address.offset.cast_unsigned())?)?;
        self.push_with(Op::Int(Int::Add, Width::W64), Class::Integer, slots);
        Ok(sum)
    }

    /// `tensormap.replace`, a store into the map, and `tensormap.cp_fenceproxy`.
    pub(super) fn tensor_map(&mut self, m: &mut Mnemonic<'_>, operands: &[Operand<'a>]) -> Decoded {
        if m.take("cp_fenceproxy") {
            let parts =
                ["global", "shared::cta", "tensormap::generic", "release", "sync", "aligned"];
            if !parts.iter().all(|part| m.take(part)) {
                return Err("expected .global.shared::cta.tensormap::generic.release".to_owned());
            }
            m.take_any(&["cta", "cluster", "gpu", "sys"]);
            let [to, from, Operand::Int(128)] = exactly(operands)? else {
                return Err("expected two addresses and 128".to_owned());
            };
            let mut slots = Slots::default();
            slots.push(self.global_address(to)?)?;
            slots.push(self.shared_address(from)?)?;
            self.push_with(Op::Hopper(Hopper::MapCopy), Class::AsyncCopy, slots).together =
                Together::Warp;
            return Ok(());
        }
        if !(m.take("replace") & m.take("tile") & m.take("b1024")) {
            return Err("expected .replace.tile or .cp_fenceproxy".to_owned());
        }
        let shared = m.take("shared::cta");
        m.take("global");
        self.replace(m, shared, operands)
    }

    fn replace(&mut self, m: &mut Mnemonic<'_>, shared: bool, operands: &[Operand<'a>]) -> Decoded {
        // Place, bytes, and how many there are of a field that needs a number.
        let fields = [
            ("global_address", offset::ADDRESS, 8, 0),
            ("rank", offset::RANK, 1, 0),
            ("box_dim", offset::TILE, 4, 5),
            ("global_dim", offset::EXTENTS, 4, 5),
            ("global_stride", offset::STRIDES, 8, 4),
            ("element_stride", offset::STEPS, 4, 5),
            ("elemtype", offset::ELEMENT, 1, 0),
            ("interleave_layout", offset::INTERLEAVE, 1, 0),
            ("swizzle_mode", offset::SWIZZLE, 1, 0),
            ("fill_mode", offset::FILL, 1, 0),
        ];
        let field = fields.into_iter().find(|field| m.take(field.0)).ok_or("expected a field")?;
        let (_, place, bytes, count) = field;
        let ty = if bytes == 8 { T::B64 } else { T::B32 };
        if !m.take(ty.name()) {
            return Err(format!("expected .{}", ty.name()));
        }
        let (at, number, value) = match operands {
            [at, value] if count == 0 => (at, 0, value),
            [at, Operand::Int(number), value] if *number < count => (at, *number as usize, value),
            _ => {
                return Err("expected an address, the dimension if there are several, and a value"
                    .to_owned());
            }
        };
        let mut slots = Slots::default();
        slots.push(if shared { self.shared_address(at)? } else { self.global_address(at)? })?;
        slots.push(self.source(value, ty)?)?;
        let (room, class) =
            if shared { (Room::Shared, Class::Shared) } else { (Room::Global, Class::Global) };
        let long_data = bytes == 8;
        let access = Access { room, bytes, count: 1, signed: false, long: !shared, long_data };
        self.push_with(Op::Store(access), class, slots).imm =
            (place + number * usize::from(bytes)) as i64;
        Ok(())
    }
}

fn rank(m: &mut Mnemonic<'_>) -> Decoded<u8> {
    let ranks = ["1d", "2d", "3d", "4d", "5d"];
    let found = ranks.iter().position(|rank| m.take(rank));
    Ok(found.ok_or("expected .1d to .5d")? as u8 + 1)
}
