//! MOE_PERMUTE and MOE_UNPERMUTE: `kernels/moe.cu`.

use halyard_sdk::{Result, abi::ops::attrs};

use super::{
    Launch, Op, Prepared,
    args::{Args, Float, Strided, address, small},
};
use crate::{
    driver::{Function, Grid},
    weights::ROW_ALIGN,
};

#[repr(C)]
#[derive(Clone, Copy)]
struct SortParams {
    ids: u64,
    offsets: u64,
    inverse: u64,
    ids_stride: i64,
    inverse_stride: i64,
    first_expert: i64,
    pairs: u32,
    top: u32,
    experts: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct PermuteParams {
    x: u64,
    xp: u64,
    offsets: u64,
    inverse: u64,
    weight: u64,
    x_stride: i64,
    xp_stride: i64,
    inverse_stride: i64,
    weight_stride: i64,
    top: u32,
    experts: u32,
    cols: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct UnpermuteParams {
    yp: u64,
    inverse: u64,
    weight: u64,
    y: u64,
    add: u64,
    yp_stride: i64,
    inverse_stride: i64,
    weight_stride: i64,
    y_stride: i64,
    add_stride: i64,
    pairs: u32,
    top: u32,
    cols: u32,
    by_eights: u32,
}

/// Pairs of tokens and experts, and where they go.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pairs {
    /// The expert of each pair, a row a token.
    pub(super) ids: Strided,
    /// The first pair of each expert, and the end of the last one's.
    pub(super) offsets: u64,
    /// The row of each pair, a row a token.
    pub(super) inverse: Strided,
    pub(super) tokens: u32,
    pub(super) top: u32,
    pub(super) experts: u32,
}

impl Pairs {
    /// # Errors
    /// `UNSUPPORTED` if there are more than kernels count.
    pub(super) fn count(&self) -> Result<u32> {
        small("pairs of tokens and experts", i64::from(self.tokens) * i64::from(self.top))
    }
}

/// Sorts rows by expert.
pub(super) struct Permutation {
    sort: Function<SortParams>,
    rows: Function<PermuteParams>,
    vectors: Function<PermuteParams>,
    weighted: Option<Function<PermuteParams>>,
    float: Float,
    first_expert: i64,
}

impl Permutation {
    /// `weighted` multiplies rows by their weight.
    pub(super) fn new(
        op: &Op<'_>,
        float: Float,
        first_expert: i64,
        weighted: bool,
    ) -> Result<Self> {
        let kernel = |name: &str| op.kernel("moe", name);
        let multiply = || kernel(&format!("moe_permute_weighted_{}", float.suffix()));
        Ok(Self {
            sort: op.kernel("moe", "moe_sort")?,
            rows: kernel(&format!("moe_permute_b{}", float.bytes() * 8))?,
            vectors: kernel("moe_permute_b128")?,
            weighted: weighted.then(multiply).transpose()?,
            float,
            first_expert,
        })
    }

    /// Enqueues it: `offsets` and `inverse` are written, and a row of `xp` for each pair.
    pub(super) fn run(
        &self,
        args: &Args<'_>,
        pairs: &Pairs,
        (x, xp, cols): (Strided, Strided, u32),
        weight: Strided,
    ) -> Result<()> {
        let count = pairs.count()?;
        let sort = SortParams {
            ids: pairs.ids.data,
            offsets: pairs.offsets,
            inverse: pairs.inverse.data,
            ids_stride: pairs.ids.stride,
            inverse_stride: pairs.inverse.stride,
            first_expert: self.first_expert,
            pairs: count,
            top: pairs.top,
            experts: pairs.experts,
        };
        args.enqueue(&self.sort, Grid::line(pairs.experts + 1, 512), &sort)?;
        let bytes = self.float.bytes();
        let by_vectors =
            self.weighted.is_none() && x.aligned(cols, bytes) && xp.aligned(cols, bytes);
        let (x, xp, cols) = if by_vectors {
            let cols = cols / (ROW_ALIGN / bytes) as u32;
            (x.in_vectors(bytes), xp.in_vectors(bytes), cols)
        } else {
            (x, xp, cols)
        };
        let params = PermuteParams {
            x: x.data,
            xp: xp.data,
            offsets: pairs.offsets,
            inverse: pairs.inverse.data,
            weight: weight.data,
            x_stride: x.stride,
            xp_stride: xp.stride,
            inverse_stride: pairs.inverse.stride,
            weight_stride: weight.stride,
            top: pairs.top,
            experts: pairs.experts,
            cols,
        };
        let plain = if by_vectors { &self.vectors } else { &self.rows };
        args.enqueue(self.weighted.as_ref().unwrap_or(plain), Grid::line(count, 256), &params)
    }
}

/// Sums the rows of each token's pairs.
pub(super) struct Sums {
    kernel: Function<UnpermuteParams>,
    from: Float,
    to: Float,
}

impl Sums {
    pub(super) fn new(op: &Op<'_>, from: Float, to: Float) -> Result<Self> {
        let name = format!("moe_unpermute_{}_{}", from.suffix(), to.suffix());
        Ok(Self { kernel: op.kernel("moe", &name)?, from, to })
    }

