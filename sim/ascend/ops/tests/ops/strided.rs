//! Operators on views against the same on contiguous tensors.

use crate::device::{Device, F16, F32, I32, args, int, list, numbers, t};
use halyard_sim_ascend_ops::{Arg, Tensor};
use proptest::prelude::*;

/// Axes of memory, outermost first, and the elements left free behind each row and in front of all.
#[derive(Debug, Clone)]
struct Spread {
    turn: usize,
    gap: i64,
    offset: i64,
}

impl Spread {
    /// A tensor of dims whose elements lie spread in memory; others are 9, which an operator would show.
    fn tensor(&self, d: &Device, dtype: i32, dims: &[i64]) -> Tensor {
        let mut axes: Vec<usize> = (0..dims.len()).collect();
        axes.rotate_left(self.turn % dims.len());
        let mut tensor = Tensor::contiguous(dtype, dims, 0);
        let mut stride = 1;
        for (depth, &axis) in axes.iter().rev().enumerate() {
            tensor.strides[axis] = stride;
            stride = stride * dims[axis] + if depth == 0 { self.gap } else { 0 };
        }
        tensor.offset = self.offset;
        tensor.storage_dims = vec![self.offset + stride];
        let fill = vec![9.0; (self.offset + stride) as usize];
        tensor.address = d.floats(dtype, &tensor.storage_dims, &fill).address;
        tensor
    }

    fn of(&self, d: &Device, dtype: i32, dims: &[i64], values: &[f32]) -> Tensor {
        let tensor = self.tensor(d, dtype, dims);
        d.once("InplaceCopy", &[t(&tensor), t(&d.floats(dtype, dims, values))]);
        tensor
    }
}

fn contiguous(d: &Device, view: &Tensor) -> Vec<f32> {
    let out = d.empty(view.dtype, &view.view_dims);
    d.once("InplaceCopy", &[t(&out), t(view)]);
    d.read_floats(&out)
}

/// An operator of one tensor `[2, 3, 4]`: its name, the dims of its result, and how it is called.
type Case = (&'static str, &'static [i64], fn(&Device, &Tensor, &Tensor) -> Vec<Arg>);

const CASES: &[Case] = &[
    ("Softmax", &[2, 3, 4], |_, x, out| vec![t(x), int(1), t(out)]),
    ("Silu", &[2, 3, 4], |_, x, out| vec![t(x), t(out)]),
    ("SwiGlu", &[2, 3, 2], |_, x, out| vec![t(x), int(-1), t(out)]),
    ("Cumsum", &[2, 3, 4], |_, x, out| vec![t(x), int(0), Arg::DataType(F32), t(out)]),
    ("Matmul", &[2, 3, 5], |d, x, out| {
        let w = d.floats(F32, &[4, 5], &numbers(20, 3));
        vec![t(x), t(&w), t(out), int(0)]
    }),
    ("BatchMatMul", &[2, 5, 4], |d, x, out| {
        let left = d.floats(F32, &[1, 5, 3], &numbers(15, 4));
        vec![t(&left), t(x), t(out), int(0)]
    }),
    ("IndexSelect", &[2, 2, 4], |d, x, out| {
        vec![t(x), int(1), t(&d.ints(I32, &[2], &[2, 0])), t(out)]
    }),
    ("Gather", &[2, 3, 1], |d, x, out| {
        let index = d.ints(crate::device::I64, &[2, 3, 1], &[3, 0, 1, 2, 3, 0]);
        vec![t(x), int(2), t(&index), t(out)]
    }),
    ("Cat", &[2, 6, 4], |_, x, out| vec![list(&[x, x]), int(1), t(out)]),
    ("Slice", &[2, 2, 4], |_, x, out| vec![t(x), int(1), int(0), int(3), int(2), t(out)]),
    ("Triu", &[2, 3, 4], |_, x, out| vec![t(x), int(0), t(out)]),
    ("RmsNorm", &[2, 3, 4], |d, x, out| {
        let given = [
            ("x", t(x)),
            ("gamma", t(&d.floats(F32, &[4], &numbers(4, 5)))),
            ("yOut", t(out)),
            ("rstdOut", t(&d.empty(F32, &[2, 3, 1]))),
        ];
        args("RmsNorm", &given)
    }),
    ("MaxDim", &[2, 4], |d, x, out| {
        vec![t(x), int(1), Arg::Bool(false), t(out), t(&d.empty(I32, &[2, 4]))]
    }),
    ("Mean", &[3], |_, x, out| {
        vec![t(x), crate::device::ints(&[0, 2]), Arg::Bool(false), Arg::DataType(F32), t(out)]
    }),
];

