//! Validation against the catalogue: a descriptor before `prepare`, arguments before `launch`.
//!
//! Hosts check once, here; backends rely on it and check only what values alone can tell.

use core::fmt::Write;

use super::{
    relations,
    schema::{
        Access, Dim, Layout, MAX_FREE_RANK, OpSchema, SYMS, Shape, Slot, Sym, Types, free_sym,
    },
};
use crate::{
    error::AbiError,
    ids::DType,
    types::{FLAG_HOST, FLAG_OPAQUE, MAX_RANK, OpDesc, TensorSpec, TensorView},
};

/// Values of the symbols of one op; -1 is known only at launch.
#[derive(Clone, Debug)]
pub struct Bindings {
    values: [Option<i64>; SYMS],
    same_rank: Option<usize>,
    compute: Option<DType>,
    cache: Option<DType>,
}

impl Bindings {
    const fn new() -> Self {
        Self { values: [None; SYMS], same_rank: None, compute: None, cache: None }
    }

    /// The symbol's value: `None` if the op does not use it, -1 if it is known only at launch.
    #[must_use]
    pub fn get(&self, sym: Sym) -> Option<i64> {
        self.values[sym as usize]
    }

    /// The compute type, if a slot has it.
    #[must_use]
    pub fn compute(&self) -> Option<DType> {
        self.compute
    }

    fn bind(&mut self, dim: Dim, value: i64, dynamic: bool) -> Result<(), String> {
        if dynamic && value == -1 {
            return match dim.sym() {
                None => Err("is fixed by the op and cannot be dynamic".into()),
                Some(sym) if self.values[sym as usize].is_some_and(|v| v >= 0) => {
                    Err(format!("is dynamic, but {sym:?} is fixed elsewhere"))
                }
                Some(sym) => {
                    self.values[sym as usize] = Some(-1);
                    Ok(())
                }
            };
        }
        if value < 0 {
            return Err(format!("is {value}"));
        }
        let Some(solved) = dim.solve(value) else {
            return Err(format!("is {value}, expected {dim:?}"));
        };
        let Some(sym) = dim.sym() else { return Ok(()) };
        match self.values[sym as usize] {
            Some(-1) if dynamic => Err(format!("is fixed, but {sym:?} is dynamic elsewhere")),
            Some(old) if old != -1 && old != solved => {
                Err(format!("gives {sym:?} = {solved}, elsewhere it is {old}"))
            }
            _ => {
                self.values[sym as usize] = Some(solved);
                Ok(())
            }
        }
    }
}

/// Checks a descriptor's slots, weights and shapes against the catalogue, and what must hold between them and the attributes.
/// Attributes alone are the typed parsers' business.
///
/// # Errors
/// `UNSUPPORTED` for an op outside the catalogue or a non-empty slot that the op does not have; `INVALID_ARGUMENT` naming op, slot,
/// dim and what was expected; those of the attributes' parser.
pub fn check_desc(desc: &OpDesc<'_>) -> Result<(&'static OpSchema, Bindings), AbiError> {
    let Some(schema) = OpSchema::of(desc.kind) else {
        return Err(AbiError::unsupported(format!("op {} is not in opset 1", desc.kind)));
    };
    let mut bindings = Bindings::new();
    if let Some(extra) = desc.tensors.iter().skip(schema.slots.len()).position(|t| !t.is_none()) {
        let at = schema.slots.len() + extra;
        return Err(AbiError::unsupported(format!("{}: slot {at} is not known", desc.kind)));
    }
    for (i, slot) in schema.slots.iter().enumerate() {
        let spec = desc.tensors.get(i).unwrap_or(&TensorSpec::NONE);
        check_slot(slot, spec, true, &mut bindings)
            .map_err(|why| AbiError::invalid(format!("{}: {} {why}", desc.kind, slot.name)))?;
    }
    if desc.weights.len() != schema.weights.len() {
        return Err(AbiError::invalid(format!(
            "{}: {} weights, expected {}",
            desc.kind,
            desc.weights.len(),
            schema.weights.len()
        )));
    }
    for (slot, w) in schema.weights.iter().zip(desc.weights.iter()) {
        let dims = [
            (slot.groups.unwrap_or(Dim::Const(1)), u64::from(w.groups)),
            (slot.n, w.n),
            (slot.k, w.k),
        ];
        for (dim, value) in dims {
            let value = i64::try_from(value).unwrap_or(-2);
            bindings.bind(dim, value, false).map_err(|why| {
                AbiError::invalid(format!("{}: weight {} {why}", desc.kind, slot.name))
            })?;
        }
    }
    relations::check(desc, &bindings)?;
    Ok((schema, bindings))
}

