//! Indices from device memory, of which negative ones mean "none": the operators fault on these.

use halyard_sdk::Result;

use super::args::{Args, Kind, Place, scratch_bytes};
use crate::driver::Scalar;

/// Indices that all name something, and which of them named nothing.
pub(super) struct Indices {
    /// i64; 0 where there was none.
    pub(super) at: Place,
    /// True where there was none.
    pub(super) none: Place,
}

/// Scratch bytes of [`indices`].
pub(super) fn index_bytes(count: i64) -> u64 {
    let one = scratch_bytes(Kind::I64, &[1]);
    scratch_bytes(Kind::I64, &[count]) + scratch_bytes(Kind::BOOL, &[count]) + one
}

/// True for negative elements of an i64 tensor.
pub(super) fn negative(args: &Args<'_>, of: &Place) -> Result<Place> {
    let mask = args.scratch(Kind::BOOL, &of.dims)?;
    args.less(of, &args.whole(0)?, &mask)?;
    Ok(mask)
}

/// Puts a number where the mask is true.
pub(super) fn put(args: &Args<'_>, to: &Place, mask: &Place, value: f32) -> Result<()> {
    let (to, mask) = (args.tensor(to), args.tensor(mask));
    let value = Scalar::float(value);
    enqueue!(args.on, InplaceMaskedFillScalar(&to, &mask, &value))
}

/// Takes negative indices apart.
pub(super) fn indices(args: &Args<'_>, ids: &Place) -> Result<Indices> {
    let at = args.cast(ids, Kind::I64)?;
    let none = negative(args, &at)?;
    put_index(args, &at, &none)?;
    Ok(Indices { at, none })
}

/// Puts 0 where the mask is true.
pub(super) fn put_index(args: &Args<'_>, to: &Place, mask: &Place) -> Result<()> {
    let (to, mask) = (args.tensor(to), args.tensor(mask));
    let zero = Scalar::int(0);
    enqueue!(args.on, InplaceMaskedFillScalar(&to, &mask, &zero))
}

/// `to[i] = from[at[i]]`, rows.
pub(super) fn select(args: &Args<'_>, from: &Place, at: &Place, to: &Place) -> Result<()> {
    let (from, at, to) = (args.tensor(from), args.tensor(at), args.tensor(to));
    enqueue!(args.on, IndexSelect(&from, 0, &at, &to))
}
