//! The runtime through the libraries of a profile: devices, streams, events, memory, operators, graphs.

#![allow(
    clippy::unwrap_used,
    clippy::float_cmp,
    clippy::cast_possible_truncation,
    reason = "tests: results are exact"
)]

mod common;

use common::*;
use std::ffi::{CStr, c_char, c_void};
use std::sync::Mutex;

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

#[test]
fn devices_are_as_their_chips() {
    use_device(0);
    let mut count = 0u32;
    ok("aclrtGetDeviceCount", (&raw mut count,));
    assert_eq!(count, 6);
    let named = || {
        let name: *const c_char = value("aclrtGetSocName", ());
        // SAFETY: it is a text that ends with a zero.
        unsafe { CStr::from_ptr(name) }.to_str().unwrap()
    };
    let (mut cores, mut free, mut total) = (0i64, 0usize, 0usize);
    for (device, name, cubes, gib) in
        [(0, "Ascend910B1", 24, 64), (4, "Ascend910B4", 20, 32), (5, "Ascend910B3", 20, 64)]
    {
        use_device(device);
        assert_eq!(named(), name);
        ok("aclGetDeviceCapability", (device, 0u32, &raw mut cores));
        assert_eq!(cores, cubes);
        ok("aclrtGetMemInfo", (1u32, &raw mut free, &raw mut total));
        assert_eq!(total, gib << 30);
    }
    // No other test of this process uses the last one.
    assert_eq!(free, total);
    // Sizes are rounded up to 32, and 32 bytes are added.
    let a = malloc(100);
    ok("aclrtGetMemInfo", (1u32, &raw mut free, &raw mut total));
    assert_eq!(total - free, 160);
    assert!(a.is_multiple_of(64));
    ok("aclrtFree", (a,));
    ok("aclrtGetMemInfo", (1u32, &raw mut free, &raw mut total));
    assert_eq!(total, free);
}

#[test]
fn events_order_streams_and_tell_times() {
    use_device(0);
    let (s, t, start, end) = (stream(), stream(), event(8), event(8));
    let (a, b, c) = (upload(&[1.0f32; 64]), upload(&[2.0f32; 64]), malloc(256));
    ok("aclrtRecordEvent", (start, s));
    assert_eq!(add(a, b, c, 64, s), 0);
    ok("aclrtRecordEvent", (end, s));
    ok("aclrtStreamWaitEvent", (t, end));
    assert_eq!(add(c, b, a, 64, t), 0);
    ok("aclrtSynchronizeEvent", (end,));
    let (mut status, mut ms) = (0u32, -1.0f32);
    ok("aclrtQueryEventStatus", (end, &raw mut status));
    assert_eq!(status, 1);
    ok("aclrtEventElapsedTime", (&raw mut ms, start, end));
    assert!(ms >= 0.0);
    sync(t);
    assert_eq!(download::<f32>(a, 64), [5.0; 64]);
    ok("aclrtStreamQuery", (t, &raw mut status));
    assert_eq!(status, 0);
    ok("aclrtSynchronizeStreamWithTimeout", (s, 1000i32));
    ok("aclrtSynchronizeDevice", ());
}

#[test]
fn copies_in_streams() {
    use_device(0);
    let s = stream();
    let (mut pinned, a, b) = (0u64, malloc(64), malloc(64));
    ok("aclrtMallocHost", (&raw mut pinned, 64usize));
    let values: Vec<f32> = (0..16u8).map(f32::from).collect();
    // Memory that is not pinned is read before the call returns.
    ok("aclrtMemcpyAsync", (a, 64usize, values.as_ptr(), 64usize, TO_DEVICE, s));
    ok("aclrtMemcpyAsync", (b, 64usize, a, 64usize, ON_DEVICE, s));
    ok("aclrtMemcpyAsync", (pinned, 64usize, b, 64usize, TO_HOST, s));
    let mut out = [0f32; 16];
    ok("aclrtMemcpyAsync", (out.as_mut_ptr(), 64usize, b, 64usize, TO_HOST, s));
    assert_eq!(out.as_slice(), values);
    ok("aclrtMemcpyAsync", (a, 64usize, pinned, 64usize, TO_DEVICE, s));
    ok("aclrtMemsetAsync", (a, 64usize, 0i32, 8usize, s));
    sync(s);
    assert_eq!(download::<f32>(a, 4), [0.0, 0.0, 2.0, 3.0]);
    // Rows of 8 bytes, 16 apart, to rows side by side.
    ok("aclrtMemcpy2d", (b, 8usize, a, 16usize, 8usize, 4usize, ON_DEVICE));
    assert_eq!(download::<f32>(b, 8), [0.0, 0.0, 4.0, 5.0, 8.0, 9.0, 12.0, 13.0]);
    ok("aclrtFreeHost", (pinned,));
}

