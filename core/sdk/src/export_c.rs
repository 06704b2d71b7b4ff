//! The C door of a Rust backend: the table of `halyard_backend.h` over the same guarded objects as the Rust door.

mod collective;

use core::{marker::PhantomData, ptr, slice};
use std::sync::OnceLock;

use halyard_abi::{
    AllocReq, Buffer, Code, CollectiveBox, CommDesc, CopyReq, DeviceBox, Event, Graph, HostApi,
    HostApiRef, InfoKey, KernelBox, KeyValue, KvDesc, KvLayout, LaunchArgs, MemRef, Metric, Notify,
    OpDesc, Plan, PropKey, R, RResult, RSlice, RSliceMut, RStr, Stream, TensorSpec, Weight,
    WeightDesc, WeightFill, WeightPlan,
    c::{self, ABI_VERSION, BackendApi, ErrorBuffer, HostTable, Text, compatible},
    exporting::PrefixTypeTrait,
};

use crate::{Backend, Error, export};

/// What [`export_c!`](crate::export_c)'s symbol does.
///
/// # Safety
/// `host` is null or the table of a host, which lives for ever.
#[doc(hidden)]
pub unsafe fn entry<B: Backend>(
    host: *const HostTable,
    err: &mut ErrorBuffer,
) -> *const BackendApi {
    // SAFETY: as this function's own.
    match unsafe { wrap(host) } {
        Ok(api) => {
            // A library has one host.
            HOST.get_or_init(|| api);
            const { &Table::<B>::API }
        }
        Err(error) => {
            err.set(&error);
            ptr::null()
        }
    }
}

static HOST: OnceLock<HostApiRef> = OnceLock::new();

/// The host's table in the Rust door's form, for the bridge of the log.
///
/// # Safety
/// As [`entry`].
unsafe fn wrap(host: *const HostTable) -> Result<HostApiRef, Error> {
    let abi = |why: String| Error::new(Code::ABI, why);
    if host.is_null() {
        return Err(abi("the host gives no table".into()));
    }
    // SAFETY: a table begins with its size.
    let bytes = unsafe { host.cast::<usize>().read() };
    if bytes < size_of::<HostTable>() {
        return Err(abi(format!("the host's table has {bytes} bytes, this backend needs more")));
    }
    // SAFETY: it has at least the size of the type, and lives for ever.
    let table: &'static HostTable = unsafe { &*host };
    let theirs = (table.abi_major, table.abi_minor);
    if !compatible(theirs, ABI_VERSION) {
        return Err(abi(format!(
            "the host speaks Halyard ABI {}.{}, this backend {}.{}",
            theirs.0, theirs.1, ABI_VERSION.0, ABI_VERSION.1
        )));
    }
    let ctx = host.expose_provenance() as u64;
    Ok(HostApi { ctx, log_enabled, log }.leak_into_prefix())
}

fn table(ctx: u64) -> &'static HostTable {
    let host = ptr::with_exposed_provenance::<HostTable>(ctx as usize);
    // SAFETY: `wrap` put the address of the host's table there, which lives for ever.
    unsafe { &*host }
}

fn text(text: RStr<'_>) -> Text {
    Text { ptr: text.as_ptr(), len: text.len() }
}

extern "C" fn log_enabled(ctx: u64, level: u32, target: RStr<'_>) -> bool {
    let host = table(ctx);
    // SAFETY: the host promises this function; the text lives until it returns.
    let kept = unsafe { (host.log_enabled)(host.ctx, level, text(target)) };
    kept != 0
}

extern "C" fn log(ctx: u64, level: u32, target: RStr<'_>, message: RStr<'_>, json: RStr<'_>) {
    let host = table(ctx);
    // SAFETY: the host promises this function; the texts live until it returns.
    unsafe { (host.log)(host.ctx, level, text(target), text(message), text(json)) };
}

/// The table of a backend.
struct Table<B>(PhantomData<B>);

