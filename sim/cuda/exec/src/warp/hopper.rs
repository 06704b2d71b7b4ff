//! What devices of capability 9.0 have beside.

use super::{Env, Warp, access, bulk, mbarrier, proxy, wgmma};
use crate::fault::Step;
use crate::program::{Hopper, Ins};

#[inline(never)]
pub(super) fn hopper(w: &mut Warp, e: &mut Env<'_>, ins: &Ins, op: Hopper, m: u32) -> Step {
    match op {
        Hopper::BarrierInit => mbarrier::init(w, e, ins, m),
        Hopper::BarrierInval => mbarrier::inval(w, e, ins, m),
        Hopper::BarrierArrive { completes } => mbarrier::arrive(w, e, ins, completes, m),
        Hopper::BarrierExpect { negative } => mbarrier::expect(w, e, ins, negative, m),
        Hopper::BarrierTest { parity } => mbarrier::test(w, e, ins, parity, m),
        Hopper::BarrierPending => {
            mbarrier::pending_count(w, ins, m);
            Ok(())
        }
        Hopper::CopiesArrive { counted } => mbarrier::copies_arrive(w, e, ins, counted, m),
        Hopper::ProxyFence => {
            proxy::fence(w, m);
            Ok(())
        }
        Hopper::BulkLoad => bulk::load(w, e, ins, m),
        Hopper::BulkStore => bulk::store(w, e, ins, m),
        Hopper::TileLoad(rank) => bulk::load_tile(w, e, ins, rank, m),
        Hopper::TileStore(rank) => bulk::store_tile(w, e, ins, rank, m),
        Hopper::BulkCommit => {
            bulk::commit(w, m);
            Ok(())
        }
        Hopper::BulkWait => {
            bulk::wait(w, e, m, ins.imm as u32);
            Ok(())
        }
        Hopper::MapCopy => bulk::copy_map(w, e, ins),
        Hopper::ProductFence => Ok(()),
        Hopper::ProductCommit => {
            wgmma::commit(w);
            Ok(())
        }
        Hopper::ProductWait => {
            wgmma::wait(w, e, ins.imm as u32);
            Ok(())
        }
        // Has a function of its own, with vector instructions.
        Hopper::Product { .. } => Ok(()),
        Hopper::StoreMatrix { count, transposed } => {
            access::store_matrix(w, e, ins, count, transposed)
        }
        Hopper::MapAddress { long } => mbarrier::map_address(w, ins, long, m),
    }
}