#[test]
fn functions_of_the_host_run_in_order() {
    unsafe extern "C" fn push(list: *mut c_void) {
        // SAFETY: the test passes its list, which outlives the stream's work.
        let list = unsafe { &*list.cast::<Mutex<Vec<&str>>>() };
        list.lock().unwrap().push("called");
    }
    use_device(0);
    let (s, t) = (stream(), stream());
    let list = Mutex::new(Vec::<&str>::new());
    let function = push as unsafe extern "C" fn(*mut c_void);
    ok("aclrtLaunchHostFunc", (s, function, (&raw const list).cast_mut()));
    sync(s);
    assert_eq!(list.lock().unwrap().len(), 1);
    // The older way: a thread that says that it makes the calls.
    assert_ne!(call("aclrtLaunchCallback", (function, (&raw const list).cast_mut(), 1u32, t)), 0);
    assert!(message().contains("no thread subscribed"));
    // SAFETY: it has no conditions.
    let own = unsafe { libc::pthread_self() };
    ok("aclrtSubscribeReport", (own, t));
    ok("aclrtLaunchCallback", (function, (&raw const list).cast_mut(), 1u32, t));
    ok("aclrtProcessReport", (10_000i32,));
    sync(t);
    assert_eq!(list.lock().unwrap().len(), 2);
    assert_eq!(call("aclrtProcessReport", (1i32,)), 107_019);
    ok("aclrtUnSubscribeReport", (own, t));
    assert_ne!(call("aclrtLaunchHostFunc", (t, function, (&raw const list).cast_mut())), 0);
    assert!(message().contains("must not be mixed"));
}

#[test]
fn an_executor_that_is_repeated_takes_other_addresses() {
    use_device(0);
    let s = stream();
    let (a, b, out) = (upload(&[1.0f32, 2.0]), upload(&[3.0f32, 4.0]), malloc(8));
    let (x, y) = (tensor(F32, &[2], a), tensor(F32, &[2], out));
    let (mut size, mut executor) = (0u64, 0usize);
    ok("aclnnNegGetWorkspaceSize", (x, y, &raw mut size, &raw mut executor));
    ok("aclSetAclOpExecutorRepeatable", (executor,));
    ok("aclnnNeg", (0u64, size, executor, s));
    sync(s);
    assert_eq!(download::<f32>(out, 2), [-1.0, -2.0]);
    ok("aclSetInputTensorAddr", (executor, 0usize, x, b));
    ok("aclnnNeg", (0u64, size, executor, s));
    sync(s);
    assert_eq!(download::<f32>(out, 2), [-3.0, -4.0]);
    ok("aclDestroyAclOpExecutor", (executor,));
    assert_eq!(call("aclnnNeg", (0u64, size, executor, s)), 161_002);
}

#[test]
fn tensors_tell_what_they_were_made_of() {
    use_device(0);
    let a = malloc(64);
    let x = tensor(F16, &[2, 3], a);
    let (mut dims, mut rank, mut dtype, mut format, mut address) =
        (std::ptr::null_mut::<i64>(), 0u64, 0i32, 0i32, 0u64);
    ok("aclGetViewShape", (x, &raw mut dims, &raw mut rank));
    // SAFETY: the function gave `rank` numbers.
    assert_eq!(unsafe { std::slice::from_raw_parts(dims, rank as usize) }, [2, 3]);
    // SAFETY: the caller frees what it was given.
    unsafe { libc::free(dims.cast()) };
    ok("aclGetDataType", (x, &raw mut dtype));
    ok("aclGetFormat", (x, &raw mut format));
    ok("aclGetRawTensorAddr", (x, &raw mut address));
    assert_eq!((dtype, format, address), (F16, ND, a));
    assert_eq!(value::<usize>("aclDataTypeSize", (F16,)), 2);
    assert_eq!(value::<u16>("aclFloatToFloat16", (1.5f32,)), 0x3e00);
}

#[test]
fn weights_as_fractals() {
    use_device(0);
    let (shape, mut size) = (int_array(&[40, 33]), 0u64);
    ok("aclnnCalculateMatmulWeightSizeV2", (shape, F16, &raw mut size));
    assert_eq!(size, 48 * 48);
    let x = tensor(F16, &[40, 33], malloc(2640));
    let (mut dims, mut rank, mut format) = (std::ptr::null_mut::<i64>(), 0u64, 0i32);
    ok(
        "aclnnNpuFormatCastCalculateSizeAndFormat",
        (x, 29i32, -1i32, &raw mut dims, &raw mut rank, &raw mut format),
    );
    // SAFETY: the function gave `rank` numbers.
    assert_eq!(unsafe { std::slice::from_raw_parts(dims, rank as usize) }, [3, 3, 16, 16]);
    // SAFETY: the caller frees what it was given.
    unsafe { libc::free(dims.cast()) };
    assert_eq!(format, 29);
}

