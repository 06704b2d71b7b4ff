//! What a kernel was prepared for.

use halyard_abi::{DType, LaunchArgs, OpDesc, OpKind};

use crate::{Error, Result};

/// The types of a kernel's slots: an argument of another would be read beyond its bounds.
#[derive(Clone, Debug)]
pub struct Signature {
    kind: OpKind,
    slots: Vec<(DType, u8)>,
    weights: usize,
}

impl Signature {
    /// That of a kernel prepared from this descriptor.
    #[must_use]
    pub fn of(desc: &OpDesc<'_>) -> Self {
        Self {
            kind: desc.kind,
            slots: desc.tensors.iter().map(|t| (t.dtype, t.rank)).collect(),
            weights: desc.weights.len(),
        }
    }

    /// Runs a launch with arguments of these types; errors begin with the op's name.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for other arguments; what `launch` gives.
    pub fn launch(&self, args: &LaunchArgs<'_>, launch: impl FnOnce() -> Result<()>) -> Result<()> {
        let tensors = args.tensors.as_slice();
        let same = tensors.len() == self.slots.len()
            && tensors.iter().zip(&self.slots).all(|(t, s)| (t.dtype, t.rank) == *s)
            && args.weights.len() == self.weights;
        let launched = if same {
            launch()
        } else {
            let what = "tensors or weights of other types than the kernel was prepared for";
            Err(Error::invalid(what))
        };
        launched.map_err(|e| Error { message: format!("{}: {}", self.kind, e.message).into(), ..e })
    }
}
