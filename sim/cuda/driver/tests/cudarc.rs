//! Unmodified cudarc on the simulated driver: what a backend would do.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_possible_wrap,
    clippy::float_cmp,
    reason = "tests: sizes are small, results exact where compared"
)]

mod loading;

use cudarc::driver::sys::{self, CUevent_flags, CUgraphInstantiate_flags, CUstreamCaptureMode};
use cudarc::driver::{
    CudaContext, CudaFunction, CudaSlice, CudaStream, DevicePtr, DriverError, LaunchConfig,
    PushKernelArg,
};
use cudarc::nvrtc::Ptx;
use half::bf16;
use libloading::Library;
use std::ffi::{c_char, c_void};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};
use std::{ptr, thread};

const ADD: &str = include_str!("../../kernels/ptx/vector_add.sm_80.ptx");
const GEMM: &str = include_str!("../../kernels/ptx/gemm.sm_80.ptx");

/// The simulated driver, loaded once. Its devices are one of each kind, then some for tests that end a context.
fn load() -> &'static Library {
    static LIBRARIES: OnceLock<Vec<Library>> = OnceLock::new();
    let devices = "a100-80g,a100-40g,h100,l20,rtx4090,h100,h100,h100,h100,h100,h100";
    &LIBRARIES.get_or_init(|| loading::libraries(devices, &[]))[0]
}

/// What was counted so far, as JSON.
fn counters() -> String {
    type Counters = unsafe extern "C" fn(*mut c_char, usize, *mut usize) -> u32;
    // SAFETY: the library exports it with this signature.
    let get = unsafe { load().get::<Counters>(b"halyard_sim_cuda_counters") }.unwrap();
    let mut text = vec![0 as c_char; 1 << 16];
    let mut bytes = 0;
    // SAFETY: the text has as much room as is said, and the length may be written.
    assert_eq!(unsafe { get(text.as_mut_ptr(), text.len(), &raw mut bytes) }, 0);
    text.into_iter().take(bytes).map(|c| c.cast_unsigned() as char).collect()
}

fn context(device: usize) -> Arc<CudaContext> {
    load();
    CudaContext::new(device).unwrap()
}

fn function(context: &Arc<CudaContext>, ptx: &str, name: &str) -> CudaFunction {
    context.load_module(Ptx::from_src(ptx)).unwrap().load_function(name).unwrap()
}

fn blocks(n: u32) -> LaunchConfig {
    LaunchConfig { grid_dim: (n.div_ceil(128), 1, 1), block_dim: (128, 1, 1), shared_mem_bytes: 0 }
}

/// out = a + b for the first `n` elements.
fn add(
    stream: &Arc<CudaStream>,
    function: &CudaFunction,
    (out, a, b): (&mut CudaSlice<f32>, &CudaSlice<f32>, &CudaSlice<f32>),
    n: u32,
) -> Result<(), DriverError> {
    let mut launch = stream.launch_builder(function);
    launch.arg(out).arg(a).arg(b).arg(&n);
    // SAFETY: the simulator checks every access.
    unsafe { launch.launch(blocks(n)) }.map(|_| ())
}

#[test]
fn devices_are_those_that_were_named() {
    load();
    assert_eq!(CudaContext::device_count().unwrap(), 11);
    let expected = [
        ("a100-80g", (8, 0)),
        ("a100-40g", (8, 0)),
        ("h100", (9, 0)),
        ("l20", (8, 9)),
        ("rtx4090", (8, 9)),
    ];
    for (device, (name, capability)) in expected.into_iter().enumerate() {
        let context = context(device);
        assert_eq!(context.name().unwrap(), format!("Simulated {name}"));
        assert_eq!(context.compute_capability().unwrap(), capability);
    }
    assert_eq!(context(1).total_mem().unwrap(), 40 << 30);
    let opt_in = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
    assert_eq!(context(2).attribute(opt_in).unwrap(), 232_448);
    assert!(CudaContext::new(11).is_err());
}

#[test]
fn a_kernel_on_the_default_stream() {
    let context = context(0);
    let stream = context.default_stream();
    let function = function(&context, ADD, "vector_add_f32");
    let a = stream.clone_htod(&(0..1000).map(|i| i as f32).collect::<Vec<_>>()).unwrap();
    let b = stream.clone_htod(&vec![0.5f32; 1000]).unwrap();
    let mut out = stream.alloc_zeros::<f32>(1000).unwrap();
    add(&stream, &function, (&mut out, &a, &b), 1000).unwrap();
    let result = stream.clone_dtoh(&out).unwrap();
    assert!(result.iter().enumerate().all(|(i, x)| *x == i as f32 + 0.5));
    let counted = counters();
    for part in ["\"vector_add_f32\": {\"launches\": ", "\"roofline_seconds\": {\"a100-80g\": "] {
        assert!(counted.contains(part), "{counted}");
    }
}

