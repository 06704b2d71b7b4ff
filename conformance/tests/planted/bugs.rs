//! The bugs, each one that a hurried hand could make.
#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a failing helper fails the test; sizes are small"
)]

use halyard_sdk::{
    Attr, DType, LaunchArgs, OpKind, Result, Scheme, TensorSpec, TensorView, abi::AttrKey,
};

use crate::device::{Bug, Inner, moved};

fn set(attrs: &mut [Attr], key: AttrKey, change: impl Fn(u64) -> u64) {
    for attr in attrs.iter_mut().filter(|a| a.key == key) {
        attr.bits = change(attr.bits);
    }
}

/// The launch with one tensor of 32-bit integers replaced.
fn with_ints(
    kernel: &Inner,
    args: &LaunchArgs<'_>,
    slot: usize,
    change: impl Fn(usize, i32) -> i32,
) -> Result<()> {
    let mut tensors = args.tensors.to_vec();
    let values: Vec<i32> =
        kernel.ints(&tensors[slot]).into_iter().enumerate().map(|(i, v)| change(i, v)).collect();
    tensors[slot] = moved(&tensors[slot], &values);
    kernel.run_with(args, &tensors)
}

fn element_bytes(view: &TensorView) -> usize {
    (view.dtype.bits().unwrap() / 8) as usize
}

fn address(view: &TensorView, element: i64) -> u64 {
    view.data + view.byte_offset + element as u64 * element_bytes(view) as u64
}

/// None: the wrapper itself.
pub(crate) struct NoBug;
impl Bug for NoBug {
    const KIND: OpKind = OpKind::LINEAR;
}

/// Prefilled tokens do not see themselves.
pub(crate) struct MaskOffByOne;
impl Bug for MaskOffByOne {
    const KIND: OpKind = OpKind::PAGED_ATTENTION;
    fn launch(kernel: &Inner, args: &LaunchArgs<'_>) -> Result<()> {
        let cu_q = kernel.ints(&args.tensors[4]);
        with_ints(kernel, args, 5, |b, len| if cu_q[b + 1] - cu_q[b] > 1 { len - 1 } else { len })
    }
}

/// Query head `h` reads KV head `h % Hk`.
pub(crate) struct WrongKvHead;
impl Bug for WrongKvHead {
    const KIND: OpKind = OpKind::PAGED_ATTENTION;
    fn launch(kernel: &Inner, args: &LaunchArgs<'_>) -> Result<()> {
        let mut tensors = args.tensors.to_vec();
        let (q, o) = (tensors[0], tensors[6]);
        let (heads, kv_heads) = (q.dims[1], tensors[1].dims[2]);
        // Heads of one KV head next to each other, as the right kernel wants them.
        let order: Vec<i64> =
            (0..kv_heads).flat_map(|kv| (kv..heads).step_by(kv_heads as usize)).collect();
        let row = |view: &TensorView, t: i64, h: i64| {
            let bytes = view.dims[2] as usize * element_bytes(view);
            (address(view, t * view.strides[0] + h * view.strides[1]), bytes)
        };
        let mut shuffled = Vec::new();
        for t in 0..q.dims[0] {
            for &h in &order {
                let (from, bytes) = row(&q, t, h);
                shuffled.extend(kernel.read(from, bytes));
            }
        }
        let out = vec![0u8; o.elements().unwrap() as usize * element_bytes(&o)];
        (tensors[0], tensors[6]) = (moved(&q, &shuffled), moved(&o, &out));
        let packed = tensors[6];
        kernel.run_with(args, &tensors)?;
        for t in 0..o.dims[0] {
            for (place, &h) in order.iter().enumerate() {
                let (from, bytes) = row(&packed, t, place as i64);
                kernel.write(row(&o, t, h).0, &kernel.read(from, bytes));
            }
        }
        Ok(())
    }
}

/// Only whole blocks are read, once there is one.
pub(crate) struct LastBlockMissed;
impl Bug for LastBlockMissed {
    const KIND: OpKind = OpKind::PAGED_ATTENTION;
    fn launch(kernel: &Inner, args: &LaunchArgs<'_>) -> Result<()> {
        let block = args.tensors[1].dims[1] as i32;
        let cu_q = kernel.ints(&args.tensors[4]);
        with_ints(kernel, args, 5, |b, len| {
            let decode = cu_q[b + 1] - cu_q[b] == 1;
            if decode && len > block { len / block * block } else { len }
        })
    }
}

