//! What the arguments of a [`Collective`](crate::traits::Collective) must be, for hosts and backends alike.
//!
//! Everything here can be told from one rank's arguments alone: a violation is `INVALID_ARGUMENT` before anything is exchanged.

use crate::{
    error::AbiError,
    ids::{DType, ReduceOp},
    types::{A2av, FLAG_OPAQUE, TensorView},
};

type Checked<T = ()> = Result<T, AbiError>;

/// Most ranks of a communicator that hosts and conformance ask for.
pub const MAX_WORLD: u32 = 64;

/// Bytes of a view that a collective can move: whole bytes an element, contiguous, plain.
///
/// # Errors
/// `INVALID_ARGUMENT` naming `what`.
pub fn contiguous_bytes(what: &str, view: &TensorView) -> Checked<u64> {
    let bad = |why: &str| {
        let (dtype, dims, strides) = (view.dtype, view.dims(), view.strides());
        Err(AbiError::invalid(format!("{what}: {dtype} {dims:?}, strides {strides:?}: {why}")))
    };
    if view.dtype.bits().is_none_or(|b| b == 0 || b % 8 != 0) {
        return bad("a collective moves dtypes of whole bytes");
    }
    if view.flags & FLAG_OPAQUE != 0 {
        return bad("the arrangement is a backend's own");
    }
    let Some(bytes) = view.elements().and_then(|n| view.dtype.bytes(n)) else {
        return bad("no such shape");
    };
    if view.byte_offset.checked_add(bytes).and_then(|end| end.checked_add(view.data)).is_none() {
        return bad("beyond the address space");
    }
    let packed = TensorView::contiguous(0, 0, &view.spec());
    let steps = view.dims().iter().zip(view.strides().iter().zip(packed.strides()));
    if bytes > 0 && steps.into_iter().any(|(&d, (s, p))| d > 1 && s != p) {
        return bad("not contiguous");
    }
    if bytes > 0 && view.data == 0 {
        return bad("no memory");
    }
    Ok(bytes)
}

/// [`all_reduce`](crate::traits::Collective::all_reduce): equal dims and dtypes, the same memory or none in common.
///
/// # Errors
/// `INVALID_ARGUMENT`; `UNSUPPORTED` for an unknown `op`.
pub fn all_reduce(src: &TensorView, dst: &TensorView, op: ReduceOp) -> Checked {
    reduction(src.dtype, op)?;
    let bytes = (contiguous_bytes("src", src)?, contiguous_bytes("dst", dst)?);
    same_dtype(src, dst)?;
    if src.dims() != dst.dims() {
        return Err(shapes("all_reduce", src, dst, "equal dims"));
    }
    apart(src, bytes.0, dst, bytes.1, Some(start(dst)))
}

/// [`all_gather`](crate::traits::Collective::all_gather): `dst` has dim 0 of all ranks' `src`; `src` is the own part of it or apart.
///
/// # Errors
/// `INVALID_ARGUMENT`.
pub fn all_gather(src: &TensorView, dst: &TensorView, rank: u32, world: u32) -> Checked {
    let bytes = (contiguous_bytes("src", src)?, contiguous_bytes("dst", dst)?);
    same_dtype(src, dst)?;
    if !is_slice(src, dst, world) {
        return Err(shapes("all_gather", src, dst, "dst has dim 0 of src times the world"));
    }
    apart(src, bytes.0, dst, bytes.1, Some(start(dst) + u64::from(rank) * bytes.0))
}

/// [`reduce_scatter`](crate::traits::Collective::reduce_scatter): `src` has dim 0 of all ranks' `dst`; `dst` is the own part of it
/// or apart.
///
/// # Errors
/// `INVALID_ARGUMENT`; `UNSUPPORTED` for an unknown `op`.
pub fn reduce_scatter(
    src: &TensorView,
    dst: &TensorView,
    op: ReduceOp,
    rank: u32,
    world: u32,
) -> Checked {
    reduction(src.dtype, op)?;
    let bytes = (contiguous_bytes("src", src)?, contiguous_bytes("dst", dst)?);
    same_dtype(src, dst)?;
    if !is_slice(dst, src, world) {
        return Err(shapes("reduce_scatter", src, dst, "src has dim 0 of dst times the world"));
    }
    apart(dst, bytes.1, src, bytes.0, Some(start(src) + u64::from(rank) * bytes.1))
}

/// A rank that has to be one of the communicator.
///
/// # Errors
/// `INVALID_ARGUMENT` naming `what`.
pub fn member(what: &str, rank: u32, world: u32) -> Checked {
    if rank < world {
        return Ok(());
    }
    Err(AbiError::invalid(format!("{what} {rank} of {world} ranks")))
}

/// [`send`](crate::traits::Collective::send) and [`recv`](crate::traits::Collective::recv): a contiguous view and a peer, which is the
/// rank itself only in a group, since nobody else would receive. Gives the view's bytes.
///
/// # Errors
/// `INVALID_ARGUMENT`.
pub fn message(
    view: &TensorView,
    peer: u32,
    (rank, world): (u32, u32),
    in_group: bool,
) -> Checked<u64> {
    member("peer", peer, world)?;
    let bytes = contiguous_bytes("message", view)?;
    if peer == rank && !in_group {
        let message = "a rank exchanges messages with itself in a group only";
        return Err(AbiError::invalid(message));
    }
    Ok(bytes)
}