#[test]
fn streams_are_ordered_by_events_that_cudarc_records() {
    let context = context(1);
    let (first, second) = (context.new_stream().unwrap(), context.new_stream().unwrap());
    let function = function(&context, ADD, "vector_add_f32");
    let a = first.clone_htod(&vec![1f32; 4096]).unwrap();
    let mut x = first.alloc_zeros::<f32>(4096).unwrap();
    let mut y = second.alloc_zeros::<f32>(4096).unwrap();
    for _ in 0..20 {
        add(&first, &function, (&mut x, &y, &a), 4096).unwrap();
        add(&second, &function, (&mut y, &x, &a), 4096).unwrap();
    }
    assert!(second.clone_dtoh(&y).unwrap().iter().all(|value| *value == 40.0));
}

/// Whether the stream that calls [`wait_for_gate`] may go on.
static GATE: AtomicBool = AtomicBool::new(false);

extern "C" fn wait_for_gate(_: *mut c_void) {
    while !GATE.load(SeqCst) {
        thread::yield_now();
    }
}

#[test]
fn calls_return_while_the_stream_still_works() {
    let context = context(2);
    let stream = context.new_stream().unwrap();
    let function = function(&context, GEMM, "gemm_bf16_nt");
    let n = 128u32;
    let one = vec![bf16::ONE; (n * n) as usize];
    let (a, b) = (stream.clone_htod(&one).unwrap(), stream.clone_htod(&one).unwrap());
    let mut c = stream.alloc_zeros::<bf16>((n * n) as usize).unwrap();
    let config = LaunchConfig {
        grid_dim: (n / 64, n / 64, 1),
        block_dim: (128, 1, 1),
        shared_mem_bytes: 24_576,
    };
    let timed = Some(CUevent_flags::CU_EVENT_DEFAULT);
    let start = stream.record_event(timed).unwrap();
    // SAFETY: the function takes any argument and may be called from any thread.
    let called =
        unsafe { sys::cuLaunchHostFunc(stream.cu_stream(), Some(wait_for_gate), ptr::null_mut()) };
    called.result().unwrap();
    let mut launch = stream.launch_builder(&function);
    launch.arg(&mut c).arg(&a).arg(&b).arg(&n).arg(&n).arg(&n);
    // SAFETY: the simulator checks every access.
    unsafe { launch.launch(config) }.unwrap();
    let end = stream.record_event(timed).unwrap();
    assert!(!end.is_complete(), "the gate is closed");
    GATE.store(true, SeqCst);
    assert!(start.elapsed_ms(&end).unwrap() > 0.0);
    assert!(stream.clone_dtoh(&c).unwrap().iter().all(|x| x.to_f32() == 128.0));
}

#[test]
fn a_captured_graph_does_the_same_again() {
    let context = context(3);
    let stream = context.new_stream().unwrap();
    let function = function(&context, ADD, "vector_add_f32");
    let a = stream.clone_htod(&vec![2f32; 300]).unwrap();
    let mut sum = stream.alloc_zeros::<f32>(300).unwrap();
    let pointer = {
        use cudarc::driver::DevicePtrMut;
        sum.device_ptr_mut(&stream).0
    };
    stream.synchronize().unwrap();
    // SAFETY: one stream uses the buffers.
    unsafe { context.disable_event_tracking() };
    stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED).unwrap();
    let mut launch = stream.launch_builder(&function);
    launch.arg(&pointer).arg(&pointer).arg(&a).arg(&300u32);
    // SAFETY: the simulator checks every access.
    unsafe { launch.launch(blocks(300)) }.unwrap();
    let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = stream.end_capture(flags).unwrap().unwrap();
    assert!(stream.clone_dtoh(&sum).unwrap().iter().all(|x| *x == 0.0), "captured, not run");
    for _ in 0..3 {
        graph.launch().unwrap();
    }
    assert!(stream.clone_dtoh(&sum).unwrap().iter().all(|x| *x == 6.0));
}

