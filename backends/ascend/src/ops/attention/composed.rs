//! Attention of products, softmaxes and products again, a sequence at a time, in f32: any type, width and block, windows, soft-caps and
//! sinks.

use halyard_sdk::{Error, Result, TensorSpec, abi::ops::attrs};

use super::{Attend, Lengths, blank};
use crate::{
    kv::Plane,
    ops::{
        Launch, Op,
        args::{Args, Kind, Place, piece_bytes, scratch_bytes},
        index::select,
    },
};

/// Where keys and values are.
pub(super) enum Source {
    /// Caches by slot, with the slot of the block table. Without values, the first keys are these, too.
    Paged { keys: Vec<(usize, Plane)>, values: Option<(usize, Plane)>, table: usize },
    /// Rows by slot.
    Contiguous { keys: usize, values: usize },
}

pub(super) struct Composed {
    pub(super) rule: Attend,
    pub(super) source: Source,
    /// Slots of queries: one for each part of the keys.
    pub(super) queries: Vec<usize>,
    pub(super) o: usize,
    pub(super) lse: usize,
    pub(super) sinks: usize,
}

/// A sequence: its first query, its queries and keys.
#[derive(Clone, Copy)]
struct Sequence {
    number: i64,
    first: i64,
    queries: i64,
    keys: i64,
}

impl Sequence {
    /// The first query that sees a key.
    fn first_seeing(&self, rule: &Attend) -> i64 {
        if rule.causal { (self.queries - self.keys).max(0) } else { 0 }
    }

    /// Keys that some of these queries see, first and end.
    fn seen(&self, rule: &Attend, first: i64, queries: i64) -> (i64, i64) {
        let before = self.keys - self.queries;
        let end = if rule.causal { before + first + queries } else { self.keys };
        let begin = if rule.window >= 0 { (before + first - rule.window).max(0) } else { 0 };
        (begin, end)
    }
}

/// The rows of a sequence's blocks from a first block on: `[tokens, heads, dim]`.
fn pages(args: &Args<'_>, (slot, plane): (usize, &Plane), table: &Place) -> Result<Place> {
    let cache = args.place(slot)?;
    let (blocks, width) = (table.dims[0], plane.heads * plane.dim);
    let found = args.scratch(cache.kind, &[blocks, plane.block * width])?;
    let cells = cache.reshaped(&[cache.dims[0], plane.block * width]);
    select(args, &cells, table, &found)?;
    Ok(found.reshaped(&[blocks * plane.block, plane.heads, plane.dim]))
}

/// Scratch bytes of [`pages`] of so many blocks.
fn page_bytes(plane: &Plane, blocks: i64) -> u64 {
    scratch_bytes(Kind::F32, &[blocks, plane.block, plane.heads, plane.dim])
}

/// The blocks that hold keys from one to another, by the table's row.
fn blocks(table: &Place, row: i64, plane: &Plane, (begin, end): (i64, i64)) -> Result<Place> {
    let (first, last) = (begin / plane.block, (end + plane.block - 1) / plane.block);
    if last > table.dims[1] || row >= table.dims[0] {
        let what = format!("{end} keys of sequence {row}, a table of {:?} blocks", table.dims);
        return Err(Error::invalid(what));
    }
    let row = table.slice(0, row, 1).slice(1, first, last - first);
    Ok(row.seen(&[last - first], &[1]))
}

/// Keys and values of a sequence from `begin` on, f32 `[keys, heads, dim]`.
struct Keys {
    begin: i64,
    parts: Vec<Place>,
    values: Place,
}

impl Composed {
    fn wide(args: &Args<'_>, rows: &Place) -> Result<Place> {
        if rows.kind == Kind::F32 { Ok(rows.clone()) } else { args.cast(rows, Kind::F32) }
    }

