//! ARGMAX, TOPK, LOGPROBS and LOGITS_PROCESS.

use halyard_sdk::{
    Error, Result,
    abi::ops::{
        Sym,
        attrs::{Argmax, LogitsProcess, Logprobs, Topk},
    },
};

use super::args::{Args, Table};
use super::{Launch, Op, Prepared, checked_row, for_rows, same};
use crate::elem::Rows;
use crate::isa;
use crate::simd::{LANES, Simd, math};

pub(super) fn argmax(op: &Op<'_>) -> Result<Prepared> {
    let Argmax {} = op.attrs()?;
    Ok(Prepared::tuned(Largest))
}

struct Largest;

impl Launch for Largest {
    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let (logits, rows, n) = args.rows(0)?;
        // SAFETY: the host has checked the view.
        let ids: &mut [i32] = unsafe { args.slice_mut(1)? };
        same("rows", ids.len(), rows)?;
        let ids = Table::of(ids);
        let isa = args.context.isa;
        for_rows(&args.context.pool, rows, n, |range| {
            for row in range {
                let found = isa.dispatch(ArgmaxRow { logits, row, n });
                // SAFETY: tasks write different ids.
                unsafe { ids.row_mut(row)[0] = found as i32 };
            }
        });
        Ok(())
    }
}

/// The first largest logit of a row; NaN counts as -inf.
pub(super) struct ArgmaxRow {
    pub(super) logits: Rows,
    pub(super) row: usize,
    pub(super) n: usize,
}

impl isa::Op for ArgmaxRow {
    type Out = usize;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> usize {
        let max = max_of(s, &self.logits, self.row, self.n);
        if max == f32::NEG_INFINITY {
            return 0;
        }
        for col in (0..self.n).step_by(LANES) {
            let width = LANES.min(self.n - col);
            // SAFETY: the host has checked the view.
            let v = unsafe { self.logits.load_upto(s, self.row, col, self.n) };
            // A vector whose largest number is below the maximum does not hold it.
            if s.max_lane(s.max(v, s.splat(f32::NEG_INFINITY))) < max {
                continue;
            }
            if let Some(i) = s.to_array(v)[..width].iter().position(|&x| x >= max) {
                return col + i;
            }
        }
        0
    }
}

/// The largest number of a row; -inf if there is none but NaN.
#[inline(always)]
fn max_of<S: Simd>(s: S, x: &Rows, row: usize, n: usize) -> f32 {
    let mut max = [s.splat(f32::NEG_INFINITY); 4];
    let mut col = 0;
    while col + 4 * LANES <= n {
        for (i, max) in max.iter_mut().enumerate() {
            // SAFETY: the host has checked the view.
            *max = s.max(unsafe { x.load(s, row, col + i * LANES) }, *max);
        }
        col += 4 * LANES;
    }
    let mut best = s.max_lane(s.max(s.max(max[0], max[1]), s.max(max[2], max[3])));
    while col < n {
        // SAFETY: the host has checked the view.
        let v = unsafe { x.get(row, col) };
        best = if v > best { v } else { best };
        col += 1;
    }
    best
}

pub(super) fn topk(op: &Op<'_>) -> Result<Prepared> {
    let Topk {} = op.attrs()?;
    let (top, v) = (op.dim(Sym::Top), op.dim(Sym::V));
    if top >= 0 && v >= 0 && top > v {
        return Err(Error::invalid(format!("topk: the {top} largest of {v}")));
    }
    Ok(Prepared::native(Best))
}

struct Best;

