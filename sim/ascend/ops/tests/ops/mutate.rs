//! Calls that differ from a good one in one argument.

use halyard_sim_ascend_ops::{Arg, Scalar, Tensor};

/// Each argument changed in each way that its type has.
pub(crate) fn changed(args: &[Arg]) -> Vec<Vec<Arg>> {
    let mut calls = Vec::new();
    for (place, arg) in args.iter().enumerate() {
        for other in others(arg) {
            let mut call = args.to_vec();
            call[place] = other;
            calls.push(call);
        }
    }
    calls
}

fn others(arg: &Arg) -> Vec<Arg> {
    const WHOLE: [i64; 10] = [i64::MIN, -1_000_000, -2, -1, 0, 1, 2, 3, 1_000_000, i64::MAX];
    match arg {
        Arg::Tensor(None) => vec![Arg::Tensor(Some(Tensor::contiguous(0, &[1], 0x1000)))],
        Arg::Tensor(Some(tensor)) => {
            let changed = tensors(tensor).into_iter().map(|t| Arg::Tensor(Some(t)));
            changed.chain([Arg::Tensor(None)]).collect()
        }
        Arg::TensorList(list) => {
            let list = list.clone().unwrap_or_default();
            let first = list.first().map(tensors).unwrap_or_default();
            let lists = first.into_iter().map(|t| [&[t], &list[1..]].concat());
            let more = [Vec::new(), [&list[..], &list].concat()];
            lists
                .chain(more)
                .map(|list| Arg::TensorList(Some(list)))
                .chain([Arg::TensorList(None)])
                .collect()
        }
        Arg::IntArray(array) => {
            let array = array.clone().unwrap_or_default();
            let grown = WHOLE.iter().map(|&v| [&array[..], &[v]].concat());
            let replaced =
                WHOLE.iter().map(|&v| [&[v], array.get(1..).unwrap_or_default()].concat());
            let shorter = array.split_last().map(|(_, rest)| rest.to_vec());
            grown
                .chain(replaced)
                .chain(shorter)
                .map(|a| Arg::IntArray(Some(a)))
                .chain([Arg::IntArray(None)])
                .collect()
        }
        Arg::Scalar(_) => [f64::NAN, f64::INFINITY, 0.0, -3.5]
            .map(Scalar::Float)
            .into_iter()
            .chain(WHOLE.map(Scalar::Int))
            .map(|s| Arg::Scalar(Some(s)))
            .collect(),
        Arg::Int(_) => WHOLE.map(Arg::Int).to_vec(),
        Arg::Float(_) => [f64::NAN, f64::NEG_INFINITY, 0.0].map(Arg::Float).to_vec(),
        Arg::Bool(flag) => vec![Arg::Bool(!flag)],
        Arg::Text(_) => ["", "TND", "BNSD", "PA_NZ"].map(|t| Arg::Text(Some(t.into()))).to_vec(),
        Arg::DataType(_) => [-1, 1, 9, 29].map(Arg::DataType).to_vec(),
    }
}

fn tensors(tensor: &Tensor) -> Vec<Tensor> {
    let mut all = Vec::new();
    for dtype in [0, 1, 2, 3, 9, 12, 27, 29] {
        all.push(Tensor { dtype, ..tensor.clone() });
    }
    let dims = &tensor.view_dims;
    let of = |dims: &[i64]| Tensor::contiguous(tensor.dtype, dims, tensor.address);
    for axis in 0..dims.len() {
        for dim in [0, 1, dims[axis] + 1, dims[axis] * 2, dims[axis] / 2, 1 << 40] {
            let mut dims = dims.clone();
            dims[axis] = dim;
            all.push(of(&dims));
        }
        let mut fewer = dims.clone();
        fewer.remove(axis);
        all.push(of(&fewer));
        let mut repeated = tensor.clone();
        repeated.strides[axis] = 0;
        all.push(repeated);
    }
    all.push(of(&[&[1], &dims[..]].concat()));
    all.push(Tensor { format: 29, ..tensor.clone() });
    all.push(Tensor { address: tensor.address + 32, ..tensor.clone() });
    all.push(Tensor { offset: 1, ..tensor.clone() });
    all
}
