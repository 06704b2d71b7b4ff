//! Registers that `wgmma` has hold of: which instructions may touch them too early.
//!
//! From `mma_async` to the `wait_group` for its group nobody may read or write its results, nor write its A; and before it, what other
//! instructions did to its registers must be fenced. Both are found along every path through the code. Whether it is so in a run
//! is looked up when a marked instruction is executed: only if the product is really under way is it a mistake.

use super::allocate::Uses;
use super::scope::File;
use crate::program::{Flow, Hazards, Hopper, Ins, Op, Product, Slot};
use std::collections::{BTreeMap, BTreeSet};

/// What holds before an instruction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct State {
    /// Results under way, and A: by product's instruction and register, how many groups were committed since, 0 for its own not yet.
    held: BTreeMap<(u32, Slot, bool), u8>,
    /// Registers that were written and not fenced.
    written: BTreeSet<Slot>,
    /// No `wgmma.fence` was executed.
    unfenced: bool,
}

impl State {
    /// Adds what may hold on another path; says whether that is new.
    fn join(&mut self, other: &Self) -> bool {
        let before = (self.held.len(), self.written.len(), self.unfenced);
        let mut changed = false;
        for (held, age) in &other.held {
            let known = self.held.entry(*held).or_insert(*age);
            changed |= *known > *age;
            *known = (*known).min(*age);
        }
        self.written.extend(&other.written);
        self.unfenced |= other.unfenced;
        changed || before != (self.held.len(), self.written.len(), self.unfenced)
    }
}

/// The hazards of `code`, whose registers are as the text names them.
pub(super) fn hazards(code: &[Ins], products: &[Product]) -> Hazards {
    let mut found = Hazards::default();
    if products.is_empty() {
        return found;
    }
    let uses: Vec<Uses> = code.iter().map(|ins| Uses::of(ins, products, File::Word)).collect();
    let watched: BTreeSet<Slot> = products.iter().flat_map(Product::words).collect();
    let mut before: Vec<Option<State>> = vec![None; code.len()];
    before[0] = Some(State { unfenced: true, ..State::default() });
    let mut work = vec![0usize];
    while let Some(at) = work.pop() {
        let Some(state) = before[at].clone() else { continue };
        let after = step(state, at as u32, &code[at], (&uses[at], products, &watched), &mut found);
        for next in following(code, at) {
            let changed = match &mut before[next] {
                Some(known) => known.join(&after),
                unknown => {
                    *unknown = Some(after.clone());
                    true
                }
            };
            if changed {
                work.push(next);
            }
        }
    }
    found
}

fn following(code: &[Ins], at: usize) -> impl Iterator<Item = usize> {
    let ins = &code[at];
    let falls =
        !matches!(ins.op, Op::Flow(Flow::Branch | Flow::Exit | Flow::Trap)) || ins.guard.is_some();
    let branch = (ins.op == Op::Flow(Flow::Branch)).then_some(ins.imm as usize);
    (falls && at + 1 < code.len()).then_some(at + 1).into_iter().chain(branch)
}

fn step(
    mut state: State,
    at: u32,
    ins: &Ins,
    (uses, products, watched): (&Uses, &[Product], &BTreeSet<Slot>),
    found: &mut Hazards,
) -> State {
    match ins.op {
        Op::Hopper(Hopper::Product { .. }) => {
            let product = &products[ins.imm as usize];
            let left = product.left_words();
            let unready =
                product.sums_in.iter().chain(left).any(|slot| state.written.contains(slot));
            if unready || state.unfenced {
                found.unfenced.insert(at);
            }
            // A register of A that a product under way has as a result is read too early.
            let held = state.held.keys().filter(|(_, slot, result)| *result && left.contains(slot));
            let early: Vec<_> = held.map(|(product, ..)| *product).collect();
            if !early.is_empty() {
                found.early.entry(at).or_default().extend(early);
            }
            state.held.extend(product.sums_in.iter().map(|slot| ((at, *slot, true), 0)));
            state.held.extend(left.iter().map(|slot| ((at, *slot, false), 0)));
        }
        Op::Hopper(Hopper::ProductFence) => {
            state.written.clear();
            state.unfenced = false;
        }
        Op::Hopper(Hopper::ProductCommit) => {
            state.held.values_mut().for_each(|age| *age = age.saturating_add(1));
        }
        Op::Hopper(Hopper::ProductWait) => {
            let keep = ins.imm as u8;
            state.held.retain(|_, age| *age == 0 || *age <= keep);
        }
        _ => {
            let writes: Vec<Slot> = uses.writes().map(|slot| slot as Slot).collect();
            let reads: Vec<Slot> = uses.reads().map(|slot| slot as Slot).collect();
            let touches = |(_, slot, result): &(u32, Slot, bool)| {
                writes.contains(slot) || *result && reads.contains(slot)
            };
            let early: Vec<_> =
                state.held.keys().filter(|held| touches(held)).map(|held| held.0).collect();
            if !early.is_empty() {
                found.early.entry(at).or_default().extend(early);
            }
            state.written.extend(writes.iter().filter(|slot| watched.contains(slot)));
        }
    }
    state
}
