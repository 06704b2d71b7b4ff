//! Modules, functions and launches.

use super::context::current;
use super::device::driver_version;
use super::stream::here;
use super::{In, Out};
use crate::code::{Code, Failure, Outcome};
use crate::driver::{Device, Driver, Function, Module};
use crate::plant::planted;
use crate::stream::{Start, Stream, Work};
use halyard_sim_cuda_exec::{Image, Launch, Occupancy, Order, Profile};
use std::ffi::{c_char, c_int, c_uint, c_void};
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};

/// `CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES`
const MAX_DYNAMIC_SHARED: c_int = 8;

/// Fails for PTX that is newer than the driver. Up to CUDA 12.5 the numbers go together: 12.4 reads PTX 8.4, 11.8 reads 7.8.
fn check_version(text: &str) -> Outcome {
    let version = text.lines().find_map(|line| line.trim().strip_prefix(".version"));
    let parts = version.and_then(|v| v.trim().split_once('.'));
    let number = parts.and_then(|(a, b)| Some([a.parse().ok()?, b.parse::<c_int>().ok()?]));
    // What has no version is no PTX, which the parser says.
    let Some([major, minor]) = number else { return Ok(()) };
    let cuda = driver_version();
    let newest = [cuda / 1000 - 4, cuda % 1000 / 10];
    if [major, minor] <= newest {
        return Ok(());
    }
    let text = format!("PTX {major}.{minor}, the driver reads up to {}.{}", newest[0], newest[1]);
    Err(Failure::new(Code::UnsupportedPtx, text))
}

fn load(module: &Out<usize>, text: String) -> Outcome {
    check_version(&text)?;
    let text = planted(text).map_err(|what| Failure::new(Code::InvalidPtx, what))?;
    let (driver, device) = current()?;
    device.healthy()?;
    let order = driver.timeline().host_order();
    let place = (device.index, device.profile.capability);
    let image = Image::load(&text, driver.memory(), place, &order)?;
    let functions = Mutex::default();
    module.set(driver.modules.add(Arc::new(Module { image, device: device.index, functions })))
}

/// The text of an image, which must be PTX: machine code can't be executed.
fn ptx(image: &In<c_char>) -> Outcome<String> {
    let first = [image.at(0)?.cast_unsigned(), image.at(1)?.cast_unsigned()];
    if first == [0x7f, b'E'] || first == [0x50, 0xed] {
        let text = "a cubin or fatbin: only PTX text is executed";
        return Err(Failure::new(Code::NoBinary, text));
    }
    image.text()
}

/// Lays the arguments of a launch out: from an array of pointers, or from one buffer.
fn arguments(
    function: &Function,
    pointers: &In<*const u8>,
    extra: &In<*const c_void>,
) -> Outcome<Vec<u8>> {
    let kernel = &function.kernel;
    let mut params = vec![0; kernel.param_bytes()];
    if pointers.is_null() && !extra.is_null() {
        return Err(Failure::new(Code::NotSupported, "arguments through `extra`"));
    }
    for (index, (at, bytes)) in kernel.params().iter().enumerate() {
        let value = In(pointers.at(index)?).bytes(*bytes)?;
        params[*at..at + bytes].copy_from_slice(&value);
    }
    Ok(params)
}

/// How a kernel is started: grid, block, and bytes of shared memory.
type Extent = ([u32; 3], [u32; 3], u32);

