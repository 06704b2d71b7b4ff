//! What the lanes of a warp do together: shuffles, votes, matches, tensor-core products.

use super::mnemonic::Mnemonic;
use super::scope::File;
use super::{Decoded, Decoder, Slots, exactly};
use crate::program::{Class, Lanes, Mma, Op, Together};
use halyard_sim_cuda_ptx::{Operand, ScalarType};

use ScalarType as T;

impl<'a> Decoder<'a, '_> {
    pub(super) fn lanes(&mut self, m: &mut Mnemonic<'_>, operands: &[Operand<'a>]) -> Decoded {
        let together = m.take("sync");
        if !together && m.base != "activemask" {
            return Err("unsupported: only the .sync form is".to_owned());
        }
        match m.base {
            "shfl" => self.shuffle(m, operands),
            "vote" => self.vote(m, operands),
            "match" => self.matching(m, operands),
            "redux" => self.reduce(m, operands),
            "mma" => self.mma(m, operands),
            "elect" => self.elect(operands),
            _ => {
                m.take("b32");
                let [to] = exactly(operands)?;
                let mut slots = Slots::default();
                slots.push(self.target(to, File::Word)?)?;
                self.push_with(Op::Lanes(Lanes::Active), Class::Lanes, slots);
                Ok(())
            }
        }
    }

    fn push_lanes(&mut self, op: Lanes, slots: Slots, mask: u16) {
        self.push_with(Op::Lanes(op), Class::Lanes, slots).together = Together::Mask(mask);
    }

    /// `shfl`: result `o[0]`, whether the source lane is there `o[1]`, value `o[2]`, lane `o[3]`, clamp and segment `o[4]`.
    fn shuffle(&mut self, m: &mut Mnemonic<'_>, operands: &[Operand<'a>]) -> Decoded {
        let op = match m.take_any(&["up", "down", "bfly", "idx"]) {
            Some("up") => Lanes::ShuffleUp,
            Some("down") => Lanes::ShuffleDown,
            Some("bfly") => Lanes::ShuffleXor,
            Some(_) => Lanes::ShuffleIndex,
            None => return Err("expected .up, .down, .bfly or .idx".to_owned()),
        };
        m.take("b32");
        let [to, value, lane, clamp, mask] = exactly(operands)?;
        let (to, there) = match to {
            Operand::Pair(to, there) => (&**to, &**there),
            to => (to, &Operand::Sink),
        };
        let mut slots = Slots::default();
        slots.push(self.target(to, File::Word)?)?;
        slots.push(self.target(there, File::Predicate)?)?;
        for source in [value, lane, clamp] {
            slots.push(self.word(source, T::B32)?)?;
        }
        let mask = self.word(mask, T::B32)?;
        self.push_lanes(op, slots, mask);
        Ok(())
    }

    fn vote(&mut self, m: &mut Mnemonic<'_>, operands: &[Operand<'a>]) -> Decoded {
        let (op, file) = match m.take_any(&["ballot", "any", "all", "uni"]) {
            Some("ballot") => (Lanes::Ballot, File::Word),
            Some("any") => (Lanes::Any, File::Predicate),
            Some("all") => (Lanes::All, File::Predicate),
            Some(_) => (Lanes::Uniform, File::Predicate),
            None => return Err("expected .ballot, .any, .all or .uni".to_owned()),
        };
        m.take("b32");
        m.take("pred");
        let [to, predicate, mask] = exactly(operands)?;
        let (predicate, negated) = match predicate {
            Operand::Not(name) => (&Operand::Name(name), true),
            other => (other, false),
        };
        let mut slots = Slots::default();
        slots.push(self.target(to, file)?)?;
        slots.push(self.predicate(predicate)?)?;
        let mask = self.word(mask, T::B32)?;
        self.push_lanes(op, slots, mask);
        if let Some(last) = self.code.last_mut() {
            last.imm = i64::from(negated);
        }
        Ok(())
    }

    fn matching(&mut self, m: &mut Mnemonic<'_>, operands: &[Operand<'a>]) -> Decoded {
        let op = match m.take_any(&["any", "all"]) {
            Some("any") => Lanes::MatchAny,
            Some(_) => Lanes::MatchAll,
            None => return Err("expected .any or .all".to_owned()),
        };
        let ty = m.scalar().ok_or("expected a type")?;
        let [to, value, mask] = exactly(operands)?;
        let (to, all) = match to {
            Operand::Pair(to, all) => (&**to, &**all),
            to => (to, &Operand::Sink),
        };
        if ty.bytes() == 8 {
            return self.match_long(op, [to, all, value, mask]);
        }
        let mut slots = Slots::default();
        slots.push(self.target(to, File::Word)?)?;
        slots.push(self.target(all, File::Predicate)?)?;
        slots.push(self.word(value, ty)?)?;
        let mask = self.word(mask, T::B32)?;
        self.push_lanes(op, slots, mask);
        Ok(())
    }

    fn reduce(&mut self, m: &mut Mnemonic<'_>, operands: &[Operand<'a>]) -> Decoded {
        let name = m.take_any(&["add", "min", "max", "and", "or", "xor"]).unwrap_or_default();
        let signed = m.scalar() == Some(T::S32);
        let op = match (name, signed) {
            ("add", _) => Lanes::ReduceAdd,
            ("min", true) => Lanes::ReduceMinS,
            ("min", false) => Lanes::ReduceMinU,
            ("max", true) => Lanes::ReduceMaxS,
            ("max", false) => Lanes::ReduceMaxU,
            ("and", _) => Lanes::ReduceAnd,
            ("or", _) => Lanes::ReduceOr,
            ("xor", _) => Lanes::ReduceXor,
            _ => return Err("expected an operation such as .add".to_owned()),
        };
        let [to, value, mask] = exactly(operands)?;
        let mut slots = Slots::default();
        slots.push(self.target(to, File::Word)?)?;
        slots.push(self.word(value, T::B32)?)?;
        let mask = self.word(mask, T::B32)?;
        self.push_lanes(op, slots, mask);
        Ok(())
    }

    fn elect(&mut self, operands: &[Operand<'a>]) -> Decoded {
        let [Operand::Pair(lane, elected), mask] = exactly(operands)? else {
            return Err("expected a register and a predicate".to_owned());
        };
        let mut slots = Slots::default();
        slots.push(self.target(lane, File::Word)?)?;
        slots.push(self.target(elected, File::Predicate)?)?;
        let mask = self.word(mask, T::B32)?;
        self.push_lanes(Lanes::Elect, slots, mask);
        Ok(())
    }

    /// `mma`: results `o[0..4]`, A, B, C behind.
    fn mma(&mut self, m: &mut Mnemonic<'_>, operands: &[Operand<'a>]) -> Decoded {
        m.take("aligned");
        let shape = m.take_any(&["m16n8k8", "m16n8k16", "m16n8k32"]).unwrap_or_default();
        if !(m.take("row") && m.take("col")) {
            return Err("unsupported: only .row.col is".to_owned());
        }
        m.take("satfinite");
        let types =
            [m.scalar(), m.scalar(), m.scalar(), m.scalar()].map(|ty| ty.unwrap_or(T::Pred));
        let [d, a, b, c] = types;
        let is_f8 = |ty| matches!(ty, T::E4m3 | T::E5m2);
        let is_i8 = |ty| matches!(ty, T::S8 | T::U8);
        let floats = d == T::F32 && c == T::F32;
        let (mma, counts) = match (shape, a, b) {
            ("m16n8k16", T::Bf16, T::Bf16) if floats => (Mma::Bf16K16, [4, 2]),
            ("m16n8k16", T::F16, T::F16) if floats => (Mma::F16K16, [4, 2]),
            ("m16n8k8", T::Bf16, T::Bf16) if floats => (Mma::Bf16K8, [2, 1]),
            ("m16n8k8", T::F16, T::F16) if floats => (Mma::F16K8, [2, 1]),
            ("m16n8k8", T::Tf32, T::Tf32) if floats => (Mma::Tf32K8, [4, 2]),
            ("m16n8k32", a, b) if floats && is_f8(a) && is_f8(b) => {
                (Mma::Fp8K32 { a: a == T::E5m2, b: b == T::E5m2 }, [4, 2])
            }
            ("m16n8k32", a, b) if d == T::S32 && is_i8(a) && is_i8(b) => {
                (Mma::Int8K32 { a: a == T::S8, b: b == T::S8 }, [4, 2])
            }
            _ => return Err("unsupported: this shape of these types".to_owned()),
        };
        let [to, a, b, c] = exactly(operands)?;
        let mut slots = Slots::default();
        for (operand, count) in [(to, 4), (a, counts[0]), (b, counts[1]), (c, 4)] {
            let parts = match operand {
                Operand::Vector(parts) if parts.len() == count => parts,
                _ => return Err(format!("expected a vector of {count} registers")),
            };
            for part in parts {
                let slot = if slots.len < 4 {
                    self.target(part, File::Word)?
                } else {
                    self.word(part, T::B32)?
                };
                slots.push(slot)?;
            }
        }
        self.push_with(Op::Mma(mma), Class::Tensor, slots).together = Together::Warp;
        Ok(())
    }
}