fn check_slot(
    slot: &Slot,
    spec: &TensorSpec,
    dynamic: bool,
    bindings: &mut Bindings,
) -> Result<(), String> {
    if spec.is_none() {
        return if slot.optional { Ok(()) } else { Err("is missing".into()) };
    }
    if usize::from(spec.rank) > MAX_RANK || spec.reserved != 0 {
        return Err(format!("has rank {} and reserved {}", spec.rank, spec.reserved));
    }
    if spec.flags & !(FLAG_OPAQUE | FLAG_HOST) != 0 {
        return Err(format!("has unknown flags {:#x}", spec.flags));
    }
    if (spec.flags & FLAG_OPAQUE != 0) != (slot.layout == Layout::Opaque) {
        return Err("must be opaque exactly if the op says so".into());
    }
    check_type(slot, spec.dtype, bindings)?;
    let dims = spec.dims();
    match slot.shape {
        Shape::Dims(expected) => {
            if dims.len() != expected.len() {
                return Err(format!("has rank {}, expected {}", dims.len(), expected.len()));
            }
            for (axis, (&dim, &value)) in expected.iter().zip(dims).enumerate() {
                bindings.bind(dim, value, dynamic).map_err(|w| format!("dim {axis} {w}"))?;
            }
        }
        Shape::Same | Shape::Trailing => {
            bind_free(matches!(slot.shape, Shape::Same), dims, dynamic, bindings)?;
        }
    }
    Ok(())
}

/// Binds the last dim to `H` and the others, from the right, to the free symbols.
fn bind_free(
    same: bool,
    dims: &[i64],
    dynamic: bool,
    bindings: &mut Bindings,
) -> Result<(), String> {
    if dims.is_empty() || dims.len() > MAX_FREE_RANK {
        return Err(format!("has rank {}, expected 1 to {}", dims.len(), MAX_FREE_RANK));
    }
    match bindings.same_rank {
        None => bindings.same_rank = Some(dims.len()),
        Some(rank) if same && rank != dims.len() => {
            return Err(format!("has rank {}, other slots have {rank}", dims.len()));
        }
        Some(rank) if dims.len() > rank => {
            return Err(format!("has rank {}, at most {rank} is possible", dims.len()));
        }
        Some(_) => {}
    }
    for (from_right, &value) in dims.iter().rev().enumerate() {
        let sym = free_sym(from_right);
        let axis = dims.len() - 1 - from_right;
        bindings.bind(Dim::Is(sym), value, dynamic).map_err(|w| format!("dim {axis} {w}"))?;
    }
    Ok(())
}

fn check_type(slot: &Slot, dtype: DType, bindings: &mut Bindings) -> Result<(), String> {
    const FLOATS: [DType; 3] = [DType::F32, DType::F16, DType::BF16];
    const BYTES: [DType; 2] = [DType::F8E4M3, DType::I8];
    let once = |seen: &mut Option<DType>| match *seen {
        Some(other) if other != dtype => Err(format!("is {dtype}, other slots are {other}")),
        _ => {
            *seen = Some(dtype);
            Ok(())
        }
    };
    let allowed = match slot.types {
        Types::Is(one) => one == dtype,
        Types::Float | Types::Compute => FLOATS.contains(&dtype),
        Types::Cache => FLOATS.contains(&dtype) || BYTES.contains(&dtype),
        Types::FloatCache => FLOATS.contains(&dtype),
        Types::Quantised => BYTES.contains(&dtype),
        Types::Any => dtype.bits().is_some_and(|b| b >= 8),
    };
    if !allowed {
        return Err(format!("has dtype {dtype}, expected {:?}", slot.types));
    }
    match slot.types {
        Types::Compute => once(&mut bindings.compute),
        Types::Cache | Types::FloatCache => once(&mut bindings.cache),
        _ => Ok(()),
    }
}

/// Checks the tensors of a launch: presence, dtypes, fixed dims, consistent symbols and the relations of attributes as in `desc`,
/// strides as each slot allows.
/// Bounds and aliasing are the caller's, who knows the buffers.
///
/// # Errors
/// `INVALID_ARGUMENT` naming op, slot and dim.
pub fn check_views(
    desc: &OpDesc<'_>,
    schema: &OpSchema,
    views: &[TensorView],
) -> Result<Bindings, AbiError> {
    let bad =
        |slot: &Slot, why: String| AbiError::invalid(format!("{}: {} {why}", desc.kind, slot.name));
    if views.len() != desc.tensors.len() {
        return Err(AbiError::invalid(format!(
            "{}: {} tensors, the kernel was prepared for {}",
            desc.kind,
            views.len(),
            desc.tensors.len()
        )));
    }
    let mut bindings = Bindings::new();
    for ((slot, spec), view) in schema.slots.iter().zip(desc.tensors.iter()).zip(views) {
        if view.is_none() != spec.is_none() {
            let why = if view.is_none() { "is missing" } else { "was not prepared for" };
            return Err(bad(slot, why.into()));
        }
        if view.is_none() {
            continue;
        }
        check_slot(slot, &view.spec(), false, &mut bindings).map_err(|why| bad(slot, why))?;
        if view.dtype != spec.dtype || view.flags & FLAG_OPAQUE != spec.flags & FLAG_OPAQUE {
            return Err(bad(slot, format!("is {}, prepared for {}", view.dtype, spec.dtype)));
        }
        for (axis, (&dim, &fixed)) in view.dims().iter().zip(spec.dims()).enumerate() {
            if view.rank != spec.rank || (fixed >= 0 && fixed != dim) {
                let (got, want) = (show(view.dims()), show(spec.dims()));
                return Err(bad(slot, format!("is {got} at dim {axis}, prepared for {want}")));
            }
        }
        check_strides(slot, view).map_err(|why| bad(slot, why))?;
    }
    // Symbols that only weights fix (N and K of a linear layer) are fixed in the descriptor's specs already: a slot that
    // carries them was compared with its spec above.
    relations::check(desc, &bindings)?;
    Ok(bindings)
}

