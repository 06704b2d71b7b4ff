//! The limits of attention on an Atlas A2.

use super::layout::{Axes, split_last};
use super::run::{Attention, Mask, Source, Span};
use super::{Request, combination};
use crate::dtype::{DType, HALVES};
use crate::refusal::{Refusal, code, ensure};
use crate::view::View;

/// Parts of a head in latent attention: what is compressed, and what is rotated.
const LATENT: usize = 512;
const ROPE: usize = 64;
/// The side of the mask that the sparse modes want.
const FIXED_MASK: usize = 2048;

/// Checks a call.
pub(super) fn checked(r: &Request) -> Result<Attention, Refusal> {
    check_dtypes(r)?;
    check_strides(r)?;
    let q = r.layout.of_query(&r.q, r.heads)?;
    let width = q.last();
    ensure!(
        width.is_multiple_of(16) && (16..=512).contains(&width),
        "query: heads of {width}, expected a multiple of 16 up to 512"
    );
    let ratio = r.heads / r.kv_heads;
    ensure!(
        ratio <= 64 || [64, 128].contains(&width) || r.q_rope.is_some(),
        "numHeads: {ratio} queries a key, expected at most 64 with heads of {width}"
    );
    ensure!(
        r.inner & 1 == 0 || r.q.dtype == DType::F16,
        "innerPrecise: {} with BFLOAT16, expected 0 or 2",
        r.inner
    );
    ensure!(
        !r.layout.packed() || r.inner == 0,
        "innerPrecise: {}, expected 0 with layout TND",
        r.inner
    );
    let queries = query_spans(r, &q)?;
    let [k, v] = [&r.k, &r.v].map(|view| source(r, view));
    let (k, v) = (k?, v?);
    let (key_width, value_width) = (k.width(), v.width());
    ensure!(key_width == width, "key: heads of {key_width}, expected {width} as query");
    check_widths(r, width, value_width)?;
    let keys = key_spans(r, [&k, &v], queries.len())?;
    let (q_rope, k_rope) = rope(r, &q, &queries)?;
    let out = r.layout.of_output(&r.out, r.heads)?;
    let lead = &q.dims[..q.rank() - 1];
    out.expect_dtype(&[r.q.dtype])?.expect_dims(&[lead, &[value_width]].concat())?;
    let lse = r.lse.as_ref().map(|lse| lse_view(lse, &q, r.layout.packed())).transpose()?;
    let mask = mask(r, &q, &queries, &keys)?;
    let pse = pse(r, &q, &keys)?;
    let sinks = sinks(r, value_width)?;
    let (packed, kv_heads, scale) = (r.layout.packed(), r.kv_heads, r.scale);
    Ok(Attention {
        q,
        q_rope,
        k,
        k_rope,
        v,
        out,
        lse,
        packed,
        queries,
        keys,
        mask,
        pse,
        sinks,
        kv_heads,
        scale,
    })
}

fn check_dtypes(r: &Request) -> Result<(), Refusal> {
    r.q.expect_dtype(HALVES)?;
    for view in [Some(&r.k), Some(&r.v), r.q_rope.as_ref(), r.k_rope.as_ref()].into_iter().flatten()
    {
        view.expect_dtype(&[r.q.dtype])?;
    }
    Ok(())
}

/// Queries, masks and results are contiguous; keys and values may have gaps along their first axis.
fn check_strides(r: &Request) -> Result<(), Refusal> {
    let whole = [Some(&r.q), r.q_rope.as_ref(), r.mask.as_ref(), Some(&r.out), r.lse.as_ref()];
    for view in whole.into_iter().flatten() {
        view.expect_contiguous()?;
    }
    for view in [Some(&r.k), Some(&r.v), r.k_rope.as_ref()].into_iter().flatten() {
        if view.rank() > 0 && view.len() > 0 {
            view.select(0, 0).expect_contiguous().map_err(|_| {
                let text = format!(
                    "{}: strides {:?} of shape {:?}, expected gaps along the first axis at most",
                    view.name, view.strides, view.dims
                );
                Refusal::new(code::INVALID, text)
            })?;
        }
    }
    Ok(())
}