impl<B: Backend> Table<B> {
    const API: BackendApi = BackendApi {
        struct_size: size_of::<BackendApi>(),
        abi_major: ABI_VERSION.0,
        abi_minor: ABI_VERSION.1,
        info: Some(info::<B>),
        probe: Some(probe::<B>),
        device_count: Some(device_count::<B>),
        device_open: Some(device_open::<B>),
        device_close: Some(device_close),
        device_property: Some(device_property),
        device_info: Some(device_info),
        device_alloc: Some(device_alloc),
        device_free: Some(device_free),
        device_copy: Some(device_copy),
        device_fill: Some(device_fill),
        stream_create: Some(stream_create),
        stream_destroy: Some(stream_destroy),
        stream_sync: Some(stream_sync),
        stream_query: Some(stream_query),
        event_create: Some(event_create),
        event_destroy: Some(event_destroy),
        event_record: Some(event_record),
        event_wait: Some(event_wait),
        event_sync: Some(event_sync),
        event_query: Some(event_query),
        event_elapsed_ns: Some(event_elapsed_ns),
        device_supports: Some(device_supports),
        device_explain: Some(device_explain),
        device_prepare: Some(device_prepare),
        kernel_flags: Some(kernel_flags),
        kernel_workspace_bytes: Some(kernel_workspace_bytes),
        kernel_launch: Some(kernel_launch),
        kernel_destroy: Some(kernel_destroy),
        weight_plan: Some(weight_plan),
        weight_create: Some(weight_create),
        weight_fill: Some(weight_fill),
        weight_seal: Some(weight_seal),
        weight_destroy: Some(weight_destroy),
        kv_layout: Some(kv_layout),
        device_telemetry: Some(device_telemetry),
        kernel_plan: Some(kernel_plan),
        kernel_plan_free: Some(kernel_plan_free),
        device_notify: Some(device_notify),
        graph_begin: Some(graph_begin),
        graph_end: Some(graph_end),
        graph_launch: Some(graph_launch),
        graph_destroy: Some(graph_destroy),
        device_vendor_call: Some(device_vendor_call),
        device_comm_unique_id: Some(device_comm_unique_id),
        device_comm_create: Some(device_comm_create),
        collective_all_reduce: Some(collective::all_reduce),
        collective_all_gather: Some(collective::all_gather),
        collective_reduce_scatter: Some(collective::reduce_scatter),
        collective_broadcast: Some(collective::broadcast),
        collective_all_to_all_v: Some(collective::all_to_all_v),
        collective_send: Some(collective::send),
        collective_recv: Some(collective::recv),
        collective_group_begin: Some(collective::group_begin),
        collective_group_end: Some(collective::group_end),
        collective_barrier: Some(collective::barrier),
        collective_status: Some(collective::status),
        collective_abort: Some(collective::abort),
        collective_destroy: Some(collective::destroy),
        collective_split: Some(collective::split),
        kernel_plan_update: Some(kernel_plan_update),
    };
}

/// An object as the host holds it: a pointer to the Rust door's.
fn into_raw<T, O>(object: T) -> *mut O {
    Box::into_raw(Box::new(object)).cast()
}

/// Takes an object back.
fn drop_raw<T, O>(raw: *mut O) {
    // SAFETY: the host passes what `into_raw` gave it, once.
    drop(unsafe { Box::from_raw(raw.cast::<T>()) });
}

fn device<'a>(raw: *mut c::Device) -> &'a DeviceBox {
    // SAFETY: the host passes what `device_open` gave it and has not closed it.
    unsafe { &*raw.cast() }
}

fn kernel<'a>(raw: *mut c::Kernel) -> &'a KernelBox {
    // SAFETY: the host passes what `device_prepare` gave it and has not destroyed it.
    unsafe { &*raw.cast() }
}

/// Writes a result where the host wants it.
fn give<T>(result: R<T>, out: &mut T, err: &mut ErrorBuffer) -> Code {
    match result {
        RResult::ROk(value) => {
            *out = value;
            Code::OK
        }
        RResult::RErr(error) => err.set(&error),
    }
}

