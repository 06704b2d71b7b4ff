//! Rows (along the last dim) of a tensor as plain vectors.

use std::ops::Range;

use halyard_sdk::{Error, HostTensor, Result};

/// Every index of all dims but the last, in order.
pub(crate) fn leads(t: &HostTensor) -> Vec<Vec<usize>> {
    let mut all = vec![vec![]];
    for axis in 0..t.rank() - 1 {
        let longer = |lead: &Vec<usize>| {
            let lead = lead.clone();
            (0..t.dim(axis)).map(move |i| [lead.as_slice(), &[i]].concat())
        };
        all = all.iter().flat_map(longer).collect();
    }
    all
}

/// Extent of the last dim.
pub(crate) fn width(t: &HostTensor) -> usize {
    t.dim(t.rank() - 1)
}

/// A row's elements.
pub(crate) fn read(t: &HostTensor, lead: &[usize]) -> Vec<f64> {
    t.row(lead).collect()
}

/// The elements of an integer tensor of rank 1.
pub(crate) fn ints(t: &HostTensor) -> Vec<i64> {
    (0..t.dim(0)).map(|i| t.get_int(&[i])).collect()
}

/// A length that the values give; a negative one is none.
pub(crate) fn length(n: i64) -> usize {
    usize::try_from(n).unwrap_or(0)
}

/// `a · b`.
pub(crate) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// A row number that a launch's values give.
pub(crate) fn checked(what: &str, row: i64, rows: usize) -> Result<usize> {
    usize::try_from(row)
        .ok()
        .filter(|&r| r < rows)
        .ok_or_else(|| Error::invalid(format!("{what} is {row}, there are {rows}")))
}

/// The rows `starts[i]..starts[i + 1]` of a tensor that has `rows`, for each `i`.
pub(crate) fn ranges(what: &str, starts: &HostTensor, rows: usize) -> Result<Vec<Range<usize>>> {
    let starts = ints(starts);
    let rising = starts.windows(2).all(|w| w[0] <= w[1]);
    if starts[0] != 0 || !rising || length(starts[starts.len() - 1]) > rows {
        return Err(Error::invalid(format!(
            "{what} {starts:?} for {rows} rows, expected to rise from 0"
        )));
    }
    Ok(starts.windows(2).map(|w| length(w[0])..length(w[1])).collect())
}

/// Where the last of such ranges ends; what follows is padding.
pub(crate) fn end(ranges: &[Range<usize>]) -> usize {
    ranges.last().map_or(0, |r| r.end)
}