impl Source {
    fn view(&self) -> &View {
        match self {
            Self::Packed(view) | Self::Batched(view) | Self::Paged(view, _) => view,
        }
    }

    fn width(&self) -> usize {
        let view = self.view();
        let heads = if matches!(self, Self::Packed(_)) { 1 } else { 2 };
        view.dims[heads + 1..].iter().product()
    }
}

/// Keys or values, contiguous or paged.
fn source(r: &Request, view: &View) -> Result<Source, Refusal> {
    let Some(table) = &r.table else {
        let canonical = r.layout.of_query(view, r.kv_heads)?;
        return Ok(if r.layout.packed() {
            Source::Packed(canonical)
        } else {
            Source::Batched(canonical)
        });
    };
    table.expect_dtype(&[DType::I32])?.expect_rank(2, 2)?;
    let latent = r.q_rope.is_some();
    let pages = match view.rank() {
        3 => split_last(view, r.kv_heads)?,
        4 if latent || r.layout.input == Axes::Bnsd => view.permuted(&[0, 2, 1, 3]),
        5 if latent && view.last() == 16 => view.permuted(&[0, 3, 1, 2, 4]),
        rank => {
            let text = format!(
                "{}: {rank} dims of a paged cache, expected [blocks, blockSize, heads·width] with this layout",
                view.name
            );
            return Err(Refusal::new(code::INVALID, text));
        }
    };
    ensure!(
        pages.dims[2] == r.kv_heads,
        "{}: {} heads, expected {}",
        view.name,
        pages.dims[2],
        r.kv_heads
    );
    let block = pages.dims[1];
    ensure!(block as i64 == r.block, "blockSize: {}, {} has blocks of {block}", r.block, view.name);
    let row: usize = pages.dims[2..].iter().product();
    ensure!(row <= 65_535, "{}: {row} elements a token, expected at most 65535", view.name);
    check_block(r, block)?;
    Ok(Source::Paged(pages, table.clone()))
}

fn check_block(r: &Request, block: usize) -> Result<(), Refusal> {
    if r.q_rope.is_some() {
        ensure!(
            [16, 128].contains(&block),
            "blockSize: {block}, expected 16 or 128 with queryRope"
        );
    } else if r.layout.packed() {
        ensure!(
            block > 0 && block.is_multiple_of(16) && block <= 128,
            "blockSize: {block}, expected a multiple of 16 up to 128 with layout TND"
        );
    } else if r.layout.of_query(&r.q, r.heads)?.dims[1] > 1 {
        ensure!(
            block > 0 && block.is_multiple_of(128) && block <= 512,
            "blockSize: {block}, expected a multiple of 128 up to 512 with more than one query a batch"
        );
    } else {
        ensure!(
            block > 0 && block.is_multiple_of(16) && block <= 512,
            "blockSize: {block}, expected a multiple of 16 up to 512"
        );
    }
    Ok(())
}

fn check_widths(r: &Request, width: usize, value_width: usize) -> Result<(), Refusal> {
    if r.q_rope.is_some() {
        ensure!(
            value_width == width,
            "value: heads of {value_width}, expected {width} with queryRope"
        );
        return Ok(());
    }
    if !r.layout.packed() {
        ensure!(value_width == width, "value: heads of {value_width}, expected {width} as query");
        return Ok(());
    }
    let fits = (width == value_width && width <= 256)
        || (width == 192 && [128, 192].contains(&value_width));
    ensure!(
        fits,
        "value: heads of {value_width} with queries of {width}, expected the same up to 256, or 192 with 128 (TND)"
    );
    Ok(())
}