impl Launch for Best {
    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let (logits, rows, n) = args.rows(0)?;
        let (values, ids) = (args.table::<f32>(1)?, args.table::<i32>(2)?);
        same("rows", values.rows, rows)?;
        same("rows", ids.rows, rows)?;
        same("columns", values.cols, ids.cols)?;
        if ids.cols > n {
            return Err(Error::invalid(format!("the {} largest of {n}", ids.cols)));
        }
        let isa = args.context.isa;
        for_rows(&args.context.pool, rows, n, |range| {
            for row in range {
                // SAFETY: the host has checked the views; tasks write different rows.
                let heap =
                    unsafe { Heap { values: values.row_mut(row), ids: ids.row_mut(row), len: 0 } };
                isa.dispatch(TopkRow { logits, row, n, heap });
            }
        });
        Ok(())
    }
}

struct TopkRow<'a> {
    logits: Rows,
    row: usize,
    n: usize,
    heap: Heap<'a>,
}

impl isa::Op for TopkRow<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        if self.heap.ids.is_empty() {
            return;
        }
        for col in (0..self.n).step_by(LANES) {
            // SAFETY: the host has checked the view.
            let v = unsafe { self.logits.load_upto(s, self.row, col, self.n) };
            if !self.heap.is_full()
                || s.max_lane(s.max(v, s.splat(f32::NEG_INFINITY))) > self.heap.values[0]
            {
                for (i, &x) in s.to_array(v).iter().enumerate().take(self.n - col) {
                    self.heap.offer(x, col + i);
                }
            }
        }
        self.heap.sort();
    }
}

/// The best numbers so far, the worst of them first, in the output rows themselves.
struct Heap<'a> {
    values: &'a mut [f32],
    ids: &'a mut [i32],
    len: usize,
}

impl Heap<'_> {
    fn is_full(&self) -> bool {
        self.len == self.ids.len()
    }

    /// Whether entry `a` is worse than entry `b`.
    fn worse(&self, a: usize, b: usize) -> bool {
        let (x, y) = (self.values[a], self.values[b]);
        x < y || (x <= y && self.ids[a] > self.ids[b])
    }

    fn swap(&mut self, a: usize, b: usize) {
        self.values.swap(a, b);
        self.ids.swap(a, b);
    }

    /// Takes a number in if it is among the best. Ids come in rising order, so an equal one is worse.
    fn offer(&mut self, x: f32, id: usize) {
        let x = if x.is_nan() { f32::NEG_INFINITY } else { x };
        if self.is_full() {
            if x > self.values[0] {
                (self.values[0], self.ids[0]) = (x, id as i32);
                self.sink(0, self.len);
            }
            return;
        }
        let mut at = self.len;
        (self.values[at], self.ids[at]) = (x, id as i32);
        self.len += 1;
        while at > 0 && self.worse(at, (at - 1) / 2) {
            self.swap(at, (at - 1) / 2);
            at = (at - 1) / 2;
        }
    }

    fn sink(&mut self, mut at: usize, len: usize) {
        loop {
            let mut worst = at;
            for child in [2 * at + 1, 2 * at + 2] {
                if child < len && self.worse(child, worst) {
                    worst = child;
                }
            }
            if worst == at {
                return;
            }
            self.swap(at, worst);
            at = worst;
        }
    }

    /// Best first.
    fn sort(&mut self) {
        for end in (1..self.len).rev() {
            self.swap(0, end);
            self.sink(0, end);
        }
    }
}

pub(super) fn logprobs(op: &Op<'_>) -> Result<Prepared> {
    let Logprobs {} = op.attrs()?;
    Ok(Prepared::tuned(LogSoftmax))
}

struct LogSoftmax;

impl Launch for LogSoftmax {
    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let (logits, rows, n) = args.rows(0)?;
        let (ids, out) = (args.table::<i32>(1)?, args.table::<f32>(2)?);
        same("rows", ids.rows, rows)?;
        same("rows", out.rows, rows)?;
        same("columns", ids.cols, out.cols)?;
        for row in 0..rows {
            // SAFETY: the host has checked the view.
            for &id in unsafe { ids.row(row) }.iter().filter(|&&id| id >= 0) {
                checked_row("id", i64::from(id), n)?;
            }
        }
        let isa = args.context.isa;
        for_rows(&args.context.pool, rows, 4 * n, |range| {
            for row in range {
                let sum = isa.dispatch(LogSumExp { logits, row, n, scale: 1.0, skip_nan: false });
                // SAFETY: the host has checked the views; tasks write different rows.
                let (ids, out) = unsafe { (ids.row(row), out.row_mut(row)) };
                for (&id, out) in ids.iter().zip(out) {
                    *out = usize::try_from(id).map_or(0.0, |id| {
                        // SAFETY: the id is inside the row.
                        (f64::from(unsafe { logits.get(row, id) }) - sum) as f32
                    });
                }
            }
        });
        Ok(())
    }
}

