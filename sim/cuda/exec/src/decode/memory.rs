//! Loads, stores, atomics, asynchronous copies, matrices in shared memory, and addresses of state spaces.

use super::mnemonic::Mnemonic;
use super::scope::{File, Place};
use super::{Decoded, Decoder, LOCAL_WINDOW, PARAM_WINDOW, SHARED_WINDOW, Slots, exactly};
use crate::program::{Access, Atomic, Class, HalfKind, Move, Op, Room, Together, Update};
use halyard_sim_cuda_ptx::{Address, Operand, ScalarType};

use ScalarType as T;

impl<'a> Decoder<'a, '_> {
    pub(super) fn memory(&mut self, m: &mut Mnemonic<'_>, operands: &[Operand<'a>]) -> Decoded {
        m.take_hints();
        self.orders |= matches!(m.base, "ld" | "st")
            && m.has_any(&["volatile", "relaxed", "acquire", "release"]);
        match m.base {
            "ld" | "ldu" => self.load(m, operands),
            "st" => self.store(m, operands),
            "atom" | "red" => self.atomic(m, operands),
            "cp" => self.copy_async(m, operands),
            "ldmatrix" => self.load_matrix(m, operands),
            "cvta" => self.window(m, operands),
            "prefetch" | "prefetchu" => {
                for part in ["global", "local", "L1", "L2", "param", "tensormap"] {
                    m.take(part);
                }
                self.push(Op::Nop, Class::Global);
                Ok(())
            }
            _ => Err("unsupported".to_owned()),
        }
    }

    /// What an access says about its space, order and cache.
    fn room(m: &mut Mnemonic<'_>) -> Room {
        for part in [
            "volatile", "relaxed", "acquire", "release", "acq_rel", "weak", "cta", "gpu", "sys",
            "cluster",
        ] {
            m.take(part);
        }
        for part in ["ca", "cg", "cs", "cv", "lu", "wb", "wt", "nc"] {
            m.take(part);
        }
        // A cluster is one block.
        let rooms =
            ["global", "shared", "shared::cta", "shared::cluster", "local", "param", "const"];
        match m.take_any(&rooms) {
            Some("global" | "const") => Room::Global,
            Some("shared" | "shared::cta" | "shared::cluster") => Room::Shared,
            Some("local") => Room::Local,
            Some(_) => Room::Param,
            None => Room::Generic,
        }
    }

    /// Elements a lane, how wide, and the class that counts them.
    fn access(m: &mut Mnemonic<'_>) -> Decoded<(Access, Class, T)> {
        let room = Self::room(m);
        let count = match m.take_any(&["v2", "v4"]) {
            Some("v2") => 2,
            Some(_) => 4,
            None => 1,
        };
        let ty = m.scalar().ok_or("expected a type")?;
        let file = File::of(ty).filter(|file| *file != File::Predicate);
        let file = file.ok_or_else(|| format!("unsupported: access of type .{}", ty.name()))?;
        let bytes = ty.bytes() as u8;
        if bytes * count > 16 {
            return Err("unsupported: an access of more than 16 bytes a thread".to_owned());
        }
        let signed = matches!(ty, T::S8 | T::S16 | T::S32);
        let long_data = file == File::Long;
        let class = match room {
            Room::Shared => Class::Shared,
            Room::Local | Room::Param | Room::ParamAt => Class::Local,
            Room::Global | Room::Generic => Class::Global,
        };
        Ok((Access { room, bytes, count, signed, long: false, long_data }, class, ty))
    }

    fn load(&mut self, m: &mut Mnemonic<'_>, operands: &[Operand<'a>]) -> Decoded {
        let (mut access, class, ty) = Self::access(m)?;
        let [to, Operand::Address(from)] = exactly(operands)? else {
            return Err("expected a register and an address".to_owned());
        };
        let mut slots = Slots::default();
        let offset = self.address(&mut access, from, &mut slots)?;
        let parts = elements(to, access.count)?;
        for part in parts {
            let file = if access.long_data { File::Long } else { File::Word };
            let slot = match part {
                // Registers may be wider than what is loaded into them.
                Operand::Name(name) => match self.names.register(name)? {
                    Some((File::Long, slot)) if ty.bytes() < 8 => {
                        access.long_data = true;
                        slot
                    }
                    _ => self.register(name, file)?,
                },
                other => self.target(other, file)?,
            };
            slots.push(slot)?;
        }
        self.push_with(Op::Load(access), class, slots).imm = offset;
        Ok(())
    }

    fn store(&mut self, m: &mut Mnemonic<'_>, operands: &[Operand<'a>]) -> Decoded {
        let (mut access, class, ty) = Self::access(m)?;
        let [Operand::Address(to), from] = exactly(operands)? else {
            return Err("expected an address and a register".to_owned());
        };
        let mut slots = Slots::default();
        let offset = self.address(&mut access, to, &mut slots)?;
        if matches!(access.room, Room::Param | Room::ParamAt) {
            return Err("unsupported: writing a kernel's parameters".to_owned());
        }
        let parts = elements(from, access.count)?;
        // Registers may be wider than what is stored of them.
        if let [Operand::Name(name), ..] = parts
            && let Some((File::Long, _)) = self.names.register(name)?
        {
            access.long_data = true;
        }
        for part in parts {
            let ty = if access.long_data { T::B64 } else { ty };
            slots.push(self.source(part, ty)?)?;
        }
        self.push_with(Op::Store(access), class, slots).imm = offset;
        Ok(())
    }

    /// Pushes the base of an address; gives its offset.
    fn address(
        &mut self,
        access: &mut Access,
        address: &Address<'a>,
        slots: &mut Slots,
    ) -> Decoded<i64> {
        if access.room == Room::Param {
            let name = address.base.ok_or("expected a parameter")?;
            if self.names.register(name)?.is_some() {
                let (base, long) = self.base(address)?;
                (access.room, access.long) = (Room::ParamAt, long);
                slots.push(base)?;
                return Ok(address.offset);
            }
            let bytes = i64::from(access.bytes) * i64::from(access.count);
            if let Some(Place::Argument(at, size)) = self.names.find_variable(name)? {
                let end = address.offset.checked_add(bytes);
                if address.offset < 0 || end.is_none_or(|end| end > size as i64) {
                    return Err(format!("outside the parameter '{name}'"));
                }
                access.room = Room::Local;
                access.long = true;
                let base = self.long_constant(at)?;
                slots.push(base)?;
                return Ok(address.offset);
            }
            let at = self.params.get(name).copied();
            let at = at.ok_or_else(|| format!("'{name}' is no parameter"))?;
            let offset = i64::try_from(at).map_err(|_| "offset")? + address.offset;
            if offset < 0 || offset + bytes > self.param_bytes as i64 {
                return Err("outside the kernel's parameters".to_owned());
            }
            slots.push(0)?;
            return Ok(offset);
        }
        if let Some(name) = address.base
            && self.names.register(name)?.is_none()
        {
            let place = self
                .names
                .find_variable(name)?
                .ok_or_else(|| format!("'{name}' is not declared"))?;
            let fits = match place {
                Place::Shared(_) | Place::DynamicShared => access.room == Room::Shared,
                Place::Local(_) => access.room == Room::Local,
                Place::Argument(..) => false,
                Place::Global(_) => matches!(access.room, Room::Global | Room::Generic),
            };
            if !fits {
                return Err(format!("'{name}' is not in this state space"));
            }
        }
        let (base, long) = self.base(address)?;
        access.long = long;
        slots.push(base)?;
        Ok(address.offset)
    }

    fn atomic(&mut self, m: &mut Mnemonic<'_>, operands: &[Operand<'a>]) -> Decoded {
        let room = Self::room(m);
        m.take("noftz");
        let name = m
            .take_any(&["add", "min", "max", "and", "or", "xor", "exch", "cas", "inc", "dec"])
            .ok_or("expected an operation such as .add")?;
        let ty = m.scalar().ok_or("expected a type")?;
        let update =
            update(name, ty).ok_or_else(|| format!("unsupported: .{name} of .{}", ty.name()))?;
        let result = usize::from(m.base == "atom");
        let sources = 1 + usize::from(update == Update::CompareSwap);
        if operands.len() != result + 1 + sources {
            return Err(format!("expected {} operands", result + 1 + sources));
        }
        let Operand::Address(address) = &operands[result] else {
            return Err("expected an address".to_owned());
        };
        let file = File::of(ty).ok_or("unsupported type")?;
        let mut slots = Slots::default();
        let to = if result == 1 { &operands[0] } else { &Operand::Sink };
        slots.push(self.target(to, file)?)?;
        let mut access =
            Access { room, bytes: 4, count: 1, signed: false, long: false, long_data: false };
        let offset = self.address(&mut access, address, &mut slots)?;
        for operand in &operands[result + 1..] {
            slots.push(self.source(operand, ty)?)?;
        }
        let op = Op::Atomic(Atomic { room, update, wide: ty.bytes() == 8, long: access.long });
        self.push_with(op, Class::Atomic, slots).imm = offset;
        Ok(())
    }

    /// `cp.async`: shared address `o[0]`, global address `o[1]`, bytes of the source `o[2]`.
    fn copy_async(&mut self, m: &mut Mnemonic<'_>, operands: &[Operand<'a>]) -> Decoded {
        if !m.take("async") {
            return Err("unsupported".to_owned());
        }
        if m.take("bulk") {
            return self.bulk(m, operands);
        }
        if m.take("mbarrier") {
            return self.copies_arrive(m, operands);
        }
        if m.take("commit_group") {
            self.push(Op::AsyncCommit, Class::AsyncCopy);
            return Ok(());
        }
        if m.take("wait_all") {
            self.push(Op::AsyncWait, Class::AsyncCopy).imm = -1;
            return Ok(());
        }
        if m.take("wait_group") {
            let [Operand::Int(groups)] = operands else {
                return Err("expected a constant number of groups".to_owned());
            };
            let groups = i64::try_from(*groups).map_err(|_| "expected a number of groups")?;
            self.push(Op::AsyncWait, Class::AsyncCopy).imm = groups;
            return Ok(());
        }
        for part in ["ca", "cg", "shared", "shared::cta", "global"] {
            m.take(part);
        }
        let [Operand::Address(to), Operand::Address(from), Operand::Int(bytes), rest @ ..] =
            operands
        else {
            return Err("expected two addresses and a constant size".to_owned());
        };
        let bytes = u8::try_from(*bytes).ok().filter(|bytes| [4, 8, 16].contains(bytes));
        let bytes = bytes.ok_or("expected a size of 4, 8 or 16")?;
        self.copy_async_at(bytes, to, from, rest)
    }

    fn copy_async_at(
        &mut self,
        bytes: u8,
        to: &Address<'a>,
        from: &Address<'a>,
        rest: &[Operand<'a>],
    ) -> Decoded {
        let (shared, long) = self.base(to)?;
        let shared = if long { self.narrowed(shared)? } else { shared };
        let (global, long) = self.base(from)?;
        if !long {
            return Err("expected a 64-bit global address".to_owned());
        }
        let size = match rest {
            [] => self.word_constant(u32::from(bytes))?,
            [size] => self.word(size, T::U32)?,
            _ => return Err("unsupported: a cache policy".to_owned()),
        };
        let mut slots = Slots::default();
        for slot in [shared, global, size] {
            slots.push(slot)?;
        }
        let offset = |value: i64| i32::try_from(value).map_err(|_| "an offset beyond 32 bits");
        let (to, from) = (offset(to.offset)?, offset(from.offset)?);
        let imm = i64::from(from) << 32 | i64::from(to.cast_unsigned());
        self.push_with(Op::AsyncCopy(bytes), Class::AsyncCopy, slots).imm = imm;
        Ok(())
    }

    /// A 32-bit copy of a 64-bit register.
    pub(super) fn narrowed(&mut self, long: u16) -> Decoded<u16> {
        let slot = self.names.slot(File::Word)?;
        let mut slots = Slots::default();
        slots.push(long)?;
        slots.push(slot)?;
        slots.push(self.names.slot(File::Word)?)?;
        self.push_with(Op::Move(Move::Unpack32x2), Class::Move, slots);
        Ok(slot)
    }

    /// `ldmatrix`: address `o[0]`, results from `o[1]`.
    fn load_matrix(&mut self, m: &mut Mnemonic<'_>, operands: &[Operand<'a>]) -> Decoded {
        for part in ["sync", "aligned", "m8n8", "shared", "shared::cta", "b16"] {
            m.take(part);
        }
        let transposed = m.take("trans");
        let count = match m.take_any(&["x1", "x2", "x4"]) {
            Some("x1") => 1,
            Some("x2") => 2,
            Some(_) => 4,
            None => return Err("expected .x1, .x2 or .x4".to_owned()),
        };
        let [to, Operand::Address(from)] = exactly(operands)? else {
            return Err("expected registers and an address".to_owned());
        };
        let (base, long) = self.base(from)?;
        let base = if long { self.narrowed(base)? } else { base };
        let mut slots = Slots::default();
        slots.push(base)?;
        for part in elements(to, count)? {
            slots.push(self.target(part, File::Word)?)?;
        }
        let ins = self.push_with(Op::LoadMatrix { count, transposed }, Class::Shared, slots);
        ins.imm = from.offset;
        ins.together = Together::Warp;
        Ok(())
    }

    /// `cvta`: between an address of a space and a generic one.
    fn window(&mut self, m: &mut Mnemonic<'_>, operands: &[Operand<'a>]) -> Decoded {
        let to_space = m.take("to");
        let window = match m.take_any(&["global", "shared", "local", "const", "param"]) {
            Some("global" | "const") => 0,
            Some("shared") => SHARED_WINDOW,
            Some("param") => PARAM_WINDOW,
            Some(_) => LOCAL_WINDOW,
            None => return Err("unsupported: this state space".to_owned()),
        };
        if !m.take("u64") {
            return Err("unsupported: only .u64 is".to_owned());
        }
        let [to, from] = exactly(operands)?;
        let mut slots = Slots::default();
        slots.push(self.target(to, File::Long)?)?;
        slots.push(self.long(from, T::U64)?)?;
        let window = window.cast_signed();
        let imm = if to_space { -window } else { window };
        self.push_with(Op::Move(Move::Window), Class::Move, slots).imm = imm;
        Ok(())
    }
}