/// Ends of sequences that lie behind each other.
fn cumulative(name: &str, ends: Option<&Vec<i64>>, total: usize) -> Result<Vec<Span>, Refusal> {
    let Some(ends) = ends else {
        return Err(Refusal::new(
            code::INVALID,
            format!("{name}: null, expected cumulative lengths with layout TND"),
        ));
    };
    ensure!(ends.len() <= 4096, "{name}: {} entries, expected at most 4096", ends.len());
    let mut spans = Vec::new();
    let mut start = 0;
    for &end in ends {
        ensure!(end >= start, "{name}: {ends:?} falls, expected cumulative lengths");
        spans.push(Span { start: start as usize, len: (end - start) as usize });
        start = end;
    }
    ensure!(
        start as usize == total,
        "{name}: cumulative lengths end in {start}, expected {total} tokens"
    );
    Ok(spans)
}

/// A length for each batch.
fn lengths(name: &str, lens: &[i64], batch: usize, most: usize) -> Result<Vec<Span>, Refusal> {
    let one_for_all = lens.len() == 1 && batch > 1;
    ensure!(
        lens.len() == batch || one_for_all,
        "{name}: {} entries, expected {batch}, one a batch",
        lens.len()
    );
    let fits = lens.iter().all(|&len| (0..=most as i64).contains(&len));
    ensure!(fits, "{name}: {lens:?}, expected lengths of 0 to {most}");
    Ok((0..batch)
        .map(|b| Span { start: 0, len: lens[if one_for_all { 0 } else { b }] as usize })
        .collect())
}

fn query_spans(r: &Request, q: &View) -> Result<Vec<Span>, Refusal> {
    if r.layout.packed() {
        return cumulative("actualSeqLengths", r.q_lens.as_ref(), q.dims[0]);
    }
    let (batch, tokens) = (q.dims[0], q.dims[1]);
    // Of one query a batch, the lengths of queries are not looked at.
    match &r.q_lens {
        Some(lens) if tokens > 1 => lengths("actualSeqLengths", lens, batch, tokens),
        _ => Ok(vec![Span { start: 0, len: tokens }; batch]),
    }
}

fn key_spans(r: &Request, [k, v]: [&Source; 2], batch: usize) -> Result<Vec<Span>, Refusal> {
    let name = "actualSeqLengthsKv";
    let [key, value] = [k, v].map(|source| &source.view().dims[..2]);
    let axes = if matches!(k, Source::Packed(_)) { 1 } else { 2 };
    ensure!(key[..axes] == value[..axes], "value: shape {:?}, key has {:?}", r.v.dims, r.k.dims);
    match k {
        Source::Packed(view) => {
            let spans = cumulative(name, r.kv_lens.as_ref(), view.dims[0])?;
            ensure!(
                spans.len() == batch,
                "{name}: {} entries, expected {batch} as actualSeqLengths",
                spans.len()
            );
            Ok(spans)
        }
        Source::Batched(view) => {
            ensure!(
                view.dims[0] == batch,
                "key: a batch of {}, expected {batch} as query",
                view.dims[0]
            );
            let tokens = view.dims[1];
            match &r.kv_lens {
                Some(lens) => lengths(name, lens, batch, tokens),
                None => Ok(vec![Span { start: 0, len: tokens }; batch]),
            }
        }
        Source::Paged(view, table) => {
            let Some(lens) = &r.kv_lens else {
                return Err(Refusal::new(
                    code::INVALID,
                    format!("{name}: null, expected the length of each batch with blockTable"),
                ));
            };
            ensure!(table.dims[0] == batch, "blockTable: {} rows, expected {batch}", table.dims[0]);
            ensure!(
                lens.len() == batch,
                "{name}: {} entries, expected {batch}, plain lengths where keys are paged",
                lens.len()
            );
            lengths(name, lens, batch, table.dims[1] * view.dims[1])
        }
    }
}

