//! A product's work on a stream: copies to pinned memory, the product there, a copy back.

use std::{
    collections::HashMap,
    sync::{Mutex, OnceLock, PoisonError},
};

use halyard_sim_cuda_calls::{Place, Stream};

use crate::{
    driver::{Kept, Pieces, check_held},
    multiply::{columns, dot, store, widen},
    object::Layout,
    problem::{Algorithm, Problem, WORKSPACE_ALIGN},
    status::{Failure, Outcome},
};

/// Where everything is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Addresses {
    /// A, B, C and D.
    pub(crate) matrices: [u64; 4],
    pub(crate) workspace: u64,
    pub(crate) workspace_bytes: u64,
}

/// Bytes from a matrix's start to its end.
fn span(layout: &Layout) -> u64 {
    ((layout.columns - 1) * layout.leading.unsigned_abs() + layout.rows) * layout.float.bytes()
}

fn overlap(a: (u64, u64), b: (u64, u64)) -> bool {
    a.0 < b.0 + b.1 && b.0 < a.0 + a.1
}

impl Problem {
    /// Checks every address.
    fn check_addresses(
        &self,
        place: &Place,
        at: &Addresses,
        algorithm: &Algorithm,
        adds: bool,
    ) -> Outcome<u64> {
        let (wanted, alignments) = self.check(algorithm)?;
        let names = ["A", "B", "C", "D"];
        for i in (0..4).filter(|&i| i != 2 || adds) {
            let (name, start) = (names[i], at.matrices[i]);
            if !start.is_multiple_of(alignments[i]) {
                return Err(Failure::value(format!(
                    "{name} at {start:#x}, {} bytes of alignment were promised",
                    alignments[i]
                )));
            }
            check_held(place, name, start, span(&self.layouts[i]))?;
        }
        let spans = [0, 1, 2, 3].map(|i| (at.matrices[i], span(&self.layouts[i])));
        if overlap(spans[3], spans[0]) || overlap(spans[3], spans[1]) {
            return Err(Failure::value("D overlaps an operand"));
        }
        let in_place = at.matrices[2] == at.matrices[3] && self.layouts[2] == self.layouts[3];
        if adds && !in_place && overlap(spans[3], spans[2]) {
            return Err(Failure::value("D overlaps C and is not C"));
        }
        if self.product.biased {
            let (bias, float) = (self.product.bias, self.layouts[3].float);
            if bias == 0 || !bias.is_multiple_of(float.bytes()) {
                return Err(Failure::value(format!("a bias at {bias:#x}")));
            }
            check_held(place, "the bias", bias, self.layouts[3].rows * float.bytes())?;
        }
        if wanted > at.workspace_bytes {
            return Err(Failure::value(format!(
                "a workspace of {} bytes, the algorithm wants {wanted}",
                at.workspace_bytes
            )));
        }
        if at.workspace_bytes > 0 {
            if !at.workspace.is_multiple_of(WORKSPACE_ALIGN) {
                return Err(Failure::value(format!(
                    "a workspace at {:#x}, which is no multiple of {WORKSPACE_ALIGN}",
                    at.workspace
                )));
            }
            check_held(place, "the workspace", at.workspace, at.workspace_bytes)?;
            if spans.iter().any(|&s| overlap((at.workspace, at.workspace_bytes), s)) {
                return Err(Failure::value("the workspace overlaps a matrix"));
            }
        }
        Ok(wanted)
    }