fn check_strides(slot: &Slot, view: &TensorView) -> Result<(), String> {
    if slot.layout == Layout::Opaque {
        return Ok(());
    }
    let (dims, strides) = (view.dims(), view.strides());
    if strides.iter().any(|&s| s < 0) {
        return Err(format!("has strides {}", show(strides)));
    }
    let contiguous = |from: usize| {
        let mut step = 1;
        (from..dims.len()).rev().all(|axis| {
            let fits = dims[axis] <= 1 || strides[axis] == step;
            step *= dims[axis];
            fits
        })
    };
    let fits = match slot.layout {
        Layout::Any | Layout::Opaque => true,
        Layout::Rows => contiguous(dims.len().saturating_sub(1)),
        Layout::Packed => contiguous(0),
    };
    if !fits {
        let what = if slot.layout == Layout::Packed { "all dims" } else { "the last dim" };
        return Err(format!("has strides {}, {what} must be contiguous", show(strides)));
    }
    let zero = dims.iter().zip(strides).any(|(&d, &s)| d > 1 && s == 0);
    if zero && slot.access != Access::In {
        return Err("is written and must not have a stride of 0".into());
    }
    Ok(())
}

fn show(dims: &[i64]) -> String {
    let mut text = String::from("[");
    for (axis, d) in dims.iter().enumerate() {
        let comma = if axis == 0 { "" } else { ", " };
        let _ = write!(text, "{comma}{d}");
    }
    text.push(']');
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ids::{Code, Scheme},
        ops::{OpBuf, attrs},
        types::WeightDesc,
    };

    fn spec(dims: &[i64]) -> TensorSpec {
        TensorSpec::new(DType::F32, dims)
    }

    fn linear(x: &[i64], y: &[i64]) -> OpBuf {
        OpBuf::new(
            &attrs::Linear::default(),
            [spec(x), TensorSpec::NONE, spec(y)],
            [WeightDesc::linear(Scheme::DENSE, DType::BF16, 32, 64)],
        )
    }

    #[test]
    fn symbols_unify_across_slots_and_weights() {
        let op = linear(&[-1, 64], &[-1, 32]);
        let (_, b) = check_desc(&op.desc()).unwrap();
        assert_eq!((b.get(Sym::T), b.get(Sym::K), b.get(Sym::N)), (Some(-1), Some(64), Some(32)));
        let error = check_desc(&linear(&[-1, 65], &[-1, 32]).desc()).unwrap_err();
        assert_eq!(error.message, "linear: weight w gives K = 64, elsewhere it is 65");
        assert!(check_desc(&linear(&[4, 64], &[5, 32]).desc()).is_err());
        assert!(check_desc(&linear(&[-1, 64], &[5, 32]).desc()).is_err());
    }

    #[test]
    fn launches_keep_to_the_descriptor() {
        let op = linear(&[-1, 64], &[-1, 32]);
        let desc = op.desc();
        let (schema, _) = check_desc(&desc).unwrap();
        let view = |dims: &[i64]| TensorView::contiguous(0, 0, &spec(dims));
        let good = [view(&[3, 64]), TensorView::NONE, view(&[3, 32])];
        assert_eq!(check_views(&desc, schema, &good).unwrap().get(Sym::T), Some(3));
        let torn = [view(&[3, 64]), TensorView::NONE, view(&[4, 32])];
        let error = check_views(&desc, schema, &torn).unwrap_err();
        assert_eq!(error.message, "linear: y dim 0 gives T = 4, elsewhere it is 3");
        let mut gap = good;
        gap[0].strides[1] = 2;
        assert!(check_views(&desc, schema, &gap).is_err());
        let mut zero = good;
        zero[2].strides[0] = 0;
        assert_eq!(check_views(&desc, schema, &zero).unwrap_err().code, Code::INVALID_ARGUMENT);
        zero = good;
        zero[0].strides[0] = 0;
        assert!(check_views(&desc, schema, &zero).is_ok());
    }

    #[test]
    fn broadcast_operands_align_to_the_right() {
        let add = |a: &[i64], b: &[i64]| {
            OpBuf::new(&attrs::Add::default(), [spec(a), spec(b), spec(a)], [])
        };
        assert!(check_desc(&add(&[-1, 8, 4], &[4]).desc()).is_ok());
        assert!(check_desc(&add(&[-1, 8, 4], &[8, 4]).desc()).is_ok());
        assert!(check_desc(&add(&[-1, 8, 4], &[8]).desc()).is_err());
        assert!(check_desc(&add(&[4], &[8, 4]).desc()).is_err());
    }
}
