//! The layout of everything that crosses, checked by both compilers: the header holds the same numbers.

use super::{BackendApi, ErrorBuffer, HostTable, Text};
use crate::{
    RSlice, RStr,
    types::{
        A2av, AllocReq, Attr, Buffer, CommDesc, CopyReq, KeyValue, KvDesc, KvLayout, LaunchArgs,
        MemRef, Metric, Notify, OpDesc, TensorSpec, TensorView, WeightDesc, WeightFill, WeightPlan,
    },
};

/// A struct's name in C, its size in bytes, and the offsets of its fields.
#[cfg(test)]
type Layout = (&'static str, usize, &'static [(&'static str, usize)]);

macro_rules! layouts {
    ($($c:literal = $ty:ty, $size:literal, $align:literal { $($field:ident: $at:literal),* })*) => {
        $(const _: () = {
            assert!(size_of::<$ty>() == $size && align_of::<$ty>() == $align, $c);
            $(assert!(core::mem::offset_of!($ty, $field) == $at, concat!($c, ".", stringify!($field)));)*
        };)*

        #[cfg(test)]
        const LAYOUTS: &[Layout] = &[$(($c, $size, &[$((stringify!($field), $at)),*])),*];
    };
}

layouts! {
    "halyard_tensor_view" = TensorView, 152, 8 { data: 0, byte_offset: 8, dtype: 16, rank: 20, flags: 21, reserved: 22, dims: 24, strides: 88 }
    "halyard_tensor_spec" = TensorSpec, 72, 8 { dtype: 0, rank: 4, flags: 5, reserved: 6, dims: 8 }
    "halyard_attr" = Attr, 16, 8 { key: 0, ty: 4, bits: 8 }
    "halyard_weight_desc" = WeightDesc<'_>, 56, 8 { scheme: 0, role: 4, dtype: 8, groups: 12, n: 16, k: 24, group_size: 32, flags: 36, attrs: 40 }
    "halyard_op_desc" = OpDesc<'_>, 72, 8 { kind: 0, revision: 4, tensors: 8, weights: 24, attrs: 40, hints: 56 }
    "halyard_launch_args" = LaunchArgs<'_>, 88, 8 { plan: 0, workspace: 8, workspace_bytes: 16, tensors: 24, weights: 40, scalars: 56, host: 72 }
    "halyard_alloc_req" = AllocReq, 24, 8 { bytes: 0, align: 8, kind: 16, flags: 20 }
    "halyard_buffer" = Buffer, 32, 8 { id: 0, base: 8, bytes: 16, kind: 24, flags: 28 }
    "halyard_mem_ref" = MemRef, 24, 8 { base: 0, offset: 8, kind: 16, device: 20 }
    "halyard_copy_req" = CopyReq, 80, 8 { dst: 0, src: 24, row_bytes: 48, rows: 56, dst_pitch: 64, src_pitch: 72 }
    "halyard_metric" = Metric, 16, 8 { key: 0, index: 4, value: 8 }
    "halyard_weight_plan" = WeightPlan, 32, 8 { bytes: 0, align: 8, scratch_bytes: 16, format: 24 }
    "halyard_weight_fill" = WeightFill<'_>, 40, 8 { group: 0, flags: 4, row0: 8, rows: 16, parts: 24 }
    "halyard_kv_desc" = KvDesc<'_>, 40, 8 { kind: 0, dtype: 4, heads: 8, dim_k: 12, dim_v: 16, block_size: 20, attrs: 24 }
    "halyard_kv_layout" = KvLayout, 32, 8 { block_bytes: 0, align: 16, format: 24 }
    "halyard_a2av" = A2av<'_>, 368, 8 { send: 0, recv: 152, send_counts: 304, send_displs: 320, recv_counts: 336, recv_displs: 352 }
    "halyard_notify" = Notify, 16, 8 { func: 0, ctx: 8 }
    "halyard_key_value" = KeyValue<'_>, 32, 8 { key: 0, value: 16 }
    "halyard_comm_desc" = CommDesc<'_>, 64, 8 { id: 0, rank: 16, world: 20, timeout_ms: 24, name: 32, attrs: 48 }
    "halyard_error" = ErrorBuffer, 496, 4 { code: 0, vendor_code: 4, msg_len: 8, pad: 12, msg: 16 }
    "halyard_host_api" = HostTable, 40, 8 { struct_size: 0, abi_major: 8, abi_minor: 12, ctx: 16, log_enabled: 24, log: 32 }
}

/// Slices are a pointer and a length, in this order (a test below): `halyard_str` and its siblings.
const _: () = {
    assert!(size_of::<RStr<'_>>() == 16 && size_of::<Text>() == 16);
    assert!(size_of::<RSlice<'_, u8>>() == 16 && size_of::<RSlice<'_, TensorView>>() == 16);
    assert!(size_of::<BackendApi>() == 16 + BackendApi::NAMES.len() * size_of::<usize>());
};

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    const HEADER: &str = include_str!("../../include/halyard_backend.h");

    #[test]
    fn a_slice_is_a_pointer_and_a_length() {
        #[repr(C)]
        #[derive(Clone, Copy)]
        struct Words {
            ptr: usize,
            len: usize,
        }
        union Slice<'a> {
            bytes: RSlice<'a, u8>,
            text: RStr<'a>,
            words: Words,
        }
        let data = "abc";
        for slice in [
            Slice { bytes: RSlice::from_slice(data.as_bytes()) },
            Slice { text: RStr::from_str(data) },
        ] {
            // SAFETY: both sides are 16 bytes of plain data.
            let words = unsafe { slice.words };
            assert_eq!((words.ptr, words.len), (data.as_ptr().addr(), 3));
        }
    }

    /// Arguments of each use of a macro: `HALYARD_AT(halyard_attr, key, 0);`.
    fn uses(of: &str) -> Vec<Vec<&'static str>> {
        let call = |line: &'static str| line.strip_prefix(of)?.strip_suffix(");");
        let lines = HEADER.lines().filter_map(call);
        lines.map(|args| args.split(", ").collect()).collect()
    }

    #[test]
    fn the_header_asserts_the_same_layouts() {
        let mut theirs: BTreeMap<_, Vec<(&str, usize)>> = BTreeMap::new();
        for args in uses("HALYARD_AT(") {
            theirs.entry(args[0]).or_default().push((args[1], args[2].parse().unwrap()));
        }
        let sizes: BTreeMap<_, usize> = uses("HALYARD_SIZE(")
            .into_iter()
            .map(|args| (args[0], args[1].parse().unwrap()))
            .collect();
        for &(name, size, fields) in LAYOUTS {
            assert_eq!(sizes[name], size, "{name}");
            assert_eq!(theirs.remove(name).unwrap(), fields, "{name}");
        }
        assert_eq!(sizes["halyard_backend_api"], size_of::<BackendApi>());
        let table = theirs.remove("halyard_backend_api").unwrap();
        for (name, at) in table {
            let entry = BackendApi::NAMES.iter().position(|(n, _)| *n == name);
            assert_eq!(
                at,
                entry.map_or_else(|| if name == "struct_size" { 0 } else { at }, |i| 16 + 8 * i),
                "{name}"
            );
        }
        assert!(theirs.is_empty(), "structs that Rust does not have: {theirs:?}");
    }

    /// Entries of the header's table in order, and whether they stand under "Required".
    #[test]
    fn the_header_has_the_same_entries() {
        let table = HEADER.split("typedef struct halyard_backend_api {").nth(1).unwrap();
        let table = table.split("} halyard_backend_api;").next().unwrap();
        let optional = table.find("== Optional").unwrap();
        let found: Vec<(&str, bool)> = table
            .match_indices("(*")
            .map(|(at, _)| (table[at + 2..].split(')').next().unwrap(), at < optional))
            .collect();
        assert_eq!(found, BackendApi::NAMES);
    }
}
