//! A device's memory of some MiB, and calls on it.

use half::{bf16, f16};
use halyard_sim_ascend_ops::{
    Arg, Fault, Kind, Memory, Param, Plan, Refusal, Scalar, Soc, Tensor, find,
};
use std::sync::Mutex;

pub(crate) const F32: i32 = 0;
pub(crate) const F16: i32 = 1;
pub(crate) const I8: i32 = 2;
pub(crate) const I32: i32 = 3;
pub(crate) const I64: i32 = 9;
pub(crate) const BOOL: i32 = 12;
pub(crate) const BF16: i32 = 27;
pub(crate) const I4: i32 = 29;

/// Bytes, each written or not.
#[derive(Default)]
pub(crate) struct Device {
    bytes: Mutex<Vec<Option<u8>>>,
}

const BASE: u64 = 0x1000;
/// Bytes of memory up to which changed calls are run.
const SMALL: usize = 1 << 14;

impl Memory for Device {
    fn read(&self, address: u64, out: &mut [u8]) -> Result<(), Fault> {
        let bytes = self.bytes.lock().unwrap();
        let start =
            address.checked_sub(BASE).ok_or_else(|| Fault::exception("below the memory"))?;
        for (at, byte) in (start..).zip(out) {
            let stored =
                bytes.get(at as usize).ok_or_else(|| Fault::exception("behind the memory"))?;
            *byte = stored.ok_or_else(|| Fault::exception("nothing wrote this"))?;
        }
        Ok(())
    }

    fn write(&self, address: u64, values: &[u8]) -> Result<(), Fault> {
        let mut bytes = self.bytes.lock().unwrap();
        let start =
            address.checked_sub(BASE).ok_or_else(|| Fault::exception("below the memory"))?;
        for (at, value) in (start..).zip(values) {
            *bytes.get_mut(at as usize).ok_or_else(|| Fault::exception("behind the memory"))? =
                Some(*value);
        }
        Ok(())
    }

    fn copy(&self, to: u64, from: u64, count: usize) -> Result<(), Fault> {
        let mut bytes = self.bytes.lock().unwrap();
        let place = |address: u64| {
            let start = usize::try_from(address.checked_sub(BASE)?).ok()?;
            let end = start.checked_add(count)?;
            (end <= bytes.len()).then_some(start..end)
        };
        let outside = || Fault::exception("outside of the memory");
        let (from, to) = (place(from).ok_or_else(outside)?, place(to).ok_or_else(outside)?);
        bytes.copy_within(from, to.start);
        Ok(())
    }
}

fn bits(dtype: i32) -> usize {
    match dtype {
        I4 => 4,
        2 | 4 | 12 => 8,
        1 | 27 | 6 => 16,
        0 | 3 | 8 => 32,
        _ => 64,
    }
}

impl Device {
    /// Memory that nothing wrote, with a gap behind it.
    pub(crate) fn empty(&self, dtype: i32, dims: &[i64]) -> Tensor {
        let mut bytes = self.bytes.lock().unwrap();
        let address = BASE + bytes.len() as u64;
        let len = dims.iter().product::<i64>() as usize * bits(dtype);
        let end = bytes.len() + len.div_ceil(8) + 32;
        bytes.resize(end.next_multiple_of(32), None);
        Tensor::contiguous(dtype, dims, address)
    }

    pub(crate) fn bytes(&self, dtype: i32, dims: &[i64], bytes: &[u8]) -> Tensor {
        let tensor = self.empty(dtype, dims);
        self.write(tensor.address, bytes).unwrap();
        tensor
    }

    pub(crate) fn floats(&self, dtype: i32, dims: &[i64], values: &[f32]) -> Tensor {
        assert_eq!(dims.iter().product::<i64>() as usize, values.len(), "{dims:?}");
        let bytes: Vec<u8> = match dtype {
            F16 => values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
            BF16 => values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
            _ => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        };
        self.bytes(dtype, dims, &bytes)
    }

    pub(crate) fn ints(&self, dtype: i32, dims: &[i64], values: &[i64]) -> Tensor {
        assert_eq!(dims.iter().product::<i64>() as usize, values.len(), "{dims:?}");
        let width = bits(dtype) / 8;
        let bytes: Vec<u8> =
            values.iter().flat_map(|v| v.to_le_bytes()[..width].to_vec()).collect();
        self.bytes(dtype, dims, &bytes)
    }

    /// The stored elements of a tensor, in memory's order.
    pub(crate) fn read_bytes(&self, tensor: &Tensor) -> Vec<u8> {
        let len = tensor.storage_dims.iter().product::<i64>() as usize * bits(tensor.dtype);
        let mut out = vec![0; len.div_ceil(8)];
        self.read(tensor.address, &mut out).unwrap();
        out
    }

