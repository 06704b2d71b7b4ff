//! Integers, bits, floats and packed halves.

use super::mnemonic::Mnemonic;
use super::scope::File;
use super::{Decoded, Decoder, Slots, exactly};
use crate::program::{
    Bits, Class, F32, F64, Half, HalfKind, Int, Logic, Mode, Op, Round, Wide, Width,
};
use halyard_sim_cuda_ptx::{Operand, ScalarType};

use ScalarType as T;

/// Width and signedness of an integer type.
fn integer(ty: T) -> Option<(Width, bool)> {
    Some(match ty {
        T::B16 | T::U16 => (Width::W16, false),
        T::S16 => (Width::W16, true),
        T::B32 | T::U32 => (Width::W32, false),
        T::S32 => (Width::W32, true),
        T::B64 | T::U64 => (Width::W64, false),
        T::S64 => (Width::W64, true),
        _ => return None,
    })
}

/// The type as which a register of `width` is read.
fn bits(width: Width) -> T {
    match width {
        Width::W16 => T::B16,
        Width::W32 => T::B32,
        Width::W64 => T::B64,
    }
}

/// `a` for signed types, `b` for others.
fn signed<O>(is: bool, a: O, b: O) -> O {
    if is { a } else { b }
}

impl<'a> Decoder<'a, '_> {
    pub(super) fn arithmetic(&mut self, m: &mut Mnemonic<'_>, operands: &[Operand<'a>]) -> Decoded {
        match m.base {
            "addc" | "subc" | "madc" => return self.carry(m, operands),
            "add" | "sub" | "mad" if m.has_any(&["cc"]) => return self.carry(m, operands),
            "copysign" => return self.copy_sign(m, operands),
            "bmsk" => return self.bit_mask(m, operands),
            "set" => return self.set(m, operands),
            "dp4a" => return self.dot4(m, operands),
            "bfind" => return self.bit_find(m, operands),
            "shf" => return self.funnel(m, operands),
            "lop3" | "bfe" | "bfi" | "popc" | "clz" | "brev" => return self.bits(m, operands),
            _ => {}
        }
        let mode = mode(m);
        let product = m.take_any(&["lo", "hi", "wide"]);
        let ty = m.scalar().ok_or("unsupported: an instruction without a known name or type")?;
        match ty {
            T::Pred => self.logic(m, operands),
            T::F32 => self.float(m, operands, mode),
            T::F64 => self.double(m, operands, mode),
            T::F16 | T::F16x2 | T::Bf16 | T::Bf16x2 => self.half(m, operands, ty),
            _ => {
                let (width, sign) = integer(ty).ok_or_else(|| unsupported(m, ty))?;
                match product {
                    Some("wide") => self.wide(m, operands, (width, sign)),
                    _ => self.integer(m, operands, (width, sign), product == Some("hi")),
                }
            }
        }
    }

    /// One result and sources that are all of type `ty`.
    fn uniform(
        &mut self,
        (op, class): (Op, Class),
        operands: &[Operand<'a>],
        ty: T,
        sources: usize,
    ) -> Decoded {
        if operands.len() != sources + 1 {
            return Err(format!("expected {} operands, found {}", sources + 1, operands.len()));
        }
        let file = File::of(ty).ok_or("unsupported type")?;
        let mut slots = Slots::default();
        slots.push(self.target(&operands[0], file)?)?;
        for operand in &operands[1..] {
            slots.push(self.source(operand, ty)?)?;
        }
        self.push_with(op, class, slots);
        Ok(())
    }

    fn integer(
        &mut self,
        m: &Mnemonic<'_>,
        operands: &[Operand<'a>],
        (width, sign): (Width, bool),
        high: bool,
    ) -> Decoded {
        let (op, sources) = match m.base {
            "add" => (Int::Add, 2),
            "sub" => (Int::Sub, 2),
            "mul" if high => (signed(sign, Int::MulHiS, Int::MulHiU), 2),
            "mul" => (Int::Mul, 2),
            "mad" if high => (signed(sign, Int::MadHiS, Int::MadHiU), 3),
            "mad" => (Int::Mad, 3),
            "div" => (signed(sign, Int::DivS, Int::DivU), 2),
            "rem" => (signed(sign, Int::RemS, Int::RemU), 2),
            "min" => (signed(sign, Int::MinS, Int::MinU), 2),
            "max" => (signed(sign, Int::MaxS, Int::MaxU), 2),
            "abs" => (Int::AbsS, 1),
            "neg" => (Int::Neg, 1),
            "and" => (Int::And, 2),
            "or" => (Int::Or, 2),
            "xor" => (Int::Xor, 2),
            "not" => (Int::Not, 1),
            "shl" | "shr" => {
                let op =
                    if m.base == "shl" { Int::Shl } else { signed(sign, Int::ShrS, Int::ShrU) };
                return self.shift(operands, op, width);
            }
            _ => return Err(unsupported(m, bits(width))),
        };
        self.uniform((Op::Int(op, width), Class::Integer), operands, bits(width), sources)
    }

    /// A shift, whose distance is 32 bits wide whatever it shifts.
    fn shift(&mut self, operands: &[Operand<'a>], op: Int, width: Width) -> Decoded {
        let [target, value, distance] = exactly(operands)?;
        let ty = bits(width);
        let mut slots = Slots::default();
        slots.push(self.target(target, File::of(ty).ok_or("unsupported type")?)?)?;
        slots.push(self.source(value, ty)?)?;
        slots.push(self.word(distance, T::U32)?)?;
        self.push_with(Op::Int(op, width), Class::Integer, slots);
        Ok(())
    }

    /// `mul.wide` and `mad.wide`.
    fn wide(
        &mut self,
        m: &Mnemonic<'_>,
        operands: &[Operand<'a>],
        (from, signed): (Width, bool),
    ) -> Decoded {
        let add = match m.base {
            "mul" => false,
            "mad" => true,
            _ => return Err(unsupported(m, bits(from))),
        };
        let (narrow, result) = match from {
            Width::W16 => (T::B16, T::B32),
            Width::W32 => (T::B32, T::B64),
            Width::W64 => return Err(unsupported(m, T::B64)),
        };
        if operands.len() != 3 + usize::from(add) {
            return Err("expected a result, two factors and, for mad, an addend".to_owned());
        }
        let mut slots = Slots::default();
        slots.push(self.target(&operands[0], File::of(result).ok_or("unsupported type")?)?)?;
        slots.push(self.source(&operands[1], narrow)?)?;
        slots.push(self.source(&operands[2], narrow)?)?;
        if add {
            slots.push(self.source(&operands[3], result)?)?;
        }
        self.push_with(Op::Wide(Wide { from, signed, add }), Class::Integer, slots);
        Ok(())
    }

    fn logic(&mut self, m: &Mnemonic<'_>, operands: &[Operand<'a>]) -> Decoded {
        let (op, sources) = match m.base {
            "and" => (Logic::And, 2),
            "or" => (Logic::Or, 2),
            "xor" => (Logic::Xor, 2),
            "not" => (Logic::Not, 1),
            _ => return Err(unsupported(m, T::Pred)),
        };
        self.uniform((Op::Logic(op), Class::Integer), operands, T::Pred, sources)
    }

    fn float(&mut self, m: &mut Mnemonic<'_>, operands: &[Operand<'a>], mode: Mode) -> Decoded {
        let nan = m.take("NaN");
        let (op, sources, class) = match m.base {
            "add" => (F32::Add, 2, Class::Float),
            "sub" => (F32::Sub, 2, Class::Float),
            "mul" => (F32::Mul, 2, Class::Float),
            "fma" | "mad" => (F32::Fma, 3, Class::Float),
            "div" => (F32::Div, 2, Class::Float),
            "min" => (if nan { F32::MinNan } else { F32::Min }, 2, Class::Float),
            "max" => (if nan { F32::MaxNan } else { F32::Max }, 2, Class::Float),
            "neg" => (F32::Neg, 1, Class::Float),
            "abs" => (F32::Abs, 1, Class::Float),
            "ex2" => (F32::Ex2, 1, Class::Special),
            "lg2" => (F32::Lg2, 1, Class::Special),
            "rsqrt" => (F32::Rsqrt, 1, Class::Special),
            "rcp" => (F32::Rcp, 1, Class::Special),
            "sqrt" => (F32::Sqrt, 1, Class::Special),
            "sin" => (F32::Sin, 1, Class::Special),
            "cos" => (F32::Cos, 1, Class::Special),
            "tanh" => (F32::Tanh, 1, Class::Special),
            _ => return Err(unsupported(m, T::F32)),
        };
        let rounds = matches!(op, F32::Add | F32::Sub | F32::Mul | F32::Fma);
        if mode.round != Round::Nearest && !rounds {
            return Err("unsupported: this rounding of this operation".to_owned());
        }
        self.uniform((Op::F32(op, mode), class), operands, T::F32, sources)
    }

    fn double(&mut self, m: &Mnemonic<'_>, operands: &[Operand<'a>], mode: Mode) -> Decoded {
        let (op, sources) = match m.base {
            "add" => (F64::Add, 2),
            "sub" => (F64::Sub, 2),
            "mul" => (F64::Mul, 2),
            "fma" | "mad" => (F64::Fma, 3),
            "div" => (F64::Div, 2),
            "min" => (F64::Min, 2),
            "max" => (F64::Max, 2),
            "neg" => (F64::Neg, 1),
            "abs" => (F64::Abs, 1),
            "sqrt" => (F64::Sqrt, 1),
            "rcp" => (F64::Rcp, 1),
            "rsqrt" => (F64::Rsqrt, 1),
            _ => return Err(unsupported(m, T::F64)),
        };
        if mode.round != Round::Nearest {
            return Err("unsupported: this rounding of this operation".to_owned());
        }
        self.uniform((Op::F64(op), Class::Float), operands, T::F64, sources)
    }

    fn half(&mut self, m: &mut Mnemonic<'_>, operands: &[Operand<'a>], ty: T) -> Decoded {
        let kind = match ty {
            T::F16 | T::F16x2 => HalfKind::F16,
            _ => HalfKind::Bf16,
        };
        let (op, sources) = match m.base {
            "add" => (Half::Add, 2),
            "sub" => (Half::Sub, 2),
            "mul" => (Half::Mul, 2),
            "fma" => (Half::Fma, 3),
            "min" => (Half::Min, 2),
            "max" => (Half::Max, 2),
            "neg" => (Half::Neg, 1),
            "abs" => (Half::Abs, 1),
            _ => return Err(unsupported(m, ty)),
        };
        self.uniform((Op::Half(op, kind), Class::Float), operands, ty, sources)
    }

    fn bits(&mut self, m: &mut Mnemonic<'_>, operands: &[Operand<'a>]) -> Decoded {
        let ty = m.scalar().ok_or("expected a type")?;
        let wide = ty.bytes() == 8;
        let kinds: &[T] = match m.base {
            "popc" | "clz" => &[T::U32, ty],
            "brev" => &[ty, ty],
            "bfe" => &[ty, ty, T::U32, T::U32],
            "bfi" => &[ty, ty, ty, T::U32, T::U32],
            _ => &[T::B32, T::B32, T::B32, T::B32, T::U32],
        };
        if operands.len() != kinds.len() {
            return Err(format!("expected {} operands, found {}", kinds.len(), operands.len()));
        }
        let op = match m.base {
            "popc" => signed(wide, Bits::Popc64, Bits::Popc32),
            "clz" => signed(wide, Bits::Clz64, Bits::Clz32),
            "brev" => signed(wide, Bits::Brev64, Bits::Brev32),
            "bfe" if wide => Bits::Extract64 { signed: ty == T::S64 },
            "bfe" => signed(ty == T::S32, Bits::ExtractS, Bits::ExtractU),
            "bfi" => signed(wide, Bits::Insert64, Bits::Insert32),
            _ => match operands[4] {
                Operand::Int(table) => Bits::Lop3(table as u8),
                _ => return Err("expected a constant truth table".to_owned()),
            },
        };
        let mut slots = Slots::default();
        slots.push(self.target(&operands[0], File::of(kinds[0]).ok_or("unsupported type")?)?)?;
        for (operand, kind) in operands.iter().zip(kinds).skip(1) {
            slots.push(self.source(operand, *kind)?)?;
        }
        self.push_with(Op::Bits(op), Class::Integer, slots);
        Ok(())
    }

    fn bit_find(&mut self, m: &mut Mnemonic<'_>, operands: &[Operand<'a>]) -> Decoded {
        let shift = m.take("shiftamt");
        match m.scalar() {
            Some(ty @ (T::U32 | T::S32)) => {
                let op = Op::Bits(Bits::Find { signed: ty == T::S32, shift });
                self.uniform((op, Class::Integer), operands, T::B32, 1)
            }
            _ => Err("unsupported: only .u32 and .s32 are".to_owned()),
        }
    }

    fn funnel(&mut self, m: &mut Mnemonic<'_>, operands: &[Operand<'a>]) -> Decoded {
        let left = m.take_any(&["l", "r"]) == Some("l");
        let clamp = m.take_any(&["clamp", "wrap"]) == Some("clamp");
        m.take("b32");
        let op = if left { Bits::FunnelLeft { clamp } } else { Bits::FunnelRight { clamp } };
        self.uniform((Op::Bits(op), Class::Integer), operands, T::B32, 3)
    }

    fn dot4(&mut self, m: &mut Mnemonic<'_>, operands: &[Operand<'a>]) -> Decoded {
        let (a, b) = (m.scalar(), m.scalar());
        let sign = |ty| match ty {
            Some(T::S32) => Ok(true),
            Some(T::U32) => Ok(false),
            _ => Err("expected .s32 or .u32 twice".to_owned()),
        };
        // Where one type is written it is that of both.
        let a = sign(a)?;
        let b = if b.is_some() { sign(b)? } else { a };
        self.uniform((Op::Bits(Bits::Dot4 { a, b }), Class::Integer), operands, T::B32, 3)
    }
}

/// Takes rounding, flushing and saturation away.
pub(super) fn mode(m: &mut Mnemonic<'_>) -> Mode {
    let round = match m.take_any(&["rn", "rz", "rm", "rp", "approx", "full"]) {
        Some("rz") => Round::Zero,
        Some("rm") => Round::Down,
        Some("rp") => Round::Up,
        _ => Round::Nearest,
    };
    Mode { round, flush: m.take("ftz"), saturate: m.take("sat") }
}

fn unsupported(m: &Mnemonic<'_>, ty: T) -> String {
    format!("unsupported: {} of type .{}", m.base, ty.name())
}
