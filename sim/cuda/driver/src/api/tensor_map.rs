//! Tensor maps.

use super::{In, Out};
use crate::code::{Code, Failure, Outcome};
use crate::driver::Driver;
use halyard_sim_cuda_exec::TensorMap;
use std::ffi::{c_int, c_uint};

/// Types as `CUtensorMapDataType` numbers them, as `tensormap.replace` does.
const ELEMENTS: [u8; 13] = [0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 8, 11, 12];

fn invalid(text: &str) -> Failure {
    let code =
        if text.starts_with("unsupported") { Code::NotSupported } else { Code::InvalidValue };
    Failure::new(code, format!("tensor map: {text}"))
}

/// One value a dimension; those behind are zero.
fn values<T: Copy + Default, const N: usize>(from: &In<T>, count: usize) -> Outcome<[T; N]> {
    let mut all = [T::default(); N];
    for (at, value) in all.iter_mut().enumerate().take(count) {
        *value = from.at(at)?;
    }
    Ok(all)
}

entries! {
    fn cuTensorMapEncodeTiled(
        map: Out<[u8; TensorMap::BYTES]>,
        element: c_uint,
        rank: c_uint,
        address: u64,
        extents: In<u64>,
        strides: In<u64>,
        tile: In<u32>,
        steps: In<u32>,
        interleave: c_int,
        swizzle: c_int,
        _promotion: c_int,
        fill: c_int,
    ) {
        Driver::get()?;
        let number = |value: c_int| u8::try_from(value).unwrap_or(u8::MAX);
        let element = ELEMENTS.get(element as usize).copied().unwrap_or(u8::MAX);
        let rank = rank as usize;
        if !(1..=5).contains(&rank) {
            return Err(invalid(&format!("{rank} dimensions: from 1 to 5")));
        }
        let extents = values::<u64, 5>(&extents, rank)?;
        if let Some(large) = extents.iter().find(|extent| **extent > u64::from(u32::MAX)) {
            return Err(invalid(&format!("unsupported: {large} elements in a dimension, at most {}", u32::MAX)));
        }
        let encoded = TensorMap {
            address,
            rank,
            element,
            extents: extents.map(|extent| u32::try_from(extent).unwrap_or(0)),
            strides: values(&strides, rank - 1)?,
            tile: values(&tile, rank)?,
            steps: values(&steps, rank)?,
            interleave: number(interleave),
            swizzle: number(swizzle),
            fill: number(fill),
        };
        encoded.check().map_err(|text| invalid(&text))?;
        map.set(encoded.encode())
    }
}
