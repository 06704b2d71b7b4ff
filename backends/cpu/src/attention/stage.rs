//! Keys and values of a chunk in the form that the kernel reads: floats, keys side by side.
//!
//! What already has that form is read where it lies.

use std::cell::RefCell;
use std::ops::Range;

use super::{CHUNK, Source};
use crate::cell::Cell;
use crate::elem::Elem;
use crate::isa::Op;
use crate::kv::{Order, View};
use crate::simd::{LANES, Simd};

/// A thread's room for a chunk's keys (dimension `d` of key `j` at `d * CHUNK + j`), then its values
/// (dimension `d` of value `j` at `j * padded + d`). Null if nothing is staged.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stage {
    keys: *mut f32,
    values: *mut f32,
}

/// A cache line.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line(#[expect(dead_code, reason = "what counts is its room")] [f32; LANES]);

thread_local! {
    /// Grows to the largest chunk that its thread has staged, and stays.
    static ROOM: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
}

/// Calls `f` with room to stage chunks of `source`.
pub(super) fn with(source: &Source<'_>, f: impl FnOnce(Stage)) {
    let [keys, values] = source.staged();
    let key_lines = if keys { source.dim_k() * CHUNK / LANES } else { 0 };
    let value_lines = if values { source.padded_v() * CHUNK / LANES } else { 0 };
    let lines = key_lines + value_lines;
    if lines == 0 {
        return f(Stage { keys: std::ptr::null_mut(), values: std::ptr::null_mut() });
    }
    ROOM.with_borrow_mut(|room| {
        if room.len() < lines {
            room.resize(lines, Line([0.0; LANES]));
        }
        let keys = room.as_mut_ptr().cast::<f32>();
        f(Stage { keys, values: keys.wrapping_add(key_lines * LANES) });
    });
}

/// Views of a head's keys and values that the kernel can read within one chunk.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ready<'a> {
    pub(super) keys: View<'a>,
    pub(super) key_elem: Elem,
    pub(super) values: View<'a>,
    pub(super) value_elem: Elem,
}

/// Makes a sequence's tokens `seen`, which are of one chunk, ready.
pub(super) struct Prepare<'a> {
    pub(super) source: &'a Source<'a>,
    pub(super) stage: Stage,
    pub(super) b: usize,
    pub(super) head: usize,
    pub(super) seen: Range<usize>,
}

impl<'a> Op for Prepare<'a> {
    type Out = Ready<'a>;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Ready<'a> {
        let [stage_keys, stage_values] = self.source.staged();
        let (mut keys, more) = self.source.keys(self.b, self.head);
        let mut values = self.source.values(self.b, self.head);
        let chunk = self.seen.start / CHUNK * CHUNK;
        if stage_keys {
            // SAFETY: the tokens exist, and the room is for a chunk of all dimensions.
            unsafe {
                self.put_keys(s, &keys, self.stage.keys);
                if let Some(more) = &more {
                    self.put_keys(s, more, self.stage.keys.add(keys.dim * CHUNK));
                }
            }
            let dim = keys.dim + more.map_or(0, |m| m.dim);
            keys = staged(self.stage.keys, chunk, Order::Dims, dim);
        }
        if stage_values {
            // SAFETY: as above.
            unsafe { self.put_values(s, &values, self.stage.values) };
            values = staged(self.stage.values, chunk, Order::Tokens, values.dim);
        }
        let elem = |v: &View<'_>| v.cell.float().unwrap_or(Elem::F32);
        Ready { key_elem: elem(&keys), keys, value_elem: elem(&values), values }
    }
}

/// Staged tokens, found by their number in the sequence.
fn staged<'a>(base: *const f32, chunk: usize, order: Order, dim: usize) -> View<'a> {
    let (token_stride, dim_stride) = match order {
        Order::Dims => (4, 4 * CHUNK),
        Order::Tokens => (4 * dim.next_multiple_of(LANES), 4),
    };
    View {
        base: base.cast::<u8>().wrapping_sub(chunk * token_stride),
        cell: Cell::Float(Elem::F32),
        scale: 1.0,
        dim,
        token_stride,
        dim_stride,
        order: Some(order),
        pages: None,
    }
}

impl Prepare<'_> {
    /// Keys side by side, in whole vectors: after the last that exists, it is repeated.
    #[inline(always)]
    unsafe fn put_keys<S: Simd>(&self, s: S, from: &View<'_>, to: *mut f32) {
        let scale = s.splat(from.scale);
        let beside = from.order == Some(Order::Dims) && from.has_whole_vectors();
        for first in (self.seen.start / LANES * LANES..self.seen.end).step_by(LANES) {
            // SAFETY: the caller's promise; a block of sixteen tokens or more has whole vectors of them.
            unsafe {
                let to = to.add(first % CHUNK);
                if beside {
                    let token = from.token(first);
                    for d in 0..from.dim {
                        let v = from.cell.load(s, token.add(d * from.dim_stride));
                        s.store(to.add(d * CHUNK), s.mul(v, scale));
                    }
                    continue;
                }
                let token =
                    |i: usize| from.token((first + i).clamp(self.seen.start, self.seen.end - 1));
                let tokens: [*const u8; LANES] = std::array::from_fn(token);
                for d in (0..from.dim).step_by(LANES) {
                    let mut square = [s.splat(0.0); LANES];
                    for (row, token) in square.iter_mut().zip(tokens) {
                        *row = from.dims(s, token, d);
                    }
                    let square = s.transpose(square);
                    for (i, v) in square.into_iter().enumerate().take(from.dim - d) {
                        s.store(to.add((d + i) * CHUNK), v);
                    }
                }
            }
        }
    }

    /// Values in rows, padded with zeros.
    #[inline(always)]
    unsafe fn put_values<S: Simd>(&self, s: S, from: &View<'_>, to: *mut f32) {
        let padded = from.dim.next_multiple_of(LANES);
        for j in self.seen.clone() {
            // SAFETY: the caller's promise.
            unsafe {
                let (token, to) = (from.token(j), to.add(j % CHUNK * padded));
                for d in (0..from.dim).step_by(LANES) {
                    s.store(to.add(d), from.dims(s, token, d));
                }
            }
        }
    }
}