    pub(crate) fn read_floats(&self, tensor: &Tensor) -> Vec<f32> {
        let bytes = self.read_bytes(tensor);
        let halves = || bytes.chunks(2).map(|b| [b[0], b[1]]);
        match tensor.dtype {
            F16 => halves().map(|b| f16::from_le_bytes(b).to_f32()).collect(),
            BF16 => halves().map(|b| bf16::from_le_bytes(b).to_f32()).collect(),
            _ => bytes.chunks(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        }
    }

    pub(crate) fn read_ints(&self, tensor: &Tensor) -> Vec<i64> {
        let width = bits(tensor.dtype) / 8;
        let signed = |b: &[u8]| {
            let fill = if b[width - 1] > 127 && tensor.dtype != BOOL { 255 } else { 0 };
            let mut wide = [fill; 8];
            wide[..width].copy_from_slice(b);
            i64::from_le_bytes(wide)
        };
        self.read_bytes(tensor).chunks(width).map(signed).collect()
    }

    /// Plans and runs an operator. Calls that differ in one argument may be refused or fault, but nothing else.
    #[track_caller]
    pub(crate) fn call(&self, name: &str, args: &[Arg]) {
        for changed in crate::mutate::changed(args) {
            if let Ok(plan) = plan(name, &changed) {
                // A copy, as the call may do anything to the memory that it is given.
                let copy = Self { bytes: Mutex::new(self.bytes.lock().unwrap().clone()) };
                if copy.bytes.lock().unwrap().len() < SMALL {
                    let _ = copy.run(&plan);
                }
            }
        }
        self.once(name, args);
    }

    /// Plans and runs an operator.
    #[track_caller]
    pub(crate) fn once(&self, name: &str, args: &[Arg]) {
        self.run(&plan(name, args).unwrap()).unwrap();
    }

    pub(crate) fn run(&self, plan: &Plan) -> Result<(), Fault> {
        let workspace = self.empty(I8, &[plan.workspace as i64]).address;
        plan.run(self, &plan.addresses(), workspace)
    }
}

pub(crate) fn plan(name: &str, args: &[Arg]) -> Result<Plan, Refusal> {
    find(name).unwrap().plan(args, &Soc::ascend_910b1())
}

/// The arguments of an operator by name; null, zero and false for those that are not given.
#[track_caller]
pub(crate) fn args(name: &str, given: &[(&str, Arg)]) -> Vec<Arg> {
    let params = find(name).unwrap().params;
    for (param, _) in given {
        assert!(params.iter().any(|p| p.name == *param), "{name} has no {param}");
    }
    let default = |kind| match kind {
        Kind::Tensor => Arg::Tensor(None),
        Kind::TensorList => Arg::TensorList(None),
        Kind::IntArray => Arg::IntArray(None),
        Kind::Scalar => Arg::Scalar(None),
        Kind::I8 | Kind::I32 | Kind::I64 => Arg::Int(0),
        Kind::F64 => Arg::Float(0.0),
        Kind::Bool => Arg::Bool(false),
        Kind::Text => Arg::Text(None),
        Kind::DataType => Arg::DataType(0),
    };
    let of = |param: &Param| given.iter().rev().find(|g| g.0 == param.name).map(|g| g.1.clone());
    params.iter().map(|param| of(param).unwrap_or_else(|| default(param.kind))).collect()
}

/// The arguments are refused, with a code and words of the message.
#[track_caller]
pub(crate) fn refused(name: &str, args: &[Arg], code: i32, words: &str) {
    let refusal = plan(name, args).expect_err(words);
    assert!(refusal.message.contains(words), "{refusal} has no {words:?}");
    assert!(refusal.message.contains(name), "{refusal}");
    assert_eq!(refusal.code, code, "{refusal}");
}

pub(crate) fn t(tensor: &Tensor) -> Arg {
    Arg::Tensor(Some(tensor.clone()))
}

pub(crate) fn list(tensors: &[&Tensor]) -> Arg {
    Arg::TensorList(Some(tensors.iter().map(|&t| t.clone()).collect()))
}

pub(crate) fn null() -> Arg {
    Arg::Tensor(None)
}

pub(crate) fn int(value: i64) -> Arg {
    Arg::Int(value)
}

pub(crate) fn scalar(value: f64) -> Arg {
    Arg::Scalar(Some(Scalar::Float(value)))
}

pub(crate) fn ints(values: &[i64]) -> Arg {
    Arg::IntArray(Some(values.to_vec()))
}

pub(crate) fn text(value: &str) -> Arg {
    Arg::Text(Some(value.into()))
}

/// The last two axes swapped.
pub(crate) fn transposed(tensor: &Tensor) -> Tensor {
    let (mut tensor, rank) = (tensor.clone(), tensor.view_dims.len());
    tensor.view_dims.swap(rank - 2, rank - 1);
    tensor.strides.swap(rank - 2, rank - 1);
    tensor
}

/// Numbers that differ, of a few bits, so that 16-bit floats have them exactly.
pub(crate) fn numbers(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12345);
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 27) as f32 / 8.0 - 2.0
    };
    (0..count).map(|_| next()).collect()
}

#[track_caller]
pub(crate) fn near(values: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(values.len(), expected.len());
    for (at, (value, wanted)) in values.iter().zip(expected).enumerate() {
        let fits = (value - wanted).abs() <= tolerance * (1.0 + wanted.abs());
        assert!(fits, "element {at}: {value}, expected {wanted}");
    }
}
