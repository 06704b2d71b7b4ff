//! One instruction as vector code for 16 lanes, with the bits that the interpreter's handlers give (of a NaN, only that it is one).

use super::assembler::{
    ADD_F32, ADD32, ADD64, AND, Assembler, BLEND32, BLEND64, Base, COMPARE_F32, COMPARE_S32,
    COMPARE_S64, COMPARE_U32, COMPARE_U64, Code, DIV_F32, F16_TO_F32, F32_TO_F16, FMA213_F32,
    FMA231_F32, JOIN_HALVES, LOAD, MAX_F32, MAX_S32, MAX_S64, MAX_U32, MAX_U64, MIN_F32, MIN_S32,
    MIN_S64, MIN_U32, MIN_U64, MUL_F32, MUL_WIDE_S, MUL_WIDE_U, MUL32, MUL64, MaskOp, NARROW_32,
    NARROW_64, OR, Place, S32_TO_F32, SHL32, SHL64, SHR_S32, SHR_S64, SHR_U32, SHR_U64, SPREAD32,
    SPREAD64, SQRT_F32, SUB_F32, SUB32, SUB64, TERNARY, U32_TO_F32, UPPER_HALF, WIDEN_16, WIDEN_S,
    WIDEN_U, Way, XOR,
};
use super::vectors::{Name, Vectors};
use crate::program::{
    Access, Bits, Compare, Convert, F32, Ins, Int, Kind, Logic, Mode, Move, OPERANDS, Op, Room,
    Round, Slot, Test, Wide, Width,
};
use halyard_sim_cuda_ptx::ScalarType as T;
use std::collections::HashMap;

/// What becomes of the value in each place of an instruction once it is executed: for sources, of what was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// The stretch reads it.
    Read,
    /// The stretch overwrites it before.
    Overwritten,
    /// It is there when the stretch ends.
    Kept,
}

/// A stretch under way.
pub(super) struct Translator<'p> {
    pub(super) code: Assembler,
    vectors: Vectors,
    /// Registers of 32 bits that are constants.
    constants: &'p HashMap<Slot, u32>,
    /// Bytes of parameters that every launch has.
    param_bytes: usize,
    fates: [Fate; OPERANDS],
    /// Where it has stored masks.
    masks: Vec<i32>,
    /// All lanes take part.
    whole: bool,
}

/// A translation, or none: then nothing was written.
type Done = Option<()>;

const PLAIN: Mode = Mode { round: Round::Nearest, flush: false, saturate: false };

impl<'p> Translator<'p> {
    /// For all lanes, or for those of a mask.
    pub(super) fn new(whole: bool, constants: &'p HashMap<Slot, u32>, param_bytes: usize) -> Self {
        let (code, vectors) = (Assembler::default(), Vectors::new(whole));
        let fates = [Fate::Kept; OPERANDS];
        Self { code, vectors, constants, param_bytes, fates, masks: Vec::new(), whole }
    }