#[test]
fn pinned_memory_is_copied_while_the_caller_goes_on() {
    let context = context(4);
    let stream = context.new_stream().unwrap();
    // SAFETY: it is written below before anything reads it.
    let mut pinned = unsafe { context.alloc_pinned::<f32>(64) }.unwrap();
    pinned.as_mut_slice().unwrap().fill(3.0);
    let device = stream.clone_htod(&pinned).unwrap();
    stream.synchronize().unwrap();
    assert!(stream.clone_dtoh(&device).unwrap().iter().all(|x| *x == 3.0));
}

#[test]
fn a_bad_module_says_line_and_reason() {
    let context = context(0);
    let bad = ADD.replace("add.rn.f32", "add.f32").replace("add.f32", "frobnicate.f32");
    let error = context.load_module(Ptx::from_src(bad)).unwrap_err();
    assert_eq!(error.0, sys::CUresult::CUDA_ERROR_INVALID_PTX);
    let module = context.load_module(Ptx::from_src(ADD)).unwrap();
    let missing = module.load_function("absent").unwrap_err();
    assert_eq!(missing.0, sys::CUresult::CUDA_ERROR_NOT_FOUND);
}

#[test]
fn a_module_newer_than_the_driver_is_refused() {
    let context = context(0);
    let of = |version: &str| {
        let (before, rest) = ADD.split_once(".version ").unwrap();
        let (_, after) = rest.split_once('\n').unwrap();
        context.load_module(Ptx::from_src(format!("{before}.version {version}\n{after}")))
    };
    // The driver is of CUDA 12.4.
    assert!(of("8.4").is_ok());
    for newer in ["8.5", "9.0"] {
        let error = of(newer).unwrap_err();
        assert_eq!(error.0, sys::CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION);
    }
}

#[test]
fn too_much_shared_memory_is_refused_at_launch() {
    let context = context(5);
    let stream = context.new_stream().unwrap();
    let function = function(&context, GEMM, "gemm_bf16_nt");
    let config =
        LaunchConfig { grid_dim: (1, 1, 1), block_dim: (128, 1, 1), shared_mem_bytes: 60_000 };
    let mut launch = stream.launch_builder(&function);
    launch.arg(&0u64).arg(&0u64).arg(&0u64).arg(&0u32).arg(&0u32).arg(&0u32);
    // SAFETY: the simulator checks every access.
    let error = unsafe { launch.launch(config) }.unwrap_err();
    assert_eq!(error.0, sys::CUresult::CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES);
    let dynamic = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    function.set_attribute(dynamic, 60_000).unwrap();
    // SAFETY: the simulator checks every access; there are no blocks with work.
    unsafe { launch.launch(config) }.unwrap();
    assert!(function.set_attribute(dynamic, 240_000).is_err());
}

