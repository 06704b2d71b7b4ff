//! The runtime through the libraries of a profile: devices, streams, events, memory, operators, graphs.

#![allow(clippy::unwrap_used, clippy::float_cmp, reason = "tests: results are exact")]

mod common;

use common::*;

#[test]
fn operators_compute_on_streams() {
    use_device(0);
    let s = stream();
    let a = upload(&[1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let b = upload(&[10.0f32, 20.0, 30.0, 40.0, 50.0, 60.0]);
    let sum = malloc(24);
    assert_eq!(add(a, b, sum, 6, s), 0, "{}", message());
    let (x, y) = (tensor(F32, &[2, 3], a), tensor(F32, &[3, 2], sum));
    let out = malloc(16);
    let z = tensor(F32, &[2, 2], out);
    let status = run("aclnnMm", s, |size, executor| {
        call("aclnnMmGetWorkspaceSize", (x, y, z, 0i8, size, executor))
    });
    assert_eq!(status, 0, "{}", message());
    // Objects may go as soon as the second phase returned.
    destroy(&[x, y, z]);
    sync(s);
    assert_eq!(download::<f32>(sum, 6), [11.0, 22.0, 33.0, 44.0, 55.0, 66.0]);
    assert_eq!(download::<f32>(out, 4), [242.0, 308.0, 539.0, 704.0]);
    ok("aclrtDestroyStream", (s,));
}