/// [`all_to_all_v`](crate::traits::Collective::all_to_all_v): views with equal rows, apart; four arrays of `world` entries each that
/// stay inside them; received rows are apart from each other. Gives the bytes a row.
///
/// # Errors
/// `INVALID_ARGUMENT`.
pub fn all_to_all_v(a: &A2av<'_>, world: u32) -> Checked<u64> {
    let bytes = (contiguous_bytes("send", &a.send)?, contiguous_bytes("recv", &a.recv)?);
    same_dtype(&a.send, &a.recv)?;
    if a.send.dims().is_empty() || a.send.dims().get(1..) != a.recv.dims().get(1..) {
        return Err(shapes("all_to_all_v", &a.send, &a.recv, "rows of equal dims"));
    }
    apart(&a.send, bytes.0, &a.recv, bytes.1, None)?;
    let row = TensorView { dims: one_row(&a.send), ..a.send };
    ranges("send", a.send.dims()[0], &a.send_counts, &a.send_displs, world)?;
    let mut received = ranges("recv", a.recv.dims()[0], &a.recv_counts, &a.recv_displs, world)?;
    received.retain(|(from, to)| from < to);
    received.sort_unstable();
    if let Some(pair) = received.windows(2).find(|w| w[0].1 > w[1].0) {
        let ((a, b), (c, d)) = (pair[0], pair[1]);
        return Err(AbiError::invalid(format!("received rows {a}..{b} and {c}..{d} overlap")));
    }
    row.elements()
        .and_then(|n| a.send.dtype.bytes(n))
        .ok_or_else(|| AbiError::invalid("a row beyond the address space"))
}

/// Whether a dtype can be combined so.
fn reduction(dtype: DType, op: ReduceOp) -> Checked {
    let float =
        matches!(dtype, DType::F32 | DType::F16 | DType::BF16 | DType::F8E4M3 | DType::F8E5M2);
    let integer =
        matches!(dtype, DType::I8 | DType::U8 | DType::I32 | DType::I64 | DType::U32 | DType::U64);
    match op {
        _ if op.name().is_none() => Err(AbiError::unsupported(format!("reduction {op}"))),
        ReduceOp::AVG if !float => {
            Err(AbiError::invalid(format!("{op} of {dtype}: a mean needs floats")))
        }
        _ if float || integer => Ok(()),
        _ => Err(AbiError::invalid(format!("{op} of {dtype}: these are no numbers to combine"))),
    }
}

fn same_dtype(a: &TensorView, b: &TensorView) -> Checked {
    if a.dtype == b.dtype {
        return Ok(());
    }
    Err(AbiError::invalid(format!("from {} to {}: dtypes differ", a.dtype, b.dtype)))
}

fn shapes(call: &str, src: &TensorView, dst: &TensorView, rule: &str) -> AbiError {
    AbiError::invalid(format!("{call} of {:?} to {:?}: {rule}", src.dims(), dst.dims()))
}

/// Whether `world` parts, one after the other along dim 0, make the whole.
fn is_slice(part: &TensorView, whole: &TensorView, world: u32) -> bool {
    match (part.dims(), whole.dims()) {
        ([p, part @ ..], [w, whole @ ..]) => {
            part == whole && p.checked_mul(i64::from(world)) == Some(*w)
        }
        _ => false,
    }
}

fn start(view: &TensorView) -> u64 {
    view.data + view.byte_offset
}

/// Refuses memory in common, unless `a` starts exactly where it may.
fn apart(
    a: &TensorView,
    a_bytes: u64,
    b: &TensorView,
    b_bytes: u64,
    in_place: Option<u64>,
) -> Checked {
    let (a0, b0) = (start(a), start(b));
    let common = a_bytes > 0 && b_bytes > 0 && a0 < b0 + b_bytes && b0 < a0 + a_bytes;
    if !common || in_place == Some(a0) {
        return Ok(());
    }
    Err(AbiError::invalid("the two views overlap, and not as an in-place call may"))
}

fn one_row(view: &TensorView) -> [i64; crate::types::MAX_RANK] {
    let mut dims = view.dims;
    dims[0] = 1;
    dims
}