    /// Enqueues the product.
    ///
    /// # Errors
    /// `INVALID_VALUE` for an address that is not what was said; what the driver says.
    pub(crate) fn enqueue(
        self,
        place: &Place,
        at: &Addresses,
        algorithm: &Algorithm,
        [alpha, beta]: [f32; 2],
        stream: Stream,
    ) -> Outcome {
        let adds = beta != 0.0;
        let wanted = self.check_addresses(place, at, algorithm, adds)?;
        let room = Room::of(&self, adds);
        let pinned = if stream.is_capturing()? {
            Kept::alloc(room.bytes)?
        } else {
            pinned_of(stream, room.bytes)?
        };
        let start = pinned.start();
        // No numbers, over what nobody may use.
        stream.fill(at.workspace, 0xff, wanted)?;
        let packed = |layout: &Layout| {
            let bytes = layout.rows * layout.float.bytes();
            let step = layout.leading.unsigned_abs() * layout.float.bytes();
            Pieces { count: layout.columns, bytes, from_step: step, to_step: bytes }
        };
        for i in (0..3).filter(|&i| i != 2 || adds) {
            packed(&self.layouts[i]).copy(stream, start + room.starts[i], at.matrices[i])?;
        }
        if self.product.biased {
            let bytes = self.layouts[3].rows * self.layouts[3].float.bytes();
            let all = Pieces { count: 1, bytes, from_step: bytes, to_step: bytes };
            all.copy(stream, start + room.starts[4], self.product.bias)?;
        }
        stream.call_again(Box::new(move || {
            pinned.with(|bytes| self.compute(bytes, &room, alpha, beta));
        }))?;
        let back = packed(&self.layouts[3]);
        let back = Pieces { from_step: back.to_step, to_step: back.from_step, ..back };
        back.copy(stream, at.matrices[3], start + room.starts[3])
    }

    /// The product of packed matrices in pinned memory.
    fn compute(&self, bytes: &mut [u8], room: &Room, alpha: f32, beta: f32) {
        let (m, n, k) = self.sizes();
        let (m, n, k) = (m as usize, n as usize, k as usize);
        let [a, b, c, d] = self.layouts;
        let part = |i: usize, count: u64, layout: &Layout| {
            widen(
                layout.float,
                &bytes[room.starts[i] as usize..][..(count * layout.float.bytes()) as usize],
            )
        };
        let [left, right] =
            [(0, a), (1, b)].map(|(i, layout)| part(i, layout.rows * layout.columns, &layout));
        let left = if self.product.transposed[0] {
            left
        } else {
            columns(&left, m, k, |row, term| term * m + row)
        };
        let right = if self.product.transposed[1] {
            columns(&right, n, k, |column, term| term * n + column)
        } else {
            right
        };
        let sums = if beta == 0.0 { Vec::new() } else { part(2, c.rows * c.columns, &c) };
        let bias = if self.product.biased { part(4, d.rows, &d) } else { Vec::new() };
        let to = &mut bytes[room.starts[3] as usize..];
        for column in 0..n {
            for row in 0..m {
                let at = column * m + row;
                let mut value = alpha * dot(&left[row * k..][..k], &right[column * k..][..k]);
                value += bias.get(row).copied().unwrap_or(0.0);
                if let Some(sum) = sums.get(at) {
                    value += beta * sum;
                }
                store(d.float, to, at, value);
            }
        }
    }
}

/// Where A, B, C, D and the bias are in pinned memory, packed.
#[derive(Clone, Copy, Debug)]
struct Room {
    starts: [u64; 5],
    bytes: u64,
}

impl Room {
    fn of(problem: &Problem, adds: bool) -> Self {
        let (mut starts, mut bytes) = ([0; 5], 0);
        let of = |layout: &Layout| layout.rows * layout.columns * layout.float.bytes();
        let [a, b, c, d] = problem.layouts.each_ref().map(of);
        let bias = if problem.product.biased { problem.layouts[3].rows * 4 } else { 0 };
        for (start, size) in starts.iter_mut().zip([a, b, if adds { c } else { 0 }, d, bias]) {
            *start = bytes;
            bytes += size.next_multiple_of(WORKSPACE_ALIGN);
        }
        Self { starts, bytes }
    }
}

/// Pinned memory of a stream, whose work is ordered, so that its next product may use the same.
fn pinned_of(stream: Stream, bytes: u64) -> Outcome<Kept> {
    static KNOWN: OnceLock<Mutex<HashMap<Stream, Kept>>> = OnceLock::new();
    let mut known =
        KNOWN.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(pinned) = known.get(&stream).filter(|p| p.bytes() >= bytes) {
        return Ok(*pinned);
    }
    let fresh = Kept::alloc(bytes.next_power_of_two())?;
    known.insert(stream, fresh);
    Ok(fresh)
}
