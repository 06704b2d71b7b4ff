//! LOGITS_PROCESS.

use halyard_sdk::{
    Error, Result, TensorSpec,
    abi::ops::{Sym, attrs},
};

use super::{
    Launch, Op,
    args::{Args, Kind, Place, piece_bytes, scratch_bytes},
};

/// Slots.
const MASK: usize = 1;
const IDS: usize = 2;
const BIAS_IDS: usize = 6;
const BIAS: usize = 7;

struct Process;

pub(super) fn prepare(op: &Op<'_>) -> Result<Box<dyn Launch>> {
    let attrs::LogitsProcess {} = op.attrs()?;
    let penalties = (IDS..BIAS_IDS).map(|slot| op.present(slot));
    let together = penalties.clone().all(|there| there) || penalties.clone().all(|there| !there);
    if !together || op.present(BIAS_IDS) != op.present(BIAS) {
        return Err(Error::invalid(
            "logits_process: ids, count_all, count_out and params come together, as do bias_ids and bias",
        ));
    }
    check_words(op.dim(Sym::V), op.dim(Sym::Words))?;
    Ok(Box::new(Process))
}

fn check_words(vocabulary: i64, words: i64) -> Result<()> {
    if vocabulary >= 0 && words >= 0 && words < (vocabulary + 31) / 32 {
        let what = format!("logits_process: {words} mask words for {vocabulary} ids");
        return Err(Error::invalid(what));
    }
    Ok(())
}

/// Rows of logits with one column more, where what has no id is read and written.
struct Wide {
    rows: Place,
    /// Where each row begins, i64 `[rows, 1]`.
    begins: Place,
    vocabulary: i64,
}

impl Wide {
    fn of(args: &Args<'_>, logits: &Place) -> Result<Self> {
        let [rows, vocabulary] = [logits.dims[0], logits.dims[1]];
        let wide = args.scratch(Kind::F32, &[rows, vocabulary + 1])?;
        args.copy(&wide.slice(1, 0, vocabulary), logits)?;
        args.zero(&wide.slice(1, vocabulary, 1))?;
        let begins = args.count(rows, vocabulary + 1)?.column();
        Ok(Self { rows: wide, begins, vocabulary })
    }

    fn logits(&self) -> Place {
        self.rows.slice(1, 0, self.vocabulary)
    }

    /// Columns of ids.
    fn columns(&self, args: &Args<'_>, ids: &Place) -> Result<Place> {
        let at = args.cast(ids, Kind::I64)?;
        let (inside, none) = (args.scratch(Kind::BOOL, &at.dims)?, args.whole(self.vocabulary)?);
        args.less(&at, &none, &inside)?;
        args.choose(&inside, [&at, &none], &at)?;
        args.at_most(&args.whole(0)?, &at, &inside)?;
        args.choose(&inside, [&at, &none], &at)?;
        Ok(at)
    }

    fn read(&self, args: &Args<'_>, at: &Place) -> Result<Place> {
        let found = args.scratch(Kind::F32, &at.dims)?;
        args.pick(&self.rows, at, &found)?;
        Ok(found)
    }

    fn write(&self, args: &Args<'_>, at: &Place, values: &Place) -> Result<()> {
        let cells = args.scratch(Kind::I64, &at.dims)?;
        args.add((at, &self.begins), 1.0, &cells)?;
        let number = at.dims.iter().product();
        let all = self.rows.dims.iter().product();
        args.scatter(
            &self.rows.reshaped(&[all]),
            &cells.reshaped(&[number]),
            &values.reshaped(&[number]),
        )
    }

    fn bias(&self, args: &Args<'_>, ids: &Place, bias: &Place) -> Result<()> {
        let at = self.columns(args, ids)?;
        let sum = self.read(args, &at)?;
        args.add_to(&sum, bias)?;
        self.write(args, &at, &sum)
    }

