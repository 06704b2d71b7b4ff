//! `wgmma` and `stmatrix`.

use super::mnemonic::Mnemonic;
use super::scope::File;
use super::{Decoded, Decoder, Slots, exactly};
use crate::program::{Class, Hopper, Left, Op, Product, Sums, Together, Values};
use halyard_sim_cuda_ptx::{Operand, ScalarType};

use ScalarType as T;

impl<'a> Decoder<'a, '_> {
    pub(super) fn wgmma(&mut self, m: &mut Mnemonic<'_>, operands: &[Operand<'a>]) -> Decoded {
        let names = ["fence", "commit_group", "wait_group", "mma_async"];
        let name = m
            .take_any(&names)
            .ok_or("expected .fence, .commit_group, .wait_group or .mma_async")?;
        if !(m.take("sync") & m.take("aligned")) {
            return Err("expected .sync.aligned".to_owned());
        }
        let (op, groups) = match (name, operands) {
            ("mma_async", _) => return self.product(m, operands),
            ("fence", []) => (Hopper::ProductFence, 0),
            ("commit_group", []) => (Hopper::ProductCommit, 0),
            ("wait_group", [Operand::Int(groups)]) if *groups < 8 => {
                (Hopper::ProductWait, *groups as i64)
            }
            _ => {
                return Err(
                    "expected a constant number of groups, from 0 to 7, for .wait_group alone"
                        .to_owned(),
                );
            }
        };
        let ins = self.push(Op::Hopper(op), Class::Tensor);
        ins.imm = groups;
        ins.together = Together::Warp;
        Ok(())
    }

    /// `wgmma.mma_async`: its registers are in a [`Product`], `imm` its number.
    fn product(&mut self, m: &mut Mnemonic<'_>, operands: &[Operand<'a>]) -> Decoded {
        let types = [m.scalar(), m.scalar(), m.scalar()].map(|ty| ty.unwrap_or(T::Pred));
        let (sums, values) = kinds(types)?;
        let k = 32 / values.bytes();
        let columns = (8..=256u32).step_by(8).find(|n| m.take(&format!("m64n{n}k{k}")));
        let columns =
            columns.ok_or_else(|| format!("expected a shape from .m64n8k{k} to .m64n256k{k}"))?;
        if matches!(values, Values::Int8 { .. }) && columns > 32 && columns % 16 != 0 {
            return Err("expected a multiple of 16 columns of integers".to_owned());
        }
        if m.take("satfinite") {
            return Err("unsupported: .satfinite".to_owned());
        }
        let [to, a, b, flags @ ..] = operands else {
            return Err("expected results, A and B".to_owned());
        };
        let registers = match sums {
            Sums::F16 => columns / 4,
            Sums::F32 | Sums::S32 => columns / 2,
        };
        let sums_in = self.vector(to, registers as usize)?;
        let left = match a {
            Operand::Vector(_) => {
                let parts = self.vector(a, 4)?;
                let parts = <[u16; 4]>::try_from(parts).map_err(|_| "expected four registers")?;
                Left::Registers(parts)
            }
            at => Left::Shared(self.long(at, T::B64)?),
        };
        let right = self.long(b, T::B64)?;
        let (add, signs) = flags.split_first().ok_or("expected scale-d")?;
        let add = self.predicate(add)?;
        let in_registers = matches!(left, Left::Registers(_));
        let (negated, transposed) = constants(signs, values, in_registers)?;
        let product =
            Product { sums, values, columns, sums_in, left, right, add, negated, transposed };
        let number = self.products.len();
        self.products.push(product);
        let ins = self.push(Op::Hopper(Hopper::Product { sums, values }), Class::Tensor);
        ins.imm = number as i64;
        ins.together = Together::Warp;
        Ok(())
    }

    /// `count` 32-bit registers.
    fn vector(&mut self, operand: &Operand<'a>, count: usize) -> Decoded<Vec<u16>> {
        match operand {
            Operand::Vector(parts) if parts.len() == count => parts
                .iter()
                .map(|part| match part {
                    Operand::Name(name) => self.register(name, File::Word),
                    _ => Err("expected registers".to_owned()),
                })
                .collect(),
            _ => Err(format!("expected a vector of {count} registers")),
        }
    }

    /// `stmatrix`: address `o[0]`, sources from `o[1]`.
    pub(super) fn store_matrix(
        &mut self,
        m: &mut Mnemonic<'_>,
        operands: &[Operand<'a>],
    ) -> Decoded {
        for part in ["shared", "shared::cta"] {
            m.take(part);
        }
        if !["sync", "aligned", "m8n8", "b16"].iter().all(|part| m.take(part)) {
            return Err("expected .sync.aligned.m8n8, .b16".to_owned());
        }
        let transposed = m.take("trans");
        let counts = [("x1", 1), ("x2", 2), ("x4", 4)];
        let count =
            counts.into_iter().find(|count| m.take(count.0)).ok_or("expected .x1, .x2 or .x4")?.1;
        let [to, from] = exactly(operands)?;
        let mut slots = Slots::default();
        slots.push(self.shared_address(to)?)?;
        let parts = match from {
            Operand::Vector(parts) => &parts[..],
            one => std::slice::from_ref(one),
        };
        if parts.len() != usize::from(count) {
            return Err(format!("expected {count} registers, found {}", parts.len()));
        }
        for part in parts {
            slots.push(self.word(part, T::B32)?)?;
        }
        let op = Op::Hopper(Hopper::StoreMatrix { count, transposed });
        self.push_with(op, Class::Shared, slots).together = Together::Warp;
        Ok(())
    }
}

