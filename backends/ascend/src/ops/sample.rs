//! SAMPLE: the rule of the catalogue as operators over sorted rows, with the catalogue's own generator.

use halyard_sdk::{
    Result, TensorSpec,
    abi::ops::{Sym, attrs},
};

use super::{
    Launch, Op,
    args::{Args, Kind, Place, piece_bytes, scratch_bytes},
    logits::{SORTED, comparable, sorted},
};

struct Sample;

pub(super) fn prepare(op: &Op<'_>) -> Result<Box<dyn Launch>> {
    let attrs::Sample {} = op.attrs()?;
    op.floats(&[0])?;
    if op.dim(Sym::V) == 0 {
        return Err(op.refuse("a vocabulary of nothing"));
    }
    Ok(Box::new(Sample))
}

/// Scratch bytes for each logit: sorted, kept or not, two kinds of probability.
const A_LOGIT: i64 = SORTED + 1 + 4 + 4;

/// Elements that are summed one after the other, so that many small ones are not lost beside a large sum.
const BLOCK: i64 = 128;

/// Scratch bytes of the pieces of a row of so many logits: those of [`running_sum`], too.
fn a_piece(width: i64) -> i64 {
    width.saturating_add(BLOCK).saturating_mul(A_LOGIT + 4 + 12)
}

/// Sums of each element and all before it in its row: in blocks, and of blocks.
fn running_sum(args: &Args<'_>, x: &Place, to: &Place) -> Result<()> {
    let [rows, width] = [x.dims[0], x.dims[1]];
    let blocks = (width + BLOCK - 1) / BLOCK;
    let mark = args.mark();
    let padded = args.scratch(Kind::F32, &[rows, blocks * BLOCK])?;
    let sums = args.scratch(Kind::F32, &[rows * blocks, BLOCK])?;
    args.zero(&padded)?;
    args.copy(&padded.slice(1, 0, width), x)?;
    args.running_sum(&padded.reshaped(&[rows * blocks, BLOCK]), &sums)?;
    if blocks > 1 {
        let by_block = sums.reshaped(&[rows, blocks, BLOCK]);
        let (whole, before) =
            (args.scratch(Kind::F32, &[rows, blocks])?, args.scratch(Kind::F32, &[rows, blocks])?);
        let ends = sums.slice(1, BLOCK - 1, 1).seen(&[rows, blocks], &[blocks * BLOCK, BLOCK]);
        args.running_sum(&ends, &whole)?;
        args.zero(&before)?;
        args.copy(&before.slice(1, 1, blocks - 1), &whole.slice(1, 0, blocks - 1))?;
        args.add_to(&by_block, &before.column())?;
    }
    args.copy(to, &sums.reshaped(&[rows, blocks * BLOCK]).slice(1, 0, width))?;
    args.release(mark);
    Ok(())
}

/// Scratch bytes for each row, of all rows: the generator's state, and numbers.
const A_ROW: i64 = 256;

/// What a row is drawn by, `[B, 1]` each.
struct Rule {
    /// f32, 1 where the row is drawn greedily.
    divisor: Place,
    /// i64: 0 where the row is drawn greedily, else 1.
    drawn: Place,
    /// i64
    top_k: Place,
    top_p: Place,
    min_p: Place,
    /// f32, in `[0, 1)`.
    random: Place,
}

impl Rule {
    fn of(args: &Args<'_>, vocabulary: i64) -> Result<Self> {
        let given = |slot: usize| Ok(args.place(slot)?.column());
        let (temperature, wanted) = (given(1)?, given(2)?);
        let warm = args.scratch(Kind::BOOL, &temperature.dims)?;
        args.less(&args.number(0.0)?, &temperature, &warm)?;
        let divisor = args.scratch(Kind::F32, &temperature.dims)?;
        args.choose(&warm, [&temperature, &args.number(1.0)?], &divisor)?;
        let drawn = args.cast(&warm, Kind::I64)?;
        let top_k = args.cast(&wanted, Kind::I64)?;
        let some = args.scratch(Kind::BOOL, &top_k.dims)?;
        args.less(&args.whole(0)?, &top_k, &some)?;
        args.choose(&some, [&top_k, &args.whole(vocabulary)?], &top_k)?;
        let random = uniform(args, &args.place(5)?, &args.place(6)?)?.column();
        Ok(Self { divisor, drawn, top_k, top_p: given(3)?, min_p: given(4)?, random })
    }

    fn of_rows(&self, first: i64, rows: i64) -> Self {
        let part = |all: &Place| all.slice(0, first, rows);
        Self {
            divisor: part(&self.divisor),
            drawn: part(&self.drawn),
            top_k: part(&self.top_k),
            top_p: part(&self.top_p),
            min_p: part(&self.min_p),
            random: part(&self.random),
        }
    }

