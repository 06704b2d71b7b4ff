//! GATHER_ROWS and EMBEDDING.

use halyard_sdk::{
    Error, Result,
    abi::ops::attrs::{Embedding, GatherRows},
};

use super::args::Args;
use super::{Launch, Op, Prepared, checked_row, for_rows, same};
use crate::gemm::Layout;
use crate::pack::BLOCK;

pub(super) fn gather_rows(op: &Op<'_>) -> Result<Prepared> {
    let GatherRows {} = op.attrs()?;
    Ok(Prepared::tuned(Gather))
}

/// `y[b] = x[idx[b]]`; a negative index gives zeros.
struct Gather;

impl Launch for Gather {
    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let (x, rows, cols) = args.rows(0)?;
        // SAFETY: the host has checked the view.
        let idx: &[i32] = unsafe { args.slice(1)? };
        let (y, y_rows, y_cols) = args.rows_mut(2)?;
        same("rows", idx.len(), y_rows)?;
        same("columns", cols, y_cols)?;
        for &i in idx.iter().filter(|&&i| i >= 0) {
            checked_row("idx", i64::from(i), rows)?;
        }
        let bytes = cols * y.elem.bytes();
        for_rows(&args.context.pool, idx.len(), cols, |range| {
            for b in range {
                // SAFETY: the host has checked the views; the index is inside `x`; both have one type.
                unsafe {
                    match usize::try_from(idx[b]) {
                        Ok(i) => std::ptr::copy_nonoverlapping(x.at(i, 0), y.at(b, 0), bytes),
                        Err(_) => y.at(b, 0).write_bytes(0, bytes),
                    }
                }
            }
        });
        Ok(())
    }
}

pub(super) fn embedding(op: &Op<'_>) -> Result<Prepared> {
    let Embedding { scale, vocab_start } = op.attrs()?;
    if op.layouts[0].is_ordered() {
        return Err(Error::unsupported("embedding: a table with columns out of order (act-order)"));
    }
    Ok(Prepared::tuned(Embed { scale: scale as f32, vocab_start, layout: op.layouts[0] }))
}

/// `y[t] = scale W[ids[t] - vocab_start]` if that row exists, else zeros.
struct Embed {
    scale: f32,
    vocab_start: i64,
    layout: Layout,
}

impl Launch for Embed {
    fn launch(&self, args: &Args<'_>) -> Result<()> {
        // SAFETY: the host has checked the view.
        let ids: &[i32] = unsafe { args.slice(0)? };
        let (y, tokens, cols) = args.rows_mut(1)?;
        let w = args.weight(0)?;
        if *w.layout() != self.layout || w.groups() != 1 {
            return Err(Error::invalid(
                "a weight of another form than the kernel was prepared for",
            ));
        }
        same("tokens", ids.len(), tokens)?;
        same("columns", cols, self.layout.k())?;
        let matrix = w.matrix(0);
        let row_of = |id: i32| {
            let row = i64::from(id).checked_sub(self.vocab_start).filter(|_| id >= 0)?;
            usize::try_from(row).ok().filter(|&row| row < self.layout.n())
        };
        // Taking a packed row apart costs about four times a copy.
        for_rows(&args.context.pool, tokens, 4 * cols, |range| {
            for t in range {
                let row = row_of(ids[t]);
                for b in 0..self.layout.blocks() {
                    let mut part = [0.0; BLOCK];
                    // SAFETY: the row is one of the matrix; the host has checked `y`.
                    unsafe {
                        if let Some(row) = row {
                            matrix.unpack(row, b, &mut part);
                        }
                        for (col, &v) in self.layout.columns(b).zip(&part) {
                            y.set(t, col, self.scale * v);
                        }
                    }
                }
            }
        });
        Ok(())
    }
}
