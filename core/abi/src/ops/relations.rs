//! What must hold between the dims, types and attributes of an op where the shapes of its slots alone cannot say it.
//!
//! Dims that are known only at launch are checked there. A mode that this opset does not have is the backend's to refuse.

use super::{
    attrs::{MoeRouter, OpAttrs, QkvPost, QuantAct, RmsNormQuant, Rope},
    check::Bindings,
    schema::Sym,
};
use crate::{
    error::AbiError,
    ids::{DType, OpKind},
    types::OpDesc,
};

/// Columns that share a scale in mode 2 of QUANT_ACT.
const QUANT_GROUP: i64 = 128;

/// Checks a descriptor, or a launch's dims (`bindings`) against it.
pub(super) fn check(desc: &OpDesc<'_>, bindings: &Bindings) -> Result<(), AbiError> {
    let known = |sym| bindings.get(sym).filter(|&value| value >= 0);
    let verdict = match desc.kind {
        OpKind::ROPE => rotation(Rope::from_desc(desc)?.offset, known(Sym::Dk), known(Sym::R)),
        OpKind::QKV_POST => {
            let offset = QkvPost::from_desc(desc)?.offset;
            rotation(offset, known(Sym::Dk), known(Sym::R))
                .and_then(|()| columns([Sym::Qkv, Sym::Hq, Sym::Hk, Sym::Dk, Sym::Dv].map(known)))
        }
        OpKind::MOE_ROUTER => choice(&MoeRouter::from_desc(desc)?, known(Sym::E), known(Sym::Top)),
        OpKind::MOE_PERMUTE => pairs([Sym::T, Sym::Top, Sym::P].map(known)),
        OpKind::QUANT_ACT => {
            codes(desc, QuantAct::from_desc(desc)?.mode, 1, known(Sym::K), known(Sym::Scales))
        }
        OpKind::RMS_NORM_QUANT => {
            codes(desc, RmsNormQuant::from_desc(desc)?.mode, 2, known(Sym::K), known(Sym::Scales))
        }
        _ => Ok(()),
    };
    verdict.map_err(|why| AbiError::invalid(format!("{}: {why}", desc.kind)))
}

/// The rotated dims are pairs inside the head.
fn rotation(offset: i64, head: Option<i64>, rotated: Option<i64>) -> Result<(), String> {
    let (Some(d), Some(r)) = (head, rotated) else { return Ok(()) };
    let inside = offset >= 0 && offset.checked_add(r).is_some_and(|end| end <= d);
    if r % 2 == 0 && inside {
        return Ok(());
    }
    Err(format!("{r} dims from {offset} of a head of {d}, expected an even number inside the head"))
}

/// Queries, keys and values fill a row.
fn columns(dims: [Option<i64>; 5]) -> Result<(), String> {
    let [Some(columns), Some(hq), Some(hk), Some(dk), Some(dv)] = dims else { return Ok(()) };
    let want = i128::from(hq) * i128::from(dk) + i128::from(hk) * (i128::from(dk) + i128::from(dv));
    if i128::from(columns) == want {
        return Ok(());
    }
    Err(format!(
        "rows of {columns}, expected {want}: {hq} queries of {dk}, {hk} keys of {dk}, {hk} values of {dv}"
    ))
}

/// The experts split into groups, and the kept ones have as many as are chosen.
fn choice(attrs: &MoeRouter, experts: Option<i64>, top: Option<i64>) -> Result<(), String> {
    let (n, kept) = (attrs.n_group, attrs.topk_group);
    if n < 1 || !(1..=n).contains(&kept) {
        return Err(format!("{n} groups of which {kept} are kept"));
    }
    let (Some(experts), Some(top)) = (experts, top) else { return Ok(()) };
    let allowed = if n > 1 { experts / n * kept } else { experts };
    if experts > 0 && experts % n == 0 && (1..=allowed).contains(&top) {
        return Ok(());
    }
    Err(format!("{top} of {experts} experts in {n} groups of which {kept} are kept"))
}

/// Every choice of every token has a row.
fn pairs(dims: [Option<i64>; 3]) -> Result<(), String> {
    let [Some(tokens), Some(top), Some(rows)] = dims else { return Ok(()) };
    if tokens.checked_mul(top) == Some(rows) {
        return Ok(());
    }
    Err(format!("xp has {rows} rows, expected those of {tokens} tokens × {top} experts"))
}

