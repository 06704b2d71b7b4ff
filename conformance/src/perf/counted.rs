//! Kernels launched once, for a simulator that counts what they do.

use halyard_core::Device;

use super::work::Work;
use crate::{
    catalog::{self, Case, CatalogError},
    execute::{Prepared, Trouble},
    verify::drawn,
};

/// One kernel that runs once.
#[derive(Clone, Debug)]
pub struct Counted {
    /// Entry name and what varies.
    pub name: String,
    /// Bytes that the launch must move at least.
    pub bytes: u64,
    /// Multiplications and additions of its products of matrices.
    pub flops: u64,
}

/// Who counts.
pub trait Counter {
    /// A launch is next.
    fn begin(&mut self);
    /// It has come to its end, or could not be made.
    fn end(&mut self, kernel: &Counted, result: Result<(), String>);
}

/// Launches the kernels whose names contain `part`, each once.
///
/// # Errors
/// If the built-in list of shapes is malformed: a bug of this crate, held off by its tests.
pub fn counted(device: &Device, part: &str, counter: &mut dyn Counter) -> Result<(), CatalogError> {
    let cases = catalog::counted_cases()?;
    for case in cases.iter().filter(|case| case.name.contains(part)) {
        let mut kernel = Counted { name: case.name.clone(), bytes: 0, flops: 0 };
        let result = once(device, case, &mut kernel, counter);
        counter.end(&kernel, result.map_err(|trouble| trouble.to_string()));
    }
    Ok(())
}

fn once(
    device: &Device,
    case: &Case,
    kernel: &mut Counted,
    counter: &mut dyn Counter,
) -> Result<(), Trouble> {
    let (weights, inputs) = drawn(case, 0).map_err(Trouble::Case)?;
    let Work { bytes, flops } = Work::of(&case.op, &case.symbols, &inputs);
    (kernel.bytes, kernel.flops) = (bytes, flops);
    Prepared::new(device, &case.op, &weights)?.once(&inputs, &mut || counter.begin())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Calls(Vec<String>);

    impl Counter for Calls {
        fn begin(&mut self) {
            self.0.push("begin".into());
        }

        fn end(&mut self, kernel: &Counted, result: Result<(), String>) {
            assert_eq!(result, Ok(()));
            assert!(kernel.bytes > 0 && kernel.flops > 0, "{kernel:?}");
            self.0.push(kernel.name.clone());
        }
    }

    #[test]
    fn every_kernel_is_announced_and_runs_once() {
        let mut calls = Calls::default();
        counted(&crate::oracle().unwrap(), "flash_64", &mut calls).unwrap();
        let (announced, names): (Vec<_>, Vec<_>) =
            calls.0.iter().partition(|call| *call == "begin");
        assert_eq!((announced.len(), names.len()), (2, 2), "{:?}", calls.0);
        assert!(names.iter().all(|name| name.contains("flash_64")));
    }
}