    /// Enqueues it: `yp` has a row for each of `rows` pairs; without `weight` all weigh 1.
    pub(super) fn run(
        &self,
        args: &Args<'_>,
        pairs: &Pairs,
        (yp, rows): (Strided, u32),
        weight: Option<Strided>,
        (y, add, cols): (Strided, Option<Strided>, u32),
    ) -> Result<()> {
        let aligned = |m: Strided| m.aligned(cols, self.to.bytes());
        let by_eights = cols.is_multiple_of(8)
            && yp.aligned(cols, self.from.bytes())
            && aligned(y)
            && add.is_none_or(aligned);
        let (weight, add) = (weight.unwrap_or_default(), add.unwrap_or_default());
        let params = UnpermuteParams {
            yp: yp.data,
            inverse: pairs.inverse.data,
            weight: weight.data,
            y: y.data,
            add: add.data,
            yp_stride: yp.stride,
            inverse_stride: pairs.inverse.stride,
            weight_stride: weight.stride,
            y_stride: y.stride,
            add_stride: add.stride,
            pairs: rows,
            top: pairs.top,
            cols,
            by_eights: u32::from(by_eights),
        };
        let a_block = if by_eights { 8 * 256 } else { 256 };
        let grid = Grid::rows(pairs.tokens, (cols, a_block), 256)?;
        args.enqueue(&self.kernel, grid, &params)
    }
}

struct Permute(Permutation);

pub(super) fn permute(op: &Op<'_>) -> Result<Prepared> {
    let attrs::MoePermute { expert_start } = op.attrs()?;
    Ok(Prepared::native(Permute(Permutation::new(op, op.float(0)?, expert_start, false)?)))
}

impl Launch for Permute {
    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let (x, ids, xp) = (args.view(0)?, args.view(1)?, args.view(2)?);
        let (offsets, inverse) = (args.view(3)?, args.view(4)?);
        let pairs = Pairs {
            ids: Strided::of(ids),
            offsets: address(offsets),
            inverse: Strided::of(inverse),
            tokens: small("tokens", ids.dims[0])?,
            top: small("chosen experts", ids.dims[1])?,
            experts: small("experts", offsets.dims[0] - 1)?,
        };
        let rows = (Strided::of(x), Strided::of(xp), small("columns", x.dims[1])?);
        self.0.run(args, &pairs, rows, Strided::default())
    }
}

struct Unpermute(Sums);

pub(super) fn unpermute(op: &Op<'_>) -> Result<Prepared> {
    op.attrs::<attrs::MoeUnpermute>()?;
    Ok(Prepared::native(Unpermute(Sums::new(op, op.float(0)?, op.float(3)?)?)))
}

impl Launch for Unpermute {
    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let (yp, inverse, weight) = (args.view(0)?, args.view(1)?, args.view(2)?);
        let y = args.view(3)?;
        let pairs = Pairs {
            ids: Strided::default(),
            offsets: 0,
            inverse: Strided::of(inverse),
            tokens: small("tokens", inverse.dims[0])?,
            top: small("chosen experts", inverse.dims[1])?,
            experts: 0,
        };
        let rows = (Strided::of(yp), small("rows", yp.dims[0])?);
        let to = (Strided::of(y), args.optional(4).map(Strided::of), small("columns", y.dims[1])?);
        self.0.run(args, &pairs, rows, Some(Strided::of(weight)), to)
    }
}