/// The codes have the mode's type, and as many scales as it has groups.
fn codes(
    desc: &OpDesc<'_>,
    mode: i64,
    slot: usize,
    k: Option<i64>,
    scales: Option<i64>,
) -> Result<(), String> {
    let (dtype, groups): (_, fn(i64) -> i64) = match mode {
        1 => (DType::I8, |k| i64::from(k > 0)),
        2 => (DType::F8E4M3, |k| k / QUANT_GROUP + i64::from(k % QUANT_GROUP > 0)),
        _ => return Ok(()),
    };
    let found = desc.tensors.get(slot).map_or(DType::NONE, |t| t.dtype);
    if found != dtype {
        return Err(format!("mode {mode} writes {dtype}, q is {found}"));
    }
    match (k, scales) {
        (Some(k), Some(scales)) if scales != groups(k) => {
            Err(format!("{scales} scales a row of {k}, expected {}", groups(k)))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{OpBuf, attrs, check::check_desc};
    use crate::{ids::DType, types::TensorSpec};

    fn why(op: &OpBuf) -> String {
        check_desc(&op.desc()).map_or_else(|error| error.message.into(), |_| "fine".into())
    }

    fn spec(dtype: DType, dims: &[i64]) -> TensorSpec {
        TensorSpec::new(dtype, dims)
    }

    #[test]
    fn rotated_dims_are_pairs_inside_the_head() {
        let rope = |offset, r| {
            let q = spec(DType::F32, &[-1, 2, 64]);
            let (pos, table) = (spec(DType::I32, &[-1]), spec(DType::F32, &[-1, r]));
            why(&OpBuf::new(
                &attrs::Rope { offset, ..Default::default() },
                [q, TensorSpec::NONE, pos, table],
                [],
            ))
        };
        assert_eq!(rope(0, 64), "fine");
        assert_eq!(rope(32, 32), "fine");
        let expected = "expected an even number inside the head";
        assert_eq!(rope(33, 32), format!("rope: 32 dims from 33 of a head of 64, {expected}"));
        assert_eq!(rope(0, 63), format!("rope: 63 dims from 0 of a head of 64, {expected}"));
        assert!(rope(i64::MAX, 2).contains(expected));
    }

    #[test]
    fn as_many_experts_are_kept_as_are_chosen() {
        let router = |n_group, topk_group, experts, top| {
            let logits = spec(DType::F32, &[-1, experts]);
            let (ids, weight) = (spec(DType::I32, &[-1, top]), spec(DType::F32, &[-1, top]));
            let attrs = attrs::MoeRouter { n_group, topk_group, ..Default::default() };
            why(&OpBuf::new(&attrs, [logits, TensorSpec::NONE, ids, weight], []))
        };
        assert_eq!(router(4, 2, 16, 8), "fine");
        assert_eq!(router(1, 1, 16, 16), "fine");
        assert_eq!(
            router(4, 2, 16, 9),
            "moe_router: 9 of 16 experts in 4 groups of which 2 are kept"
        );
        assert!(router(3, 1, 16, 1).contains("in 3 groups"));
        assert!(router(0, 1, 16, 1).contains("0 groups"));
        assert!(router(2, 3, 16, 1).contains("3 are kept"));
    }

    #[test]
    fn codes_have_the_type_and_scales_of_their_mode() {
        let quant = |mode, dtype, scales| {
            let (x, q) = (spec(DType::F32, &[-1, 200]), spec(dtype, &[-1, 200]));
            let scale = spec(DType::F32, &[-1, scales]);
            why(&OpBuf::new(&attrs::QuantAct { mode }, [x, q, scale], []))
        };
        assert_eq!(quant(1, DType::I8, 1), "fine");
        assert_eq!(quant(2, DType::F8E4M3, 2), "fine");
        assert_eq!(quant(2, DType::I8, 2), "quant_act: mode 2 writes f8e4m3, q is i8");
        assert_eq!(quant(1, DType::I8, 2), "quant_act: 2 scales a row of 200, expected 1");
    }

    #[test]
    fn every_choice_has_a_row() {
        let permute = |rows| {
            let (x, xp) = (spec(DType::F32, &[6, 8]), spec(DType::F32, &[rows, 8]));
            let (ids, offsets) = (spec(DType::I32, &[6, 2]), spec(DType::I32, &[5]));
            why(&OpBuf::new(&attrs::MoePermute::default(), [x, ids, xp, offsets, ids], []))
        };
        assert_eq!(permute(12), "fine");
        assert_eq!(permute(-1), "fine");
        assert_eq!(
            permute(13),
            "moe_permute: xp has 13 rows, expected those of 6 tokens × 2 experts"
        );
    }

    #[test]
    fn queries_keys_and_values_fill_a_row() {
        let post = |columns| {
            let (i32s, i64s) = (spec(DType::I32, &[-1]), spec(DType::I64, &[-1]));
            let cache = spec(DType::F32, &[-1, 16, 2, 64]).opaque();
            let slots = [
                spec(DType::F32, &[-1, columns]),
                TensorSpec::NONE,
                TensorSpec::NONE,
                i32s,
                spec(DType::F32, &[-1, 64]),
                i64s,
                spec(DType::F32, &[-1, 4, 64]),
                cache,
                cache,
            ];
            why(&OpBuf::new(&attrs::QkvPost::default(), slots, []))
        };
        assert_eq!(post(512), "fine");
        assert_eq!(
            post(500),
            "qkv_post: rows of 500, expected 512: 4 queries of 64, 2 keys of 64, 2 values of 64"
        );
    }
}
