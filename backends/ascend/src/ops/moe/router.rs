//! MOE_ROUTER.

use halyard_sdk::{
    Error, Result, TensorSpec,
    abi::ops::{Sym, attrs},
};

use crate::{
    driver::NO_TENSOR,
    ops::{
        Launch, Op,
        args::{Args, Kind, Place, scratch_bytes},
    },
};

/// Added to the sum that weights are divided by.
const TINY: f64 = 1e-20;

/// Experts that `MoeGatingTopK` takes, and choices that `MoeGatingTopKSoftmaxV2` does.
const MAX_EXPERTS: i64 = 2048;
const MAX_TOP: i64 = 1024;

struct Router {
    attrs: attrs::MoeRouter,
}

pub(in crate::ops) fn prepare(op: &Op<'_>) -> Result<Box<dyn Launch>> {
    let attrs: attrs::MoeRouter = op.attrs()?;
    let (experts, top) = (op.dim(Sym::E), op.dim(Sym::Top));
    let (groups, kept) = (attrs.n_group, attrs.topk_group);
    let whole = groups >= 1 && (experts < 0 || experts % groups == 0);
    if !whole || !(1..=groups).contains(&kept) || (experts >= 0 && top > experts) {
        return Err(Error::invalid(format!(
            "moe_router: {top} of {experts} experts in {groups} groups, of which {kept} are kept"
        )));
    }
    Ok(Box::new(Router { attrs }))
}

impl Router {
    /// Puts the scores of all but the best groups to -inf. `worth` is `[tokens, experts]`.
    fn keep_groups(&self, args: &Args<'_>, worth: &Place) -> Result<()> {
        let [tokens, experts] = [worth.dims[0], worth.dims[1]];
        let (groups, kept) = (self.attrs.n_group, self.attrs.topk_group);
        let by_group = worth.reshaped(&[tokens, groups, experts / groups]);
        let sorted = args.scratch(Kind::F32, &by_group.dims)?;
        let at = args.scratch(Kind::I64, &by_group.dims)?;
        args.sort(&by_group, &sorted, &at)?;
        let best = args.scratch(Kind::F32, &[tokens, groups, 1])?;
        let counted = if self.attrs.group_sum_of_two { 2.min(experts / groups) } else { 1 };
        args.sum(&sorted.slice(2, 0, counted), &best)?;
        let best = best.reshaped(&[tokens, groups]);
        let (order, places) =
            (args.scratch(Kind::F32, &best.dims)?, args.scratch(Kind::I64, &best.dims)?);
        args.sort(&best, &order, &places)?;
        // A group is kept if one of the first places is its.
        let own = args.count(groups, 1)?.column();
        let is = args.scratch(Kind::BOOL, &[tokens, groups, kept])?;
        args.equal(&places.slice(1, 0, kept).spread(1), &own, &is)?;
        let number = args.cast(&is, Kind::F32)?;
        let times = args.scratch(Kind::F32, &[tokens, groups, 1])?;
        args.sum(&number, &times)?;
        let stays = args.scratch(Kind::BOOL, &times.dims)?;
        args.less(&args.number(0.0)?, &times, &stays)?;
        args.choose(&stays, [&by_group, &args.number(f32::NEG_INFINITY)?], &by_group)
    }
}

/// Where an operator writes that wants no gaps.
fn result(args: &Args<'_>, to: &Place) -> Result<Place> {
    if to.is_contiguous() { Ok(to.clone()) } else { args.scratch(to.kind, &to.dims) }
}

