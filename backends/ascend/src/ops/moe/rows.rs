//! MOE_PERMUTE, MOE_UNPERMUTE.

use halyard_sdk::{
    Result, TensorSpec,
    abi::ops::{Sym, attrs},
};

use crate::{
    driver::NO_TENSOR,
    ops::{
        Launch, Op,
        args::{Args, Kind, Place, piece_bytes, scratch_bytes},
        index::{index_bytes, indices, put, select},
    },
};

/// `expertTokensCountOrCumsumFlag`: ends.
const ENDS: i64 = 1;

/// Rows in the order of their experts.
pub(super) struct Sorted {
    /// `[pairs, width]`, what is not of the slice behind the others.
    pub(super) rows: Place,
    /// i32, the end of each expert's rows.
    pub(super) ends: Place,
    /// i32 `[tokens, choices]`: a pair's row, whoever it belongs to.
    pub(super) places: Place,
    /// True where a pair belongs to the slice.
    pub(super) inside: Place,
}

/// Scratch bytes of [`sort`], with room for `rows`.
pub(super) fn sort_bytes([tokens, top, width, experts]: [i64; 4]) -> u64 {
    let pairs = tokens.saturating_mul(top.max(0));
    scratch_bytes(Kind::F32, &[pairs, width])
        + scratch_bytes(Kind::F32, &[tokens, width])
        + 5 * scratch_bytes(Kind::I64, &[pairs])
        + scratch_bytes(Kind::I32, &[experts + 1])
        + 4 * scratch_bytes(Kind::I64, &[1])
}

/// Sorts copies of `x` by their experts from `start` on, `experts` of them. Pairs of others count as of one behind them.
pub(super) fn sort(
    args: &Args<'_>,
    (x, ids): (&Place, &Place),
    (start, experts): (i64, i64),
    rows: Option<&Place>,
) -> Result<Sorted> {
    let pairs = ids.dims[0] * ids.dims[1];
    let expert = args.cast(ids, Kind::I64)?;
    args.sub(&expert, &args.whole(start)?, &expert)?;
    let (inside, other) =
        (args.scratch(Kind::BOOL, &ids.dims)?, args.scratch(Kind::BOOL, &ids.dims)?);
    let last = args.whole(experts)?;
    args.less(&expert, &last, &inside)?;
    args.at_most(&args.whole(0)?, &expert, &other)?;
    args.bit_and(&inside, &other, &inside)?;
    args.choose(&inside, [&expert, &last], &expert)?;
    let expert = args.cast(&expert, Kind::I32)?;
    let packed = if x.is_contiguous() { x.clone() } else { args.cast(x, x.kind)? };
    let sorted = match rows {
        Some(rows) => rows.clone(),
        None => args.scratch(x.kind, &[pairs, x.dims[1]])?,
    };
    let places = args.scratch(Kind::I32, &[pairs])?;
    let ends = args.scratch(Kind::I32, &[experts + 1])?;
    {
        let (x, expert) = (args.tensor(&packed), args.tensor(&expert));
        let (rows, places) = (args.tensor(&sorted), args.tensor(&places));
        let counts = args.tensor(&ends);
        let (x, expert, rows, places) = (&x, &expert, &rows, &places);
        #[rustfmt::skip]
        enqueue!(args.on, MoeInitRoutingV2(
            x, expert, 0, 0, experts + 1, 0, ENDS, false, rows, places, &counts, NO_TENSOR,
        ))?;
    }
    let places = places.reshaped(&ids.dims);
    Ok(Sorted { rows: sorted, ends: ends.slice(0, 0, experts), places, inside })
}

struct Permute {
    start: i64,
}

pub(in crate::ops) fn permute(op: &Op<'_>) -> Result<Box<dyn Launch>> {
    let attrs::MoePermute { expert_start } = op.attrs()?;
    op.floats(&[0, 2])?;
    if op.dim(Sym::E) < 1 {
        return Err(op.refuse("a number of experts that is known at launch only"));
    }
    Ok(Box::new(Permute { start: expert_start }))
}

