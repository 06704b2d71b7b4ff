//! Operators as calculations: results go to a place that the caller gives, of the dims that both operands broadcast to.

use halyard_ascend_sys::types::ACL_FLOAT;
use halyard_sdk::Result;

use super::args::{Args, Kind, Place};
use crate::driver::{IntArray, NO_TENSOR, Scalar};

macro_rules! unary {
    ($($(#[$meta:meta])* $method:ident $operator:ident)*) => {
        impl Args<'_> {
            $($(#[$meta])* pub(super) fn $method(&self, x: &Place, to: &Place) -> Result<()> {
                let (x, to) = (self.tensor(x), self.tensor(to));
                enqueue!(self.on, $operator(&x, &to))
            })*
        }
    };
}

macro_rules! binary {
    ($($(#[$meta:meta])* $method:ident $operator:ident)*) => {
        impl Args<'_> {
            $($(#[$meta])* pub(super) fn $method(&self, a: &Place, b: &Place, to: &Place) -> Result<()> {
                let (a, b, to) = (self.tensor(a), self.tensor(b), self.tensor(to));
                enqueue!(self.on, $operator(&a, &b, &to))
            })*
        }
    };
}

unary! {
    exp Exp
    /// The natural logarithm.
    ln Log
    tanh Tanh
    sigmoid Sigmoid
}

binary! {
    mul Mul
    div Div
    /// True where `a < b`; false where one is NaN.
    less LtTensor
    /// True where `a <= b`; false where one is NaN.
    at_most LeTensor
    /// True where both are equal; a NaN is not.
    equal EqTensor
    bit_and BitwiseAndTensor
    bit_xor BitwiseXorTensor
}

impl Args<'_> {
    /// `a + alpha b`
    pub(super) fn add(&self, (a, b): (&Place, &Place), alpha: f32, to: &Place) -> Result<()> {
        let (a, b, to) = (self.tensor(a), self.tensor(b), self.tensor(to));
        let alpha = Scalar::float(alpha);
        enqueue!(self.on, Add(&a, &b, &alpha, &to))
    }

    /// `a - b`
    pub(super) fn sub(&self, a: &Place, b: &Place, to: &Place) -> Result<()> {
        let (a, b, to) = (self.tensor(a), self.tensor(b), self.tensor(to));
        let one = Scalar::int(1);
        enqueue!(self.on, Sub(&a, &b, &one, &to))
    }

    /// `to += b`
    pub(super) fn add_to(&self, to: &Place, b: &Place) -> Result<()> {
        let (to, b) = (self.tensor(to), self.tensor(b));
        let one = Scalar::int(1);
        enqueue!(self.on, InplaceAdd(&to, &b, &one))
    }

    /// Floats times a number.
    pub(super) fn scale(&self, x: &Place, by: f32, to: &Place) -> Result<()> {
        let (x, to) = (self.tensor(x), self.tensor(to));
        let by = Scalar::float(by);
        enqueue!(self.on, Muls(&x, &by, &to))
    }

    /// Puts a number everywhere.
    pub(super) fn fill(&self, to: &Place, value: f32) -> Result<()> {
        let to = self.tensor(to);
        let value = Scalar::float(value);
        enqueue!(self.on, InplaceFillScalar(&to, &value))
    }

    /// Puts a whole number everywhere; 1 is true.
    pub(super) fn fill_whole(&self, to: &Place, value: i64) -> Result<()> {
        let to = self.tensor(to);
        let value = Scalar::int(value);
        enqueue!(self.on, InplaceFillScalar(&to, &value))
    }

    pub(super) fn zero(&self, to: &Place) -> Result<()> {
        let to = self.tensor(to);
        enqueue!(self.on, InplaceZero(&to))
    }

    /// An f32 to read and broadcast.
    pub(super) fn number(&self, value: f32) -> Result<Place> {
        if let Some(place) = self.shared.constants.as_ref().and_then(|c| c.float(value)) {
            return Ok(place);
        }
        let place = self.scratch(Kind::F32, &[1])?;
        self.fill(&place, value)?;
        Ok(place)
    }

    /// An i64 to read and broadcast.
    pub(super) fn whole(&self, value: i64) -> Result<Place> {
        if let Some(place) = self.shared.constants.as_ref().and_then(|c| c.whole(value)) {
            return Ok(place);
        }
        let place = self.scratch(Kind::I64, &[1])?;
        self.fill_whole(&place, value)?;
        Ok(place)
    }

    /// `0, step, 2 step, ...` in i64.
    pub(super) fn count(&self, length: i64, step: i64) -> Result<Place> {
        let place = self.scratch(Kind::I64, &[length])?;
        let (first, end) = (Scalar::int(0), Scalar::int(length * step));
        let (step, to) = (Scalar::int(step), self.tensor(&place));
        enqueue!(self.on, Arange(&first, &end, &step, &to))?;
        Ok(place)
    }

    /// `to = mask ? yes : no`; `to` may be one of them.
    pub(super) fn choose(&self, mask: &Place, [yes, no]: [&Place; 2], to: &Place) -> Result<()> {
        let (mask, yes) = (self.tensor(mask), self.tensor(yes));
        let (no, to) = (self.tensor(no), self.tensor(to));
        enqueue!(self.on, SWhere(&mask, &yes, &no, &to))
    }

    /// Along the last axis.
    pub(super) fn softmax(&self, x: &Place, to: &Place) -> Result<()> {
        let (x, to) = (self.tensor(x), self.tensor(to));
        enqueue!(self.on, Softmax(&x, -1, &to))
    }

    /// The logarithm of [`Self::softmax`].
    pub(super) fn log_softmax(&self, x: &Place, to: &Place) -> Result<()> {
        let (x, to) = (self.tensor(x), self.tensor(to));
        enqueue!(self.on, LogSoftmax(&x, -1, &to))
    }

    /// Sorts along the last axis, the largest first, equal ones as they were: values, and in i64 where they were.
    pub(super) fn sort(&self, x: &Place, values: &Place, at: &Place) -> Result<()> {
        let (x, values, at) = (self.tensor(x), self.tensor(values), self.tensor(at));
        enqueue!(self.on, Sort(&x, true, -1, true, &values, &at))
    }

    /// `to[b, m] = from[b, at[b, m]]`
    pub(super) fn pick(&self, from: &Place, at: &Place, to: &Place) -> Result<()> {
        let (from, at, to) = (self.tensor(from), self.tensor(at), self.tensor(to));
        enqueue!(self.on, Gather(&from, 1, &at, &to))
    }

    /// `to[at[i]] = rows[i]`
    pub(super) fn scatter(&self, to: &Place, at: &Place, rows: &Place) -> Result<()> {
        let (to, at, rows) = (self.tensor(to), self.tensor(&at.column()), self.tensor(rows));
        enqueue!(self.on, ScatterNdUpdate(&to, &at, &rows))
    }

    /// Sums along the last axis, which `to` has as one element; both are f32.
    pub(super) fn sum(&self, x: &Place, to: &Place) -> Result<()> {
        let axis = IntArray(vec![x.dims.len() as i64 - 1]);
        let (x, to) = (self.tensor(x), self.tensor(to));
        enqueue!(self.on, ReduceSum(&x, &axis, true, ACL_FLOAT, &to))
    }

    /// Sums along the middle axis of three, which `to` does not have; both are f32.
    pub(super) fn sum_choices(&self, x: &Place, to: &Place) -> Result<()> {
        let axis = IntArray(vec![1]);
        let (x, to) = (self.tensor(x), self.tensor(to));
        enqueue!(self.on, ReduceSum(&x, &axis, false, ACL_FLOAT, &to))
    }

    /// Sums of each element and all before it in its row, in f32.
    pub(super) fn running_sum(&self, x: &Place, to: &Place) -> Result<()> {
        let (x, to) = (self.tensor(x), self.tensor(to));
        enqueue!(self.on, Cumsum(&x, 1, ACL_FLOAT, &to))
    }

    /// The largest of each row, which `to` has as one element.
    pub(super) fn largest(&self, x: &Place, to: &Place) -> Result<()> {
        let at = self.tensor(&self.scratch(Kind::I64, &to.dims)?);
        let (x, to) = (self.tensor(x), self.tensor(to));
        enqueue!(self.on, MaxDim(&x, -1, true, &to, &at))
    }

    /// Products of matrices, a batch.
    pub(super) fn batched(&self, a: &Place, b: &Place, to: &Place) -> Result<()> {
        /// `cubeMathType`: products of the operands' own type.
        const KEEP: i8 = 0;
        let (a, b, to) = (self.tensor(a), self.tensor(b), self.tensor(to));
        enqueue!(self.on, BatchMatMul(&a, &b, &to, KEEP))
    }

    /// What is on the diagonal so far to the right, or above it.
    pub(super) fn upper(&self, x: &Place, diagonal: i64, to: &Place) -> Result<()> {
        let (x, to) = (self.tensor(x), self.tensor(to));
        enqueue!(self.on, Triu(&x, diagonal, &to))
    }

    /// Codes of i8 and a scale a row, f32.
    pub(super) fn quantise(&self, x: &Place, codes: &Place, scale: &Place) -> Result<()> {
        let (x, codes, scale) = (self.tensor(x), self.tensor(codes), self.tensor(scale));
        enqueue!(self.on, DynamicQuant(&x, NO_TENSOR, &codes, &scale))
    }
}
