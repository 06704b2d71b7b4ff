//! A launch on its way to the right kernel: its tensors by name, and what is done with other ones.

use halyard_sdk::{
    Attr, DType, HostTensor, Kernel, LaunchArgs, OpKind, Result, Stream, TensorView,
    abi::{AttrKey, RSlice, ops::OpSchema, types::FLAG_OPAQUE},
};

/// One launch.
pub(crate) struct Call<'a> {
    pub(crate) kernel: &'a dyn Kernel,
    pub(crate) args: &'a LaunchArgs<'a>,
    pub(crate) kind: OpKind,
    /// As the host asked for them.
    pub(crate) attrs: &'a [Attr],
    /// Launches of this kernel before this one.
    pub(crate) before: u64,
}

/// Every index of a shape, last dim fastest.
fn indices(dims: &[usize]) -> impl Iterator<Item = Vec<usize>> {
    let count: usize = dims.iter().product();
    let dims = dims.to_vec();
    (0..count).map(move |mut i| {
        let mut index = vec![0; dims.len()];
        for (at, &d) in index.iter_mut().zip(&dims).rev() {
            (*at, i) = (i % d, i / d);
        }
        index
    })
}

impl<'a> Call<'a> {
    /// The right thing.
    pub(crate) fn run(&self) -> Result<()> {
        self.kernel.launch(Stream::NONE, self.args)
    }

    /// The right thing to other tensors.
    pub(crate) fn edit(&self) -> Edit<'_, 'a> {
        Edit { call: self, tensors: self.args.tensors.to_vec(), memory: Vec::new() }
    }

    fn slot(&self, name: &str) -> usize {
        let slot = OpSchema::of(self.kind).and_then(|s| s.slot(name));
        slot.unwrap_or_else(|| panic!("{} has no slot {name}", self.kind))
    }

    /// A slot's view; absent ones are none.
    pub(crate) fn view(&self, name: &str) -> TensorView {
        self.args.tensors.get(self.slot(name)).copied().unwrap_or(TensorView::NONE)
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        !self.view(name).is_none()
    }

    pub(crate) fn dtype(&self, name: &str) -> DType {
        self.view(name).dtype
    }

    pub(crate) fn dims(&self, name: &str) -> Vec<usize> {
        self.view(name).dims().iter().map(|&d| d as usize).collect()
    }

    /// Extent of the last dim.
    pub(crate) fn width(&self, name: &str) -> usize {
        self.dims(name).last().copied().unwrap_or(1)
    }

    /// The elements in order, whatever the strides.
    pub(crate) fn floats(&self, name: &str) -> Vec<f64> {
        let tensor = open(&self.view(name));
        indices(&self.dims(name)).map(|i| tensor.get(&i)).collect()
    }

    /// The elements of an integer tensor.
    pub(crate) fn ints(&self, name: &str) -> Vec<i64> {
        let tensor = open(&self.view(name));
        indices(&self.dims(name)).map(|i| tensor.get_int(&i)).collect()
    }

    /// Writes all elements, in order, each rounded to the dtype.
    pub(crate) fn write(&self, name: &str, values: &[f64]) {
        let tensor = open(&self.view(name));
        for (index, &value) in indices(&self.dims(name)).zip(values) {
            tensor.set(&index, value);
        }
    }

    /// Reads, changes and writes a tensor.
    pub(crate) fn change(&self, name: &str, change: impl FnOnce(&mut [f64])) {
        let mut values = self.floats(name);
        change(&mut values);
        self.write(name, &values);
    }

    /// Changes each element of a tensor, by its place.
    pub(crate) fn map(&self, name: &str, change: impl Fn(usize, f64) -> f64) {
        self.change(name, |v| v.iter_mut().enumerate().for_each(|(i, x)| *x = change(i, *x)));
    }

    /// Runs and then changes each element of an output.
    pub(crate) fn then(&self, name: &str, change: impl Fn(usize, f64) -> f64) -> Result<()> {
        self.run()?;
        self.map(name, change);
        Ok(())
    }

    /// Writes bytes at a place near a tensor: `offset` bytes from its first element, modulo 2^64.
    pub(crate) fn scribble(&self, name: &str, offset: u64) {
        let view = self.view(name);
        let spec = halyard_sdk::TensorSpec::new(DType::F32, &[1]);
        let offset = view.byte_offset.wrapping_add(offset);
        open(&TensorView::contiguous(view.data, offset, &spec)).set(&[0], 0.0);
    }

    /// Writes bytes behind the scratch memory.
    pub(crate) fn behind_scratch(&self) {
        let spec = halyard_sdk::TensorSpec::new(DType::F32, &[1]);
        let behind = TensorView::contiguous(self.args.workspace, self.args.workspace_bytes, &spec);
        open(&behind).set(&[0], 0.0);
    }

