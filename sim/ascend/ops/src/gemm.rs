//! Products of matrices in memory: rows of one with rows of the other.

const LANES: usize = 16;

/// Rows of the result, its columns, and the numbers that are summed for each.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Extent {
    pub(crate) m: usize,
    pub(crate) n: usize,
    pub(crate) k: usize,
}

/// The sum of products in lanes, so that the compiler can use vectors.
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let ((a_chunks, a_rest), (b_chunks, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (x, y) in a_chunks.iter().zip(b_chunks) {
        for lane in 0..LANES {
            lanes[lane] += x[lane] * y[lane];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(x, y)| x * y).sum();
    lanes.iter().sum::<f32>() + rest
}

fn int_dot(a: &[i32], b: &[i32]) -> i32 {
    a.iter().zip(b).fold(0, |sum, (x, y)| sum.wrapping_add(x.wrapping_mul(*y)))
}

fn product<T: Copy + Default>(
    a: &[T],
    b: &[T],
    size: Extent,
    dot: impl Fn(&[T], &[T]) -> T,
) -> Vec<T> {
    /// Rows of b that stay in the cache while all rows of a pass.
    const BLOCK: usize = 64;
    let Extent { m, n, k } = size;
    let mut out = vec![T::default(); m * n];
    for start in (0..n).step_by(BLOCK) {
        for row in 0..m {
            let x = &a[row * k..][..k];
            for column in start..(start + BLOCK).min(n) {
                out[row * n + column] = dot(x, &b[column * k..][..k]);
            }
        }
    }
    out
}

/// `[M, N] = [M, K] · [N, K]ᵀ`, accumulated in f32.
pub(crate) fn rows_by_rows(a: &[f32], b: &[f32], size: Extent) -> Vec<f32> {
    product(a, b, size, dot)
}

/// The same of whole numbers, accumulated in 32 bits that wrap.
pub(crate) fn int_rows_by_rows(a: &[i32], b: &[i32], size: Extent) -> Vec<i32> {
    product(a, b, size, int_dot)
}