/// The same for a new object.
fn give_object<T, O>(result: R<T>, out: &mut *mut O, err: &mut ErrorBuffer) -> Code {
    give(result.map(into_raw), out, err)
}

/// The same for a call without a value.
fn done(result: R<()>, err: &mut ErrorBuffer) -> Code {
    give(result, &mut (), err)
}

/// Writes as much of a text as fits; returns how long it is.
fn give_text(text: &str, buf: *mut u8, cap: usize) -> usize {
    // SAFETY: the host gives `cap` bytes; the text is none of them.
    unsafe { ptr::copy_nonoverlapping(text.as_ptr(), buf, text.len().min(cap)) };
    text.len()
}

/// The host's buffer for `cap` values.
fn buffer<'a, T>(start: *mut T, cap: usize) -> RSliceMut<'a, T> {
    if cap == 0 {
        return RSliceMut::from_mut_slice(&mut []);
    }
    // SAFETY: the host gives `cap` values, initialised, and does not touch them during the call.
    RSliceMut::from_mut_slice(unsafe { slice::from_raw_parts_mut(start, cap) })
}

extern "C" fn info<B: Backend>(key: InfoKey, buf: *mut u8, cap: usize) -> usize {
    give_text(&export::info::<B>(key), buf, cap)
}

extern "C" fn probe<B: Backend>() -> i32 {
    export::probe::<B>()
}

extern "C" fn device_count<B: Backend>(count: &mut u32, err: &mut ErrorBuffer) -> Code {
    give(export::device_count::<B>(), count, err)
}

extern "C" fn device_open<B: Backend>(
    ordinal: u32,
    options: RSlice<'_, KeyValue<'_>>,
    out: &mut *mut c::Device,
    err: &mut ErrorBuffer,
) -> Code {
    let Some(host) = HOST.get() else {
        return err.set(&Error::new(Code::ABI, "the table was taken without a host"));
    };
    give_object(export::open::<B, true>(*host, ordinal, options), out, err)
}

extern "C" fn device_close(d: *mut c::Device) {
    drop_raw::<DeviceBox, _>(d);
}

extern "C" fn device_property(d: *mut c::Device, key: PropKey, value: &mut u64) -> i32 {
    let answer = device(d).property(key).into_option();
    if let Some(number) = answer {
        *value = number;
    }
    i32::from(answer.is_some())
}

extern "C" fn device_info(d: *mut c::Device, key: InfoKey, buf: *mut u8, cap: usize) -> usize {
    give_text(&device(d).info(key), buf, cap)
}

extern "C" fn device_telemetry(d: *mut c::Device, out: *mut Metric, cap: usize) -> u32 {
    device(d).telemetry(buffer(out, cap))
}

extern "C" fn device_alloc(
    d: *mut c::Device,
    req: &AllocReq,
    out: &mut Buffer,
    err: &mut ErrorBuffer,
) -> Code {
    give(device(d).alloc(req), out, err)
}

extern "C" fn device_free(d: *mut c::Device, buffer: &Buffer, err: &mut ErrorBuffer) -> Code {
    done(device(d).free(*buffer), err)
}

extern "C" fn device_copy(
    d: *mut c::Device,
    s: Stream,
    req: &CopyReq,
    err: &mut ErrorBuffer,
) -> Code {
    done(device(d).copy(s, req), err)
}

extern "C" fn device_fill(
    d: *mut c::Device,
    s: Stream,
    dst: &MemRef,
    pattern: u32,
    bytes: u64,
    err: &mut ErrorBuffer,
) -> Code {
    done(device(d).fill(s, dst, pattern, bytes), err)
}

extern "C" fn stream_create(
    d: *mut c::Device,
    priority: i32,
    flags: u32,
    out: &mut Stream,
    err: &mut ErrorBuffer,
) -> Code {
    give(device(d).stream_create(priority, flags), out, err)
}

extern "C" fn stream_destroy(d: *mut c::Device, s: Stream, err: &mut ErrorBuffer) -> Code {
    done(device(d).stream_destroy(s), err)
}

