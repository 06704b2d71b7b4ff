//! A loaded module: its kernels decoded, its variables in device memory.

use crate::decode::{DecodeError, Globals, decode};
use crate::program::Program;
use halyard_sim_cuda_ptx::{Initial, Linkage, ParseError, Space, Variable, parse};
use halyard_sim_memory::{Home, Memory, MemoryError, Order};
use std::collections::BTreeMap;
use std::sync::Arc;

/// One kernel of a module.
#[derive(Clone, Debug)]
pub struct Kernel(Arc<Program>);

impl Kernel {
    pub(crate) fn program(&self) -> &Program {
        &self.0
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Offset and bytes of each parameter.
    #[must_use]
    pub fn params(&self) -> &[(usize, usize)] {
        &self.0.params
    }

    /// Bytes of all parameters.
    #[must_use]
    pub fn param_bytes(&self) -> usize {
        self.0.param_bytes
    }

    /// Bytes of shared memory that it declares.
    #[must_use]
    pub fn shared_bytes(&self) -> u32 {
        self.0.shared_bytes as u32
    }

    /// Bytes of local memory of a thread.
    #[must_use]
    pub fn local_bytes(&self) -> u32 {
        self.0.local_bytes as u32
    }

    /// Instructions of its body.
    #[must_use]
    pub fn instructions(&self) -> usize {
        self.0.code.len()
    }

    /// The most threads that a block may have.
    #[must_use]
    pub fn max_threads(&self) -> u32 {
        let limits = self.0.limits;
        let of = |extents: [u32; 3]| extents.iter().product::<u32>();
        limits.required_threads.or(limits.max_threads).map_or(crate::Profile::BLOCK_THREADS, of)
    }
}

/// Why a module can't be loaded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// The text is no PTX.
    #[error(transparent)]
    Parse(#[from] ParseError),
    /// A kernel that this executor can't run.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The text is for another kind of device.
    #[error("PTX for {target}, which a device of capability {major}.{minor} does not run")]
    Target {
        /// `.target` of the text.
        target: String,
        /// Of the device.
        major: u32,
        /// Of the device.
        minor: u32,
    },
    /// Its variables do not fit.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

/// A module on a device.
#[derive(Debug)]
pub struct Image {
    kernels: BTreeMap<String, Kernel>,
    globals: Globals,
    memory: Arc<Memory>,
}

impl Image {
    /// Loads the PTX `text` for device `device` of capability `capability` (80 for 8.0). `order` is the operation that
    /// writes its variables.
    ///
    /// # Errors
    /// The text is no PTX, is for another device, has an instruction that is not supported, or does not fit.
    pub fn load(
        text: &str,
        memory: &Arc<Memory>,
        (device, capability): (u32, u32),
        order: &Order,
    ) -> Result<Self, LoadError> {
        let module = parse(text)?;
        check_target(module.target, capability)?;
        let mut image =
            Self { kernels: BTreeMap::new(), globals: Globals::new(), memory: memory.clone() };
        let is_global =
            |variable: &&Variable<'_>| matches!(variable.space, Space::Global | Space::Const);
        for variable in module.variables.iter().filter(is_global) {
            if variable.linkage == Linkage::Extern {
                // clang declares the special registers so; nothing refers to them.
                continue;
            }
            let address = memory.allocate(variable.bytes().max(1), Home::Device(device))?;
            image.globals.insert(variable.name.to_owned(), (address, variable.bytes()));
        }
        for variable in module.variables.iter().filter(is_global) {
            if let Some((address, _)) = image.globals.get(variable.name) {
                let bytes = image.initial(variable)?;
                memory.write_bytes(*address, &bytes, order)?;
            }
        }
        for kernel in &module.kernels {
            let program = decode(&module, kernel, &image.globals)?;
            image.kernels.insert(program.name.clone(), Kernel(Arc::new(program)));
        }
        Ok(image)
    }

    fn initial(&self, variable: &Variable<'_>) -> Result<Vec<u8>, DecodeError> {
        let width = variable.ty.bytes();
        let mut bytes = Vec::with_capacity(variable.bytes());
        for value in &variable.init {
            let bits = match value {
                Initial::Bits(bits) => *bits,
                Initial::Symbol(name) => {
                    self.globals.get(*name).map(|found| found.0).ok_or_else(|| {
                        let text =
                            format!("initial value '{name}' is no variable in global memory");
                        DecodeError { line: variable.line, text }
                    })?
                }
            };
            bytes.extend_from_slice(&bits.to_le_bytes()[..width.min(8)]);
        }
        bytes.resize(variable.bytes(), 0);
        Ok(bytes)
    }

    /// The kernel called `name`.
    #[must_use]
    pub fn kernel(&self, name: &str) -> Option<&Kernel> {
        self.kernels.get(name)
    }

    /// All kernels, by name.
    pub fn kernels(&self) -> impl Iterator<Item = &Kernel> {
        self.kernels.values()
    }

    /// Address and bytes of a variable.
    #[must_use]
    pub fn global(&self, name: &str) -> Option<(u64, usize)> {
        self.globals.get(name).copied()
    }

    /// Frees its variables, as the operation `order`.
    ///
    /// # Errors
    /// An operation that `order` does not follow uses one.
    pub fn unload(&self, order: &Order) -> Result<(), MemoryError> {
        self.globals.values().try_for_each(|(address, _)| self.memory.free(*address, order))
    }
}

/// PTX runs on its target and newer devices; with a letter (`sm_90a`) on its target alone.
fn check_target(target: &str, capability: u32) -> Result<(), LoadError> {
    let digits: String = target.chars().filter(char::is_ascii_digit).collect();
    let exact = target.ends_with('a');
    let fits = digits
        .parse()
        .is_ok_and(|wanted: u32| if exact { wanted == capability } else { wanted <= capability });
    if fits {
        return Ok(());
    }
    let (major, minor) = (capability / 10, capability % 10);
    Err(LoadError::Target { target: target.to_owned(), major, minor })
}
