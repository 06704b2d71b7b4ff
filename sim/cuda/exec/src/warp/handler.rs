//! Which function executes an instruction: one of its own for each frequent opcode, compiled for the vectors of the processor.

use super::registers::LANES;
use super::{
    Env, Handler, Warp, access, atomic, convert, exchange, float, hopper, integer, tensor, wgmma,
};
use crate::counters::Counters;
use crate::fault::Step;
use crate::program::{
    Access, Bits, Compare, Convert, F32, Hopper, Ins, Int, Kind, Lanes, Logic, Mma, Mode, Move, Op,
    Room, Round, Test, Wide, Width,
};
use halyard_sim_cuda_ptx::ScalarType as T;

/// Executes `op`, which is that of `ins`: known where this is compiled into a function of an opcode's own.
#[inline(always)]
fn step(op: Op, w: &mut Warp, e: &mut Env<'_>, ins: &Ins, m: u32) -> Step {
    let (r, o) = (&mut w.registers, &ins.o);
    match op {
        Op::Move(op) => integer::moves(r, m, o, op, ins.imm),
        Op::Int(op, width) => integer::int(r, m, o, op, width),
        Op::Wide(op) => integer::wide(r, m, o, op),
        Op::Bits(op) => integer::bits(r, m, o, op),
        Op::Logic(op) => integer::logic(r, m, o, op),
        Op::F32(op, mode) => float::f32s(r, m, o, op, mode),
        Op::F64(op) => float::f64s(r, m, o, op),
        Op::Half(op, kind) => float::halves(r, m, o, op, kind),
        Op::Compare(op) => convert::compare(r, m, o, op, ins.imm != 0),
        Op::Select(width) => convert::select(r, m, o, width),
        Op::Convert(op) => convert::convert(r, m, o, op),
        Op::Load(a) => return access::load(w, e, ins, a, m),
        Op::Store(a) => return access::store(w, e, ins, a, m),
        Op::Atomic(a) => return atomic::atomic(w, e, ins, a, m),
        Op::AsyncCopy(bytes) => return access::copy_async(w, e, ins, bytes, m),
        Op::AsyncCommit => access::commit(w, m),
        Op::AsyncWait => return access::wait(w, e, m, u32::try_from(ins.imm).ok()),
        Op::LoadMatrix { count, transposed } => {
            return access::load_matrix(w, e, ins, count, transposed);
        }
        Op::Mma(op) => {
            tensor::mma(r, o, op);
            count_tensor(&mut e.counters, op);
        }
        Op::Lanes(op) => exchange::exchange(r, m, o, op, ins.imm),
        Op::Clock(Width::W64) => r.set_long(o[0], m, &[e.tally.issued(); LANES]),
        Op::Clock(_) => r.set_word(o[0], m, &[e.tally.issued() as u32; LANES]),
        Op::Hopper(op) => return hopper::hopper(w, e, ins, op, m),
        Op::Nop | Op::Flow(_) => {}
    }
    Ok(())
}

pub(super) fn count_tensor(counters: &mut Counters, op: Mma) {
    match op {
        Mma::Bf16K16 | Mma::F16K16 => counters.tensor_ops += 2 * 16 * 8 * 16,
        Mma::Bf16K8 | Mma::F16K8 | Mma::Tf32K8 => counters.tensor_ops += 2 * 16 * 8 * 8,
        Mma::Fp8K32 { .. } => counters.tensor_ops_fp8 += 2 * 16 * 8 * 32,
        Mma::Int8K32 { .. } => counters.tensor_ops_int8 += 2 * 16 * 8 * 32,
    }
}

const PLAIN: Mode = Mode { round: Round::Nearest, flush: false, saturate: false };

const fn global(bytes: u8, count: u8) -> Access {
    let long_data = bytes == 8;
    Access { room: Room::Global, bytes, count, signed: false, long: true, long_data }
}

const fn shared(bytes: u8, count: u8) -> Access {
    Access { room: Room::Shared, long: false, ..global(bytes, count) }
}