extern "C" fn stream_sync(
    d: *mut c::Device,
    s: Stream,
    timeout_ns: u64,
    err: &mut ErrorBuffer,
) -> Code {
    done(device(d).stream_sync(s, timeout_ns), err)
}

extern "C" fn stream_query(d: *mut c::Device, s: Stream, err: &mut ErrorBuffer) -> Code {
    done(device(d).stream_query(s), err)
}

extern "C" fn event_create(
    d: *mut c::Device,
    flags: u32,
    out: &mut Event,
    err: &mut ErrorBuffer,
) -> Code {
    give(device(d).event_create(flags), out, err)
}

extern "C" fn event_destroy(d: *mut c::Device, e: Event, err: &mut ErrorBuffer) -> Code {
    done(device(d).event_destroy(e), err)
}

extern "C" fn event_record(d: *mut c::Device, e: Event, s: Stream, err: &mut ErrorBuffer) -> Code {
    done(device(d).event_record(e, s), err)
}

extern "C" fn event_wait(d: *mut c::Device, s: Stream, e: Event, err: &mut ErrorBuffer) -> Code {
    done(device(d).event_wait(s, e), err)
}

extern "C" fn event_sync(
    d: *mut c::Device,
    e: Event,
    timeout_ns: u64,
    err: &mut ErrorBuffer,
) -> Code {
    done(device(d).event_sync(e, timeout_ns), err)
}

extern "C" fn event_query(d: *mut c::Device, e: Event, err: &mut ErrorBuffer) -> Code {
    done(device(d).event_query(e), err)
}

extern "C" fn event_elapsed_ns(
    d: *mut c::Device,
    a: Event,
    b: Event,
    out: &mut u64,
    err: &mut ErrorBuffer,
) -> Code {
    give(device(d).event_elapsed_ns(a, b), out, err)
}

extern "C" fn device_supports(d: *mut c::Device, op: &OpDesc<'_>) -> u32 {
    device(d).supports(op)
}

extern "C" fn device_explain(
    d: *mut c::Device,
    op: &OpDesc<'_>,
    buf: *mut u8,
    cap: usize,
) -> usize {
    give_text(&device(d).explain(op), buf, cap)
}

extern "C" fn device_prepare(
    d: *mut c::Device,
    op: &OpDesc<'_>,
    out: &mut *mut c::Kernel,
    err: &mut ErrorBuffer,
) -> Code {
    give_object(device(d).prepare(op), out, err)
}

extern "C" fn kernel_flags(k: *mut c::Kernel) -> u64 {
    kernel(k).flags()
}

extern "C" fn kernel_workspace_bytes(k: *mut c::Kernel, shapes: RSlice<'_, TensorSpec>) -> u64 {
    kernel(k).workspace_bytes(shapes)
}

extern "C" fn kernel_launch(
    k: *mut c::Kernel,
    s: Stream,
    args: &LaunchArgs<'_>,
    err: &mut ErrorBuffer,
) -> Code {
    done(kernel(k).launch(s, args), err)
}

extern "C" fn kernel_destroy(k: *mut c::Kernel) {
    drop_raw::<KernelBox, _>(k);
}

extern "C" fn kernel_plan(
    k: *mut c::Kernel,
    s: Stream,
    args: &LaunchArgs<'_>,
    out: &mut Plan,
    err: &mut ErrorBuffer,
) -> Code {
    give(kernel(k).plan(s, args), out, err)
}

extern "C" fn kernel_plan_free(k: *mut c::Kernel, plan: Plan) {
    kernel(k).plan_free(plan);
}

extern "C" fn kernel_plan_update(
    k: *mut c::Kernel,
    s: Stream,
    plan: Plan,
    args: &LaunchArgs<'_>,
    err: &mut ErrorBuffer,
) -> Code {
    done(kernel(k).plan_update(s, plan, args), err)
}