/// What the types of D, A and B say.
fn kinds([d, a, b]: [T; 3]) -> Decoded<(Sums, Values)> {
    let values = match (a, b) {
        (T::Bf16, T::Bf16) => Values::Bf16,
        (T::F16, T::F16) => Values::F16,
        (T::Tf32, T::Tf32) => Values::Tf32,
        (T::E4m3 | T::E5m2, T::E4m3 | T::E5m2) => Values::Fp8 { a: a == T::E5m2, b: b == T::E5m2 },
        (T::S8 | T::U8, T::S8 | T::U8) => Values::Int8 { a: a == T::S8, b: b == T::S8 },
        _ => return Err(format!("unsupported: .{} by .{}", a.name(), b.name())),
    };
    let sums = match (d, values) {
        (T::S32, Values::Int8 { .. }) => Sums::S32,
        (T::F32, Values::Bf16 | Values::F16 | Values::Tf32 | Values::Fp8 { .. }) => Sums::F32,
        (T::F16, Values::F16 | Values::Fp8 { .. }) => Sums::F16,
        _ => return Err(format!("unsupported: .{} sums of .{}", d.name(), a.name())),
    };
    Ok((sums, values))
}

/// The constants behind scale-d: whether A and B are negated, and whether they are transposed.
fn constants(
    signs: &[Operand<'_>],
    values: Values,
    in_registers: bool,
) -> Decoded<([bool; 2], [bool; 2])> {
    let mut rest = signs.iter();
    let mut next = |choices: [u64; 2]| -> Decoded<bool> {
        match rest.next() {
            Some(Operand::Int(value)) if *value == choices[0] => Ok(false),
            Some(Operand::Int(value)) if *value == choices[1] => Ok(true),
            _ => Err(format!("expected {} or {}", choices[0], choices[1].cast_signed())),
        }
    };
    let (mut negated, mut transposed) = ([false; 2], [false; 2]);
    if !matches!(values, Values::Int8 { .. }) {
        negated = [next([1, u64::MAX])?, next([1, u64::MAX])?];
    }
    if matches!(values, Values::Bf16 | Values::F16) {
        transposed = [!in_registers && next([0, 1])?, next([0, 1])?];
    }
    if rest.next().is_some() {
        return Err("more operands than it has".to_owned());
    }
    Ok((negated, transposed))
}