impl Launch for Permute {
    fn workspace_bytes(&self, shapes: &[TensorSpec]) -> u64 {
        let dim = |slot: usize, axis: usize| shapes.get(slot).map_or(0, |s| s.dims[axis].max(0));
        let pairs = dim(1, 0).saturating_mul(dim(1, 1));
        sort_bytes([dim(1, 0), dim(1, 1), dim(0, 1), dim(3, 0)])
            + 2 * scratch_bytes(Kind::I64, &[pairs])
            + 2 * scratch_bytes(Kind::I64, &[1])
    }

    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let (x, ids, xp) = (args.place(0)?, args.place(1)?, args.place(2)?);
        let (offsets, inverse) = (args.place(3)?, args.place(4)?);
        let experts = offsets.dims[0] - 1;
        if ids.is_empty() || x.is_empty() {
            return args.zero(&offsets);
        }
        let direct = xp.is_contiguous().then_some(&xp);
        let sorted = sort(args, (&x, &ids), (self.start, experts), direct)?;
        args.zero(&offsets.slice(0, 0, 1))?;
        args.copy(&offsets.slice(0, 1, experts), &sorted.ends)?;
        let none = args.scratch(Kind::I32, &[1])?;
        args.fill_whole(&none, -1)?;
        args.choose(&sorted.inside, [&sorted.places, &none], &sorted.places)?;
        args.copy(&inverse, &sorted.places)?;
        let rows = args.count(xp.dims[0], 1)?;
        let nobody = args.scratch(Kind::BOOL, &rows.dims)?;
        args.at_most(&offsets.slice(0, experts, 1), &rows, &nobody)?;
        put(args, &sorted.rows, &nobody.column(), 0.0)?;
        if direct.is_none() { args.copy(&xp, &sorted.rows) } else { Ok(()) }
    }
}

/// Scratch bytes of a token in [`gather`].
fn a_token(top: i64, width: i64) -> i64 {
    width.saturating_mul(top.saturating_mul(8).saturating_add(8))
}

/// Scratch bytes of [`gather`].
pub(super) fn gather_bytes([tokens, top, width]: [i64; 3]) -> u64 {
    let pairs = tokens.saturating_mul(top.max(0));
    index_bytes(pairs)
        + scratch_bytes(Kind::F32, &[pairs])
        + 2 * scratch_bytes(Kind::F32, &[1])
        + piece_bytes(tokens, a_token(top, width))
}

/// `y[t] = add[t] + Σ_j weight[t, j] rows[places[t, j]]`, in f32; a negative place adds nothing.
pub(super) fn gather(
    args: &Args<'_>,
    (rows, places): (&Place, &Place),
    (weight, add): (&Place, Option<&Place>),
    y: &Place,
) -> Result<()> {
    let [tokens, top, width] = [places.dims[0], places.dims[1], rows.dims[1]];
    let at = indices(args, places)?;
    let share = args.scratch(Kind::F32, &places.dims)?;
    let nothing = args.number(0.0)?;
    args.choose(&at.none, [&nothing, weight], &share)?;
    args.in_pieces(tokens, a_token(top, width), |first, number| {
        let pairs = number * top;
        let part = |all: &Place| all.slice(0, first, number).reshaped(&[pairs]);
        let found = args.scratch(rows.kind, &[pairs, width])?;
        select(args, rows, &part(&at.at), &found)?;
        let wide = if rows.kind == Kind::F32 { found } else { args.cast(&found, Kind::F32)? };
        // Rows that are not there may be anything, also no numbers.
        args.choose(&part(&at.none).column(), [&nothing, &wide], &wide)?;
        args.mul(&wide, &part(&share).column(), &wide)?;
        let sum = args.scratch(Kind::F32, &[number, width])?;
        args.sum_choices(&wide.reshaped(&[number, top, width]), &sum)?;
        if let Some(add) = add {
            args.add_to(&sum, &add.slice(0, first, number))?;
        }
        args.copy(&y.slice(0, first, number), &sum)
    })
}

struct Unpermute;

pub(in crate::ops) fn unpermute(op: &Op<'_>) -> Result<Box<dyn Launch>> {
    let attrs::MoeUnpermute {} = op.attrs()?;
    op.floats(&[0, 3, 4])?;
    Ok(Box::new(Unpermute))
}

impl Launch for Unpermute {
    fn workspace_bytes(&self, shapes: &[TensorSpec]) -> u64 {
        let dim = |slot: usize, axis: usize| shapes.get(slot).map_or(0, |s| s.dims[axis].max(0));
        gather_bytes([dim(1, 0), dim(1, 1), dim(0, 1)])
    }

    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let (rows, places, weight) = (args.place(0)?, args.place(1)?, args.place(2)?);
        let (y, add) = (args.place(3)?, args.optional(4)?);
        if y.is_empty() {
            return Ok(());
        }
        gather(args, (&rows, &places), (&weight, add.as_ref()), &y)
    }
}