#[test]
fn failures_are_planted() {
    use_device(3);
    let (s, t) = (stream(), stream());
    let a = upload(&[1.0f32; 4]);
    let faults = c"aclrtMallocHost:207018@2,stream:aclnnExp:507014@1,device:aclnnTanh:507010@1";
    ok("halyard_sim_ascend_fault", (faults.as_ptr(),));
    let mut host = 0u64;
    ok("aclrtMallocHost", (&raw mut host, 64usize));
    assert_eq!(call("aclrtMallocHost", (&raw mut host, 64usize)), 207_018);
    ok("aclrtMallocHost", (&raw mut host, 64usize));
    let unary = |op: &str, s: usize| {
        let (x, out) = (tensor(F32, &[4], a), tensor(F32, &[4], malloc(16)));
        run(op, s, |size, e| call(&format!("{op}GetWorkspaceSize"), (x, out, size, e)))
    };
    // A stream goes on after a failure, or stops, as it was told.
    ok("aclrtSetStreamFailureMode", (s, 1u64));
    assert_eq!(unary("aclnnExp", s), 0);
    assert_eq!(call("aclrtSynchronizeStream", (s,)), 507_014);
    assert_ne!(unary("aclnnExp", s), 0);
    assert!(message().contains("the stream stopped at its first failure"));
    // A lost device fails everything until it is reset.
    assert_eq!(unary("aclnnTanh", t), 0);
    assert_eq!(call("aclrtSynchronizeStream", (t,)), 507_010);
    let mut status = 0u32;
    ok("aclrtQueryDeviceStatus", (3i32, &raw mut status));
    assert_eq!(status, 1);
    let mut address = 0u64;
    assert_eq!(call("aclrtMalloc", (&raw mut address, 64usize, 0u32)), 507_010);
    ok("aclrtResetDevice", (3i32,));
    use_device(3);
    assert_eq!(unary("aclnnTanh", t), 0);
    sync(t);
    ok("halyard_sim_ascend_fault", (c"".as_ptr(),));
}

#[test]
fn a_wait_that_is_too_long() {
    use_device(2);
    let (s, e) = (stream(), event(0x20));
    // A graph that waits for an event that nobody records yet.
    ok("aclmdlRICaptureBegin", (s, 2u32));
    ok("aclrtStreamWaitEvent", (s, e));
    let mut model = 0usize;
    ok("aclmdlRICaptureEnd", (s, &raw mut model));
    ok("aclmdlRIExecuteAsync", (model, s));
    assert_eq!(call("aclrtSynchronizeStreamWithTimeout", (s, 20i32)), 507_046);
    let t = stream();
    ok("aclrtRecordEvent", (e, t));
    sync(t);
    sync(s);
}

#[test]
fn cards_are_those_of_the_machine() {
    #[repr(C)]
    #[derive(Default)]
    struct Hbm(u64, u32, u64, i32, u32);
    use_device(0);
    let (mut count, mut list, mut health, mut hbm) = (0i32, [-1i32; 3], 9u32, Hbm::default());
    ok("dcmi_init", ());
    ok("dcmi_get_card_list", (&raw mut count, list.as_mut_ptr(), 3i32));
    assert_eq!((count, list), (6, [0, 1, 2]));
    ok("dcmi_get_device_hbm_info", (4i32, 0i32, &raw mut hbm));
    assert_eq!(hbm.0, 32 << 10);
    ok("dcmi_get_device_health", (4i32, 0i32, &raw mut health));
    assert_eq!(health, 0);
    assert_ne!(call("dcmi_get_device_health", (6i32, 0i32, &raw mut health)), 0);
    assert!(message().contains("argument `card_id`: 6 of 6 cards"));
}

#[test]
#[ignore = "run by `a_process_has_the_devices_that_it_is_given`"]
fn with_two_devices() {
    use_device(1);
    let (mut count, mut cards) = (0u32, 0i32);
    ok("aclrtGetDeviceCount", (&raw mut count,));
    ok("dcmi_get_card_list", (&raw mut cards, [0i32; 1].as_mut_ptr(), 0i32));
    assert_eq!((count, cards), (2, 6));
    let name: *const c_char = value("aclrtGetSocName", ());
    // SAFETY: it is a text that ends with a zero.
    assert_eq!(unsafe { CStr::from_ptr(name) }, c"Ascend910B4");
}

#[test]
fn a_process_has_the_devices_that_it_is_given() {
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args(["with_two_devices", "--exact", "--ignored", "--nocapture"]);
    let done = command.env("ASCEND_RT_VISIBLE_DEVICES", "2,4").output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

#[test]
fn a_thread_without_a_context_is_no_failure_to_log() {
    libraries();
    std::thread::spawn(|| {
        let mut context = 0usize;
        assert_eq!(call("aclrtGetCurrentContext", (&raw mut context,)), 107_002);
        assert_eq!((context, message()), (0, String::new()));
    })
    .join()
    .unwrap();
}