/// Checks latent attention, and gives the rotated parts.
fn rope(
    r: &Request,
    q: &View,
    queries: &[Span],
) -> Result<(Option<View>, Option<Source>), Refusal> {
    let (q_rope, k_rope) = match (&r.q_rope, &r.k_rope) {
        (None, None) => return Ok((None, None)),
        (Some(q), Some(k)) => (q, k),
        (q, _) => {
            let (given, missing) =
                if q.is_some() { ("queryRope", "keyRope") } else { ("keyRope", "queryRope") };
            return Err(Refusal::new(
                code::NULL,
                format!("{missing}: null with {given}, expected both or none"),
            ));
        }
    };
    let view = r.layout.of_query(q_rope, r.heads)?;
    view.expect_dims(&[&q.dims[..q.rank() - 1], &[ROPE]].concat())?;
    let source = source(r, k_rope)?;
    ensure!(source.width() == ROPE, "keyRope: heads of {}, expected {ROPE}", source.width());
    let (width, paged) = (q.last(), r.table.is_some());
    match (width, paged) {
        (LATENT, true) => {
            ensure!(
                r.kv_heads == 1,
                "numKeyValueHeads: {}, expected 1 with heads of 512 and queryRope",
                r.kv_heads
            );
            let few = if r.layout.packed() { 32 } else { 1 };
            ensure!(
                r.heads.is_power_of_two() && (few..=128).contains(&r.heads),
                "numHeads: {}, expected a power of two from {few} to 128 with heads of 512 and queryRope",
                r.heads
            );
            let longest = queries.iter().map(|span| span.len).max().unwrap_or(0);
            ensure!(
                longest <= 16,
                "query: {longest} tokens of a sequence, expected at most 16 with heads of 512"
            );
            let wanted = if longest > 1 { 3 } else { 0 };
            if r.sparse != wanted || r.mask.is_some() != (wanted == 3) {
                let text = format!(
                    "sparseMode: {} {} attenMask for {longest} tokens a sequence, expected {wanted} {} one",
                    r.sparse,
                    if r.mask.is_some() { "with" } else { "without" },
                    if wanted == 3 { "with" } else { "without" }
                );
                return combination(text);
            }
        }
        (128, false) => ensure!(
            r.layout.packed(),
            "inputLayout: expected TND or NTD_TND with heads of 128 and queryRope"
        ),
        _ => {
            let how = if paged { "with" } else { "without" };
            let text = format!(
                "queryRope: heads of {width} {how} blockTable, expected 512 with it or 128 without"
            );
            return combination(text);
        }
    }
    Ok((Some(view), Some(source)))
}

/// `[T, N]` or `[B, S, N]` of `[T, N, 1]` or `[B, N, S, 1]`.
fn lse_view(lse: &View, q: &View, packed: bool) -> Result<View, Refusal> {
    lse.expect_dtype(&[DType::F32])?;
    if packed {
        lse.expect_dims(&[q.dims[0], q.dims[1], 1])?;
        return Ok(lse.select(2, 0));
    }
    lse.expect_dims(&[q.dims[0], q.dims[2], q.dims[1], 1])?;
    Ok(lse.permuted(&[0, 2, 1, 3]).select(3, 0))
}