    /// Where in its sorted row each draw is, i64 `[rows, 1]`. `spare` is f32 of the rows' dims, and overwritten.
    fn draw(&self, args: &Args<'_>, values: &Place, spare: &Place, order: &Place) -> Result<Place> {
        let width = values.dims[1];
        let kept = args.scratch(Kind::BOOL, &values.dims)?;
        let likely = args.scratch(Kind::F32, &values.dims)?;
        let (q, nothing) = (spare, args.number(0.0)?);
        args.less(&order.spread(0), &self.top_k, &kept)?;
        args.choose(&kept, [values, &args.number(f32::NEG_INFINITY)?], q)?;
        args.softmax(q, &likely)?;
        // The sum of what is before an id must be less than `top_p`. `kept` has a column of the best, which is always kept.
        let sums = args.scratch(Kind::F32, &values.dims)?;
        running_sum(args, &likely, &sums)?;
        args.less(&sums.slice(1, 0, width - 1), &self.top_p, &kept.slice(1, 1, width - 1))?;
        args.fill_whole(&kept.slice(1, 0, 1), 1)?;
        args.choose(&kept, [&likely, &nothing], q)?;
        let least = args.scratch(Kind::F32, &self.min_p.dims)?;
        args.mul(&likely.slice(1, 0, 1), &self.min_p, &least)?;
        args.at_most(&least, &likely, &kept)?;
        args.fill_whole(&kept.slice(1, 0, 1), 1)?;
        args.choose(&kept, [q, &nothing], q)?;
        running_sum(args, q, &sums)?;
        // Where sums are no numbers, as behind an infinite logit, none of them is below and the best is drawn.
        let goal = args.scratch(Kind::F32, &self.random.dims)?;
        args.mul(&sums.slice(1, width - 1, 1), &self.random, &goal)?;
        args.at_most(&sums, &goal, &kept)?;
        args.copy(q, &kept)?;
        args.sum(q, &goal)?;
        let at = args.cast(&goal, Kind::I64)?;
        args.mul(&at, &self.drawn, &at)?;
        Ok(at)
    }
}

impl Launch for Sample {
    fn workspace_bytes(&self, shapes: &[TensorSpec]) -> u64 {
        let (rows, width) = shapes.first().map_or((0, 0), |s| (s.dims[0], s.dims[1]));
        piece_bytes(rows, a_piece(width))
            + 32 * scratch_bytes(Kind::U8, &[rows, A_ROW / 8])
            + scratch_bytes(Kind::I64, &[width])
    }

    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let (x, ids, logprob) = (args.place(0)?, args.place(7)?, args.optional(8)?);
        let width = x.dims[1];
        if ids.is_empty() {
            return Ok(());
        }
        let rule = Rule::of(args, width)?;
        let order = args.count(width, 1)?;
        args.in_pieces(x.dims[0], a_piece(width), |first, rows| {
            let rule = rule.of_rows(first, rows);
            let scaled = comparable(args, &x.slice(0, first, rows))?;
            args.div(&scaled, &rule.divisor, &scaled)?;
            let (values, places) = sorted(args, &scaled)?;
            let at = rule.draw(args, &values, &scaled, &order)?;
            let id = args.scratch(Kind::I64, &at.dims)?;
            args.pick(&places, &at, &id)?;
            args.copy(&ids.slice(0, first, rows).column(), &id)?;
            let Some(logprob) = &logprob else { return Ok(()) };
            args.log_softmax(&values, &scaled)?;
            let found = args.scratch(Kind::F32, &at.dims)?;
            args.pick(&scaled, &at, &found)?;
            args.copy(&logprob.slice(0, first, rows).column(), &found)
        })
    }
}

/// Philox4x32: multipliers of counter words 0 and 2, and what the key words 1 and 0 grow by a round.
const MULTIPLIERS: [i64; 2] = [0xD251_1F53, 0xCD9E_8D57];
const GROWTH: [i64; 2] = [0xBB67_AE85, 0x9E37_79B9];
const ROUNDS: usize = 10;

/// Numbers in `[0, 1)` of 24 bits, f32, of seeds and counters of 64 bits.
///
/// Words are the lower halves of i64, whose products wrap to the bits that are wanted. Pairs are in an order that makes a round few operators: words
/// 0 and 2 (`even`), 3 and 1 (`odd`), key words 1 and 0.
fn uniform(args: &Args<'_>, seed: &Place, counter: &Place) -> Result<Place> {
    let rows = seed.dims[0];
    let pair = || args.scratch(Kind::I64, &[rows, 2]);
    let constants = |values: [i64; 2]| -> Result<Place> {
        let both = args.scratch(Kind::I64, &[2])?;
        args.fill_whole(&both.slice(0, 0, 1), values[0])?;
        args.fill_whole(&both.slice(0, 1, 1), values[1])?;
        Ok(both)
    };
    let (even, odd, key, product, mixed) = (pair()?, pair()?, pair()?, pair()?, pair()?);
    let (multipliers, growth) = (constants(MULTIPLIERS)?, constants(GROWTH)?);
    let word = |of: &Place, i: i64| of.part(Kind::I32, 0).slice(1, i, 1);
    let half = |of: &Place, i: i64| of.part(Kind::I32, i).column();
    for state in [&even, &odd, &key] {
        args.zero(state)?;
    }
    args.copy(&word(&even, 0), &half(counter, 0))?;
    args.copy(&word(&odd, 1), &half(counter, 1))?;
    args.copy(&word(&key, 1), &half(seed, 0))?;
    args.copy(&word(&key, 0), &half(seed, 1))?;
    for round in 0..ROUNDS {
        if round > 0 {
            args.add_to(&key, &growth)?;
        }
        args.mul(&even, &multipliers, &product)?;
        let (low, mix) = (product.part(Kind::I32, 0), mixed.part(Kind::I32, 0));
        args.bit_xor(&product.part(Kind::I32, 1), &odd.part(Kind::I32, 0), &mix)?;
        args.bit_xor(&word(&mixed, 0), &word(&key, 0), &word(&even, 1))?;
        args.bit_xor(&word(&mixed, 1), &word(&key, 1), &word(&even, 0))?;
        args.copy(&odd.part(Kind::I32, 0), &low)?;
    }
    // The upper 24 bits of 32 fit an f32.
    let first = even.slice(1, 0, 1).seen(&[rows], &[even.strides[0]]);
    let below = args.cast(&first.part(Kind::U8, 0), Kind::I64)?;
    args.sub(&first, &below, &below)?;
    let random = args.cast(&below, Kind::F32)?;
    args.scale(&random, 2f32.powi(-32), &random)?;
    Ok(random)
}