proptest! {
    #[test]
    fn views_equal_contiguous_tensors(
        turn in 0usize..3, gap in 0i64..4, offset in 0i64..9, other in 0usize..3, seed in 0u32..50,
    ) {
        let d = Device::default();
        let (from, to) = (Spread { turn, gap, offset }, Spread { turn: other, gap: offset % 3, offset: gap });
        let values = numbers(24, seed);
        let flat = d.floats(F32, &[2, 3, 4], &values);
        let view = from.of(&d, F32, &[2, 3, 4], &values);
        for (name, dims, call) in CASES {
            let plain = d.empty(F32, dims);
            d.once(name, &call(&d, &flat, &plain));
            let spread = to.tensor(&d, F32, dims);
            d.once(name, &call(&d, &view, &spread));
            prop_assert_eq!(contiguous(&d, &spread), d.read_floats(&plain), "{}", name);
            let stored = d.read_floats(&spread);
            let written = dims.iter().product::<i64>() as usize;
            let untouched = stored.iter().filter(|v| **v == 9.0).count();
            prop_assert!(untouched >= stored.len() - written, "{} wrote beside its view", name);
        }
    }

    #[test]
    fn keys_of_a_fused_projection_are_attended(gap in 0i64..3, seed in 0u32..20) {
        let d = Device::default();
        // Tokens with queries, keys and values of two heads in one row.
        let row = 3 * 32 + 16 * gap;
        let all = numbers((5 * row) as usize, seed);
        let fused = d.floats(F16, &[5, row], &all);
        let part = |number: i64| Tensor {
            view_dims: vec![5, 2, 16],
            strides: vec![row, 16, 1],
            offset: number * 32,
            ..fused.clone()
        };
        let copied = |view: &Tensor| d.floats(F16, &[5, 2, 16], &contiguous(&d, view));
        let call = |q: &Tensor, k: &Tensor, v: &Tensor| {
            let out = d.empty(F16, &[5, 2, 16]);
            let given = [
                ("query", t(q)),
                ("key", list(&[k])),
                ("value", list(&[v])),
                ("actualSeqLengths", crate::device::ints(&[2, 5])),
                ("actualSeqLengthsKv", crate::device::ints(&[2, 5])),
                ("numHeads", int(2)),
                ("scaleValue", Arg::Float(0.25)),
                ("inputLayout", crate::device::text("TND")),
                ("attentionOut", t(&out)),
            ];
            let name = "FusedInferAttentionScoreV3";
            d.once(name, &args(name, &given));
            d.read_floats(&out)
        };
        let [q, k, v] = [0, 1, 2].map(part);
        let (q, tight) = (copied(&q), call(&copied(&q), &copied(&k), &copied(&v)));
        prop_assert_eq!(call(&q, &k, &v), tight);
    }
}

#[test]
fn a_plan_runs_again_at_other_addresses() {
    let d = Device::default();
    let (x, y) = (d.floats(F32, &[2], &[1.0, 2.0]), d.floats(F32, &[2], &[10.0, 20.0]));
    let (first, second) = (d.empty(F32, &[2]), d.empty(F32, &[2]));
    let plan = crate::device::plan("Mul", &[t(&x), t(&x), t(&first)]).unwrap();
    assert_eq!(plan.tensors.iter().map(|slot| slot.param).collect::<Vec<_>>(), [0, 1, 2]);
    d.run(&plan).unwrap();
    plan.run(&d, &[x.address, y.address, second.address], 0).unwrap();
    assert_eq!(d.read_floats(&first), [1.0, 4.0]);
    assert_eq!(d.read_floats(&second), [10.0, 40.0]);
}

#[test]
fn a_workspace_is_written_before_anything_is_read() {
    let d = Device::default();
    let x = d.floats(F32, &[64, 2], &numbers(128, 1));
    let out = d.empty(F32, &[64, 2]);
    let plan = crate::device::plan("Softmax", &[t(&x), int(1), t(&out)]).unwrap();
    assert_eq!(plan.workspace, 512);
    plan.run(&d, &plan.addresses(), x.address).unwrap();
    assert_eq!(d.read_floats(&out)[..2], [0.5, 0.5], "a workspace over an input spoils it");
    assert!(plan.run(&d, &plan.addresses(), 0).unwrap_err().message.contains("workspace"));
}