fn mask(r: &Request, q: &View, queries: &[Span], keys: &[Span]) -> Result<Mask, Refusal> {
    if let Some(mask) = &r.mask {
        mask.expect_dtype(&[DType::Bool, DType::I8, DType::U8])?;
    }
    if r.layout.packed() {
        ensure!(
            [0, 3, 4].contains(&r.sparse),
            "sparseMode: {}, expected 0, 3 or 4 with layout TND",
            r.sparse
        );
        ensure!(
            r.sparse != 0 || r.mask.is_none(),
            "attenMask: given, expected null with sparseMode 0 and layout TND"
        );
    }
    let Some(mask) = &r.mask else {
        ensure!(r.sparse == 0, "attenMask: null, expected a mask with sparseMode {}", r.sparse);
        return Ok(Mask::None);
    };
    if r.sparse < 2 {
        let longest = reach(r, keys);
        let band = if r.sparse == 1 { [i64::from(i32::MAX); 2] } else { r.band };
        return Ok(Mask::Own(own_mask(mask, [queries.len(), q.dims[1], longest])?, band));
    }
    let square = mask.rank() >= 2
        && mask.dims[mask.rank() - 2..] == [FIXED_MASK; 2]
        && mask.dims[..mask.rank() - 2].iter().all(|&d| d == 1);
    ensure!(
        square,
        "attenMask: shape {:?}, expected {FIXED_MASK} by {FIXED_MASK} with sparseMode {}",
        mask.dims,
        r.sparse
    );
    let [before, after] = r.band;
    ensure!(
        r.sparse != 4 || before.saturating_add(after) >= 0,
        "preTokens: {before} with nextTokens {after}, expected a sum of 0 or more with sparseMode 4"
    );
    let endless = i64::from(i32::MAX);
    let [before, after] = if r.sparse == 4 { r.band } else { [endless, 0] };
    Ok(Mask::Band { fixed: mask.clone(), corner: r.sparse != 2, before, after })
}

/// The keys that a mask has columns for: all that a row of the table could hold, or the longest sequence.
fn reach(r: &Request, keys: &[Span]) -> usize {
    let longest = keys.iter().map(|span| span.len).max().unwrap_or(0);
    let block = usize::try_from(r.block).unwrap_or(0);
    r.table.as_ref().map_or(longest, |table| table.last().saturating_mul(block))
}

/// `[B, S, kv]` of a mask of two to four dims.
fn own_mask(mask: &View, [batch, tokens, longest]: [usize; 3]) -> Result<View, Refusal> {
    mask.expect_rank(2, 4)?;
    let (rows, columns) = (mask.dims[mask.rank() - 2], mask.last());
    let mut view = mask.clone();
    if view.rank() == 4 {
        ensure!(view.dims[1] == 1, "attenMask: shape {:?}, expected [B, 1, S, kv]", mask.dims);
        view = view.select(1, 0);
    }
    ensure!(
        rows == tokens && columns >= longest,
        "attenMask: shape {:?}, expected {tokens} rows and at least {longest} columns",
        mask.dims
    );
    view.expanded(&[batch, rows, columns])
}

/// `[B, N, S, kv]` of what is added to scores.
fn pse(r: &Request, q: &View, keys: &[Span]) -> Result<Option<View>, Refusal> {
    let Some(pse) = &r.pse else {
        return Ok(None);
    };
    ensure!(!r.layout.packed(), "pseShift: given, expected null with layout TND");
    pse.expect_dtype(&[r.q.dtype])?.expect_rank(4, 4)?;
    let longest = reach(r, keys);
    let (tokens, columns) = (q.dims[1], pse.dims[3]);
    ensure!(
        pse.dims[1] == r.heads && pse.dims[2] >= tokens && columns >= longest,
        "pseShift: shape {:?}, expected [B or 1, {}, {tokens} or more, {longest} or more]",
        pse.dims,
        r.heads
    );
    Ok(Some(pse.expanded(&[keys.len(), r.heads, pse.dims[2], columns])?))
}

/// A logit of each head that no value belongs to.
fn sinks(r: &Request, value_width: usize) -> Result<Option<View>, Refusal> {
    let Some(sinks) = &r.sinks else {
        return Ok(None);
    };
    sinks.expect_dtype(HALVES)?.expect_dims(&[r.heads])?;
    ensure!(
        [64, 128].contains(&value_width),
        "learnableSink: with heads of {value_width} in value, expected 64 or 128"
    );
    ensure!(r.pse.is_none(), "pseShift: given, expected null with learnableSink");
    Ok(Some(sinks.clone()))
}
