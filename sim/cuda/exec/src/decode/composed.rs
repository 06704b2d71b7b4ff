//! Instructions that are several others in a row: sums with carry, selections by sign or bit, jumps by a table.

use super::mnemonic::Mnemonic;
use super::scope::File;
use super::{Decoded, Decoder, Slots, exactly};
use crate::program::{
    Bits, Class, Compare, Flow, Int, Kind, Lanes, Logic, Move, Op, Slot, Test, Together, Width,
};
use halyard_sim_cuda_ptx::{Operand, ScalarType};

use ScalarType as T;

impl<'a> Decoder<'a, '_> {
    /// A fresh register of `file` that `op` writes, from `sources`.
    fn value(&mut self, (op, file): (Op, File), sources: &[Slot]) -> Decoded<Slot> {
        let to = self.names.slot(file)?;
        self.compute(op, to, sources)?;
        Ok(to)
    }

    fn compute(&mut self, op: Op, to: Slot, sources: &[Slot]) -> Decoded {
        let mut slots = Slots::default();
        slots.push(to)?;
        for source in sources {
            slots.push(*source)?;
        }
        self.push_with(op, Class::Integer, slots);
        Ok(())
    }

    /// Whether `a` is below `b`, which have no sign.
    fn below(&mut self, wide: bool, a: Slot, b: Slot) -> Decoded<Slot> {
        let kind = if wide { Kind::U64 } else { Kind::U32 };
        let op = Op::Compare(Compare { kind, test: Test::Lt, with: None });
        let complement = self.names.slot(File::Predicate)?;
        self.value((op, File::Predicate), &[complement, a, b])
    }

    /// `add`, `sub` and `mad` with `.cc`, which keep the carry, and `addc`, `subc` and `madc`, which add it.
    ///
    /// A difference is a sum with the complement: its carry is set where nothing was borrowed. The manual says that `sub.cc` keeps the
    /// borrow, which `subc` alone can't tell apart; NVRTC's divisions take the carry of a difference by `addc`.
    pub(super) fn carry(&mut self, m: &mut Mnemonic<'_>, operands: &[Operand<'a>]) -> Decoded {
        let keeps = m.take("cc");
        let (base, adds) = match m.base {
            "addc" | "subc" | "madc" => (&m.base[..3], true),
            base => (base, false),
        };
        let high = m.take_any(&["lo", "hi"]) == Some("hi");
        let ty = m.scalar().ok_or("expected a type")?;
        let wide = match ty {
            T::U32 | T::S32 => false,
            T::U64 | T::S64 => true,
            _ => return Err(format!("unsupported: {} with carry of type .{}", base, ty.name())),
        };
        let (width, file) = if wide { (Width::W64, File::Long) } else { (Width::W32, File::Word) };
        let int = |op| (Op::Int(op, width), file);
        let target = operands.first().ok_or("expected operands")?;
        let mut sources = Vec::new();
        for operand in &operands[1..] {
            sources.push(self.source(operand, ty)?);
        }
        let (first, second) = match (base, &sources[..]) {
            ("mad", [a, b, c]) => {
                let product = match (high, matches!(ty, T::S32 | T::S64)) {
                    (false, _) => Int::Mul,
                    (true, true) => Int::MulHiS,
                    (true, false) => Int::MulHiU,
                };
                (self.value(int(product), &[*a, *b])?, *c)
            }
            ("add" | "sub", [a, b]) => (*a, *b),
            _ => return Err("expected two sources, or three of mad".to_owned()),
        };
        let minus = base == "sub";
        let op = if minus { Int::Sub } else { Int::Add };
        let mut sum = self.value(int(op), &[first, second])?;
        let mut over = match minus {
            true => self.below(wide, first, second)?,
            false => self.below(wide, sum, first)?,
        };
        let flag = self.carry_flag()?;
        if adds {
            let (one, none) = (self.constant(1, wide)?, self.constant(0, wide)?);
            let (set, clear) = if minus { (none, one) } else { (one, none) };
            let by = self.value((Op::Select(width), file), &[set, clear, flag])?;
            let more = self.value(int(op), &[sum, by])?;
            let again = match minus {
                true => self.below(wide, sum, by)?,
                false => self.below(wide, more, sum)?,
            };
            over = self.value((Op::Logic(Logic::Or), File::Predicate), &[over, again])?;
            sum = more;
        }
        if keeps {
            let op = if minus { Op::Logic(Logic::Not) } else { Op::Move(Move::Predicate) };
            self.compute(op, flag, &[over])?;
        }
        let to = self.target(target, file)?;
        self.compute(Op::Move(if wide { Move::Long } else { Move::Word }), to, &[sum])
    }

    /// Where the carry is.
    fn carry_flag(&mut self) -> Decoded<Slot> {
        if let Some(slot) = self.carry {
            return Ok(slot);
        }
        let slot = self.names.slot(File::Predicate)?;
        self.carry = Some(slot);
        Ok(slot)
    }

    fn constant(&mut self, value: u32, wide: bool) -> Decoded<Slot> {
        if wide { self.long_constant(u64::from(value)) } else { self.word_constant(value) }
    }

    /// `copysign`: the size of the second source with the sign of the first.
    pub(super) fn copy_sign(&mut self, m: &mut Mnemonic<'_>, operands: &[Operand<'a>]) -> Decoded {
        let [to, sign, size] = exactly(operands)?;
        match m.scalar() {
            Some(T::F32) => {
                let sources = [self.word(sign, T::F32)?, self.word(size, T::F32)?];
                let mask = self.word_constant(1 << 31)?;
                let to = self.target(to, File::Word)?;
                // The first where the mask is set, else the second.
                self.compute(Op::Bits(Bits::Lop3(0xe4)), to, &[sources[0], sources[1], mask])
            }
            Some(T::F64) => {
                let (sign, size) = (self.long(sign, T::F64)?, self.long(size, T::F64)?);
                let (high, low) = (self.long_constant(1 << 63)?, self.long_constant(!(1 << 63))?);
                let and = (Op::Int(Int::And, Width::W64), File::Long);
                let sign = self.value(and, &[sign, high])?;
                let size = self.value(and, &[size, low])?;
                let to = self.target(to, File::Long)?;
                self.compute(Op::Int(Int::Or, Width::W64), to, &[sign, size])
            }
            _ => Err("expected .f32 or .f64".to_owned()),
        }
    }

    /// `bmsk`: so many ones from a position on. Distances beyond 31 clear or, wrapped, count modulo 32.
    pub(super) fn bit_mask(&mut self, m: &mut Mnemonic<'_>, operands: &[Operand<'a>]) -> Decoded {
        let clamp = match m.take_any(&["clamp", "wrap"]) {
            Some(mode) => mode == "clamp",
            None => return Err("expected .clamp or .wrap".to_owned()),
        };
        m.take("b32");
        let [to, from, count] = exactly(operands)?;
        let (mut from, mut count) = (self.word(from, T::B32)?, self.word(count, T::B32)?);
        let int = |op| (Op::Int(op, Width::W32), File::Word);
        if !clamp {
            let most = self.word_constant(31)?;
            from = self.value(int(Int::And), &[from, most])?;
            count = self.value(int(Int::And), &[count, most])?;
        }
        let one = self.word_constant(1)?;
        let above = self.value(int(Int::Shl), &[one, count])?;
        let ones = self.value(int(Int::Sub), &[above, one])?;
        let to = self.target(to, File::Word)?;
        self.compute(Op::Int(Int::Shl, Width::W32), to, &[ones, from])
    }

    /// `set`: a comparison whose result is all ones, or 1.0, where it holds.
    pub(super) fn set(&mut self, m: &mut Mnemonic<'_>, operands: &[Operand<'a>]) -> Decoded {
        let (test, flush) = (self.test(m)?, m.take("ftz"));
        let yes = match m.scalar() {
            Some(T::F32) => 1f32.to_bits(),
            Some(T::U32 | T::S32) => u32::MAX,
            _ => return Err("unsupported: only results of .u32, .s32 and .f32 are".to_owned()),
        };
        let ty = m.scalar().ok_or("expected the type of the sources")?;
        let kind = kind(ty).filter(|_| !flush || ty == T::F32);
        let kind = kind.ok_or_else(|| format!("unsupported: comparison of .{}", ty.name()))?;
        let [to, a, b] = exactly(operands)?;
        let sources = [self.source(a, ty)?, self.source(b, ty)?];
        let complement = self.names.slot(File::Predicate)?;
        let op = Op::Compare(Compare { kind, test, with: None });
        let holds = self.value((op, File::Predicate), &[complement, sources[0], sources[1]])?;
        let (yes, no) = (self.word_constant(yes)?, self.word_constant(0)?);
        let to = self.target(to, File::Word)?;
        self.compute(Op::Select(Width::W32), to, &[yes, no, holds])
    }

    /// `match` of 64-bit values: the lanes that match in both halves.
    pub(super) fn match_long(
        &mut self,
        op: Lanes,
        [to, all, value, mask]: [&Operand<'a>; 4],
    ) -> Decoded {
        let value = self.long(value, T::B64)?;
        let mask = self.word(mask, T::B32)?;
        let (low, high) = (self.names.slot(File::Word)?, self.names.slot(File::Word)?);
        self.compute(Op::Move(Move::Unpack32x2), value, &[low, high])?;
        let mut matches = Vec::new();
        for half in [low, high] {
            let every = self.names.slot(File::Predicate)?;
            let lanes = self.value((Op::Lanes(op), File::Word), &[every, half])?;
            if let Some(last) = self.code.last_mut() {
                (last.together, last.class) = (Together::Mask(mask), Class::Lanes);
            }
            matches.push((lanes, every));
        }
        let [(low, all_low), (high, all_high)] = matches[..] else { return Ok(()) };
        let to = self.target(to, File::Word)?;
        self.compute(Op::Int(Int::And, Width::W32), to, &[low, high])?;
        let all = self.target(all, File::Predicate)?;
        self.compute(Op::Logic(Logic::And), all, &[all_low, all_high])
    }

    /// `brx.idx`: to the label of its list that the register counts off.
    pub(super) fn branch_by_index(
        &mut self,
        m: &mut Mnemonic<'_>,
        operands: &[Operand<'a>],
    ) -> Decoded {
        m.take("idx");
        m.take("uni");
        let [index, Operand::Name(list)] = exactly(operands)? else {
            return Err("expected a register and a list of labels".to_owned());
        };
        let index = self.word(index, T::U32)?;
        let labels = self.names.targets(list).ok_or_else(|| format!("'{list}' is no list"))?;
        let op = Op::Compare(Compare { kind: Kind::U32, test: Test::Eq, with: None });
        for (at, label) in labels.into_iter().enumerate() {
            let place = self.word_constant(u32::try_from(at).map_err(|_| "too many labels")?)?;
            let complement = self.names.slot(File::Predicate)?;
            let holds = self.value((op, File::Predicate), &[complement, index, place])?;
            self.branch_to(label);
            if let Some(last) = self.code.last_mut() {
                last.guard = Some((holds, true));
            }
        }
        self.push(Op::Flow(Flow::Trap), Class::Control);
        Ok(())
    }
}

/// How values of `ty` are compared.
pub(super) fn kind(ty: T) -> Option<Kind> {
    Some(match ty {
        T::S16 => Kind::S16,
        T::U16 | T::B16 => Kind::U16,
        T::S32 => Kind::S32,
        T::U32 | T::B32 => Kind::U32,
        T::S64 => Kind::S64,
        T::U64 | T::B64 => Kind::U64,
        T::F32 => Kind::F32,
        T::F64 => Kind::F64,
        T::F16 => Kind::F16,
        T::Bf16 => Kind::Bf16,
        _ => return None,
    })
}
