//! Reads each sequence, scores it and writes its results.

use super::score::Sequence;
use crate::index::checked;
use crate::launch::{Fault, Launch};
use crate::view::View;

/// Tokens of one sequence.
#[derive(Debug, Clone, Copy)]
pub(super) struct Span {
    /// Its first token, where sequences lie behind each other.
    pub(super) start: usize,
    pub(super) len: usize,
}

/// Where keys or values are.
pub(super) enum Source {
    /// `[T, N, D]`
    Packed(View),
    /// `[B, S, N, D]`
    Batched(View),
    /// `[blocks, block, N, D]`, or the last axis in parts; with the table of blocks
    Paged(View, View),
}

/// What hides keys from queries.
pub(super) enum Mask {
    None,
    /// `[B, S, kv]`, and a band around the diagonal from the upper left corner.
    Own(View, [i64; 2]),
    /// Keys from `query + shift − before` to `query + shift + after`; the flag aligns the lower right corners.
    /// The fixed mask is looked at, as the kernels use it.
    Band {
        fixed: View,
        corner: bool,
        before: i64,
        after: i64,
    },
}

/// A checked call.
pub(super) struct Attention {
    /// `[T, N, D]` or `[B, S, N, D]`, as `out`.
    pub(super) q: View,
    pub(super) q_rope: Option<View>,
    pub(super) k: Source,
    pub(super) k_rope: Option<Source>,
    pub(super) v: Source,
    pub(super) out: View,
    /// `[T, N]` or `[B, S, N]`
    pub(super) lse: Option<View>,
    pub(super) packed: bool,
    pub(super) queries: Vec<Span>,
    pub(super) keys: Vec<Span>,
    pub(super) mask: Mask,
    /// `[B, N, S, kv]`
    pub(super) pse: Option<View>,
    /// `[N]`
    pub(super) sinks: Option<View>,
    pub(super) kv_heads: usize,
    pub(super) scale: f32,
}

impl Source {
    /// `[tokens, N, D]` of a sequence.
    fn read(&self, launch: &Launch<'_>, batch: usize, span: Span) -> Result<Vec<f32>, Fault> {
        match self {
            Self::Packed(view) => launch.read(&view.narrow(0, span.start, span.len)),
            Self::Batched(view) => launch.read(&view.select(0, batch).narrow(0, 0, span.len)),
            Self::Paged(view, table) => {
                let block = view.dims[1];
                let row = table.select(0, batch).narrow(0, 0, span.len.div_ceil(block));
                let pages: Vec<i64> = launch.read(&row)?;
                let mut tokens = Vec::new();
                for (number, &page) in pages.iter().enumerate() {
                    let page = view.select(0, checked(table, page, view.dims[0])?);
                    let count = block.min(span.len - number * block);
                    tokens.extend(launch.read::<f32>(&page.narrow(0, 0, count))?);
                }
                Ok(tokens)
            }
        }
    }
}

/// Rows of heads with the rows of a second part behind each.
fn joined(rows: Vec<f32>, width: usize, rope: Option<(Vec<f32>, usize)>) -> (Vec<f32>, usize) {
    let Some((rope, rope_width)) = rope else {
        return (rows, width);
    };
    let pairs = rows.chunks_exact(width).zip(rope.chunks_exact(rope_width));
    (pairs.flat_map(|(a, b)| a.iter().chain(b).copied()).collect(), width + rope_width)
}

impl Attention {
    pub(super) fn run(&self, launch: &Launch<'_>) -> Result<(), Fault> {
        self.check_mask(launch)?;
        (0..self.queries.len()).try_for_each(|batch| self.sequence(launch, batch))
    }

    /// The part of a tensor that is a sequence.
    fn part(&self, view: &View, batch: usize) -> View {
        let span = self.queries[batch];
        if self.packed {
            view.narrow(0, span.start, span.len)
        } else {
            view.select(0, batch).narrow(0, 0, span.len)
        }
    }