extern "C" fn weight_plan(
    d: *mut c::Device,
    w: &WeightDesc<'_>,
    out: &mut WeightPlan,
    err: &mut ErrorBuffer,
) -> Code {
    give(device(d).weight_plan(w), out, err)
}

extern "C" fn weight_create(
    d: *mut c::Device,
    w: &WeightDesc<'_>,
    dst: &MemRef,
    out: &mut Weight,
    err: &mut ErrorBuffer,
) -> Code {
    give(device(d).weight_create(w, dst), out, err)
}

extern "C" fn weight_fill(
    d: *mut c::Device,
    s: Stream,
    w: Weight,
    f: &WeightFill<'_>,
    err: &mut ErrorBuffer,
) -> Code {
    done(device(d).weight_fill(s, w, f), err)
}

extern "C" fn weight_seal(d: *mut c::Device, s: Stream, w: Weight, err: &mut ErrorBuffer) -> Code {
    done(device(d).weight_seal(s, w), err)
}

extern "C" fn weight_destroy(d: *mut c::Device, w: Weight, err: &mut ErrorBuffer) -> Code {
    done(device(d).weight_destroy(w), err)
}

extern "C" fn kv_layout(
    d: *mut c::Device,
    kv: &KvDesc<'_>,
    out: &mut KvLayout,
    err: &mut ErrorBuffer,
) -> Code {
    give(device(d).kv_layout(kv), out, err)
}

extern "C" fn device_notify(
    d: *mut c::Device,
    s: Stream,
    n: &Notify,
    err: &mut ErrorBuffer,
) -> Code {
    done(device(d).notify(s, n), err)
}

extern "C" fn graph_begin(d: *mut c::Device, s: Stream, err: &mut ErrorBuffer) -> Code {
    done(device(d).graph_begin(s), err)
}

extern "C" fn graph_end(
    d: *mut c::Device,
    s: Stream,
    out: &mut Graph,
    err: &mut ErrorBuffer,
) -> Code {
    give(device(d).graph_end(s), out, err)
}

extern "C" fn graph_launch(d: *mut c::Device, g: Graph, s: Stream, err: &mut ErrorBuffer) -> Code {
    done(device(d).graph_launch(g, s), err)
}

extern "C" fn graph_destroy(d: *mut c::Device, g: Graph, err: &mut ErrorBuffer) -> Code {
    done(device(d).graph_destroy(g), err)
}

extern "C" fn device_vendor_call(
    d: *mut c::Device,
    name: RStr<'_>,
    input: RSlice<'_, u8>,
    out: *mut u8,
    cap: usize,
    out_bytes: &mut u64,
    err: &mut ErrorBuffer,
) -> Code {
    give(device(d).vendor_call(name, input, buffer(out, cap)), out_bytes, err)
}

extern "C" fn device_comm_unique_id(
    d: *mut c::Device,
    out: *mut u8,
    cap: usize,
    id_bytes: &mut u32,
    err: &mut ErrorBuffer,
) -> Code {
    give(device(d).comm_unique_id(buffer(out, cap)), id_bytes, err)
}

extern "C" fn device_comm_create(
    d: *mut c::Device,
    desc: &CommDesc<'_>,
    out: &mut *mut c::Collective,
    err: &mut ErrorBuffer,
) -> Code {
    give_object::<CollectiveBox, _>(device(d).comm_create(desc), out, err)
}

/// Exports a [`Backend`](crate::Backend) through the C door, alone or beside [`export_backend!`](crate::export_backend).
#[macro_export]
macro_rules! export_c {
    ($backend:ty) => {
        /// The entry of the C door; see `halyard_backend.h`.
        ///
        /// # Safety
        /// `host` is null or the table of a host, which lives for ever.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn halyard_backend_v1(
            host: *const $crate::abi::c::HostTable,
            err: &mut $crate::abi::c::ErrorBuffer,
        ) -> *const $crate::abi::c::BackendApi {
            // SAFETY: as this function's own.
            unsafe { $crate::__private::c_entry::<$backend>(host, err) }
        }
    };
}
