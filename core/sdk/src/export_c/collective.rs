//! The communicators' part of the C door's table.

use halyard_abi::{
    A2av, Code, CollectiveBox, ReduceOp, Stream, TensorView,
    c::{self, ErrorBuffer},
};

use super::{done, drop_raw, give, into_raw};

fn comm<'a>(raw: *mut c::Collective) -> &'a CollectiveBox {
    // SAFETY: the host passes what `device_comm_create` or `split` gave it and has not destroyed it.
    unsafe { &*raw.cast() }
}

pub(super) extern "C" fn all_reduce(
    c: *mut c::Collective,
    s: Stream,
    src: &TensorView,
    dst: &TensorView,
    op: ReduceOp,
    err: &mut ErrorBuffer,
) -> Code {
    done(comm(c).all_reduce(s, src, dst, op), err)
}

pub(super) extern "C" fn all_gather(
    c: *mut c::Collective,
    s: Stream,
    src: &TensorView,
    dst: &TensorView,
    err: &mut ErrorBuffer,
) -> Code {
    done(comm(c).all_gather(s, src, dst), err)
}

pub(super) extern "C" fn reduce_scatter(
    c: *mut c::Collective,
    s: Stream,
    src: &TensorView,
    dst: &TensorView,
    op: ReduceOp,
    err: &mut ErrorBuffer,
) -> Code {
    done(comm(c).reduce_scatter(s, src, dst, op), err)
}

pub(super) extern "C" fn broadcast(
    c: *mut c::Collective,
    s: Stream,
    buf: &TensorView,
    root: u32,
    err: &mut ErrorBuffer,
) -> Code {
    done(comm(c).broadcast(s, buf, root), err)
}

pub(super) extern "C" fn all_to_all_v(
    c: *mut c::Collective,
    s: Stream,
    a: &A2av<'_>,
    err: &mut ErrorBuffer,
) -> Code {
    done(comm(c).all_to_all_v(s, a), err)
}

pub(super) extern "C" fn send(
    c: *mut c::Collective,
    s: Stream,
    src: &TensorView,
    peer: u32,
    err: &mut ErrorBuffer,
) -> Code {
    done(comm(c).send(s, src, peer), err)
}

pub(super) extern "C" fn recv(
    c: *mut c::Collective,
    s: Stream,
    dst: &TensorView,
    peer: u32,
    err: &mut ErrorBuffer,
) -> Code {
    done(comm(c).recv(s, dst, peer), err)
}

pub(super) extern "C" fn group_begin(c: *mut c::Collective, err: &mut ErrorBuffer) -> Code {
    done(comm(c).group_begin(), err)
}

pub(super) extern "C" fn group_end(c: *mut c::Collective, err: &mut ErrorBuffer) -> Code {
    done(comm(c).group_end(), err)
}

pub(super) extern "C" fn barrier(c: *mut c::Collective, s: Stream, err: &mut ErrorBuffer) -> Code {
    done(comm(c).barrier(s), err)
}

pub(super) extern "C" fn status(c: *mut c::Collective, err: &mut ErrorBuffer) -> Code {
    done(comm(c).status(), err)
}

pub(super) extern "C" fn abort(c: *mut c::Collective, err: &mut ErrorBuffer) -> Code {
    done(comm(c).abort(), err)
}

pub(super) extern "C" fn destroy(c: *mut c::Collective) {
    drop_raw::<CollectiveBox, _>(c);
}

pub(super) extern "C" fn split(
    c: *mut c::Collective,
    color: i32,
    key: i32,
    out: &mut *mut c::Collective,
    err: &mut ErrorBuffer,
) -> Code {
    give(comm(c).split(color, key).map(into_raw), out, err)
}
