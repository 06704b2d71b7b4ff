//! Communicators of the C door.

use std::{
    ptr::{self, NonNull},
    sync::Arc,
};

use halyard_abi::{
    A2av, AbiError, CollectiveBox, R, ReduceOp, Stream, TensorView,
    c::{self, Collectives},
    exporting::TD_Opaque,
    traits,
};

use super::{
    device::{Open, entry},
    object,
};

/// The boundary's communicator over a C one.
pub(super) struct CCollective {
    open: Arc<Open>,
    comm: &'static Collectives,
    raw: NonNull<c::Collective>,
}

// SAFETY: the header lets any thread call any function; the pointer is never read on this side.
unsafe impl Send for CCollective {}
// SAFETY: as above.
unsafe impl Sync for CCollective {}

impl CCollective {
    pub(super) fn boxed(
        open: &Arc<Open>,
        comm: &'static Collectives,
        raw: NonNull<c::Collective>,
    ) -> CollectiveBox {
        let this = Self { open: Arc::clone(open), comm, raw };
        traits::Collective_TO::from_value(this, TD_Opaque)
    }

    fn raw(&self) -> *mut c::Collective {
        self.raw.as_ptr()
    }
}

impl Drop for CCollective {
    fn drop(&mut self) {
        // SAFETY: nobody uses the communicator after this, and its device is still open.
        unsafe { (self.comm.collective_destroy)(self.raw()) };
    }
}

impl traits::Collective for CCollective {
    fn all_reduce(&self, s: Stream, src: &TensorView, dst: &TensorView, op: ReduceOp) -> R<()> {
        let comm = self.comm;
        entry!(self.open, comm.collective_all_reduce(self.raw(), s, src, dst, op)).into()
    }
    fn all_gather(&self, s: Stream, src: &TensorView, dst: &TensorView) -> R<()> {
        let comm = self.comm;
        entry!(self.open, comm.collective_all_gather(self.raw(), s, src, dst)).into()
    }
    fn reduce_scatter(&self, s: Stream, src: &TensorView, dst: &TensorView, op: ReduceOp) -> R<()> {
        let comm = self.comm;
        entry!(self.open, comm.collective_reduce_scatter(self.raw(), s, src, dst, op)).into()
    }
    fn broadcast(&self, s: Stream, buf: &TensorView, root: u32) -> R<()> {
        let comm = self.comm;
        entry!(self.open, comm.collective_broadcast(self.raw(), s, buf, root)).into()
    }
    fn all_to_all_v(&self, s: Stream, a: &A2av<'_>) -> R<()> {
        let comm = self.comm;
        entry!(self.open, comm.collective_all_to_all_v(self.raw(), s, a)).into()
    }
    fn send(&self, s: Stream, src: &TensorView, peer: u32) -> R<()> {
        let comm = self.comm;
        entry!(self.open, comm.collective_send(self.raw(), s, src, peer)).into()
    }
    fn recv(&self, s: Stream, dst: &TensorView, peer: u32) -> R<()> {
        let comm = self.comm;
        entry!(self.open, comm.collective_recv(self.raw(), s, dst, peer)).into()
    }
    fn group_begin(&self) -> R<()> {
        let comm = self.comm;
        entry!(self.open, comm.collective_group_begin(self.raw())).into()
    }
    fn group_end(&self) -> R<()> {
        let comm = self.comm;
        entry!(self.open, comm.collective_group_end(self.raw())).into()
    }
    fn barrier(&self, s: Stream) -> R<()> {
        let comm = self.comm;
        entry!(self.open, comm.collective_barrier(self.raw(), s)).into()
    }
    fn status(&self) -> R<()> {
        let comm = self.comm;
        entry!(self.open, comm.collective_status(self.raw())).into()
    }
    fn abort(&self) -> R<()> {
        let comm = self.comm;
        entry!(self.open, comm.collective_abort(self.raw())).into()
    }
    fn split(&self, color: i32, key: i32) -> R<CollectiveBox> {
        let Some(split) = self.open.entries.collective_split else {
            return Err(AbiError::unsupported("this backend has no `collective_split`")).into();
        };
        let mut part = ptr::null_mut();
        let done = self.open.call("collective_split", |err| {
            // SAFETY: the communicator is alive, both outputs are live and zeroed.
            unsafe { split(self.raw(), color, key, &mut part, err) }
        });
        done.and_then(|()| object("collective_split", part))
            .map(|raw| Self::boxed(&self.open, self.comm, raw))
            .into()
    }
}