/// The elements of a vector operand of `count`, or the one operand.
fn elements<'o, 'a>(operand: &'o Operand<'a>, count: u8) -> Decoded<&'o [Operand<'a>]> {
    let parts = match operand {
        Operand::Vector(parts) => &parts[..],
        one => std::slice::from_ref(one),
    };
    if parts.len() != usize::from(count) {
        return Err(format!("expected {count} registers, found {}", parts.len()));
    }
    Ok(parts)
}

fn update(name: &str, ty: T) -> Option<Update> {
    let signed = matches!(ty, T::S32 | T::S64);
    let whole = matches!(ty, T::B32 | T::U32 | T::S32 | T::B64 | T::U64 | T::S64);
    Some(match (name, ty) {
        ("add", T::F32) => Update::AddF32,
        ("add", T::F64) => Update::AddF64,
        ("add", T::F16x2) => Update::AddHalf(HalfKind::F16),
        ("add", T::Bf16x2) => Update::AddHalf(HalfKind::Bf16),
        _ if !whole => return None,
        ("add", _) => Update::Add,
        ("min", _) if signed => Update::MinS,
        ("min", _) => Update::MinU,
        ("max", _) if signed => Update::MaxS,
        ("max", _) => Update::MaxU,
        ("and", _) => Update::And,
        ("or", _) => Update::Or,
        ("xor", _) => Update::Xor,
        ("exch", _) => Update::Exchange,
        ("cas", _) => Update::CompareSwap,
        ("inc", _) => Update::Increment,
        ("dec", _) => Update::Decrement,
        _ => return None,
    })
}