/// The window reaches one further.
pub(crate) struct WindowOffByOne;
impl Bug for WindowOffByOne {
    const KIND: OpKind = OpKind::PAGED_ATTENTION;
    fn descriptor(attrs: &mut Vec<Attr>, _: &mut Vec<TensorSpec>) {
        set(attrs, AttrKey::WINDOW, |w| if w.cast_signed() < 0 { w } else { w + 1 });
    }
}

/// The norm divides by the root mean square alone.
pub(crate) struct EpsDropped;
impl Bug for EpsDropped {
    const KIND: OpKind = OpKind::RMS_NORM;
    fn descriptor(attrs: &mut Vec<Attr>, _: &mut Vec<TensorSpec>) {
        set(attrs, AttrKey::EPS, |_| f64::to_bits(1e-12));
    }
}

/// The bias is accepted and not added.
pub(crate) struct BiasDropped;
impl Bug for BiasDropped {
    const KIND: OpKind = OpKind::LINEAR;
    fn launch(kernel: &Inner, args: &LaunchArgs<'_>) -> Result<()> {
        let mut tensors = args.tensors.to_vec();
        tensors[1] = TensorView::NONE;
        kernel.run_with(args, &tensors)
    }
}

/// The output is overwritten instead of added to.
pub(crate) struct AccumulateIgnored;
impl Bug for AccumulateIgnored {
    const KIND: OpKind = OpKind::LINEAR;
    fn descriptor(attrs: &mut Vec<Attr>, _: &mut Vec<TensorSpec>) {
        set(attrs, AttrKey::ACCUMULATE, |_| 0);
    }
}

/// Rows are taken to follow each other without gaps.
pub(crate) struct StrideIgnored;
impl Bug for StrideIgnored {
    const KIND: OpKind = OpKind::ACT_MUL;
    fn launch(kernel: &Inner, args: &LaunchArgs<'_>) -> Result<()> {
        let packed = |v: &TensorView| TensorView::contiguous(v.data, v.byte_offset, &v.spec());
        let tensors: Vec<TensorView> = args.tensors.iter().map(packed).collect();
        kernel.run_with(args, &tensors)
    }
}

/// A whole vector is stored where the last columns are fewer.
pub(crate) struct PastTheEnd;
impl Bug for PastTheEnd {
    const KIND: OpKind = OpKind::MUL;
    fn launch(kernel: &Inner, args: &LaunchArgs<'_>) -> Result<()> {
        kernel.run(args)?;
        let y = args.tensors[2];
        let end = y.data + y.byte_offset + y.extent_bytes().unwrap();
        if y.dims().last().is_some_and(|w| w % 8 != 0) {
            kernel.write(end, &[0; 4]);
        }
        Ok(())
    }
}

/// The input serves as scratch.
pub(crate) struct InputOverwritten;
impl Bug for InputOverwritten {
    const KIND: OpKind = OpKind::RMS_NORM;
    fn launch(kernel: &Inner, args: &LaunchArgs<'_>) -> Result<()> {
        kernel.run(args)?;
        let (x, y) = (args.tensors[0], args.tensors[2]);
        if x.elements() > Some(0) {
            kernel.write(address(&x, 0), &kernel.read(address(&y, 0), element_bytes(&x)));
        }
        Ok(())
    }
}

/// `>=` where `>` is meant.
pub(crate) struct TiesToTheLast;
impl Bug for TiesToTheLast {
    const KIND: OpKind = OpKind::ARGMAX;
    fn launch(kernel: &Inner, args: &LaunchArgs<'_>) -> Result<()> {
        kernel.run(args)?;
        let (logits, ids) = (args.tensors[0], args.tensors[1]);
        for (b, first) in kernel.ints(&ids).into_iter().enumerate() {
            let row = |i: i64| {
                kernel.read(
                    address(&logits, b as i64 * logits.strides[0] + i),
                    element_bytes(&logits),
                )
            };
            let best = row(i64::from(first));
            let last = (0..logits.dims[1]).rev().find(|&i| row(i) == best).unwrap();
            kernel.write(address(&ids, b as i64), &(last as i32).to_le_bytes());
        }
        Ok(())
    }
}