fn ranges(
    what: &str,
    rows: i64,
    counts: &[u64],
    displs: &[u64],
    world: u32,
) -> Checked<Vec<(u64, u64)>> {
    if counts.len() != world as usize || displs.len() != world as usize {
        let (c, d) = (counts.len(), displs.len());
        return Err(AbiError::invalid(format!("{what}: {c} counts, {d} places, {world} ranks")));
    }
    let range = |(&count, &from): (&u64, &u64)| {
        let to = from.checked_add(count).filter(|&to| to <= rows.cast_unsigned());
        to.map(|to| (from, to)).ok_or_else(|| {
            AbiError::invalid(format!("{what}: {count} rows from {from} on, of {rows}"))
        })
    };
    counts.iter().zip(displs).map(range).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{RSlice, TensorSpec};

    fn view(data: u64, dims: &[i64]) -> TensorView {
        TensorView::contiguous(data, 0, &TensorSpec::new(DType::F32, dims))
    }

    #[track_caller]
    fn refused(result: Checked<impl core::fmt::Debug>, word: &str) {
        let error = result.unwrap_err();
        assert_eq!(error.code, crate::Code::INVALID_ARGUMENT, "{error}");
        assert!(error.message.contains(word), "{error}");
    }

    #[test]
    fn views_are_plain_and_contiguous() {
        assert_eq!(contiguous_bytes("x", &view(64, &[3, 5])), Ok(60));
        assert_eq!(contiguous_bytes("x", &view(0, &[0, 5])), Ok(0));
        let mut one = view(64, &[1, 5]);
        one.strides[0] = 99;
        assert_eq!(contiguous_bytes("x", &one), Ok(20));
        let mut gaps = view(64, &[3, 5]);
        gaps.strides[0] = 6;
        refused(contiguous_bytes("x", &gaps), "not contiguous");
        refused(contiguous_bytes("x", &view(0, &[1])), "no memory");
        refused(contiguous_bytes("x", &view(64, &[-1])), "no such shape");
        refused(contiguous_bytes("x", &TensorView { flags: FLAG_OPAQUE, ..view(64, &[1]) }), "own");
        refused(contiguous_bytes("x", &TensorView::NONE), "whole bytes");
        refused(contiguous_bytes("x", &view(u64::MAX - 3, &[1])), "address space");
    }

    #[test]
    fn in_place_is_the_same_memory_or_the_own_part() {
        let (whole, sum) = (view(1000, &[4, 2]), ReduceOp::SUM);
        assert_eq!(all_reduce(&whole, &whole, sum), Ok(()));
        refused(all_reduce(&view(1004, &[4, 2]), &whole, sum), "overlap");
        assert_eq!(all_gather(&view(1016, &[2, 2]), &whole, 1, 2), Ok(()));
        refused(all_gather(&view(1016, &[2, 2]), &whole, 0, 2), "overlap");
        refused(all_gather(&view(0x1_0000, &[2, 3]), &whole, 0, 2), "dim 0");
        assert_eq!(reduce_scatter(&whole, &view(1016, &[2, 2]), sum, 1, 2), Ok(()));
        refused(reduce_scatter(&whole, &view(1000, &[2, 2]), sum, 1, 2), "overlap");
        refused(reduce_scatter(&whole, &view(0x1_0000, &[4, 2]), sum, 1, 2), "dim 0");
        refused(all_reduce(&whole, &view(0x1_0000, &[8]), sum), "equal dims");
    }

    #[test]
    fn only_numbers_are_combined_and_only_floats_have_a_mean() {
        let of = |dtype| TensorView { dtype, ..view(1000, &[2]) };
        refused(all_reduce(&of(DType::I32), &of(DType::I32), ReduceOp::AVG), "mean");
        refused(all_reduce(&of(DType::U4), &of(DType::U4), ReduceOp::SUM), "no numbers");
        refused(all_reduce(&of(DType::I32), &of(DType::U32), ReduceOp::SUM), "differ");
        let error = all_reduce(&of(DType::F32), &of(DType::F32), ReduceOp(9)).unwrap_err();
        assert_eq!(error.code, crate::Code::UNSUPPORTED);
    }

    #[test]
    fn counts_stay_inside_and_received_rows_apart() {
        let check = |counts: [u64; 2], places: [u64; 2], recv: [u64; 2], at: [u64; 2]| {
            all_to_all_v(
                &A2av {
                    send: view(1000, &[4, 2]),
                    recv: view(0x1_0000, &[6, 2]),
                    send_counts: RSlice::from_slice(&counts),
                    send_displs: RSlice::from_slice(&places),
                    recv_counts: RSlice::from_slice(&recv),
                    recv_displs: RSlice::from_slice(&at),
                },
                2,
            )
        };
        assert_eq!(check([2, 2], [1, 1], [3, 3], [3, 0]), Ok(8));
        refused(check([2, 2], [1, 3], [3, 3], [3, 0]), "send: 2 rows from 3");
        refused(check([2, u64::MAX], [1, 1], [3, 3], [3, 0]), "send");
        refused(check([2, 2], [1, 1], [3, 4], [2, 2]), "overlap");
        let few = A2av {
            send: view(1000, &[4, 2]),
            recv: view(0x1_0000, &[6, 2]),
            send_counts: RSlice::from_slice(&[1]),
            send_displs: RSlice::from_slice(&[1]),
            recv_counts: RSlice::from_slice(&[1, 1]),
            recv_displs: RSlice::from_slice(&[0, 1]),
        };
        refused(all_to_all_v(&few, 2), "1 counts");
        refused(member("root", 2, 2), "root 2 of 2");
    }
}