fn launch(
    (driver, device, stream): (&'static Driver, &Device, &Stream),
    function: Arc<Function>,
    (grid, block, shared_bytes): Extent,
    params: Vec<u8>,
) -> Outcome {
    device.healthy()?;
    let owner = function.module.device;
    if owner != device.index {
        let text = format!("a function of device {owner} on device {}", device.index);
        return Err(Failure::new(Code::InvalidHandle, text));
    }
    let limit = function.kernel.shared_bytes() + function.max_dynamic_shared.load(SeqCst);
    let kernel = function.kernel.clone();
    let (order, params) = (Order::default(), params);
    let whole = Launch {
        kernel,
        grid,
        block,
        shared_bytes,
        params,
        device: device.index,
        peers: 0,
        order,
        seed: 0,
    };
    whole.check(device.profile, limit)?;
    let start = Start { function, grid, block, shared_bytes, params: whole.params };
    stream.enqueue(driver, Work::Launch(Box::new(start)))
}

/// `CUlaunchConfig`
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct LaunchConfig {
    grid: [c_uint; 3],
    block: [c_uint; 3],
    shared_bytes: c_uint,
    stream: usize,
    attributes: usize,
    num_attributes: c_uint,
}

entries! {
    fn cuModuleLoadData(module: Out<usize>, image: In<c_char>) {
        load(&module, ptx(&image)?)
    }

    fn cuModuleLoadDataEx(
        module: Out<usize>,
        image: In<c_char>,
        _count: c_uint,
        _options: *mut c_int,
        _values: *mut *mut c_void,
    ) {
        load(&module, ptx(&image)?)
    }

    fn cuModuleLoad(module: Out<usize>, path: In<c_char>) {
        let path = path.text()?;
        let text = std::fs::read_to_string(&path)
            .map_err(|error| Failure::new(Code::FileNotFound, format!("{path}: {error}")))?;
        load(&module, text)
    }

    fn cuModuleUnload(module: usize) {
        let (driver, device) = current()?;
        let module = driver.modules.remove(module)?;
        driver.synchronize(device)?;
        for (_, function) in module.functions.lock().unwrap_or_else(PoisonError::into_inner).drain() {
            driver.functions.remove(function)?;
        }
        let order = driver.timeline().host_order();
        Ok(module.image.unload(&order)?)
    }

    fn cuModuleGetFunction(function: Out<usize>, module: usize, name: In<c_char>) {
        let driver = Driver::get()?;
        let (module, name) = (driver.modules.get(module)?, name.text()?);
        let Some(kernel) = module.image.kernel(&name).cloned() else {
            return Err(Failure::new(Code::NotFound, format!("the module has no kernel '{name}'")));
        };
        let mut known = module.functions.lock().unwrap_or_else(PoisonError::into_inner);
        let handle = *known.entry(name).or_insert_with(|| {
            let (module, max_dynamic_shared) = (Arc::clone(&module), AtomicU32::new(0));
            driver.functions.add(Arc::new(Function { kernel, module, max_dynamic_shared }))
        });
        function.set(handle)
    }

    fn cuModuleGetGlobal_v2(address: Out<u64>, bytes: Out<usize>, module: usize, name: In<c_char>) {
        let (module, name) = (Driver::get()?.modules.get(module)?, name.text()?);
        let missing = || Failure::new(Code::NotFound, format!("the module has no variable '{name}'"));
        let (at, size) = module.image.global(&name).ok_or_else(missing)?;
        address.set_if_wanted(at);
        bytes.set_if_wanted(size);
        Ok(())
    }

    fn cuFuncSetAttribute(function: usize, attribute: c_int, value: c_int) {
        let driver = Driver::get()?;
        let function = driver.functions.get(function)?;
        // Other attributes are hints.
        if attribute != MAX_DYNAMIC_SHARED {
            return Ok(());
        }
        let profile = driver.device(function.module.device.cast_signed())?.profile;
        let fixed = function.kernel.shared_bytes();
        let wanted = u32::try_from(value).map_err(|_| Code::InvalidValue)?;
        if wanted.saturating_add(fixed) > profile.shared_opt_in_bytes {
            let text = format!(
                "kernel {}: {wanted} bytes of dynamic beside {fixed} of fixed shared memory, at most {} on {}",
                function.kernel.name(), profile.shared_opt_in_bytes, profile.name
            );
            return Err(Failure::new(Code::InvalidValue, text));
        }
        function.max_dynamic_shared.store(wanted, SeqCst);
        Ok(())
    }

    fn cuFuncSetCacheConfig(function: usize, _config: c_int) {
        Driver::get()?.functions.get(function).map(|_| ())
    }

    fn cuFuncGetAttribute(value: Out<c_int>, attribute: c_int, function: usize) {
        let function = Driver::get()?.functions.get(function)?;
        let found = match attribute {
            0 => function.kernel.max_threads(),
            1 => function.kernel.shared_bytes(),
            3 => function.kernel.local_bytes(),
            MAX_DYNAMIC_SHARED => function.max_dynamic_shared.load(SeqCst),
            _ => return Err(Failure::new(Code::NotSupported, format!("function attribute {attribute}"))),
        };
        value.set(c_int::try_from(found).unwrap_or(c_int::MAX))
    }

    fn cuOccupancyMaxActiveBlocksPerMultiprocessor(
        blocks: Out<c_int>,
        function: usize,
        threads: c_int,
        dynamic_bytes: usize,
    ) {
        let driver = Driver::get()?;
        let function = driver.functions.get(function)?;
        let profile = driver.device(function.module.device.cast_signed())?.profile;
        let threads = u32::try_from(threads).ok().filter(|threads| (1..=Profile::BLOCK_THREADS).contains(threads));
        let dynamic = u32::try_from(dynamic_bytes).map_err(|_| Code::InvalidValue)?;
        let shared = function.kernel.shared_bytes().saturating_add(dynamic).min(1 << 30);
        let found = Occupancy::of(profile, threads.ok_or(Code::InvalidValue)?, shared, 0).blocks;
        blocks.set(found.cast_signed())
    }

    fn cuLaunchKernel(
        function: usize,
        grid_x: c_uint, grid_y: c_uint, grid_z: c_uint,
        block_x: c_uint, block_y: c_uint, block_z: c_uint,
        shared_bytes: c_uint,
        stream: usize,
        params: In<*const u8>,
        extra: In<*const c_void>,
    ) {
        let (driver, device, stream) = here(stream)?;
        let function = driver.functions.get(function)?;
        let params = arguments(&function, &params, &extra)?;
        let extent = ([grid_x, grid_y, grid_z], [block_x, block_y, block_z], shared_bytes);
        launch((driver, device, &stream), function, extent, params)
    }

    fn cuLaunchKernelEx(
        config: In<LaunchConfig>,
        function: usize,
        params: In<*const u8>,
        extra: In<*const c_void>,
    ) {
        let config = config.at(0)?;
        if config.num_attributes != 0 {
            return Err(Failure::new(Code::NotSupported, "launch attributes"));
        }
        let (driver, device, stream) = here(config.stream)?;
        let function = driver.functions.get(function)?;
        let params = arguments(&function, &params, &extra)?;
        launch((driver, device, &stream), function, (config.grid, config.block, config.shared_bytes), params)
    }
}
