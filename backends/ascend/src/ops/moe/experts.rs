//! MOE_EXPERTS: rows in the order of their experts, both layers, and each token's sum. What lies between is of the compute type.

use halyard_sdk::{DType, Result, TensorSpec, abi::ops::attrs};

use super::rows::{Sorted, gather, gather_bytes, sort, sort_bytes};
use crate::ops::{
    Launch, Op,
    args::{Args, Kind, scratch_bytes},
    elementwise::ActMul,
    grouped::Grouped,
};

struct Experts {
    start: i64,
    experts: i64,
    hidden: i64,
    inner: i64,
    compute: DType,
    gate: Grouped,
    down: Grouped,
    act: ActMul,
}

pub(in crate::ops) fn prepare(op: &Op<'_>) -> Result<Box<dyn Launch>> {
    let attrs::MoeExperts { expert_start, act, limit, act_quant, weight_on_input } = op.attrs()?;
    op.floats(&[0, 3, 4])?;
    if weight_on_input {
        return Err(op.refuse("weights on the input; supported: on the output"));
    }
    let (first, second) = (op.weights[0], op.weights[1]);
    let x = op.dtype(0);
    Ok(Box::new(Experts {
        start: expert_start,
        experts: first.groups,
        hidden: first.k,
        inner: second.k,
        compute: x,
        gate: Grouped::new(op, 0, (x, x), act_quant)?,
        down: Grouped::new(op, 1, (x, x), act_quant)?,
        act: ActMul::new(act, limit, second.k),
    }))
}

impl Launch for Experts {
    fn workspace_bytes(&self, shapes: &[TensorSpec]) -> u64 {
        let (tokens, top) = shapes.get(1).map_or((0, 0), |s| (s.dims[0], s.dims[1]));
        let pairs = tokens.saturating_mul(top.max(0));
        sort_bytes([tokens, top, self.hidden, self.experts])
            + scratch_bytes(Kind::I64, &[self.experts])
            + 2 * scratch_bytes(Kind::F32, &[pairs, 2 * self.inner])
            + scratch_bytes(Kind::F32, &[pairs, self.hidden])
            + scratch_bytes(Kind::I32, &[pairs])
            + scratch_bytes(Kind::I32, &[1])
            + self.gate.workspace_bytes(pairs)
            + self.down.workspace_bytes(pairs)
            + self.act.bytes(pairs)
            + gather_bytes([tokens, top, self.hidden])
    }

    fn slow(&self) -> Option<&'static str> {
        self.gate.slow().or_else(|| self.down.slow())
    }

    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let (x, ids, weight) = (args.place(0)?, args.place(1)?, args.place(2)?);
        let (y, add) = (args.place(3)?, args.optional(4)?);
        if y.is_empty() {
            return Ok(());
        }
        let (first, second) = (args.weight(0)?, args.weight(1)?);
        let Sorted { rows, ends, places, inside } =
            sort(args, (&x, &ids), (self.start, self.experts), None)?;
        let ends = args.cast(&ends, Kind::I64)?;
        let pairs = rows.dims[0];
        let compute = Kind::of(self.compute)?;
        let gated = args.scratch(compute, &[pairs, 2 * self.inner])?;
        self.gate.run(args, &rows, &first, &ends, &gated)?;
        let inner = args.scratch(compute, &[pairs, self.inner])?;
        self.act.run(args, &gated, &inner)?;
        let outer = args.scratch(compute, &[pairs, self.hidden])?;
        self.down.run(args, &inner, &second, &ends, &outer)?;
        let none = args.scratch(Kind::I32, &[1])?;
        args.fill_whole(&none, -1)?;
        args.choose(&inside, [&places, &none], &places)?;
        gather(args, (&outer, &places), (&weight, add.as_ref()), &y)
    }
}