#[test]
fn a_fault_ends_the_context_and_says_who_did_what() {
    let context = context(6);
    let stream = context.new_stream().unwrap();
    let function = function(&context, ADD, "vector_add_f32");
    let a = stream.clone_htod(&vec![1f32; 256]).unwrap();
    let b = stream.clone_htod(&vec![1f32; 256]).unwrap();
    let mut out = stream.alloc_zeros::<f32>(255).unwrap();
    add(&stream, &function, (&mut out, &a, &b), 256).unwrap();
    let error = stream.synchronize().unwrap_err();
    assert_eq!(error.0, sys::CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
    let text = error.error_string().unwrap().to_str().unwrap().to_owned();
    assert!(text.contains("kernel vector_add_f32, PTX line "), "{text}");
    assert!(text.contains("block (1, 0, 0), thread (127, 0, 0): write of 4 bytes at 0x"), "{text}");
    assert!(text.contains("0 bytes past the end of the 1020 bytes allocated"), "{text}");
    assert!(stream.clone_htod(&[1f32]).is_err(), "the context is lost");
}

/// A stream that writes `x` and another one that reads it into `y`, with what `between` does after the first launch. The slices live until
/// both streams are done.
struct Handover {
    first: Arc<CudaStream>,
    second: Arc<CudaStream>,
    _inputs: [CudaSlice<f32>; 2],
    y: CudaSlice<f32>,
}

fn handover(device: usize, between: fn(&Arc<CudaStream>, &Arc<CudaStream>)) -> Handover {
    let context = context(device);
    // SAFETY: what orders the streams, or does not, is what the tests are about.
    unsafe { context.disable_event_tracking() };
    let (first, second) = (context.new_stream().unwrap(), context.new_stream().unwrap());
    let function = function(&context, ADD, "vector_add_f32");
    let a = first.clone_htod(&vec![1f32; 256]).unwrap();
    let mut x = first.alloc_zeros::<f32>(256).unwrap();
    let mut y = second.alloc_zeros::<f32>(256).unwrap();
    first.synchronize().unwrap();
    add(&first, &function, (&mut x, &a, &a), 256).unwrap();
    between(&first, &second);
    add(&second, &function, (&mut y, &x, &a), 256).unwrap();
    Handover { first, second, _inputs: [a, x], y }
}

#[test]
fn streams_without_an_event_between_are_a_fault() {
    let Handover { first, second, _inputs, y: _y } = handover(7, |_, _| ());
    _ = first.synchronize();
    let error = second.synchronize().unwrap_err();
    assert_eq!(error.0, sys::CUresult::CUDA_ERROR_LAUNCH_FAILED);
    let text = error.error_string().unwrap().to_str().unwrap().to_owned();
    assert!(text.contains("no event or synchronisation orders the two"), "{text}");
}

#[test]
fn an_event_between_the_streams_is_enough() {
    let Handover { first: _first, second, _inputs, y } = handover(8, |first, second| {
        second.wait(&first.record_event(None).unwrap()).unwrap();
    });
    assert!(second.clone_dtoh(&y).unwrap().iter().all(|value| *value == 3.0));
}

/// 128 ones in a device's memory, and their address.
fn ones_on(device: &Arc<CudaContext>) -> (CudaSlice<f32>, u64) {
    let stream = device.new_stream().unwrap();
    let ones = stream.clone_htod(&vec![1f32; 128]).unwrap();
    let address = ones.device_ptr(&stream).0;
    stream.synchronize().unwrap();
    (ones, address)
}

/// What is at an address, 128 numbers added to themselves by a device, in its memory.
fn add_to_itself(device: &Arc<CudaContext>, address: u64) -> (Arc<CudaStream>, CudaSlice<f32>) {
    device.bind_to_thread().unwrap();
    let stream = device.new_stream().unwrap();
    let function = function(device, ADD, "vector_add_f32");
    let near = stream.alloc_zeros::<f32>(128).unwrap();
    let mut launch = stream.launch_builder(&function);
    launch.arg(&near).arg(&address).arg(&address).arg(&128u32);
    // SAFETY: the simulator checks every access.
    unsafe { launch.launch(blocks(128)) }.unwrap();
    (stream, near)
}

#[test]
fn memory_of_another_device_needs_peer_access() {
    let (own, other) = (context(9), context(10));
    let (_far, address) = ones_on(&other);
    let (stream, _near) = add_to_itself(&own, address);
    let error = stream.synchronize().unwrap_err();
    let text = error.error_string().unwrap().to_str().unwrap().to_owned();
    assert!(text.contains("on device 10, to which device 9 has no peer access"), "{text}");
}

#[test]
fn a_pool_may_be_opened_to_another_device() {
    let (own, other) = (context(2), context(3));
    let (_far, address) = ones_on(&other);
    let mut pool = ptr::null_mut();
    // SAFETY: the pool goes to a variable of ours.
    let found = unsafe { sys::cuDeviceGetDefaultMemPool(&raw mut pool, other.cu_device()) };
    found.result().unwrap();
    let access = sys::CUmemAccessDesc {
        location: sys::CUmemLocation {
            type_: sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE,
            id: own.cu_device(),
        },
        flags: sys::CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
    };
    // SAFETY: the list has one entry.
    unsafe { sys::cuMemPoolSetAccess(pool, &raw const access, 1) }.result().unwrap();
    let (stream, near) = add_to_itself(&own, address);
    assert!(stream.clone_dtoh(&near).unwrap().iter().all(|value| *value == 2.0));
}

/// Copies the tile at (`x`, `y`) of a tensor to `out`, and adds 1 to each word on the way back.
const TILE: &str = "
.version 8.0
.target sm_90a
.address_size 64
.visible .entry tile(.param .align 64 .b8 map[128], .param .u64 out, .param .u32 x, .param .u32 y) {
    .reg .pred %p<3>; .reg .b32 %r<6>; .reg .b64 %rd<6>; .shared .align 128 .b8 tile_of[256]; .shared .align 8 .b8 full[8];
    mov.b64 %rd1, map; cvta.param.u64 %rd1, %rd1; ld.param.u64 %rd2, [out];
    ld.param.u32 %r1, [x]; ld.param.u32 %r2, [y]; mov.u32 %r3, %tid.x; setp.eq.u32 %p1, %r3, 0;
    @%p1 mbarrier.init.shared::cta.b64 [full], 1;
    bar.sync 0;
    @%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [full], 128;
    @%p1 cp.async.bulk.tensor.2d.shared::cta.global.mbarrier::complete_tx::bytes [tile_of], [%rd1, {%r1, %r2}], [full];
wait: mbarrier.try_wait.parity.shared::cta.b64 %p2, [full], 0;
    @!%p2 bra wait;
    mul.wide.u32 %rd3, %r3, 4; add.s64 %rd2, %rd2, %rd3; cvt.u32.u64 %r4, %rd3;
    mov.u32 %r5, tile_of; add.u32 %r4, %r4, %r5; ld.shared.u32 %r5, [%r4]; st.global.u32 [%rd2], %r5;
    add.u32 %r5, %r5, 1; st.shared.u32 [%r4], %r5; fence.proxy.async.shared::cta; bar.sync 0;
    @%p1 cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%rd1, {%r1, %r2}], [tile_of];
    cp.async.bulk.commit_group; cp.async.bulk.wait_group.read 0;
    ret;
}";

