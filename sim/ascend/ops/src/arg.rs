//! What a caller passes to the first phase.

/// One argument, in the order of an operator's parameters.
#[derive(Debug, Clone, PartialEq)]
pub enum Arg {
    /// `aclTensor*`
    Tensor(Option<Tensor>),
    /// `aclTensorList*`
    TensorList(Option<Vec<Tensor>>),
    /// `aclIntArray*`, on the host
    IntArray(Option<Vec<i64>>),
    /// `aclScalar*`
    Scalar(Option<Scalar>),
    /// `int8_t`, `int32_t` or `int64_t`
    Int(i64),
    /// `double`
    Float(f64),
    /// `bool`
    Bool(bool),
    /// `char*`
    Text(Option<String>),
    /// `aclDataType`
    DataType(i32),
}

/// A host scalar.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Scalar {
    /// Of an integer dtype, or a bool.
    Int(i64),
    /// Of a float dtype.
    Float(f64),
}

impl Scalar {
    pub(crate) fn float(self) -> f64 {
        match self {
            #[expect(
                clippy::cast_precision_loss,
                reason = "a float operator takes its scalars as floats"
            )]
            Self::Int(value) => value as f64,
            Self::Float(value) => value,
        }
    }

    pub(crate) fn int(self) -> i64 {
        match self {
            Self::Int(value) => value,
            Self::Float(value) => value as i64,
        }
    }
}

/// What `aclCreateTensor` was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    /// `aclDataType`
    pub dtype: i32,
    /// Elements along each axis.
    pub view_dims: Vec<i64>,
    /// Elements from one to the next along each axis.
    pub strides: Vec<i64>,
    /// Elements from the address to the first.
    pub offset: i64,
    /// `aclFormat`
    pub format: i32,
    /// Elements that lie behind the address.
    pub storage_dims: Vec<i64>,
    /// The device's address of the storage.
    pub address: u64,
}

impl Tensor {
    /// A row-major tensor of format ND that has all of its storage.
    #[must_use]
    pub fn contiguous(dtype: i32, dims: &[i64], address: u64) -> Self {
        let mut strides = vec![1; dims.len()];
        for axis in (1..dims.len()).rev() {
            strides[axis - 1] = strides[axis] * dims[axis].max(1);
        }
        let (view_dims, storage_dims) = (dims.to_vec(), dims.to_vec());
        Self { dtype, view_dims, strides, offset: 0, format: 2, storage_dims, address }
    }
}
