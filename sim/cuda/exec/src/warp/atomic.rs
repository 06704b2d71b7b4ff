//! Atomic updates of global and shared memory, lane after lane.

use super::access::addresses;
use super::registers::lanes;
use super::{Env, Warp};
use crate::decode::{SHARED_WINDOW, WINDOW_BYTES};
use crate::fault::{FaultKind, Step, Trouble};
use crate::memory::Reach;
use crate::number::{bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16};
use crate::program::{Atomic, HalfKind, Ins, Room, Update};
use crate::shared::How;
use std::sync::atomic::Ordering::SeqCst;

#[inline(never)]
pub(super) fn atomic(w: &mut Warp, e: &mut Env<'_>, ins: &Ins, a: Atomic, m: u32) -> Step {
    let addresses = addresses(&w.registers, ins.o[1], a.long, ins.imm);
    for lane in lanes(m) {
        let value = |at: usize| {
            if a.wide {
                w.registers.long(ins.o[at])[lane]
            } else {
                w.registers.word(ins.o[at])[lane].into()
            }
        };
        let (x, y) = (value(2), if a.update == Update::CompareSwap { value(3) } else { 0 });
        let apply = |old: u64| updated(a, old, x, y);
        let address = addresses[lane];
        let shared = match a.room {
            Room::Shared => Some(address),
            Room::Generic => {
                Some(address.wrapping_sub(SHARED_WINDOW)).filter(|at| *at < WINDOW_BYTES)
            }
            Room::Global => None,
            _ => {
                let text = "atomic update of local memory".to_owned();
                return Err(Trouble::new(FaultKind::OutOfBounds, lane as u32, text));
            }
        };
        let bytes = if a.wide { 8 } else { 4 };
        let old = if let Some(at) = shared {
            let mut addresses = addresses;
            addresses[lane] = at;
            update_shared(w, e, &Reach { addresses: &addresses, mask: 1 << lane, bytes }, apply)?
        } else {
            let reach = Reach { addresses: &addresses, mask: 1 << lane, bytes };
            let (memory, at) = e.memory.word(&reach, &mut e.counters)?;
            if a.wide {
                memory.data.atomic64(at).fetch_update(SeqCst, SeqCst, |old| Some(apply(old)))
            } else {
                let word = memory.data.atomic32(at);
                let old = word.fetch_update(SeqCst, SeqCst, |old| Some(apply(old.into()) as u32));
                old.map(u64::from).map_err(u64::from)
            }
            .unwrap_or_else(|old| old)
        };
        if a.wide {
            w.registers.longs[usize::from(ins.o[0])].0[lane] = old;
        } else {
            w.registers.words[usize::from(ins.o[0])].0[lane] = old as u32;
        }
    }
    Ok(())
}

fn update_shared(
    w: &Warp,
    e: &mut Env<'_>,
    reach: &Reach<'_>,
    apply: impl Fn(u64) -> u64,
) -> Step<u64> {
    reach.aligned("atomic update of shared memory")?;
    let lane = reach.mask.trailing_zeros();
    let (at, bytes) = (reach.addresses[lane as usize & 31], reach.bytes);
    if at.saturating_add(bytes as u64) > e.shared_bytes as u64 {
        let size = e.shared_bytes;
        let text = format!("atomic update of shared memory at {at:#x}: the block has {size} bytes");
        return Err(Trouble::new(FaultKind::OutOfBounds, lane, text));
    }
    e.shared.note(&w.who(e.pc, false), lane, (at as usize, bytes), How::Atomic)?;
    let place = e.shared.bytes_mut(at as usize, bytes);
    let mut old = [0; 8];
    old[..bytes].copy_from_slice(place);
    let old = u64::from_le_bytes(old);
    place.copy_from_slice(&apply(old).to_le_bytes()[..bytes]);
    Ok(old)
}

/// What an update of `old` by `x` (and `y`) leaves.
fn updated(a: Atomic, old: u64, x: u64, y: u64) -> u64 {
    // Narrow values are compared as the width that they have.
    let s =
        |value: u64| if a.wide { value.cast_signed() } else { (value as u32).cast_signed().into() };
    let f = |value: u64| f32::from_bits(value as u32);
    match a.update {
        Update::Add => old.wrapping_add(x),
        Update::AddF32 => u64::from((f(old) + f(x)).to_bits()),
        Update::AddF64 => (f64::from_bits(old) + f64::from_bits(x)).to_bits(),
        Update::AddHalf(kind) => u64::from(add_halves(kind, old as u32, x as u32)),
        Update::MinS => {
            if s(x) < s(old) {
                x
            } else {
                old
            }
        }
        Update::MaxS => {
            if s(x) > s(old) {
                x
            } else {
                old
            }
        }
        Update::MinU => old.min(x),
        Update::MaxU => old.max(x),
        Update::And => old & x,
        Update::Or => old | x,
        Update::Xor => old ^ x,
        Update::Exchange => x,
        Update::CompareSwap => {
            if old == x {
                y
            } else {
                old
            }
        }
        Update::Increment => {
            if old >= x {
                0
            } else {
                old + 1
            }
        }
        Update::Decrement => {
            if old == 0 || old > x {
                x
            } else {
                old - 1
            }
        }
    }
}

fn add_halves(kind: HalfKind, old: u32, x: u32) -> u32 {
    let add = |old: u16, x: u16| match kind {
        HalfKind::F16 => f32_to_f16(f16_to_f32(old) + f16_to_f32(x)),
        HalfKind::Bf16 => f32_to_bf16(bf16_to_f32(old) + bf16_to_f32(x)),
    };
    let low = add(old as u16, x as u16);
    let high = add((old >> 16) as u16, (x >> 16) as u16);
    u32::from(low) | u32::from(high) << 16
}