    /// Bytes of scratch memory, as 32-bit words.
    pub(crate) fn scratch(&self) -> Vec<i64> {
        let words = (self.args.workspace_bytes / 4) as i64;
        let spec = halyard_sdk::TensorSpec::new(DType::I32, &[words]);
        let tensor = open(&TensorView::contiguous(self.args.workspace, 0, &spec));
        (0..words as usize).map(|i| tensor.get_int(&[i])).collect()
    }

    /// An attribute that is a number.
    pub(crate) fn float(&self, key: AttrKey) -> f64 {
        f64::from_bits(self.bits(key))
    }

    /// An attribute that is an integer or a flag.
    pub(crate) fn int(&self, key: AttrKey) -> i64 {
        self.bits(key).cast_signed()
    }

    fn bits(&self, key: AttrKey) -> u64 {
        self.attrs.iter().find(|a| a.key == key).map_or(0, |a| a.bits)
    }
}

/// Element access to a tensor of a launch, or of an [`Edit`]'s own memory.
fn open(view: &TensorView) -> HostTensor {
    // SAFETY: the host vouches for every view of a launch until it returns, and edits keep their memory as long.
    unsafe { HostTensor::new(view) }.expect("a tensor with element access")
}

/// A launch with some tensors replaced by packed copies.
pub(crate) struct Edit<'c, 'a> {
    call: &'c Call<'a>,
    tensors: Vec<TensorView>,
    memory: Vec<Vec<u8>>,
}

impl Edit<'_, '_> {
    fn packed(&mut self, name: &str) -> TensorView {
        let view = self.call.view(name);
        let mut spec = view.spec();
        spec.flags &= !FLAG_OPAQUE;
        let bytes = spec.dtype.bytes(view.elements().unwrap_or(0)).unwrap_or(0);
        let mut memory = vec![0u8; bytes as usize];
        let own = TensorView::contiguous(memory.as_mut_ptr() as u64, 0, &spec);
        self.memory.push(memory);
        self.tensors[self.call.slot(name)] = TensorView { flags: view.flags, ..own };
        own
    }

    /// Leaves an optional slot out.
    pub(crate) fn without(mut self, name: &str) -> Self {
        let slot = self.call.slot(name);
        if let Some(view) = self.tensors.get_mut(slot) {
            *view = TensorView::NONE;
        }
        self
    }

    /// A slot with other elements.
    pub(crate) fn floats(mut self, name: &str, values: &[f64]) -> Self {
        let dims = self.call.dims(name);
        let tensor = open(&self.packed(name));
        for (index, &value) in indices(&dims).zip(values) {
            tensor.set(&index, value);
        }
        self
    }

    /// An integer slot with other elements; kept as it is if it is absent.
    pub(crate) fn ints(mut self, name: &str, values: &[i64]) -> Self {
        let own = self.packed(name);
        let size = (own.dtype.bits().unwrap_or(32) / 8) as usize;
        if let Some(memory) = self.memory.last_mut() {
            for (to, value) in memory.chunks_exact_mut(size).zip(values) {
                to.copy_from_slice(&value.to_le_bytes()[..size]);
            }
        }
        self
    }

    /// A slot with each element changed, by its place; nothing if it is absent.
    pub(crate) fn map(self, name: &str, change: impl Fn(usize, f64) -> f64) -> Self {
        if !self.call.has(name) {
            return self;
        }
        let values = self.call.floats(name);
        let values: Vec<f64> = values.into_iter().enumerate().map(|(i, v)| change(i, v)).collect();
        self.floats(name, &values)
    }

    /// The same for integers.
    pub(crate) fn map_ints(self, name: &str, change: impl Fn(usize, i64) -> i64) -> Self {
        if !self.call.has(name) {
            return self;
        }
        let values = self.call.ints(name);
        let values: Vec<i64> = values.into_iter().enumerate().map(|(i, v)| change(i, v)).collect();
        self.ints(name, &values)
    }

    /// A slot seen through another view.
    pub(crate) fn view(mut self, name: &str, change: impl Fn(&mut TensorView)) -> Self {
        let slot = self.call.slot(name);
        change(&mut self.tensors[slot]);
        self
    }

    /// Two slots in each other's place.
    pub(crate) fn swap(mut self, a: &str, b: &str) -> Self {
        let (a, b) = (self.call.slot(a), self.call.slot(b));
        self.tensors.swap(a, b);
        self
    }

    /// Launches.
    pub(crate) fn run(self) -> Result<()> {
        let args = LaunchArgs { tensors: RSlice::from_slice(&self.tensors), ..*self.call.args };
        self.call.kernel.launch(Stream::NONE, &args)
    }
}