impl Router {
    /// One operator, where one does it; `false` if none was enqueued.
    fn operator(
        &self,
        args: &Args<'_>,
        (logits, bias): (&Place, Option<&Place>),
        [ids, weight]: [&Place; 2],
    ) -> Result<bool> {
        let attrs::MoeRouter { sigmoid, n_group, topk_group, group_sum_of_two, norm, scale } =
            self.attrs;
        let (experts, top) = (logits.dims[1], ids.dims[1]);
        let found = &args.on.driver().operators;
        let plain = !sigmoid && bias.is_none() && n_group == 1;
        let softmax = plain && top <= MAX_TOP && found.MoeGatingTopKSoftmaxV2.is_some();
        let size = experts / n_group;
        let groups = top <= topk_group * size && (!group_sum_of_two || size > 1);
        let general = groups && experts <= MAX_EXPERTS && (norm || !sigmoid);
        let general = general && found.MoeGatingTopK.is_some();
        if !softmax && !general {
            return Ok(false);
        }
        let packed =
            if logits.is_contiguous() { logits.clone() } else { args.cast(logits, Kind::F32)? };
        let (at, share) = (result(args, ids)?, result(args, weight)?);
        let (x, y, index) = (args.tensor(&packed), args.tensor(&share), args.tensor(&at));
        let (x, y, index) = (&x, &y, &index);
        if softmax {
            let norm = i64::from(norm);
            enqueue!(
                args.on,
                MoeGatingTopKSoftmaxV2(x, NO_TENSOR, top, norm, false, y, index, NO_TENSOR)
            )?;
        } else {
            let bias = bias.map(|bias| args.tensor(bias));
            let bias = bias.as_ref();
            let all = args.tensor(&args.scratch(Kind::F32, &logits.dims)?);
            let [two, norm, kind] = [group_sum_of_two, norm, sigmoid].map(i64::from);
            #[rustfmt::skip]
            enqueue!(args.on, MoeGatingTopK(
                x, bias, top, topk_group, n_group, two, norm, kind, false, scale, TINY, y, index, &all,
            ))?;
        }
        if softmax && scale.to_bits() != 1f64.to_bits() {
            args.scale(&share, scale as f32, &share)?;
        }
        if !ids.is_contiguous() {
            args.copy(ids, &at)?;
        }
        if !weight.is_contiguous() {
            args.copy(weight, &share)?;
        }
        Ok(true)
    }
}

impl Launch for Router {
    fn workspace_bytes(&self, shapes: &[TensorSpec]) -> u64 {
        let (tokens, experts) = shapes.first().map_or((0, 0), |s| (s.dims[0], s.dims[1]));
        let top = shapes.get(2).map_or(0, |s| s.dims[1]);
        let groups = self.attrs.n_group;
        8 * scratch_bytes(Kind::I64, &[tokens, experts])
            + 4 * scratch_bytes(Kind::I64, &[tokens, top.max(1)])
            + 6 * scratch_bytes(Kind::I64, &[tokens, groups])
            + 2 * scratch_bytes(Kind::I64, &[tokens, groups, self.attrs.topk_group])
            + scratch_bytes(Kind::I64, &[groups])
            + 4 * scratch_bytes(Kind::F32, &[1])
    }

    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let (logits, bias) = (args.place(0)?, args.optional(1)?);
        let (ids, weight) = (args.place(2)?, args.place(3)?);
        if ids.is_empty() {
            return Ok(());
        }
        if self.operator(args, (&logits, bias.as_ref()), [&ids, &weight])? {
            return Ok(());
        }
        let like = |kind| args.scratch(kind, &logits.dims);
        let (scores, worth) = (like(Kind::F32)?, like(Kind::F32)?);
        if self.attrs.sigmoid {
            args.sigmoid(&logits, &scores)?;
        } else {
            args.softmax(&logits, &scores)?;
        }
        match &bias {
            Some(bias) => args.add((&scores, bias), 1.0, &worth)?,
            None => args.copy(&worth, &scores)?,
        }
        if self.attrs.n_group > 1 {
            self.keep_groups(args, &worth)?;
        }
        let (sorted, at) = (like(Kind::F32)?, like(Kind::I64)?);
        args.sort(&worth, &sorted, &at)?;
        let chosen = args.scratch(Kind::I64, &ids.dims)?;
        args.copy(&chosen, &at.slice(1, 0, ids.dims[1]))?;
        args.copy(&ids, &chosen)?;
        let share = args.scratch(Kind::F32, &weight.dims)?;
        args.pick(&scores, &chosen, &share)?;
        if self.attrs.norm {
            let sum = args.scratch(Kind::F32, &[weight.dims[0], 1])?;
            args.sum(&share, &sum)?;
            args.add_to(&sum, &args.number(TINY as f32)?)?;
            args.div(&share, &sum, &share)?;
        }
        args.scale(&share, self.attrs.scale as f32, &weight)
    }
}