    fn keys(&self, args: &Args<'_>, of: Sequence, first_key: i64) -> Result<Keys> {
        let (begin, end) = self.rule_of(of);
        let length = end - begin;
        match &self.source {
            Source::Contiguous { keys, values } => {
                let rows = |slot: usize| {
                    Self::wide(args, &args.place(slot)?.slice(0, first_key + begin, length))
                };
                Ok(Keys { begin, parts: vec![rows(*keys)?], values: rows(*values)? })
            }
            Source::Paged { keys, values, table } => {
                let table = args.place(*table)?;
                let rows = |slot: usize, plane: &Plane| {
                    let list = blocks(&table, of.number, plane, (begin, end))?;
                    let found = pages(args, (slot, plane), &list)?;
                    Self::wide(args, &found.slice(0, begin % plane.block, length))
                };
                let parts = keys.iter().map(|(slot, plane)| rows(*slot, plane));
                let parts = parts.collect::<Result<Vec<_>>>()?;
                let values = match values {
                    Some((slot, plane)) => rows(*slot, plane)?,
                    None => parts[0].clone(),
                };
                Ok(Keys { begin, parts, values })
            }
        }
    }

    /// Keys that any query of a sequence sees.
    fn rule_of(&self, of: Sequence) -> (i64, i64) {
        let first = of.first_seeing(&self.rule);
        of.seen(&self.rule, first, of.queries - first)
    }

    /// Scratch bytes of one query over so many keys: scores and their exponentials, masks, queries and results.
    fn a_query(&self, keys: i64, widths: i64) -> i64 {
        let heads = self.rule.heads;
        let scores = heads.saturating_mul(keys.saturating_add(1)).saturating_mul(12);
        let rest = heads.saturating_mul(widths.saturating_add(16)).saturating_mul(4);
        scores.saturating_add(keys.saturating_mul(8)).saturating_add(rest)
    }

    /// `[kv heads, heads a kv head, rows, dim]` of rows of queries or results.
    fn by_head(&self, rows: &Place) -> Place {
        let group = self.rule.heads / self.rule.kv_heads;
        let [tokens, _, dim] = [rows.dims[0], rows.dims[1], rows.dims[2]];
        let [token, head, one] = [rows.strides[0], rows.strides[1], rows.strides[2]];
        let dims = [self.rule.kv_heads, group, tokens, dim];
        rows.seen(&dims, &[head * group, head, token, one])
    }

    /// True where a query sees a key: `[queries, keys]`, the first query's own key being `own` keys from the first.
    fn visible(&self, args: &Args<'_>, [queries, keys]: [i64; 2], own: i64) -> Result<Place> {
        let plane = || args.scratch(Kind::I8, &[queries, keys]);
        let (ones, after) = (plane()?, plane()?);
        args.fill_whole(&ones, 1)?;
        args.upper(&ones, own + 1, &after)?;
        let reached = if self.rule.window < 0 {
            ones
        } else {
            let reached = plane()?;
            args.upper(&ones, own - self.rule.window, &reached)?;
            reached
        };
        args.sub(&reached, &after, &after)?;
        args.cast(&after, Kind::BOOL)
    }

    /// Scores of some queries, f32 `[kv heads, heads a kv head, queries, keys]`.
    fn scores(&self, args: &Args<'_>, queries: &[Place], keys: &[Place], to: &Place) -> Result<()> {
        let rule = &self.rule;
        let [heads, rows, length] = [rule.kv_heads, to.dims[1] * to.dims[2], to.dims[3]];
        let flat = |x: &Place| x.seen(&[heads, rows, x.dims[3]], &[x.strides[0], x.strides[2], 1]);
        for (number, (query, key)) in queries.iter().zip(keys).enumerate() {
            let wide = args.scratch(Kind::F32, &self.by_head(query).dims)?;
            args.copy(&wide, &self.by_head(query))?;
            let key = key.seen(&[heads, key.dims[2], length], &[key.strides[1], 1, key.strides[0]]);
            if number == 0 {
                args.batched(&flat(&wide), &key, &flat(to))?;
            } else {
                let more = args.scratch(Kind::F32, &[heads, rows, length])?;
                args.batched(&flat(&wide), &key, &more)?;
                args.add_to(&flat(to), &more)?;
            }
        }
        if rule.softcap == 0.0 {
            return args.scale(to, rule.scale as f32, to);
        }
        args.scale(to, (rule.scale / rule.softcap) as f32, to)?;
        args.tanh(to, to)?;
        args.scale(to, rule.softcap as f32, to)
    }