    fn sequence(&self, launch: &Launch<'_>, batch: usize) -> Result<(), Fault> {
        let (queries, keys) = (self.queries[batch], self.keys[batch]);
        let rope_width = self.q_rope.as_ref().map_or(0, View::last);
        let read_q = |view: &View| launch.read::<f32>(&self.part(view, batch));
        let q_rope = self.q_rope.as_ref().map(read_q).transpose()?;
        let (q, width) = joined(read_q(&self.q)?, self.q.last(), q_rope.map(|r| (r, rope_width)));
        let k_rope = self.k_rope.as_ref().map(|s| s.read(launch, batch, keys)).transpose()?;
        let k = self.k.read(launch, batch, keys)?;
        let (k, _) = joined(k, self.q.last(), k_rope.map(|r| (r, rope_width)));
        let v = self.v.read(launch, batch, keys)?;
        let sinks = self.sinks.as_ref().map_or_else(|| Ok(Vec::new()), |s| launch.read(s))?;
        let sequence = Sequence {
            sinks: &sinks,
            q: &q,
            k: &k,
            v: &v,
            tokens: queries.len,
            kv_tokens: keys.len,
            heads: self.out.dims[self.out.rank() - 2],
            kv_heads: self.kv_heads,
            width,
            value_width: self.out.last(),
            scale: self.scale,
        };
        let hidden = self.hidden(launch, batch)?;
        let pse = self.pse(launch, batch)?;
        let heads = sequence.heads;
        let scored = sequence.attend(|head, query, key| {
            let at = query * keys.len + key;
            if hidden(query, key) {
                return None;
            }
            let row = pse.len() / heads * head;
            Some(if pse.is_empty() { 0.0 } else { pse[row + at] })
        });
        launch.write(&self.part(&self.out, batch), &scored.out)?;
        if !self.packed {
            let rest = self.out.dims[1] - queries.len;
            let unused = self.out.select(0, batch).narrow(0, queries.len, rest);
            launch.write(&unused, &vec![0.0f32; unused.len()])?;
        }
        self.lse.as_ref().map_or(Ok(()), |lse| launch.write(&self.part(lse, batch), &scored.lse))
    }

    /// What is added to scores, `[N, tokens, kv]`; nothing where there is none.
    fn pse(&self, launch: &Launch<'_>, batch: usize) -> Result<Vec<f32>, Fault> {
        let Some(pse) = &self.pse else {
            return Ok(Vec::new());
        };
        let (queries, keys) = (self.queries[batch].len, self.keys[batch].len);
        launch.read(&pse.select(0, batch).narrow(1, 0, queries).narrow(2, 0, keys))
    }

    fn hidden(
        &self,
        launch: &Launch<'_>,
        batch: usize,
    ) -> Result<Box<dyn Fn(usize, usize) -> bool>, Fault> {
        let (queries, keys) = (self.queries[batch].len, self.keys[batch].len);
        Ok(match &self.mask {
            Mask::None => Box::new(|_, _| false),
            Mask::Own(view, [before, after]) => {
                let part = view.select(0, batch).narrow(0, 0, queries).narrow(1, 0, keys);
                let (bits, before, after): (Vec<i64>, _, _) =
                    (launch.read(&part)?, *before, *after);
                Box::new(move |query, key| {
                    let distance = key as i64 - query as i64;
                    bits[query * keys + key] != 0
                        || distance > after
                        || distance < before.saturating_neg()
                })
            }
            Mask::Band { corner, before, after, .. } => {
                let shift = if *corner { keys as i64 - queries as i64 } else { 0 };
                let (before, after) = (*before, *after);
                Box::new(move |query, key| {
                    let distance = key as i64 - query as i64 - shift;
                    distance > after || distance < before.saturating_neg()
                })
            }
        })
    }

    /// The mask of the sparse modes is ones above the diagonal; some of its rows are looked at.
    fn check_mask(&self, launch: &Launch<'_>) -> Result<(), Fault> {
        let Mask::Band { fixed, .. } = &self.mask else {
            return Ok(());
        };
        let matrix = (2..fixed.rank()).fold(fixed.clone(), |view, _| view.select(0, 0));
        for row in [0, 1, 127, 1024, 2046, 2047] {
            let bits: Vec<i64> = launch.read(&matrix.select(0, row))?;
            if let Some(key) = (0..bits.len()).find(|&key| (bits[key] != 0) != (key > row)) {
                let text = format!(
                    "{}: {} in row {row}, column {key}, expected ones above the diagonal and zeros elsewhere",
                    fixed.name, bits[key]
                );
                return Err(Fault::exception(text));
            }
        }
        Ok(())
    }
}