    fn penalise(&self, args: &Args<'_>, slots: &[Place; 4]) -> Result<()> {
        let [ids, count_all, count_out, params] = slots;
        let at = self.columns(args, ids)?;
        let before = self.read(args, &at)?;
        let like = |kind| args.scratch(kind, &at.dims);
        let param = |i| params.slice(1, i, 1);
        let (nothing, mask) = (args.number(0.0)?, like(Kind::BOOL)?);
        // Repetition divides what is above 0 and multiplies the rest.
        let (after, other) = (like(Kind::F32)?, like(Kind::F32)?);
        args.div(&before, &param(0), &after)?;
        args.mul(&before, &param(0), &other)?;
        args.less(&nothing, &before, &mask)?;
        args.choose(&mask, [&after, &other], &after)?;
        // Presence and frequency are subtracted.
        let counts = args.cast(count_out, Kind::F32)?;
        args.less(&nothing, &counts, &mask)?;
        args.copy(&other, &mask)?;
        args.mul(&other, &param(1), &other)?;
        args.mul(&counts, &param(2), &counts)?;
        args.add_to(&other, &counts)?;
        args.sub(&after, &other, &after)?;
        let counts = args.cast(count_all, Kind::I64)?;
        args.less(&args.whole(0)?, &counts, &mask)?;
        args.choose(&mask, [&after, &before], &after)?;
        self.write(args, &at, &after)
    }
}

/// True for the ids whose bit is 1.
fn allowed(args: &Args<'_>, mask: &Place, vocabulary: i64) -> Result<Place> {
    let bytes = mask.parts(Kind::U8);
    let [rows, width] = [bytes.dims[0], bytes.dims[1]];
    let powers = args.scratch(Kind::U8, &[8])?;
    for bit in 0..8 {
        args.fill_whole(&powers.slice(0, bit, 1), 1 << bit)?;
    }
    let bits = args.scratch(Kind::U8, &[rows, width, 8])?;
    args.bit_and(&bytes.column(), &powers, &bits)?;
    let truth = args.cast(&bits, Kind::BOOL)?;
    Ok(truth.reshaped(&[rows, width * 8]).slice(1, 0, vocabulary))
}

impl Process {
    fn rows(args: &Args<'_>, slots: &[Option<Place>; 8], logits: &Place) -> Result<()> {
        let wide = Wide::of(args, logits)?;
        let listed = |slot: usize| slots[slot].as_ref().filter(|ids| !ids.is_empty());
        if let (Some(ids), Some(bias)) = (listed(BIAS_IDS), &slots[BIAS]) {
            wide.bias(args, ids, bias)?;
        }
        if let (Some(ids), [_, _, _, Some(all), Some(out), Some(params), ..]) = (listed(IDS), slots)
        {
            wide.penalise(args, &[ids, all, out, params].map(Clone::clone))?;
        }
        let Some(mask) = &slots[MASK] else { return args.copy(logits, &wide.logits()) };
        let allowed = allowed(args, mask, wide.vocabulary)?;
        let never = args.number(f32::NEG_INFINITY)?;
        args.choose(&allowed, [&wide.logits(), &never], logits)
    }
}

/// Scratch bytes of a row: logits, bits of the mask, and lists of so many ids.
fn a_row(vocabulary: i64, words: i64, lists: i64) -> i64 {
    let bits = words.saturating_mul(32).saturating_mul(2);
    vocabulary.saturating_mul(4).saturating_add(bits).saturating_add(lists.saturating_mul(64))
}

impl Launch for Process {
    fn workspace_bytes(&self, shapes: &[TensorSpec]) -> u64 {
        let width = |slot: usize| shapes.get(slot).map_or(0, |s| s.dims[1].max(0));
        let rows = shapes.first().map_or(0, |s| s.dims[0]);
        let bytes = a_row(width(0) + 4, width(MASK), width(IDS) + width(BIAS_IDS));
        piece_bytes(rows, bytes) + scratch_bytes(Kind::I64, &[rows])
    }

    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let mut slots: [Option<Place>; 8] = Default::default();
        for (slot, place) in slots.iter_mut().enumerate() {
            *place = args.optional(slot)?;
        }
        let logits = args.place(0)?;
        if logits.is_empty() {
            return Ok(());
        }
        let width = |slot: usize| slots[slot].as_ref().map_or(0, |s| s.dims[1]);
        check_words(logits.dims[1], slots[MASK].as_ref().map_or(-1, |s| s.dims[1]))?;
        let bytes = a_row(width(0) + 4, width(MASK), width(IDS) + width(BIAS_IDS));
        args.in_pieces(logits.dims[0], bytes, |first, rows| {
            let part = |place: &Option<Place>| place.as_ref().map(|p| p.slice(0, first, rows));
            Self::rows(args, &slots.each_ref().map(part), &logits.slice(0, first, rows))
        })
    }
}