    /// Some queries of a sequence.
    fn piece(
        &self,
        args: &Args<'_>,
        of: Sequence,
        all: &Keys,
        (first, rows): (i64, i64),
    ) -> Result<()> {
        let rule = &self.rule;
        let (begin, end) = of.seen(rule, first, rows);
        let length = end - begin;
        let cut = |x: &Place| x.slice(0, begin - all.begin, length);
        let keys: Vec<_> = all.parts.iter().map(cut).collect();
        let values = cut(&all.values);
        let part = |slot: usize| Ok(args.place(slot)?.slice(0, of.first + first, rows));
        let queries = self.queries.iter().map(|&slot| part(slot)).collect::<Result<Vec<_>>>()?;
        let group = rule.heads / rule.kv_heads;
        let columns = length + i64::from(rule.sinks);
        let dims = [rule.kv_heads, group, rows, columns];
        let (all_scores, weights) =
            (args.scratch(Kind::F32, &dims)?, args.scratch(Kind::F32, &dims)?);
        let scores = all_scores.slice(3, 0, length);
        self.scores(args, &queries, &keys, &scores)?;
        if rule.causal && (rows > 1 || rule.window >= 0) {
            let own = of.keys - of.queries + first - begin;
            let visible = self.visible(args, [rows, length], own)?;
            args.choose(&visible, [&scores, &args.number(f32::NEG_INFINITY)?], &scores)?;
        }
        if rule.sinks {
            let sinks = args.place(self.sinks)?.reshaped(&[rule.kv_heads, group, 1, 1]);
            args.copy(&all_scores.slice(3, length, 1), &sinks)?;
        }
        args.softmax(&all_scores, &weights)?;
        if let Some(lse) = args.optional(self.lse)? {
            self.sums(args, [&all_scores, &weights], &lse.slice(0, of.first + first, rows))?;
        }
        let (heads, both) = (rule.kv_heads, group * rows);
        let weights = weights.seen(&[heads, both, length], &[both * columns, columns, 1]);
        let width = values.dims[2];
        let values =
            values.seen(&[heads, length, width], &[values.strides[1], values.strides[0], 1]);
        let sum = args.scratch(Kind::F32, &[heads, group, rows, width])?;
        args.batched(&weights, &values, &sum.reshaped(&[heads, both, width]))?;
        args.copy(&self.by_head(&part(self.o)?), &sum)
    }

    /// Logarithms of the sums of exponentials: the largest score less the logarithm of its weight.
    fn sums(&self, args: &Args<'_>, [scores, weights]: [&Place; 2], lse: &Place) -> Result<()> {
        let mut dims = scores.dims.clone();
        dims[3] = 1;
        let (score, weight) = (args.scratch(Kind::F32, &dims)?, args.scratch(Kind::F32, &dims)?);
        args.largest(scores, &score)?;
        args.largest(weights, &weight)?;
        args.ln(&weight, &weight)?;
        args.sub(&score, &weight, &score)?;
        args.copy(&self.by_head(&lse.column()), &score)
    }
}

impl Composed {
    pub(super) fn workspace_bytes(&self, shapes: &[TensorSpec]) -> u64 {
        let dim = |slot: usize, axis: usize| shapes.get(slot).map_or(0, |s| s.dims[axis].max(0));
        let (keys, stored) = match &self.source {
            Source::Contiguous { keys, values } => {
                let rows = |slot: usize| {
                    scratch_bytes(Kind::F32, &[dim(slot, 0), dim(slot, 1), dim(slot, 2)])
                };
                (dim(*keys, 0), rows(*keys) + rows(*values))
            }
            Source::Paged { keys, values, table } => {
                let blocks = dim(*table, 1);
                let planes = keys.iter().chain(values).map(|(_, plane)| plane);
                let block = keys.first().map_or(0, |(_, plane)| plane.block);
                (blocks.saturating_mul(block), planes.map(|p| 2 * page_bytes(p, blocks)).sum())
            }
        };
        let widths: i64 =
            self.queries.iter().map(|&slot| dim(slot, 2)).sum::<i64>() + dim(self.o, 2);
        stored + piece_bytes(dim(self.o, 0), self.a_query(keys, widths))
    }