/// A token without a slot goes to slot 0.
pub(crate) struct PaddingWritten;
impl Bug for PaddingWritten {
    const KIND: OpKind = OpKind::KV_WRITE;
    fn launch(kernel: &Inner, args: &LaunchArgs<'_>) -> Result<()> {
        let mut tensors = args.tensors.to_vec();
        let slots = tensors[2];
        let bytes = kernel.read(slots.data + slots.byte_offset, 8 * slots.dims[0] as usize);
        let fixed: Vec<i64> =
            bytes.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b).max(0)).collect();
        tensors[2] = moved(&slots, &fixed);
        kernel.run_with(args, &tensors)
    }
}

/// Sub-blocks 4 to 7 of Q4_K have four bits of their scale instead of six.
pub(crate) struct ScaleBitsLost;
impl Bug for ScaleBitsLost {
    const KIND: OpKind = OpKind::LINEAR;
    fn weight(scheme: Scheme, bytes: &mut [u8]) {
        if scheme == Scheme::GGUF_Q4_K {
            for block in bytes.chunks_mut(144) {
                block[4..8].iter_mut().for_each(|b| *b &= 63);
            }
        }
    }
}

/// Positions count from 1.
pub(crate) struct NextPosition;
impl Bug for NextPosition {
    const KIND: OpKind = OpKind::ROPE;
    fn launch(kernel: &Inner, args: &LaunchArgs<'_>) -> Result<()> {
        let most = args.tensors[3].dims[0] as i32 - 1;
        with_ints(kernel, args, 2, |_, p| if p < 0 { p } else { (p + 1).min(most) })
    }
}

/// The filter is accepted and not applied.
pub(crate) struct MinPIgnored;
impl Bug for MinPIgnored {
    const KIND: OpKind = OpKind::SAMPLE;
    fn launch(kernel: &Inner, args: &LaunchArgs<'_>) -> Result<()> {
        with_ints(kernel, args, 4, |_, _| 0)
    }
}

/// Every rank takes its experts for the first ones.
pub(crate) struct ExpertStartIgnored;
impl Bug for ExpertStartIgnored {
    const KIND: OpKind = OpKind::MOE_EXPERTS;
    fn descriptor(attrs: &mut Vec<Attr>, _: &mut Vec<TensorSpec>) {
        set(attrs, AttrKey::EXPERT_START, |_| 0);
    }
}

/// Attributes that it does not know are dropped.
pub(crate) struct UnknownAttrIgnored;
impl Bug for UnknownAttrIgnored {
    const KIND: OpKind = OpKind::ADD;
    fn descriptor(attrs: &mut Vec<Attr>, _: &mut Vec<TensorSpec>) {
        attrs.retain(|a| AttrKey::ALL.contains(&a.key));
    }
}

/// With many rows another order of summation: right within tolerance, but not the same.
pub(crate) struct BatchVariant;
impl Bug for BatchVariant {
    const KIND: OpKind = OpKind::LINEAR;
    fn launch(kernel: &Inner, args: &LaunchArgs<'_>) -> Result<()> {
        kernel.run(args)?;
        let y = args.tensors[2];
        if y.dtype == DType::F32 && y.dims[0] >= 4 && y.dims[1] > 0 {
            let at = address(&y, 0);
            let value = f32::from_le_bytes(kernel.read(at, 4).try_into().unwrap());
            kernel.write(at, &f32::from_bits(value.to_bits() ^ 1).to_le_bytes());
        }
        Ok(())
    }
}

/// Scratch memory is taken to be zero.
pub(crate) struct ScratchRead;
impl Bug for ScratchRead {
    const KIND: OpKind = OpKind::LINEAR;
    const SCRATCH: u64 = 64;
    fn launch(kernel: &Inner, args: &LaunchArgs<'_>) -> Result<()> {
        kernel.run(args)?;
        let y = args.tensors[2];
        if y.dtype == DType::F32 && y.elements() > Some(0) {
            let at = address(&y, 0);
            let value = f32::from_le_bytes(kernel.read(at, 4).try_into().unwrap());
            // A lowest bit: too little for the comparison with the oracle.
            let noise = u32::from(kernel.read(args.workspace, 4) == [0; 4]);
            kernel.write(at, &f32::from_bits(value.to_bits() ^ noise).to_le_bytes());
        }
        Ok(())
    }
}

/// A panic at one width.
pub(crate) struct PanicsAtEight;
impl Bug for PanicsAtEight {
    const KIND: OpKind = OpKind::ACT_MUL;
    fn launch(kernel: &Inner, args: &LaunchArgs<'_>) -> Result<()> {
        assert!(args.tensors[0].dims[1] != 16, "eight columns");
        kernel.run(args)
    }
}