    /// Ends the stretch: its machine code.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.vectors.finish(&mut self.code);
        Assembler::twice(&self.code.bytes, &self.masks)
    }

    /// Adds `ins`, unless there is no translation of it.
    pub(super) fn add(&mut self, ins: &Ins, fates: &[Fate; OPERANDS]) -> Done {
        self.fates = *fates;
        let o = &ins.o;
        match ins.op {
            Op::Nop => {}
            Op::Move(op) => self.moves(op, ins)?,
            Op::Int(op, Width::W32) => self.int32(op, o)?,
            Op::Int(op, Width::W64) => self.int64(op, o)?,
            Op::Int(op, Width::W16) => self.int16(op, o)?,
            Op::Wide(op) => self.wide(op, o)?,
            Op::Bits(op) => self.bits(op, o)?,
            Op::Logic(op) => self.logic(op, o),
            Op::F32(op, PLAIN) => self.f32s(op, o)?,
            Op::Compare(op) => self.compare(op, o)?,
            Op::Select(width) => self.select(width, o)?,
            Op::Convert(op) => self.convert(op, o)?,
            Op::Load(a) => self.parameter(a, ins)?,
            _ => return None,
        }
        self.vectors.release();
        Some(())
    }

    /// Says that nobody needs these any more.
    pub(super) fn forget(&mut self, names: &[Name]) {
        names.iter().for_each(|name| self.vectors.forget(*name));
    }

    fn fresh(&mut self) -> u8 {
        self.vectors.fresh(&mut self.code)
    }

    /// The source in place `at` of `o`, 32 bits, in a register.
    fn word(&mut self, o: &[Slot; OPERANDS], at: usize) -> u8 {
        self.vectors.vector(Name::Word(o[at]), &mut self.code)
    }

    /// The same, perhaps in memory.
    fn word_place(&mut self, o: &[Slot; OPERANDS], at: usize) -> Place {
        let again = self.fates[at] == Fate::Read;
        self.vectors.place(Name::Word(o[at]), again, &mut self.code)
    }

    fn long(&mut self, o: &[Slot; OPERANDS], at: usize) -> [u8; 2] {
        [Name::Low(o[at]), Name::High(o[at])].map(|name| self.vectors.vector(name, &mut self.code))
    }

    fn long_place(&mut self, o: &[Slot; OPERANDS], at: usize) -> [Place; 2] {
        let again = self.fates[at] == Fate::Read;
        let names = [Name::Low(o[at]), Name::High(o[at])];
        names.map(|name| self.vectors.place(name, again, &mut self.code))
    }

    fn constant(&mut self, value: u32) -> u8 {
        self.vectors.vector(Name::Constant(value), &mut self.code)
    }

    fn set_word(&mut self, slot: Slot, vector: u8) {
        self.vectors.define(Name::Word(slot), vector);
    }

    fn set_long(&mut self, slot: Slot, [low, high]: [u8; 2]) {
        self.vectors.define(Name::Low(slot), low);
        self.vectors.define(Name::High(slot), high);
    }

    fn set_predicate(&mut self, slot: Slot, mask: u8) {
        if !self.whole {
            self.code.keep_others(mask, mask_at(slot));
        }
        self.code.store_mask(mask, mask_at(slot));
        if !self.masks.contains(&mask_at(slot)) {
            self.masks.push(mask_at(slot));
        }
    }

    /// `o[0] = o[1] op o[2]`, 32 bits.
    fn two(&mut self, code: Code, o: &[Slot; OPERANDS]) {
        let a = self.word(o, 1);
        let b = self.word_place(o, 2);
        let to = self.fresh();
        self.code.op(code, to, a, b);
        self.set_word(o[0], to);
    }

    /// `o[0] = o[1] op o[2]`, 64 bits.
    fn two_long(&mut self, code: Code, o: &[Slot; OPERANDS]) {
        let a = self.long(o, 1);
        let b = self.long_place(o, 2);
        let to = [0, 1].map(|part| {
            let to = self.fresh();
            self.code.op(code, to, a[part], b[part]);
            to
        });
        self.set_long(o[0], to);
    }

    /// `o[0] = f(o[1])`, 32 bits.
    fn one(&mut self, code: Code, o: &[Slot; OPERANDS]) {
        let from = self.word_place(o, 1);
        let to = self.fresh();
        self.code.op(code, to, 0, from);
        self.set_word(o[0], to);
    }

    fn masked(&mut self, vector: u8, mask: u32) -> u8 {
        let mask = self.constant(mask);
        let to = self.fresh();
        self.code.op(AND, to, vector, Place::Vector(mask));
        to
    }

    fn shifted(&mut self, way: Way, from: u8, by: u8) -> u8 {
        let to = self.fresh();
        self.code.shift32(way, to, from, by);
        to
    }

    fn moves(&mut self, op: Move, ins: &Ins) -> Done {
        let o = &ins.o;
        match op {
            Move::Word => {
                let from = self.word(o, 1);
                self.set_word(o[0], from);
            }
            Move::Long => self.move_long(o),
            Move::Window if ins.imm == 0 => self.move_long(o),
            Move::Pack16x2 => {
                let (low, high) = (self.word(o, 1), self.word(o, 2));
                let low = self.masked(low, 0xffff);
                let to = self.shifted(Way::Left, high, 16);
                self.code.op(OR, to, to, Place::Vector(low));
                self.set_word(o[0], to);
            }
            Move::Unpack16x2 => {
                let from = self.word(o, 0);
                let low = self.masked(from, 0xffff);
                let high = self.shifted(Way::RightUnsigned, from, 16);
                self.set_word(o[1], low);
                self.set_word(o[2], high);
            }
            Move::Pack32x2 => {
                let (low, high) = (self.word(o, 1), self.word(o, 2));
                let (low, high) = (self.widened(WIDEN_U, low), self.widened(WIDEN_U, high));
                for part in 0..2 {
                    self.code.shift64(Way::Left, high[part], high[part], 32);
                    self.code.op(OR, low[part], low[part], Place::Vector(high[part]));
                }
                self.set_long(o[0], low);
            }
            Move::Unpack32x2 => {
                let from = self.long(o, 0);
                let upper = from.map(|from| {
                    let to = self.fresh();
                    self.code.shift64(Way::RightUnsigned, to, from, 32);
                    to
                });
                let (low, high) = (self.narrowed(from), self.narrowed(upper));
                self.set_word(o[1], low);
                self.set_word(o[2], high);
            }
            _ => return None,
        }
        Some(())
    }

    fn move_long(&mut self, o: &[Slot; OPERANDS]) {
        let from = self.long(o, 1);
        self.set_long(o[0], from);
    }

    /// 16 lanes of 32 bits as two vectors of 64.
    fn widened(&mut self, code: Code, from: u8) -> [u8; 2] {
        let (low, high) = (self.fresh(), self.fresh());
        self.code.op_with(UPPER_HALF, from, 0, Place::Vector(high), 1);
        self.code.op(code, high, 0, Place::Vector(high));
        self.code.op(code, low, 0, Place::Vector(from));
        [low, high]
    }

    /// The reverse.
    fn narrowed(&mut self, [low, high]: [u8; 2]) -> u8 {
        let (to, upper) = (self.fresh(), self.fresh());
        self.code.op(NARROW_64, low, 0, Place::Vector(to));
        self.code.op(NARROW_64, high, 0, Place::Vector(upper));
        self.code.op_with(JOIN_HALVES, to, to, Place::Vector(upper), 1);
        to
    }

    fn int32(&mut self, op: Int, o: &[Slot; OPERANDS]) -> Done {
        let code = match op {
            Int::Add => ADD32,
            Int::Sub => SUB32,
            Int::Mul => MUL32,
            Int::MinS => MIN_S32,
            Int::MinU => MIN_U32,
            Int::MaxS => MAX_S32,
            Int::MaxU => MAX_U32,
            Int::And => AND,
            Int::Or => OR,
            Int::Xor => XOR,
            // Distances of 32 and more shift everything out, as they do in PTX.
            Int::Shl => SHL32,
            Int::ShrU => SHR_U32,
            Int::ShrS => SHR_S32,
            Int::Mad => {
                let a = self.word(o, 1);
                let b = self.word_place(o, 2);
                let c = self.word_place(o, 3);
                let to = self.fresh();
                self.code.op(MUL32, to, a, b);
                self.code.op(ADD32, to, to, c);
                self.set_word(o[0], to);
                return Some(());
            }
            Int::Neg | Int::Not => {
                let from = self.word_place(o, 1);
                let constant = self.constant(if op == Int::Neg { 0 } else { u32::MAX });
                let to = self.fresh();
                self.code.op(if op == Int::Neg { SUB32 } else { XOR }, to, constant, from);
                self.set_word(o[0], to);
                return Some(());
            }
            _ => return None,
        };
        if matches!(op, Int::Shl | Int::ShrU | Int::ShrS)
            && let Some(by) = self.constants.get(&o[2]).copied()
        {
            let way = match op {
                Int::Shl => Way::Left,
                Int::ShrU => Way::RightUnsigned,
                _ => Way::RightSigned,
            };
            let from = self.word(o, 1);
            // Machine shifts by constants, too, shift everything out from 32 on.
            let to = self.shifted(way, from, by.min(32) as u8);
            self.set_word(o[0], to);
            return Some(());
        }
        self.two(code, o);
        Some(())
    }

    fn int64(&mut self, op: Int, o: &[Slot; OPERANDS]) -> Done {
        let code = match op {
            Int::Add => ADD64,
            Int::Sub => SUB64,
            Int::Mul => MUL64,
            Int::MinS => MIN_S64,
            Int::MinU => MIN_U64,
            Int::MaxS => MAX_S64,
            Int::MaxU => MAX_U64,
            Int::And => AND,
            Int::Or => OR,
            Int::Xor => XOR,
            Int::Shl | Int::ShrU | Int::ShrS => {
                let a = self.long(o, 1);
                let by = self.word(o, 2);
                let by = self.widened(WIDEN_U, by);
                let code = match op {
                    Int::Shl => SHL64,
                    Int::ShrU => SHR_U64,
                    _ => SHR_S64,
                };
                (0..2).for_each(|at| self.code.op(code, by[at], a[at], Place::Vector(by[at])));
                self.set_long(o[0], by);
                return Some(());
            }
            Int::Mad => {
                let a = self.long(o, 1);
                let b = self.long_place(o, 2);
                let c = self.long_place(o, 3);
                let to = [0, 1].map(|part| {
                    let to = self.fresh();
                    self.code.op(MUL64, to, a[part], b[part]);
                    self.code.op(ADD64, to, to, c[part]);
                    to
                });
                self.set_long(o[0], to);
                return Some(());
            }
            _ => return None,
        };
        self.two_long(code, o);
        Some(())
    }

    /// 16 bits in registers of 32, whose upper halves are zeros afterwards.
    fn int16(&mut self, op: Int, o: &[Slot; OPERANDS]) -> Done {
        let code = match op {
            Int::Add => ADD32,
            Int::Sub => SUB32,
            Int::Mul => MUL32,
            Int::And => AND,
            Int::Or => OR,
            Int::Xor => XOR,
            _ => return None,
        };
        let a = self.word(o, 1);
        let b = self.word_place(o, 2);
        let to = self.fresh();
        self.code.op(code, to, a, b);
        let mask = self.constant(0xffff);
        self.code.op(AND, to, to, Place::Vector(mask));
        self.set_word(o[0], to);
        Some(())
    }

    fn wide(&mut self, op: Wide, o: &[Slot; OPERANDS]) -> Done {
        if op.from != Width::W32 {
            return None;
        }
        let (widen, multiply) =
            if op.signed { (WIDEN_S, MUL_WIDE_S) } else { (WIDEN_U, MUL_WIDE_U) };
        let (a, b) = (self.word(o, 1), self.word(o, 2));
        let (a, b) = (self.widened(widen, a), self.widened(widen, b));
        (0..2).for_each(|part| self.code.op(multiply, a[part], a[part], Place::Vector(b[part])));
        if op.add {
            let addend = self.long_place(o, 3);
            (0..2).for_each(|part| self.code.op(ADD64, a[part], a[part], addend[part]));
        }
        self.set_long(o[0], a);
        Some(())
    }

    fn bits(&mut self, op: Bits, o: &[Slot; OPERANDS]) -> Done {
        match op {
            Bits::Lop3(table) => {
                let (x, y) = (self.word(o, 1), self.word(o, 2));
                let z = self.word_place(o, 3);
                let to = self.fresh();
                self.code.op(LOAD, to, 0, Place::Vector(x));
                self.code.op_with(TERNARY, to, y, z, table);
                self.set_word(o[0], to);
            }
            Bits::ExtractU | Bits::ExtractS => {
                let known = |at: usize| self.constants.get(&o[at]).map(|value| value & 255);
                let (at, len) = (known(2)?, known(3)?);
                if len == 0 || at + len > 32 {
                    return None;
                }
                let from = self.word(o, 1);
                let rest = (32 - len) as u8;
                let to = if op == Bits::ExtractS {
                    let high = self.shifted(Way::Left, from, (32 - at - len) as u8);
                    self.shifted(Way::RightSigned, high, rest)
                } else {
                    let low = self.shifted(Way::RightUnsigned, from, at as u8);
                    self.masked(low, u32::MAX >> rest)
                };
                self.set_word(o[0], to);
            }
            _ => return None,
        }
        Some(())
    }

    fn f32s(&mut self, op: F32, o: &[Slot; OPERANDS]) -> Done {
        match op {
            F32::Add => self.two(ADD_F32, o),
            F32::Sub => self.two(SUB_F32, o),
            F32::Mul => self.two(MUL_F32, o),
            F32::Div => self.two(DIV_F32, o),
            F32::Sqrt => self.one(SQRT_F32, o),
            F32::Fma => self.fma(o),
            F32::Min => self.number(MIN_F32, o),
            F32::Max => self.number(MAX_F32, o),
            F32::Neg | F32::Abs => {
                let from = self.word_place(o, 1);
                let (code, bits) =
                    if op == F32::Neg { (XOR, 1 << 31) } else { (AND, u32::MAX >> 1) };
                let bits = self.constant(bits);
                let to = self.fresh();
                self.code.op(code, to, bits, from);
                self.set_word(o[0], to);
            }
            F32::Rcp | F32::Rsqrt => {
                let mut from = self.word_place(o, 1);
                let one = self.constant(1f32.to_bits());
                let to = self.fresh();
                if op == F32::Rsqrt {
                    self.code.op(SQRT_F32, to, 0, from);
                    from = Place::Vector(to);
                }
                self.code.op(DIV_F32, to, one, from);
                self.set_word(o[0], to);
            }
            _ => return None,
        }
        Some(())
    }

    /// The sum replaces whichever of addend and first factor nobody needs any more.
    fn fma(&mut self, o: &[Slot; OPERANDS]) {
        let dies = |at: usize, fates: &[Fate; OPERANDS]| {
            let elsewhere = (1..4).any(|other| other != at && o[other] == o[at]);
            fates[at] == Fate::Overwritten && !elsewhere
        };
        let fates = self.fates;
        let to = if dies(3, &fates)
            && let Some(sum) = self.vectors.last_of(Name::Word(o[3]))
        {
            let a = self.word(o, 1);
            let b = self.word_place(o, 2);
            self.code.op(FMA231_F32, sum, a, b);
            sum
        } else if dies(1, &fates)
            && let Some(factor) = self.vectors.last_of(Name::Word(o[1]))
        {
            let b = self.word(o, 2);
            let c = self.word_place(o, 3);
            self.code.op(FMA213_F32, factor, b, c);
            factor
        } else {
            let (a, b) = (self.word(o, 1), self.word_place(o, 2));
            let c = self.word_place(o, 3);
            let to = self.fresh();
            self.code.op(LOAD, to, 0, c);
            self.code.op(FMA231_F32, to, a, b);
            to
        };
        self.set_word(o[0], to);
    }

    /// The smaller or larger: of a number and a NaN the number.
    fn number(&mut self, code: Code, o: &[Slot; OPERANDS]) {
        let (a, b) = (self.word(o, 1), self.word(o, 2));
        let to = self.fresh();
        // The machine gives its second where one is a NaN, or both are zeros.
        self.code.op(code, to, b, Place::Vector(a));
        self.code.op_with(COMPARE_F32, 1, a, Place::Vector(a), UNORDERED);
        self.code.op_masked(BLEND32, to, to, Place::Vector(b), 1);
        self.set_word(o[0], to);
    }

    fn compare(&mut self, c: Compare, o: &[Slot; OPERANDS]) -> Done {
        if c.with.is_some() {
            return None;
        }
        let (code, long) = match c.kind {
            Kind::S32 => (COMPARE_S32, false),
            Kind::U32 => (COMPARE_U32, false),
            Kind::F32 => (COMPARE_F32, false),
            Kind::S64 => (COMPARE_S64, true),
            Kind::U64 => (COMPARE_U64, true),
            _ => return None,
        };
        let test = if c.kind == Kind::F32 { float_test(c.test) } else { integer_test(c.test)? };
        if long {
            let (a, b) = (self.long(o, 2), self.long_place(o, 3));
            self.code.op_with(code, 1, a[0], b[0], test);
            self.code.op_with(code, 2, a[1], b[1], test);
            self.code.shift_mask(true, 2, 2);
            self.code.masks(MaskOp::Or, 1, 1, 2);
        } else {
            let a = self.word(o, 2);
            let b = self.word_place(o, 3);
            self.code.op_with(code, 1, a, b, test);
        }
        self.code.not_mask(2, 1);
        self.set_predicate(o[0], 1);
        self.set_predicate(o[1], 2);
        Some(())
    }

    fn logic(&mut self, op: Logic, o: &[Slot; OPERANDS]) {
        self.code.load_mask(1, mask_at(o[1]));
        let combined = match op {
            Logic::And => Some(MaskOp::And),
            Logic::Or => Some(MaskOp::Or),
            Logic::Xor => Some(MaskOp::Xor),
            Logic::Not => None,
        };
        if let Some(op) = combined {
            self.code.load_mask(2, mask_at(o[2]));
            self.code.masks(op, 1, 1, 2);
        } else {
            self.code.not_mask(1, 1);
        }
        self.set_predicate(o[0], 1);
    }

    fn select(&mut self, width: Width, o: &[Slot; OPERANDS]) -> Done {
        self.code.load_mask(1, mask_at(o[3]));
        if width == Width::W64 {
            self.code.shift_mask(false, 2, 1);
            let no = self.long(o, 2);
            let yes = self.long_place(o, 1);
            let to = [0, 1].map(|part| {
                let to = self.fresh();
                self.code.op_masked(BLEND64, to, no[part], yes[part], 1 + part as u8);
                to
            });
            self.set_long(o[0], to);
        } else {
            let no = self.word(o, 2);
            let yes = self.word_place(o, 1);
            let to = self.fresh();
            self.code.op_masked(BLEND32, to, no, yes, 1);
            self.set_word(o[0], to);
        }
        Some(())
    }

    fn convert(&mut self, c: Convert, o: &[Slot; OPERANDS]) -> Done {
        if c.saturate || c.relu || c.whole || c.round != Round::Nearest {
            return None;
        }
        match (c.to, c.from) {
            (T::F32, T::S32) => self.one(S32_TO_F32, o),
            (T::F32, T::U32) => self.one(U32_TO_F32, o),
            (T::F32, T::Bf16) => {
                let from = self.word(o, 1);
                let to = self.shifted(Way::Left, from, 16);
                self.set_word(o[0], to);
            }
            (T::F32, T::F16) => {
                let from = self.word(o, 1);
                let to = self.fresh();
                self.code.op(NARROW_32, from, 0, Place::Vector(to));
                self.code.op(F16_TO_F32, to, 0, Place::Vector(to));
                self.set_word(o[0], to);
            }
            (T::F16, T::F32) => {
                let from = self.word(o, 1);
                let to = self.fresh();
                self.code.op_with(F32_TO_F16, from, 0, Place::Vector(to), 0);
                self.code.op(WIDEN_16, to, 0, Place::Vector(to));
                self.quiet(to, from);
                self.set_word(o[0], to);
            }
            (T::Bf16, T::F32) => {
                let from = self.word(o, 1);
                let to = self.bf16(from);
                self.set_word(o[0], to);
            }
            (T::Bf16x2, T::F32) => {
                let (high, low) = (self.word(o, 1), self.word(o, 2));
                let (high, low) = (self.bf16(high), self.bf16(low));
                self.code.shift32(Way::Left, high, high, 16);
                self.code.op(OR, high, high, Place::Vector(low));
                self.set_word(o[0], high);
            }
            (T::S64 | T::U64, T::S32 | T::U32) => {
                let from = self.word(o, 1);
                let code = if c.from == T::S32 { WIDEN_S } else { WIDEN_U };
                let to = self.widened(code, from);
                self.set_long(o[0], to);
            }
            (T::S32 | T::U32, T::S64 | T::U64) => {
                let from = self.long(o, 1);
                let to = self.narrowed(from);
                self.set_word(o[0], to);
            }
            (T::U32 | T::S32, T::U32 | T::S32) => {
                let from = self.word(o, 1);
                self.set_word(o[0], from);
            }
            (T::U16 | T::S16, T::U16 | T::S16 | T::U32 | T::S32) | (T::U32 | T::S32, T::U16) => {
                let from = self.word(o, 1);
                let to = self.masked(from, 0xffff);
                self.set_word(o[0], to);
            }
            _ => return None,
        }
        Some(())
    }

    /// 0x7fff where `from` is a NaN.
    fn quiet(&mut self, to: u8, from: u8) {
        let nan = self.constant(0x7fff);
        self.code.op_with(COMPARE_F32, 1, from, Place::Vector(from), UNORDERED);
        self.code.op_masked(BLEND32, to, to, Place::Vector(nan), 1);
    }

    /// f32 as bf16, to nearest even.
    fn bf16(&mut self, from: u8) -> u8 {
        let half = self.constant(0x7fff);
        let last = self.shifted(Way::RightUnsigned, from, 16);
        let to = self.masked(last, 1);
        self.code.op(ADD32, to, to, Place::Vector(half));
        self.code.op(ADD32, to, to, Place::Vector(from));
        self.code.shift32(Way::RightUnsigned, to, to, 16);
        self.quiet(to, from);
        to
    }

    /// A load of parameters at a place that is known.
    fn parameter(&mut self, a: Access, ins: &Ins) -> Done {
        let bytes = usize::from(a.bytes);
        let at = usize::try_from(ins.imm).ok()?;
        let end = at.checked_add(bytes * usize::from(a.count))?;
        let whole = matches!((bytes, a.long_data), (4, false) | (8, true));
        if a.room != Room::Param || !whole || end > self.param_bytes {
            return None;
        }
        for part in 0..usize::from(a.count) {
            let from = Place::Memory(Base::Params, i32::try_from(at + part * bytes).ok()?);
            let to = self.fresh();
            let slot = ins.o[1 + part];
            if a.long_data {
                self.code.op(SPREAD64, to, 0, from);
                self.set_long(slot, [to, to]);
            } else {
                self.code.op(SPREAD32, to, 0, from);
                self.set_word(slot, to);
            }
        }
        Some(())
    }
}

const UNORDERED: u8 = 3;

/// Where the mask of a predicate is.
fn mask_at(slot: Slot) -> i32 {
    i32::from(slot) * 4
}

/// The machine's number of a comparison of integers.
fn integer_test(test: Test) -> Option<u8> {
    Some(match test {
        Test::Eq => 0,
        Test::Lt => 1,
        Test::Le => 2,
        Test::Ne => 4,
        Test::Ge => 5,
        Test::Gt => 6,
        _ => return None,
    })
}

/// The machine's number of a comparison of floats, none of which traps.
fn float_test(test: Test) -> u8 {
    match test {
        Test::Eq => 0x00,
        Test::Lt => 0x11,
        Test::Le => 0x12,
        Test::Ne => 0x0c,
        Test::Ge => 0x1d,
        Test::Gt => 0x1e,
        Test::Equ => 0x08,
        Test::Neu => 0x04,
        Test::Ltu => 0x19,
        Test::Leu => 0x1a,
        Test::Gtu => 0x16,
        Test::Geu => 0x15,
        Test::Num => 0x07,
        Test::Nan => UNORDERED,
    }
}
