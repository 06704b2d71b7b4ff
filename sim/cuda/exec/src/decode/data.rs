//! Moves, conversions, comparisons, selection.

use super::composed::kind;
use super::mnemonic::Mnemonic;
use super::scope::File;
use super::{Decoded, Decoder, Slots, exactly};
use crate::program::{Bits, Class, Compare, Convert, Logic, Move, Op, Round, Test, Width};
use halyard_sim_cuda_ptx::{Operand, ScalarType};

use ScalarType as T;

impl<'a> Decoder<'a, '_> {
    pub(super) fn data(&mut self, m: &mut Mnemonic<'_>, operands: &[Operand<'a>]) -> Decoded {
        match m.base {
            "mov" => self.mov(m, operands),
            "cvt" => self.convert(m, operands),
            "setp" => self.compare(m, operands),
            "selp" => self.select(m, operands),
            _ => self.permute(m, operands),
        }
    }

    fn mov(&mut self, m: &mut Mnemonic<'_>, operands: &[Operand<'a>]) -> Decoded {
        let ty = m.scalar().ok_or("expected a type")?;
        let [to, from] = exactly(operands)?;
        match (to, from) {
            (_, Operand::Vector(parts)) => self.pack(to, parts, ty),
            (Operand::Vector(parts), _) => self.unpack(parts, from, ty),
            (to, Operand::Name("%clock" | "%globaltimer_lo")) if ty.bytes() == 4 => {
                self.clock(to, Width::W32)
            }
            (to, Operand::Name("%clock64" | "%globaltimer")) => self.clock(to, Width::W64),
            _ => {
                let file = File::of(ty).ok_or("unsupported type")?;
                let mut slots = Slots::default();
                slots.push(self.target(to, file)?)?;
                slots.push(self.source(from, ty)?)?;
                let op = match file {
                    File::Word => Move::Word,
                    File::Long => Move::Long,
                    File::Predicate => Move::Predicate,
                };
                self.push_with(Op::Move(op), Class::Move, slots);
                Ok(())
            }
        }
    }

    /// Time is what was executed so far.
    fn clock(&mut self, to: &Operand<'a>, width: Width) -> Decoded {
        let file = if width == Width::W64 { File::Long } else { File::Word };
        let mut slots = Slots::default();
        slots.push(self.target(to, file)?)?;
        self.push_with(Op::Clock(width), Class::Move, slots);
        Ok(())
    }

    fn pack(&mut self, to: &Operand<'a>, parts: &[Operand<'a>], ty: T) -> Decoded {
        let (op, part) = match (ty.bytes(), parts.len()) {
            (4, 2) => (Move::Pack16x2, T::B16),
            (8, 2) => (Move::Pack32x2, T::B32),
            (8, 4) => (Move::Pack16x4, T::B16),
            _ => return Err("unsupported: packing so many elements".to_owned()),
        };
        let mut slots = Slots::default();
        slots.push(self.target(to, File::of(ty).ok_or("unsupported type")?)?)?;
        for operand in parts {
            slots.push(self.word(operand, part)?)?;
        }
        self.push_with(Op::Move(op), Class::Move, slots);
        Ok(())
    }

    fn unpack(&mut self, parts: &[Operand<'a>], from: &Operand<'a>, ty: T) -> Decoded {
        let op = match (ty.bytes(), parts.len()) {
            (4, 2) => Move::Unpack16x2,
            (8, 2) => Move::Unpack32x2,
            (8, 4) => Move::Unpack16x4,
            _ => return Err("unsupported: unpacking so many elements".to_owned()),
        };
        let mut slots = Slots::default();
        slots.push(self.source(from, ty)?)?;
        for operand in parts {
            slots.push(self.target(operand, File::Word)?)?;
        }
        self.push_with(Op::Move(op), Class::Move, slots);
        Ok(())
    }

    fn convert(&mut self, m: &mut Mnemonic<'_>, operands: &[Operand<'a>]) -> Decoded {
        // Subnormals are kept: flushing would only matter for f32, whose fast paths do not see the difference.
        m.take("ftz");
        let rounding = m.take_any(&["rni", "rzi", "rmi", "rpi", "rn", "rz", "rm", "rp", "rna"]);
        let saturate = m.take("sat") | m.take("satfinite");
        let relu = m.take("relu");
        let to = m.scalar().ok_or("expected the type of the result")?;
        let from = m.scalar().ok_or("expected the type of the source")?;
        let round = match rounding {
            Some("rzi" | "rz") => Round::Zero,
            Some("rmi" | "rm") => Round::Down,
            Some("rpi" | "rp") => Round::Up,
            _ => Round::Nearest,
        };
        let whole = rounding.is_some_and(|name| name.len() == 3 && name.ends_with('i'));
        let convert = Convert { to, from, round, whole, saturate, relu };
        supported(convert)?;
        let pair = matches!(to, T::F16x2 | T::Bf16x2 | T::E4m3x2 | T::E5m2x2) && from == T::F32;
        let mut slots = Slots::default();
        if operands.len() != 2 + usize::from(pair) {
            return Err(format!(
                "expected {} operands, found {}",
                2 + usize::from(pair),
                operands.len()
            ));
        }
        let wider = self.is_long(&operands[0])? && File::of(to) == Some(File::Word);
        let file = File::of(to).ok_or("unsupported type")?;
        let target = if wider { self.names.slot(file)? } else { self.target(&operands[0], file)? };
        slots.push(target)?;
        for operand in &operands[1..] {
            // Of a register that is wider than the type, the low bits count.
            let source = if File::of(from) == Some(File::Word) && self.is_long(operand)? {
                let long = self.source(operand, T::B64)?;
                self.narrowed(long)?
            } else {
                self.source(operand, from)?
            };
            slots.push(source)?;
        }
        self.push_with(Op::Convert(convert), Class::Convert, slots);
        if wider {
            self.widen(&operands[0], (target, to))?;
        }
        Ok(())
    }

    fn is_long(&mut self, operand: &Operand<'a>) -> Decoded<bool> {
        let Operand::Name(name) = operand else { return Ok(false) };
        Ok(self.names.register(name)?.is_some_and(|(file, _)| file == File::Long))
    }

    /// A value in a register that is wider than its type: the sign fills it, or zeros.
    fn widen(&mut self, to: &Operand<'a>, (value, ty): (u16, T)) -> Decoded {
        let (to_ty, from) =
            if matches!(ty, T::S8 | T::S16 | T::S32) { (T::S64, T::S32) } else { (T::U64, T::U32) };
        let (round, whole, saturate, relu) = (Round::Nearest, false, false, false);
        let mut slots = Slots::default();
        slots.push(self.target(to, File::Long)?)?;
        slots.push(value)?;
        let widening = Convert { to: to_ty, from, round, whole, saturate, relu };
        self.push_with(Op::Convert(widening), Class::Convert, slots);
        Ok(())
    }

    fn compare(&mut self, m: &mut Mnemonic<'_>, operands: &[Operand<'a>]) -> Decoded {
        let test = self.test(m)?;
        m.take("ftz");
        let with = match m.take_any(&["and", "or", "xor"]) {
            Some("and") => Some(Logic::And),
            Some("or") => Some(Logic::Or),
            Some(_) => Some(Logic::Xor),
            None => None,
        };
        let ty = m.scalar().ok_or("expected a type")?;
        let kind = kind(ty);
        let kind = kind.ok_or_else(|| format!("unsupported: comparison of .{}", ty.name()))?;
        if operands.len() != 3 + usize::from(with.is_some()) {
            return Err("expected a result, two sources and, with a logic operation, a predicate"
                .to_owned());
        }
        let mut slots = Slots::default();
        let (first, second) = match &operands[0] {
            Operand::Pair(first, second) => (&**first, &**second),
            first => (first, &Operand::Sink),
        };
        slots.push(self.target(first, File::Predicate)?)?;
        slots.push(self.target(second, File::Predicate)?)?;
        slots.push(self.source(&operands[1], ty)?)?;
        slots.push(self.source(&operands[2], ty)?)?;
        let mut negated = false;
        if let Some(operand) = operands.get(3) {
            let predicate = match operand {
                Operand::Not(name) => {
                    negated = true;
                    &Operand::Name(name)
                }
                other => other,
            };
            slots.push(self.predicate(predicate)?)?;
        }
        let op = Op::Compare(Compare { kind, test, with });
        self.push_with(op, Class::Integer, slots).imm = i64::from(negated);
        Ok(())
    }

    /// Takes the comparison away.
    pub(super) fn test(&self, m: &mut Mnemonic<'_>) -> Decoded<Test> {
        let names = [
            ("eq", Test::Eq),
            ("ne", Test::Ne),
            ("lt", Test::Lt),
            ("le", Test::Le),
            ("gt", Test::Gt),
            ("ge", Test::Ge),
            ("lo", Test::Lt),
            ("ls", Test::Le),
            ("hi", Test::Gt),
            ("hs", Test::Ge),
            ("equ", Test::Equ),
            ("neu", Test::Neu),
            ("ltu", Test::Ltu),
            ("leu", Test::Leu),
            ("gtu", Test::Gtu),
            ("geu", Test::Geu),
            ("num", Test::Num),
            ("nan", Test::Nan),
        ];
        let test = names.iter().find(|(name, _)| m.take(name)).map(|(_, test)| *test);
        Ok(test.ok_or("expected a comparison such as .lt")?)
    }

    fn select(&mut self, m: &mut Mnemonic<'_>, operands: &[Operand<'a>]) -> Decoded {
        let ty = m.scalar().ok_or("expected a type")?;
        let [to, yes, no, predicate] = exactly(operands)?;
        let file =
            File::of(ty).filter(|file| *file != File::Predicate).ok_or("unsupported type")?;
        let mut slots = Slots::default();
        slots.push(self.target(to, file)?)?;
        slots.push(self.source(yes, ty)?)?;
        slots.push(self.source(no, ty)?)?;
        slots.push(self.predicate(predicate)?)?;
        let width = if file == File::Long { Width::W64 } else { Width::W32 };
        self.push_with(Op::Select(width), Class::Move, slots);
        Ok(())
    }

    fn permute(&mut self, m: &mut Mnemonic<'_>, operands: &[Operand<'a>]) -> Decoded {
        m.take("b32");
        let [to, sources @ ..] = exactly::<4>(operands)?;
        let mut slots = Slots::default();
        slots.push(self.target(to, File::Word)?)?;
        for operand in sources {
            slots.push(self.word(operand, T::B32)?)?;
        }
        self.push_with(Op::Bits(Bits::Permute), Class::Integer, slots);
        Ok(())
    }
}

/// Whether the executor has `convert`.
fn supported(convert: Convert) -> Decoded {
    let Convert { to, from, .. } = convert;
    let packed = |ty| matches!(ty, T::F16x2 | T::Bf16x2 | T::E4m3x2 | T::E5m2x2);
    let scalar =
        |ty: T| !packed(ty) && !matches!(ty, T::Pred | T::B128 | T::Tf32 | T::E4m3 | T::E5m2);
    let fine = match (to, from) {
        (T::F16x2, T::E4m3x2 | T::E5m2x2) | (T::E4m3x2 | T::E5m2x2, T::F16x2) => true,
        (to, T::F32) if packed(to) => convert.round != Round::Down && convert.round != Round::Up,
        (T::Tf32, T::F32) => true,
        (to, from) => scalar(to) && scalar(from),
    };
    if fine { Ok(()) } else { Err(format!("unsupported: .{} from .{}", to.name(), from.name())) }
}
