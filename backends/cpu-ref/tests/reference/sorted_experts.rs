//! BATCHED_LINEAR, and the trio MOE_PERMUTE, GROUPED_LINEAR, MOE_UNPERMUTE.

use halyard_sdk::{
    DType, Scheme, WeightDesc,
    abi::ops::attrs::{ActMul, BatchedLinear, GroupedLinear, MoeExperts, MoePermute, MoeUnpermute},
};

use crate::harness::{
    Filled, Tensor, absent, close, dense, f32s, i32s, output, refused, run, tensor,
};

#[test]
fn each_group_has_its_matrix() {
    let w = dense(WeightDesc::batched(Scheme::DENSE, DType::F32, 2, 1, 2), &[1., 2., 3., 4.]);
    let x = tensor(DType::BF16, &[2, 2, 2], &[1., 0., 1., 0., 0., 1., 1., 1.]);
    let mut t = [x, output(DType::F32, &[2, 2, 1])];
    run(&BatchedLinear {}, &mut t, &[w]);
    close(&t[1].memory(), &[1., 3., 2., 7.]);
}

fn permute(attrs: &MoePermute, top: i64, ids: &[i64], experts: i64) -> [Tensor; 5] {
    let tokens = ids.len() as i64 / top;
    let x: Vec<f64> = (1..=tokens).map(|t| t as f64).collect();
    let mut t = [
        f32s(&[tokens, 1], &x),
        i32s(&[tokens, top], ids),
        output(DType::F32, &[tokens * top, 1]),
        output(DType::I32, &[experts + 1]),
        output(DType::I32, &[tokens, top]),
    ];
    run(attrs, &mut t, &[]);
    t
}

#[test]
fn pairs_are_sorted_by_expert_then_token_then_choice() {
    let slice = MoePermute { expert_start: 1 };
    // Experts of the slice: 1, 0 | none, 1 | none, 0.
    let [_, _, xp, offsets, inverse] = permute(&slice, 2, &[2, 1, 9, 2, -1, 1], 3);
    close(&offsets.memory(), &[0., 2., 4., 4.]);
    close(&inverse.memory(), &[2., 0., -1., 3., -1., 1.]);
    close(&xp.memory(), &[1., 3., 1., 2., 0., 0.]);
    // One expert twice in a token: by choice.
    let [_, _, xp, offsets, inverse] = permute(&MoePermute::default(), 2, &[0, 0], 1);
    close(&offsets.memory(), &[0., 2.]);
    close(&inverse.memory(), &[0., 1.]);
    close(&xp.memory(), &[1., 1.]);
}

#[test]
fn nobody_in_the_slice_and_no_tokens() {
    let [_, _, xp, offsets, inverse] = permute(&MoePermute::default(), 1, &[5, -1], 2);
    close(&offsets.memory(), &[0., 0., 0.]);
    close(&inverse.memory(), &[-1., -1.]);
    close(&xp.memory(), &[0., 0.]);
    let [_, _, _, offsets, _] = permute(&MoePermute::default(), 2, &[], 2);
    close(&offsets.memory(), &[0., 0., 0.]);
    let mut t = [
        f32s(&[2, 1], &[1., 2.]),
        i32s(&[2, 2], &[0; 4]),
        output(DType::F32, &[3, 1]),
        output(DType::I32, &[2]),
        output(DType::I32, &[2, 2]),
    ];
    let why = refused(&MoePermute::default(), &mut t, &[]);
    assert!(why.contains("xp has 3 rows, expected those of 2 tokens × 2 experts"), "{why}");
}

fn three_experts() -> Filled {
    dense(WeightDesc::experts(Scheme::DENSE, DType::F32, 3, 1, 1), &[10., 100., 1000.])
}

#[test]
fn grouped_rows_meet_their_expert_and_the_rest_is_zero() {
    let tensors = |offsets: &[i64]| {
        [f32s(&[4, 1], &[1., 2., 3., 4.]), i32s(&[4], offsets), output(DType::F32, &[4, 1])]
    };
    let mut t = tensors(&[0, 2, 2, 3]);
    run(&GroupedLinear::default(), &mut t, &[three_experts()]);
    close(&t[2].memory(), &[10., 20., 3000., 0.]);
    let why = refused(&GroupedLinear::default(), &mut tensors(&[0, 2, 1, 3]), &[three_experts()]);
    assert!(why.contains("offsets [0, 2, 1, 3] for 4 rows, expected to rise from 0"), "{why}");
}

#[test]
fn unpermuting_weighs_and_adds() {
    let tensors = |inverse: &[i64], add: Tensor| {
        [
            f32s(&[4, 1], &[1., 2., 3., 4.]),
            i32s(&[2, 2], inverse),
            f32s(&[2, 2], &[0.5, 10., 100., f64::NAN]),
            output(DType::F32, &[2, 1]),
            add,
        ]
    };
    let mut t = tensors(&[3, 0, 1, -1], absent());
    run(&MoeUnpermute {}, &mut t, &[]);
    close(&t[3].memory(), &[12., 200.]);
    let mut t = tensors(&[3, 0, -1, -1], f32s(&[2, 1], &[7., 8.]));
    run(&MoeUnpermute {}, &mut t, &[]);
    close(&t[3].memory(), &[19., 8.]);
    let why = refused(&MoeUnpermute {}, &mut tensors(&[4, 0, 1, -1], absent()), &[]);
    assert!(why.contains("inverse is 4, there are 4"), "{why}");
}

#[test]
fn the_trio_is_the_fused_layer() {
    let w = |n, k| WeightDesc::experts(Scheme::DENSE, DType::F32, 2, n, k);
    let up = [0.5, -1., 2., 1., 0.25, 1., -1., 3., 1., 1., -0.5, 2., 0.75, 1., -2., 0.5];
    let weights = || [dense(w(4, 2), &up), dense(w(2, 2), &[1., 2., -1., 0.5, 3., 1., -2., 1.])];
    let x = f32s(&[3, 2], &[1., -0.5, 2., 0.25, -1., 1.]);
    let ids = i32s(&[3, 2], &[5, 4, 4, 3, -1, 5]);
    let weight = f32s(&[3, 2], &[0.5, 2., 1., 9., 9., 0.25]);
    let add = f32s(&[3, 2], &[1., 2., 3., 4., 5., 6.]);

    let mut fused =
        [x.clone(), ids.clone(), weight.clone(), output(DType::F32, &[3, 2]), add.clone()];
    run(&MoeExperts { expert_start: 4, ..Default::default() }, &mut fused, &weights());

    let mut sorted = [
        x,
        ids,
        output(DType::F32, &[6, 2]),
        output(DType::I32, &[3]),
        output(DType::I32, &[3, 2]),
    ];
    run(&MoePermute { expert_start: 4 }, &mut sorted, &[]);
    let [_, _, xp, offsets, inverse] = sorted;
    let [w0, w1] = weights();
    let mut first = [xp, offsets.clone(), output(DType::F32, &[6, 4])];
    run(&GroupedLinear::default(), &mut first, &[w0]);
    let [_, _, gate_up] = first;
    let mut acted = [gate_up, output(DType::F32, &[6, 2])];
    run(&ActMul::default(), &mut acted, &[]);
    let [_, hidden] = acted;
    let mut second = [hidden, offsets, output(DType::F32, &[6, 2])];
    run(&GroupedLinear::default(), &mut second, &[w1]);
    let [_, _, yp] = second;
    let mut out = [yp, inverse, weight, output(DType::F32, &[3, 2]), add];
    run(&MoeUnpermute {}, &mut out, &[]);
    close(&out[3].memory(), &fused[3].memory());
}
