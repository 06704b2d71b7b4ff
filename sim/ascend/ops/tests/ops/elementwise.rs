use crate::device::{BF16, Device, F16, F32, I32, I64, int, null, plan, refused, scalar, t};
use halyard_sim_ascend_ops::{Arg, Scalar, Tensor};
use proptest::prelude::*;

#[test]
fn add_scales_the_second_operand_and_broadcasts() {
    let d = Device::default();
    let x = d.floats(F16, &[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let y = d.floats(F16, &[3], &[10.0, 20.0, 30.0]);
    let out = d.empty(F16, &[2, 3]);
    d.call("Add", &[t(&x), t(&y), scalar(0.5), t(&out)]);
    assert_eq!(d.read_floats(&out), [6.0, 12.0, 18.0, 9.0, 15.0, 21.0]);
    d.call("Sub", &[t(&x), t(&y), scalar(0.5), t(&out)]);
    assert_eq!(d.read_floats(&out), [-4.0, -8.0, -12.0, -1.0, -5.0, -9.0]);
}

#[test]
fn halves_are_added_in_f32_and_rounded_once() {
    let d = Device::default();
    // 2048 + 1 lies between two FLOAT16; 2048 + 3 does too and goes to the even one above.
    let x = d.floats(F16, &[2], &[2048.0, 2048.0]);
    let y = d.floats(F16, &[2], &[1.0, 3.0]);
    let out = d.empty(F16, &[2]);
    d.call("Add", &[t(&x), t(&y), scalar(1.0), t(&out)]);
    assert_eq!(d.read_floats(&out), [2048.0, 2052.0]);
}

#[test]
fn operands_are_promoted() {
    let d = Device::default();
    let (a, b) = (d.floats(F16, &[1], &[0.5]), d.floats(BF16, &[1], &[2.0]));
    let n = d.ints(I32, &[1], &[7]);
    let out = d.empty(F32, &[1]);
    d.call("Add", &[t(&a), t(&b), scalar(1.0), t(&out)]);
    assert_eq!(d.read_floats(&out), [2.5]);
    d.call("Div", &[t(&n), t(&d.ints(I32, &[1], &[2])), t(&out)]);
    assert_eq!(d.read_floats(&out), [3.5]);
    let whole = d.empty(I64, &[1]);
    d.call("Mul", &[t(&n), t(&d.ints(I64, &[1], &[1 << 40])), t(&whole)]);
    assert_eq!(d.read_ints(&whole), [7 << 40]);
    refused("Add", &[t(&a), t(&n), scalar(1.0), t(&whole)], 161_002, "out: dtype INT64");
}

#[test]
fn in_place_and_scalars() {
    let d = Device::default();
    let x = d.floats(F32, &[2], &[1.0, 2.0]);
    d.call("InplaceAdd", &[t(&x), t(&d.floats(F32, &[1], &[4.0])), scalar(2.0)]);
    assert_eq!(d.read_floats(&x), [9.0, 10.0]);
    d.call("InplaceMuls", &[t(&x), Arg::Scalar(Some(Scalar::Int(3)))]);
    assert_eq!(d.read_floats(&x), [27.0, 30.0]);
    d.call("InplaceMul", &[t(&x), t(&x)]);
    assert_eq!(d.read_floats(&x), [729.0, 900.0]);
    let out = d.empty(F32, &[2]);
    d.call("Adds", &[t(&x), scalar(1.5), scalar(2.0), t(&out)]);
    assert_eq!(d.read_floats(&out), [732.0, 903.0]);
    d.call("Muls", &[t(&x), scalar(0.5), t(&out)]);
    assert_eq!(d.read_floats(&out), [364.5, 450.0]);
}

#[test]
fn functions_of_one_element() {
    let d = Device::default();
    let x = d.floats(F32, &[2], &[0.25, 4.0]);
    let out = d.empty(F32, &[2]);
    for (name, expected) in [
        ("Exp", [1.284_025_4, 54.598_15]),
        ("Tanh", [0.244_918_66, 0.999_329_3]),
        ("Cos", [0.968_912_4, -0.653_643_6]),
        ("Sin", [0.247_403_96, -0.756_802_5]),
        ("Rsqrt", [2.0, 0.5]),
        ("Sigmoid", [0.562_176_5, 0.982_013_8]),
        ("Neg", [-0.25, -4.0]),
    ] {
        d.call(name, &[t(&x), t(&out)]);
        crate::device::near(&d.read_floats(&out), &expected, 1e-6);
    }
}

#[test]
fn bad_arguments_are_refused() {
    let d = Device::default();
    let x = d.floats(F32, &[2, 3], &[0.0; 6]);
    let y = d.floats(F32, &[4], &[0.0; 4]);
    let add = |x: &Tensor, y: &Tensor, out: &Tensor| [t(x), t(y), scalar(1.0), t(out)];
    refused("Add", &add(&x, &y, &x), 161_002, "other: shape [4] does not broadcast");
    refused("Add", &add(&x, &x, &y), 161_002, "out: shape [4], expected [2, 3]");
    refused("Add", &[null(), t(&x), scalar(1.0), t(&x)], 161_001, "self: null");
    refused("Add", &[t(&x), t(&x), Arg::Scalar(None), t(&x)], 161_001, "alpha: null");
    refused("Add", &[t(&x), t(&x), int(1), t(&x)], 561_000, "alpha: Int(1), expected Scalar");
    refused("Add", &[t(&x)], 561_000, "1 arguments, expected 4");
    let bad = |change: fn(&mut Tensor)| {
        let mut tensor = x.clone();
        change(&mut tensor);
        tensor
    };
    for (tensor, code, words) in [
        (bad(|t| t.dtype = 11), 561_003, "other: aclDataType 11"),
        (bad(|t| t.dtype = 36), 561_003, "other: aclDataType 36"),
        (bad(|t| t.format = 3), 161_002, "other: aclFormat 3"),
        (bad(|t| t.format = 29), 161_002, "other: format FRACTAL_NZ"),
        (bad(|t| t.address += 16), 161_002, "expected a multiple of 32"),
        (bad(|t| t.offset = 1), 161_002, "ends behind its storage of 6 elements"),
        (bad(|t| t.view_dims = vec![2, -3]), 161_002, "expected none below 0"),
        (bad(|t| t.strides = vec![1]), 161_002, "1 strides for 2 dims"),
        (bad(|t| t.view_dims = vec![1; 9]), 161_002, "9 dims"),
    ] {
        refused("Add", &add(&x, &tensor, &x), code, words);
    }
    let twice = bad(|t| t.strides = vec![0, 1]);
    refused("Add", &add(&x, &x, &twice), 161_002, "out: strides [0, 1] of shape [2, 3] overlap");
}

#[test]
fn faults_name_operator_and_argument() {
    let d = Device::default();
    let (x, y) = (d.floats(F32, &[2], &[0.0; 2]), d.empty(F32, &[2]));
    let call = plan("Mul", &[t(&x), t(&y), t(&y)]).unwrap();
    let fault = d.run(&call).unwrap_err();
    assert_eq!((fault.code, &*fault.message), (507_015, "aclnnMul: other: nothing wrote this"));
    let fault = call.run(&d, &[x.address, x.address, x.address + 4], 0).unwrap_err();
    assert!(fault.message.contains("out: address"), "{fault}");
}

proptest! {
    #[test]
    fn strided_views_equal_contiguous_ones(
        dims in prop::array::uniform3(1i64..5), gap in 0i64..3, offset in 0i64..4, turn in 0usize..6,
    ) {
        let axes = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]][turn];
        let count = dims.iter().product::<i64>() as usize;
        let values = crate::device::numbers(count, 7);
        let d = Device::default();
        let flat = d.floats(F32, &dims, &values);
        // The same elements, with the axes in another order in memory and gaps between the innermost rows.
        let mut view = Tensor::contiguous(F32, &dims, 0);
        let mut stride = 1;
        for (depth, &axis) in axes.iter().rev().enumerate() {
            view.strides[axis] = stride;
            stride = stride * dims[axis] + if depth == 0 { gap } else { 0 };
        }
        view.offset = offset;
        view.storage_dims = vec![offset + stride];
        view.address = d.floats(F32, &view.storage_dims, &vec![9.0; (offset + stride) as usize]).address;
        d.once("Muls", &[t(&flat), scalar(1.0), t(&view)]);
        let out = d.empty(F32, &dims);
        d.once("Muls", &[t(&view), scalar(1.0), t(&out)]);
        prop_assert_eq!(d.read_floats(&out), values);
        let untouched = d.read_floats(&Tensor { view_dims: view.storage_dims.clone(), ..view.clone() });
        prop_assert!(untouched[..offset as usize].iter().all(|v| *v == 9.0));
    }
}