fn encode(
    address: u64,
    extents: [u64; 2],
    strides: [u64; 1],
    tile: [u32; 2],
) -> Result<sys::CUtensorMap, DriverError> {
    let mut map = sys::CUtensorMap { opaque: [0; 16] };
    // SAFETY: as many values are there as two dimensions have.
    let result = unsafe {
        sys::cuTensorMapEncodeTiled(
            &raw mut map,
            sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_UINT32,
            2,
            address as *mut c_void,
            extents.as_ptr(),
            strides.as_ptr(),
            tile.as_ptr(),
            [1, 1].as_ptr(),
            sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_NONE,
            sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_NONE,
            sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    };
    result.result().map(|()| map)
}

#[test]
fn tiles_are_copied_by_tensor_maps() {
    #[repr(transparent)]
    struct Map(sys::CUtensorMap);
    // SAFETY: it is a struct of plain words, which a kernel takes by value.
    unsafe impl cudarc::driver::DeviceRepr for Map {}

    let context = context(2);
    let stream = context.default_stream();
    let kernel = function(&context, TILE, "tile");
    // Six rows of twelve, eight of them of the tensor.
    let words: Vec<u32> = (0..72).collect();
    let tensor = stream.clone_htod(&words).unwrap();
    let mut out = stream.alloc_zeros::<u32>(32).unwrap();
    let address = tensor.device_ptr(&stream).0;
    let map = Map(encode(address, [9, 6], [48], [8, 4]).unwrap());
    let config = LaunchConfig { grid_dim: (1, 1, 1), block_dim: (32, 1, 1), shared_mem_bytes: 0 };
    let mut launch = stream.launch_builder(&kernel);
    launch.arg(&map).arg(&mut out).arg(&4i32).arg(&-1i32);
    // SAFETY: the simulator checks every access.
    unsafe { launch.launch(config) }.unwrap();
    let inside = |row: i32, column: i32| (0..6).contains(&row) && (0..9).contains(&column);
    let want: Vec<u32> = (0..32)
        .map(|at| (at / 8 - 1, at % 8 + 4))
        .map(|(row, column)| if inside(row, column) { (row * 12 + column) as u32 } else { 0 })
        .collect();
    assert_eq!(stream.clone_dtoh(&out).unwrap(), want);
    let after = stream.clone_dtoh(&tensor).unwrap();
    for (at, word) in after.into_iter().enumerate() {
        let (row, column) = (at as i32 / 12, at as i32 % 12);
        let copied = (0..3).contains(&row) && (4..9).contains(&column);
        assert_eq!(word, at as u32 + u32::from(copied), "row {row}, column {column}");
    }
    for (extents, strides, tile) in [
        ([9, 6], [40], [8, 4]),
        ([9, 0], [48], [8, 4]),
        ([9, 6], [48], [8, 257]),
        ([9, 6], [48], [3, 4]),
    ] {
        let refused = encode(address, extents, strides, tile).unwrap_err();
        assert_eq!(refused.0, sys::CUresult::CUDA_ERROR_INVALID_VALUE);
    }
}