/// `ln Σ e^(scale x)` of a row.
pub(super) struct LogSumExp {
    pub(super) logits: Rows,
    pub(super) row: usize,
    pub(super) n: usize,
    pub(super) scale: f32,
    /// NaN counts as -inf.
    pub(super) skip_nan: bool,
}

impl isa::Op for LogSumExp {
    type Out = f64;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f64 {
        /// Columns summed in f32 before they join the f64 total.
        const PART: usize = 64 * LANES;
        let max = max_of(s, &self.logits, self.row, self.n);
        if max.is_infinite() {
            let mut row = 0..self.n;
            // SAFETY: the host has checked the view.
            let nan = row.any(|i| unsafe { self.logits.get(self.row, i) }.is_nan());
            return if nan && !self.skip_nan { f64::NAN } else { f64::from(max) };
        }
        let top = f64::from(max) * f64::from(self.scale);
        let (scale, shift) = (s.splat(self.scale), s.splat(-max));
        let mut total = 0.0;
        for start in (0..self.n).step_by(PART) {
            let end = (start + PART).min(self.n);
            let mut sum = s.splat(0.0);
            for col in (start..end).step_by(LANES) {
                // SAFETY: the host has checked the view.
                let mut v = unsafe { self.logits.load_upto(s, self.row, col, self.n) };
                if self.skip_nan {
                    v = s.max(v, s.splat(f32::NEG_INFINITY));
                }
                // Lanes past the end hold 0, which must not count.
                let e = math::exp(s, s.mul(s.add(v, shift), scale));
                if col + LANES <= self.n {
                    sum = s.add(sum, e);
                } else {
                    let e = s.to_array(e);
                    total += e[..self.n - col].iter().map(|&e| f64::from(e)).sum::<f64>();
                }
            }
            total += f64::from(s.sum(sum));
        }
        top + total.ln()
    }
}

/// Slots of LOGITS_PROCESS.
const IDS: usize = 2;
const BIAS_IDS: usize = 6;

pub(super) fn process(op: &Op<'_>) -> Result<Prepared> {
    let LogitsProcess {} = op.attrs()?;
    if (IDS..BIAS_IDS).any(|slot| op.present(slot) != op.present(IDS))
        || op.present(BIAS_IDS) != op.present(7)
    {
        return Err(Error::invalid(
            "logits_process: ids, count_all, count_out and params come together, as do bias_ids and bias",
        ));
    }
    let (v, words) = (op.dim(Sym::V), op.dim(Sym::Words));
    if v >= 0 && words >= 0 && words < (v + 31) / 32 {
        return Err(Error::invalid(format!("logits_process: {words} mask words for {v} ids")));
    }
    Ok(Prepared::native(Process))
}

struct Process;

/// The optional inputs of LOGITS_PROCESS.
struct Inputs {
    mask: Option<Table<u32>>,
    ids: Option<Penalties>,
    bias: Option<(Table<i32>, Table<f32>)>,
}

struct Penalties {
    ids: Table<i32>,
    count_all: Table<i32>,
    count_out: Table<i32>,
    params: Table<f32>,
}

impl Launch for Process {
    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let logits = args.table::<f32>(0)?;
        let inputs = Inputs::open(args, logits.rows, logits.cols)?;
        for_rows(&args.context.pool, logits.rows, logits.cols, |range| {
            for row in range {
                // SAFETY: the host has checked the views; tasks write different rows.
                unsafe { inputs.apply(row, logits.row_mut(row)) };
            }
        });
        Ok(())
    }
}

