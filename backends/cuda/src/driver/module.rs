//! Modules of PTX, and the kernels in them.

use std::{collections::HashMap, ffi::CString, marker::PhantomData, sync::Arc};

use cudarc::driver::{
    result,
    sys::{self, CUfunction, CUfunction_attribute, CUmodule},
};
use halyard_sdk::{Code, Error, Result};

use super::{error::Named, stream::Stream};

/// Dynamic shared memory that every kernel may have without asking.
const PLAIN_SHARED: u32 = 48 << 10;

/// A loaded module.
#[derive(Debug)]
pub(crate) struct Module {
    name: &'static str,
    /// Bytes of each kernel's one parameter.
    parameters: HashMap<&'static str, usize>,
    raw: CUmodule,
}

// SAFETY: a module is a name that the driver takes from any thread.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

impl Module {
    /// Lets the driver compile and load PTX.
    pub(crate) fn load(name: &'static str, ptx: &'static str) -> Result<Self> {
        let text = CString::new(ptx)
            .map_err(|_| Error::new(Code::INTERNAL, format!("the PTX of {name} holds a zero")))?;
        // SAFETY: the text ends with a zero and is read before the call returns.
        let raw = unsafe { result::module::load_data(text.as_ptr().cast()) };
        let raw = raw.named("cuModuleLoadData").map_err(|error| Error {
            message: format!("module {name}: {}", error.message).into(),
            ..error
        })?;
        Ok(Self { name, parameters: parameters(ptx).collect(), raw })
    }

    /// A kernel whose one parameter is a `P`.
    ///
    /// # Errors
    /// `INTERNAL` if the module has no such kernel, or one with parameters of another size.
    pub(crate) fn function<P: Copy>(self: &Arc<Self>, kernel: &str) -> Result<Function<P>> {
        let internal = |what: String| {
            Error::new(Code::INTERNAL, format!("kernel {kernel} of module {}: {what}", self.name))
        };
        let declared = *self.parameters.get(kernel).ok_or_else(|| internal("not there".into()))?;
        if declared != size_of::<P>() {
            return Err(internal(format!(
                "takes {declared} bytes of parameters, the host has {}",
                size_of::<P>()
            )));
        }
        let name = CString::new(kernel).map_err(|_| internal("a zero in its name".into()))?;
        // SAFETY: the module lives as long as the function, which keeps it.
        let raw = unsafe { result::module::get_function(self.raw, name) };
        let raw = raw.named("cuModuleGetFunction")?;
        Ok(Function { raw, _module: Arc::clone(self), _params: PhantomData })
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: functions keep their module, so none is left.
        if let Err(error) = unsafe { result::module::unload(self.raw) }.named("cuModuleUnload") {
            tracing::debug!(%error, module = self.name, "a module of a device that failed");
        }
    }
}

/// The kernels that the text declares to have one parameter, with its bytes.
fn parameters(ptx: &str) -> impl Iterator<Item = (&str, usize)> {
    const PARAMETER: &str = "_param_0[";
    ptx.lines().filter_map(|line| {
        let (before, after) = line.split_once(PARAMETER)?;
        let kernel = before.rsplit(' ').next()?;
        Some((kernel, after.split_once(']')?.0.parse().ok()?))
    })
}

/// The shape of a launch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grid {
    /// Blocks along x, y and z.
    pub(crate) blocks: [u32; 3],
    /// Threads a block.
    pub(crate) threads: u32,
    /// Bytes of dynamic shared memory a block.
    pub(crate) shared: u32,
}

impl Grid {
    /// Blocks along x only, without shared memory of their own.
    pub(crate) fn line(blocks: u32, threads: u32) -> Self {
        Self { blocks: [blocks, 1, 1], threads, shared: 0 }
    }

    /// A block for each row and `a_block` of its columns.
    ///
    /// # Errors
    /// `UNSUPPORTED` if that is more blocks than a row can have.
    pub(crate) fn rows(rows: u32, (cols, a_block): (u32, u32), threads: u32) -> Result<Self> {
        let across = cols.div_ceil(a_block);
        if across > u32::from(u16::MAX) {
            return Err(Error::unsupported(format!("rows of {cols} columns")));
        }
        Ok(Self { blocks: [rows, across, 1], threads, shared: 0 })
    }

    fn is_empty(&self) -> bool {
        self.blocks.contains(&0)
    }
}

/// A kernel that takes a `P`.
#[derive(Debug)]
pub(crate) struct Function<P> {
    raw: CUfunction,
    _module: Arc<Module>,
    _params: PhantomData<fn(P)>,
}

// SAFETY: a function is a name that the driver takes from any thread.
unsafe impl<P> Send for Function<P> {}
// SAFETY: as above.
unsafe impl<P> Sync for Function<P> {}

impl<P: Copy> Function<P> {
    /// Allows launches with so many bytes of dynamic shared memory.
    pub(crate) fn allow_shared(&self, bytes: u32) -> Result<()> {
        if bytes <= PLAIN_SHARED {
            return Ok(());
        }
        let which = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: the function's module is loaded.
        unsafe { result::function::set_function_attribute(self.raw, which, bytes.cast_signed()) }
            .named("cuFuncSetAttribute")
    }

    /// Enqueues a launch; none if the grid is empty.
    ///
    /// # Safety
    /// Every address in `params` is of memory that the kernel may touch as it does, until the stream has reached this point.
    pub(crate) unsafe fn launch(&self, on: &Stream, grid: Grid, params: &P) -> Result<()> {
        if grid.is_empty() {
            return Ok(());
        }
        let mut list = [std::ptr::from_ref(params).cast_mut().cast::<std::ffi::c_void>()];
        let [x, y, z] = grid.blocks;
        // SAFETY: the kernel takes one parameter of this size, which is copied before the call returns; the rest is the caller's promise.
        unsafe {
            sys::cuLaunchKernel(
                self.raw,
                x,
                y,
                z,
                grid.threads,
                1,
                1,
                grid.shared,
                on.raw(),
                list.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        }
        .named("cuLaunchKernel")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameter_sizes_are_read_from_the_text() {
        let ptx = ".visible .entry a(\n\t.param .align 8 .b8 a_param_0[48]\n)\n.visible .entry ba(.param .align 4 .b8 ba_param_0[4])";
        let found: Vec<_> = parameters(ptx).collect();
        assert_eq!(found, [("a", 48), ("ba", 4)]);
    }
}
