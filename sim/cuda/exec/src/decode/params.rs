//! Which parameter a load through a register means, where that is known.
//!
//! Compilers put the address of a parameter that is a struct into a register where the kernel begins, and load its fields through it. As a load of
//! a known place such a load needs no look at the lanes' addresses, and nothing can be wrong with it.

use super::allocate::{Role, roles};
use super::scope::File;
use crate::program::{Access, Flow, Ins, Move, Op, Room, Slot};
use std::collections::HashMap;

/// Gives loads of the kernel's `bytes` bytes of parameters their places. `constants` are the registers that have a value from the start.
pub(super) fn place_loads(
    code: &mut [Ins],
    constants: impl Iterator<Item = (Slot, u64)>,
    bytes: usize,
) {
    let mut known: HashMap<Slot, u64> = constants.collect();
    let writes = writes(code);
    let straight = straight(code);
    for (at, ins) in code.iter_mut().enumerate() {
        match ins.op {
            // Executed before anything behind it, and by all lanes.
            Op::Move(Move::Long) if at < straight && ins.guard.is_none() => {
                if let (Some(value), Some(1)) = (known.get(&ins.o[1]), writes.get(&ins.o[0])) {
                    known.insert(ins.o[0], *value);
                }
            }
            Op::Load(a) if a.room == Room::ParamAt && a.long => {
                let base = known.get(&ins.o[0]);
                if let Some(start) = base.and_then(|base| place(*base, ins.imm, a, bytes)) {
                    ins.op = Op::Load(Access { room: Room::Param, long: false, ..a });
                    (ins.imm, ins.o[0]) = (start, 0);
                }
            }
            _ => {}
        }
    }
}

/// Where a load begins, if nothing is wrong with it.
fn place(base: u64, offset: i64, a: Access, bytes: usize) -> Option<i64> {
    let start = usize::try_from(base.checked_add_signed(offset)?).ok()?;
    let len = usize::from(a.bytes) * usize::from(a.count);
    let fits = start.is_multiple_of(len) && start.checked_add(len)? <= bytes;
    i64::try_from(start).ok().filter(|_| fits)
}

/// How often instructions write each 64-bit register.
fn writes(code: &[Ins]) -> HashMap<Slot, usize> {
    let mut counts = HashMap::new();
    for ins in code {
        for (at, role) in roles(ins.op).into_iter().enumerate() {
            if role == Role::Write(File::Long) {
                *counts.entry(ins.o[at]).or_default() += 1;
            }
        }
    }
    counts
}

/// The instructions that every thread executes one after the other when it begins.
fn straight(code: &[Ins]) -> usize {
    let flow = code.iter().position(|ins| matches!(ins.op, Op::Flow(_)));
    let branches = code.iter().filter(|ins| ins.op == Op::Flow(Flow::Branch));
    let entered = branches.map(|ins| ins.imm as usize).min();
    flow.unwrap_or(code.len()).min(entered.unwrap_or(code.len()))
}
