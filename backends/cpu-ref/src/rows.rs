//! Rows (along the last dim) of a tensor as plain vectors.

use halyard_sdk::HostTensor;

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
    let mut index = [lead, &[0]].concat();
    (0..width(t))
        .map(|i| {
            index[lead.len()] = i;
            t.get(&index)
        })
        .collect()
}

/// Writes a row.
pub(crate) fn write(t: &HostTensor, lead: &[usize], values: impl IntoIterator<Item = f64>) {
    let mut index = [lead, &[0]].concat();
    for (i, value) in values.into_iter().enumerate() {
        index[lead.len()] = i;
        t.set(&index, value);
    }
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