const fn param(bytes: u8, count: u8) -> Access {
    Access { room: Room::Param, long: false, ..global(bytes, count) }
}

const fn param_at(bytes: u8, count: u8) -> Access {
    Access { room: Room::ParamAt, ..global(bytes, count) }
}

const fn compare(kind: Kind, test: Test) -> Op {
    Op::Compare(Compare { kind, test, with: None })
}

const fn convert(to: T, from: T) -> Op {
    let (round, whole, saturate, relu) = (Round::Nearest, false, false, false);
    Op::Convert(Convert { to, from, round, whole, saturate, relu })
}

const fn wide(signed: bool, add: bool) -> Op {
    Op::Wide(Wide { from: Width::W32, signed, add })
}

/// A test of `op` for each opcode, which gives the opcode's own function, compiled with `features`.
macro_rules! own {
    ($op:ident, #[$features:meta], $($known:expr,)*) => {
        $(if $op == $known {
            #[$features]
            fn own(w: &mut Warp, e: &mut Env<'_>, ins: &Ins, m: u32) -> Step {
                step($known, w, e, ins, m)
            }
            return Some(own);
        })*
    };
}

/// A module whose `handler` gives functions compiled with `features`.
macro_rules! handlers {
    ($name:ident, #[$features:meta]) => {
        mod $name {
            use super::*;

            pub(super) fn handler(op: Op) -> Handler {
                #[$features]
                fn other(w: &mut Warp, e: &mut Env<'_>, ins: &Ins, m: u32) -> Step {
                    step(ins.op, w, e, ins, m)
                }
                // Too large to be a part of every other function.
                #[$features]
                fn product(w: &mut Warp, e: &mut Env<'_>, ins: &Ins, _: u32) -> Step {
                    wgmma::product(w, e, ins)
                }
                if let Op::Hopper(Hopper::Product { .. }) = op {
                    return product;
                }
                arithmetic(op).or_else(|| lanes(op)).unwrap_or(other)
            }

            fn arithmetic(op: Op) -> Option<Handler> {
                own! { op, #[$features],
                    Op::Move(Move::Word),
                    Op::Move(Move::Long),
                    Op::Move(Move::Window),
                    Op::Move(Move::Pack16x2),
                    Op::Move(Move::Unpack16x2),
                    Op::Move(Move::Pack32x2),
                    Op::Move(Move::Unpack32x2),
                    Op::Int(Int::Add, Width::W32),
                    Op::Int(Int::Sub, Width::W32),
                    Op::Int(Int::Mul, Width::W32),
                    Op::Int(Int::Mad, Width::W32),
                    Op::Int(Int::MinS, Width::W32),
                    Op::Int(Int::MinU, Width::W32),
                    Op::Int(Int::And, Width::W32),
                    Op::Int(Int::Or, Width::W32),
                    Op::Int(Int::Xor, Width::W32),
                    Op::Int(Int::Shl, Width::W32),
                    Op::Int(Int::ShrU, Width::W32),
                    Op::Int(Int::ShrS, Width::W32),
                    Op::Int(Int::Add, Width::W64),
                    Op::Int(Int::Sub, Width::W64),
                    Op::Int(Int::Mul, Width::W64),
                    Op::Int(Int::Mad, Width::W64),
                    Op::Int(Int::And, Width::W64),
                    Op::Int(Int::Or, Width::W64),
                    Op::Int(Int::Shl, Width::W64),
                    Op::Int(Int::ShrU, Width::W64),
                    wide(true, false),
                    wide(false, false),
                    wide(true, true),
                    wide(false, true),
                    Op::Bits(Bits::ExtractU),
                    Op::Bits(Bits::ExtractS),
                    Op::Bits(Bits::Permute),
                    Op::Bits(Bits::Dot4 { a: true, b: true }),
                    Op::Logic(Logic::And),
                    Op::Logic(Logic::Or),
                    Op::Logic(Logic::Not),
                    Op::F32(F32::Add, PLAIN),
                    Op::F32(F32::Sub, PLAIN),
                    Op::F32(F32::Mul, PLAIN),
                    Op::F32(F32::Fma, PLAIN),
                    Op::F32(F32::Max, PLAIN),
                    Op::F32(F32::Min, PLAIN),
                    Op::F32(F32::Neg, PLAIN),
                    Op::F32(F32::Ex2, PLAIN),
                    compare(Kind::S32, Test::Eq),
                    compare(Kind::S32, Test::Ne),
                    compare(Kind::S32, Test::Lt),
                    compare(Kind::S32, Test::Ge),
                    compare(Kind::S32, Test::Gt),
                    compare(Kind::U32, Test::Lt),
                    compare(Kind::U32, Test::Ge),
                    compare(Kind::U32, Test::Gt),
                    Op::Select(Width::W32),
                    Op::Select(Width::W64),
                    convert(T::F32, T::F16),
                    convert(T::F32, T::Bf16),
                    convert(T::Bf16, T::F32),
                    convert(T::Bf16x2, T::F32),
                    convert(T::F32, T::S32),
                    convert(T::F32, T::U32),
                    convert(T::U64, T::U32),
                    convert(T::S64, T::S32),
                    convert(T::U32, T::U64),
                    convert(T::U16, T::U32),
                }
                None
            }

            /// Accesses, and what lanes do together.
            fn lanes(op: Op) -> Option<Handler> {
                own! { op, #[$features],
                    Op::Load(global(2, 1)),
                    Op::Load(global(4, 1)),
                    Op::Load(global(4, 2)),
                    Op::Load(global(4, 4)),
                    Op::Load(global(8, 1)),
                    Op::Store(global(2, 1)),
                    Op::Store(global(4, 1)),
                    Op::Store(global(4, 4)),
                    Op::Load(shared(4, 1)),
                    Op::Load(shared(4, 4)),
                    Op::Store(shared(4, 1)),
                    Op::Store(shared(4, 4)),
                    Op::Load(param(4, 1)),
                    Op::Load(param(8, 1)),
                    Op::Load(param_at(4, 1)),
                    Op::Load(param_at(4, 2)),
                    Op::Load(param_at(8, 1)),
                    Op::LoadMatrix { count: 4, transposed: false },
                    Op::LoadMatrix { count: 2, transposed: false },
                    Op::LoadMatrix { count: 4, transposed: true },
                    Op::LoadMatrix { count: 2, transposed: true },
                    Op::AsyncCopy(16),
                    Op::Mma(Mma::Bf16K16),
                    Op::Mma(Mma::F16K16),
                    Op::Lanes(Lanes::ShuffleXor),
                    Op::Lanes(Lanes::ShuffleDown),
                    Op::Lanes(Lanes::ShuffleIndex),
                }
                None
            }
        }
    };
}

handlers!(baseline, #[inline]);
#[cfg(target_arch = "x86_64")]
handlers!(avx2, #[target_feature(enable = "avx2,fma,bmi1,bmi2,lzcnt,popcnt")]);
#[cfg(target_arch = "x86_64")]
handlers!(
    avx512,
    #[target_feature(
        enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,bmi1,bmi2,lzcnt,popcnt"
    )]
);

/// Whether this processor has the vectors of 512 bits that the fastest handlers, and compiled stretches, are made of.
pub(crate) fn has_avx512() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && has_avx2()
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}

#[cfg(target_arch = "x86_64")]
fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("bmi1")
        && is_x86_feature_detected!("bmi2")
        && is_x86_feature_detected!("lzcnt")
        && is_x86_feature_detected!("popcnt")
}

/// What executes `op` on this processor.
pub(crate) fn handler(op: Op) -> Handler {
    #[cfg(target_arch = "x86_64")]
    {
        if has_avx512() {
            return avx512::handler(op);
        }
        if has_avx2() {
            return avx2::handler(op);
        }
    }
    baseline::handler(op)
}