impl Inputs {
    fn open(args: &Args<'_>, rows: usize, n: usize) -> Result<Self> {
        let mask = args.optional_table::<u32>(1)?;
        if let Some(mask) = &mask {
            same("mask rows", mask.rows, rows)?;
            if mask.cols < n.div_ceil(32) {
                return Err(Error::invalid(format!("{} mask words for {n} ids", mask.cols)));
            }
        }
        let check = |what: &str, ids: &Table<i32>| {
            same(what, ids.rows, rows)?;
            for row in 0..rows {
                // SAFETY: the host has checked the view.
                for &id in unsafe { ids.row(row) }.iter().filter(|&&id| id >= 0) {
                    checked_row(what, i64::from(id), n)?;
                }
            }
            Ok(())
        };
        let ids = match args.optional_table::<i32>(IDS)? {
            None => None,
            Some(ids) => {
                check("ids", &ids)?;
                let (count_all, count_out) = (args.table::<i32>(3)?, args.table::<i32>(4)?);
                let params = args.table::<f32>(5)?;
                for counts in [&count_all, &count_out] {
                    same("counts", counts.rows, rows)?;
                    same("counts", counts.cols, ids.cols)?;
                }
                same("params", params.rows, rows)?;
                same("params", params.cols, 3)?;
                Some(Penalties { ids, count_all, count_out, params })
            }
        };
        let bias = match args.optional_table::<i32>(BIAS_IDS)? {
            None => None,
            Some(ids) => {
                check("bias_ids", &ids)?;
                let bias = args.table::<f32>(7)?;
                same("bias", bias.rows, rows)?;
                same("bias", bias.cols, ids.cols)?;
                Some((ids, bias))
            }
        };
        Ok(Self { mask, ids, bias })
    }

    /// Bias, penalties, mask.
    ///
    /// # Safety
    /// The row exists in every table; nobody writes these meanwhile.
    unsafe fn apply(&self, row: usize, logits: &mut [f32]) {
        // SAFETY: the caller's promise.
        unsafe {
            if let Some((ids, bias)) = &self.bias {
                for (&id, &bias) in ids.row(row).iter().zip(bias.row(row)) {
                    if let Ok(id) = usize::try_from(id) {
                        logits[id] += bias;
                    }
                }
            }
            if let Some(p) = &self.ids {
                p.apply(row, logits);
            }
            if let Some(mask) = &self.mask {
                for (logits, &bits) in logits.chunks_mut(32).zip(mask.row(row)) {
                    if bits == u32::MAX {
                        continue;
                    }
                    for (i, l) in logits.iter_mut().enumerate() {
                        if bits >> i & 1 == 0 {
                            *l = f32::NEG_INFINITY;
                        }
                    }
                }
            }
        }
    }
}

impl Penalties {
    /// # Safety
    /// As [`Inputs::apply`].
    unsafe fn apply(&self, row: usize, logits: &mut [f32]) {
        // SAFETY: the caller's promise.
        let (ids, all, out, params) = unsafe {
            (
                self.ids.row(row),
                self.count_all.row(row),
                self.count_out.row(row),
                self.params.row(row),
            )
        };
        let (repetition, presence, frequency) =
            (f64::from(params[0]), f64::from(params[1]), f64::from(params[2]));
        for ((&id, &all), &out) in ids.iter().zip(all).zip(out) {
            let Ok(id) = usize::try_from(id) else { continue };
            if all <= 0 {
                continue;
            }
            let l = f64::from(logits[id]);
            let l = if l > 0.0 { l / repetition } else { l * repetition };
            let present = if out > 0 { presence } else { 0.0 };
            logits[id] = (l - (frequency * f64::from(out) + present)) as f32;
        }
    }
}