    pub(super) fn launch(&self, args: &Args<'_>, lengths: &Lengths) -> Result<()> {
        let (o, lse) = (args.place(self.o)?, args.optional(self.lse)?);
        let used = lengths.used(&o)?;
        let rows = (&o, lse.as_ref());
        blank(args, rows, (used, o.dims[0] - used))?;
        for run in lengths.blind(self.rule.causal) {
            blank(args, rows, run)?;
        }
        let widths: i64 = self
            .queries
            .iter()
            .try_fold(o.dims[2], |sum, &slot| Ok::<_, Error>(sum + args.place(slot)?.dims[2]))?;
        let (mark, mut first_key) = (args.mark(), 0);
        for (number, [first, queries, keys]) in (0..).zip(lengths.spans()) {
            let of = Sequence { number, first, queries, keys };
            let seeing = of.first_seeing(&self.rule);
            if keys > 0 && queries > seeing {
                args.release(mark);
                let stored = self.keys(args, of, first_key)?;
                let length = stored.values.dims[0];
                args.in_pieces(queries - seeing, self.a_query(length, widths), |at, rows| {
                    self.piece(args, of, &stored, (seeing + at, rows))
                })?;
            }
            first_key += keys;
        }
        Ok(())
    }
}

struct Gather {
    planes: [Plane; 2],
}

/// KV_GATHER.
pub(in crate::ops) fn gather(op: &Op<'_>) -> Result<Box<dyn Launch>> {
    let attrs::KvGather { latent: _ } = op.attrs()?;
    if !op.present(1) || op.present(6) || op.present(7) {
        return Err(
            op.refuse("one fused cache, or scales; supported: two caches of f32, f16, bf16")
        );
    }
    op.floats(&[4, 5])?;
    let plane = |slot: usize| Plane::of(&op.desc.tensors[slot]);
    Ok(Box::new(Gather { planes: [plane(0)?, plane(1)?] }))
}

impl Launch for Gather {
    fn workspace_bytes(&self, shapes: &[TensorSpec]) -> u64 {
        let blocks = shapes.get(2).map_or(0, |s| s.dims[1]);
        self.planes.iter().map(|plane| page_bytes(plane, blocks)).sum()
    }

    fn wants_lengths(&self) -> bool {
        true
    }

    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let table = args.place(2)?;
        let ends = args.args.host.as_slice().first().map(|list| list.as_slice());
        let ends = ends.ok_or_else(|| Error::invalid("no lengths on the host"))?;
        for (slot, plane) in self.planes.iter().enumerate() {
            let to = args.place(4 + slot)?;
            let used = ends.last().copied().unwrap_or(0).into();
            if !(0..=to.dims[0]).contains(&used) {
                return Err(Error::invalid(format!("{used} keys in {} rows", to.dims[0])));
            }
            let rest = to.slice(0, used, to.dims[0] - used);
            if !rest.is_empty() {
                args.zero(&rest)?;
            }
            let mark = args.mark();
            for (row, pair) in (0..).zip(ends.windows(2)) {
                let (begin, end) = (i64::from(pair[0]), i64::from(pair[1]));
                if begin >= end {
                    continue;
                }
                args.release(mark);
                let list = blocks(&table, row, plane, (0, end - begin))?;
                let found = pages(args, (slot, plane), &list)?;
                args.copy(&to.slice(0, begin, end - begin), &found.slice(0, 0, end - begin))?;
            }
        }
        Ok(())
    }
}
