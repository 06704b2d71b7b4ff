//! A product `D = α op(A) op(B) + β C (+ bias)`, what is asked of its matrices, and the algorithm for it.

use crate::{
    object::{Layout, Preference, Product, Type},
    status::{Failure, Outcome},
};

/// Words of `cublasLtMatmulAlgo_t`.
pub(crate) type Algorithm = [u64; 8];

/// What a workspace is aligned to.
pub(crate) const WORKSPACE_ALIGN: u64 = 256;
/// What an algorithm that splits K keeps there.
const SPLIT_BYTES: u64 = 1 << 16;
/// The first word of an algorithm of this library.
const MAGIC: u64 = 0x6861_6c79_6172_6421;
/// `CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE`
const IN_COMPUTE_TYPE: u32 = 2;

/// Layouts and description of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) product: Product,
    /// A, B, C and D.
    pub(crate) layouts: [Layout; 4],
}

impl Problem {
    /// # Errors
    /// `NOT_SUPPORTED` for types that do not go together; `INVALID_VALUE` for shapes that do not.
    pub(crate) fn new(product: Product, layouts: [Layout; 4]) -> Outcome<Self> {
        let [a, b, c, d] = layouts;
        if a.float != b.float || (d.float != a.float && d.float != Type::F32) || c.float != d.float
        {
            return Err(Failure::unsupported(format!(
                "A of {:?}, B of {:?}, C of {:?} and D of {:?}: expected A and B of one type, C and D both of that or of F32",
                a.float, b.float, c.float, d.float
            )));
        }
        for (name, layout) in ["A", "B", "C", "D"].into_iter().zip(layouts) {
            let Layout { rows, columns, leading, .. } = layout;
            if rows == 0
                || columns == 0
                || u64::try_from(leading).is_ok_and(|l| l < rows)
                || leading < 0
            {
                return Err(Failure::value(format!(
                    "{name} is {rows}x{columns} with leading dimension {leading}"
                )));
            }
        }
        let this = Self { product, layouts };
        let (m, n, k) = this.sizes();
        let expected = [this.stored(0, m, k), this.stored(1, k, n), (m, n), (m, n)];
        for ((name, layout), expected) in
            ["A", "B", "C", "D"].into_iter().zip(layouts).zip(expected)
        {
            if (layout.rows, layout.columns) != expected {
                return Err(Failure::value(format!(
                    "{name} is {}x{}, expected {}x{}",
                    layout.rows, layout.columns, expected.0, expected.1
                )));
            }
        }
        if product.biased && product.bias_type.is_some_and(|float| float != d.float) {
            return Err(Failure::unsupported("a bias of another type than D"));
        }
        Ok(this)
    }

    /// A matrix of these sizes as it is stored.
    fn stored(&self, operand: usize, rows: u64, columns: u64) -> (u64, u64) {
        if self.product.transposed[operand] { (columns, rows) } else { (rows, columns) }
    }

    /// Rows and columns of D, and terms of each sum.
    pub(crate) fn sizes(&self) -> (u64, u64, u64) {
        let [a, _, _, d] = self.layouts;
        (d.rows, d.columns, if self.product.transposed[0] { a.rows } else { a.columns })
    }

    /// What an algorithm remembers of the product that it is for: all but addresses.
    fn fingerprint(&self) -> u64 {
        let product = Product { bias: 0, ..self.product };
        // FNV-1a, of what tells products apart.
        format!("{product:?} {:?}", self.layouts)
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
            })
    }

    /// The algorithm for matrices that are aligned so, and its workspace; none if there is none.
    pub(crate) fn algorithm(&self, preference: &Preference) -> Option<(Algorithm, u64)> {
        // As on tensor cores: matrices and their columns begin at multiples of 16 bytes.
        let aligned = |layout: &Layout| {
            (layout.leading.unsigned_abs() * layout.float.bytes()).is_multiple_of(16)
        };
        if preference.alignments.iter().any(|&bytes| bytes < 16)
            || !self.layouts.iter().all(aligned)
        {
            return None;
        }
        let splits = preference.reductions & IN_COMPUTE_TYPE != 0
            && preference.workspace_bytes >= SPLIT_BYTES;
        let workspace = if splits { SPLIT_BYTES } else { 0 };
        let alignments = preference.alignments.map(u64::from);
        let [a, b, c, d] = alignments;
        Some(([MAGIC, self.fingerprint(), workspace, a, b, c, d, 0], workspace))
    }

    /// The bytes of workspace that an algorithm wants, and the alignments that it was promised.
    ///
    /// # Errors
    /// `INVALID_VALUE` if it is none of this library's, or one for another product.
    pub(crate) fn check(&self, algorithm: &Algorithm) -> Outcome<(u64, [u64; 4])> {
        let [magic, fingerprint, workspace, a, b, c, d, _] = *algorithm;
        if magic != MAGIC {
            return Err(Failure::value(
                "the algorithm is none that cublasLtMatmulAlgoGetHeuristic gave",
            ));
        }
        if fingerprint != self.fingerprint() {
            return Err(Failure::value("the algorithm was found for another product"));
        }
        Ok((workspace, [a, b, c, d]))
    }
}
