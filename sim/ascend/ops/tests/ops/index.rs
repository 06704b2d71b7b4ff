use crate::device::{BF16, Device, F16, F32, I8, I32, I64, int, plan, refused, t};
use halyard_sim_ascend_ops::{Arg, Memory};

fn faults(d: &Device, name: &str, args: &[Arg], words: &str) {
    let fault = d.run(&plan(name, args).unwrap()).expect_err(words);
    assert!(fault.message.contains(words), "{fault} has no {words:?}");
    assert_eq!(fault.code, 507_015);
}

#[test]
fn what_is_only_moved_need_not_be_written() {
    let d = Device::default();
    let table = d.empty(F32, &[2, 4]);
    d.write(table.address, &1.0f32.to_le_bytes()).unwrap();
    let (ids, out) = (d.ints(I32, &[1], &[0]), d.empty(F32, &[1, 4]));
    d.once("IndexSelect", &[t(&table), int(0), t(&ids), t(&out)]);
    let mut first = [0; 4];
    d.read(out.address, &mut first).unwrap();
    assert_eq!(f32::from_le_bytes(first), 1.0);
    let fault = d.read(out.address + 4, &mut first).unwrap_err();
    assert!(fault.message.contains("nothing wrote this"), "{fault}");
}

#[test]
fn rows_by_ids() {
    let d = Device::default();
    let table = d.floats(BF16, &[3, 2], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let ids = d.ints(I32, &[3], &[2, 0, 2]);
    let out = d.empty(BF16, &[3, 2]);
    let expected = [5.0, 6.0, 1.0, 2.0, 5.0, 6.0];
    d.call("Embedding", &[t(&table), t(&ids), t(&out)]);
    assert_eq!(d.read_floats(&out), expected);
    d.call("IndexSelect", &[t(&table), int(0), t(&ids), t(&out)]);
    assert_eq!(d.read_floats(&out), expected);
    let square = d.ints(I64, &[1, 2], &[1, 0]);
    let out = d.empty(BF16, &[3, 1, 2]);
    d.call("GatherV2", &[t(&table), int(1), t(&square), t(&out)]);
    assert_eq!(d.read_floats(&out), [2.0, 1.0, 4.0, 3.0, 6.0, 5.0]);
    let out = d.empty(BF16, &[2, 2]);
    let bad = d.ints(I32, &[2], &[0, 3]);
    faults(
        &d,
        "Embedding",
        &[t(&table), t(&bad), t(&out)],
        "indices: 3, expected from 0 to below 3",
    );
    refused("Embedding", &[t(&table), t(&table), t(&out)], 161_002, "indices: dtype BFLOAT16");
    refused("IndexSelect", &[t(&table), int(0), t(&square), t(&out)], 161_002, "index: 2 dims");
    refused(
        "IndexSelect",
        &[t(&table), int(1), t(&bad), t(&out)],
        161_002,
        "out: shape [2, 2], expected [3, 2]",
    );
}

#[test]
fn gather_takes_one_element_each() {
    let d = Device::default();
    let x = d.floats(F32, &[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let index = d.ints(I64, &[2, 1], &[2, 0]);
    let out = d.empty(F32, &[2, 1]);
    d.call("Gather", &[t(&x), int(1), t(&index), t(&out)]);
    assert_eq!(d.read_floats(&out), [3.0, 4.0]);
    let down = d.ints(I64, &[1, 3], &[1, 0, 1]);
    let out = d.empty(F32, &[1, 3]);
    d.call("Gather", &[t(&x), int(0), t(&down), t(&out)]);
    assert_eq!(d.read_floats(&out), [4.0, 2.0, 6.0]);
    faults(
        &d,
        "Gather",
        &[t(&x), int(0), t(&d.ints(I64, &[1, 3], &[0, -1, 0])), t(&out)],
        "index: -1",
    );
}

#[test]
fn scattered_rows() {
    let d = Device::default();
    let data = d.floats(F16, &[3, 2], &[0.0; 6]);
    let updates = d.floats(F16, &[2, 2], &[1.0, 2.0, 3.0, 4.0]);
    let rows = d.ints(I32, &[2, 1], &[2, 0]);
    d.call("ScatterNdUpdate", &[t(&data), t(&rows), t(&updates)]);
    assert_eq!(d.read_floats(&data), [3.0, 4.0, 0.0, 0.0, 1.0, 2.0]);
    let one = d.ints(I64, &[1, 2], &[1, 1]);
    d.call("ScatterNdUpdate", &[t(&data), t(&one), t(&d.floats(F16, &[1], &[7.0]))]);
    assert_eq!(d.read_floats(&data), [3.0, 4.0, 0.0, 7.0, 1.0, 2.0]);
    let index = d.ints(I64, &[1], &[0]);
    d.call(
        "InplaceIndexCopy",
        &[t(&data), int(1), t(&index), t(&d.floats(F16, &[3, 1], &[9.0, 8.0, 7.0]))],
    );
    assert_eq!(d.read_floats(&data), [9.0, 4.0, 8.0, 7.0, 7.0, 2.0]);
    let wrong = d.ints(I32, &[2, 1], &[-1, 0]);
    faults(&d, "ScatterNdUpdate", &[t(&data), t(&wrong), t(&updates)], "indices: -1");
    let flat = d.ints(I32, &[2], &[0, 1]);
    refused(
        "ScatterNdUpdate",
        &[t(&data), t(&flat), t(&updates)],
        161_002,
        "updates: shape [2, 2], expected []",
    );
    refused(
        "ScatterNdUpdate",
        &[t(&data), t(&rows), t(&d.empty(F32, &[2, 2]))],
        161_002,
        "updates: dtype FLOAT",
    );
    refused(
        "InplaceIndexCopy",
        &[t(&data), int(0), t(&index), t(&updates)],
        161_002,
        "source: shape [2, 2], expected [1, 2]",
    );
}

#[test]
fn runs_of_positions() {
    let d = Device::default();
    let data = d.ints(I8, &[2, 4, 1], &[0; 8]);
    let updates = d.ints(I8, &[2, 2, 1], &[1, 2, 3, 4]);
    let starts = d.ints(I32, &[2], &[1, 2]);
    d.call("InplaceScatterUpdate", &[t(&data), t(&starts), t(&updates), int(-2)]);
    assert_eq!(d.read_ints(&data), [0, 1, 2, 0, 0, 0, 3, 4]);
    let far = d.ints(I32, &[2], &[0, 3]);
    faults(
        &d,
        "InplaceScatterUpdate",
        &[t(&data), t(&far), t(&updates), int(1)],
        "indices: 3, expected from 0 to below 3",
    );
    refused(
        "InplaceScatterUpdate",
        &[t(&data), t(&starts), t(&updates), int(0)],
        161_002,
        "axis: 0",
    );
}
