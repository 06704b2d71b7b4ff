//! Rotary position embeddings.

use crate::dtype::{DType, FLOATS, HALVES, INDICES};
use crate::index::checked;
use crate::launch::{Fault, Launch};
use crate::op::{Args, Op, Param, Since, Work, flag, int64, ints, tensor, text};
use crate::refusal::{Refusal, ensure};
use crate::view::View;

const PAIR: &[Param] = &[
    tensor("queryRef").out(),
    tensor("keyRef").out(),
    tensor("cos"),
    tensor("sin"),
    int64("layout"),
];
const PAIR_V2: &[Param] = &[
    tensor("queryRef").out(),
    tensor("keyRef").out(),
    tensor("cos"),
    tensor("sin"),
    int64("layout"),
    text("rotaryMode"),
];

/// Operators of this family.
pub(crate) const OPS: &[Op] = &[
    Op {
        name: "RotaryPositionEmbedding",
        since: Since::V8_5,
        params: &[tensor("x"), tensor("cos"), tensor("sin"), int64("mode"), tensor("out").out()],
        plan: rotary,
    },
    Op {
        name: "ApplyRotaryPosEmb",
        since: Since::V8_1,
        params: PAIR,
        plan: |a| {
            a.choice("layout", &[1])?;
            apply(a)
        },
    },
    Op {
        name: "ApplyRotaryPosEmbV2",
        since: Since::V8_5,
        params: PAIR_V2,
        plan: |a| {
            a.choice("layout", &[1, 4])?;
            let mode = a.text("rotaryMode")?;
            ensure!(mode == "half", "rotaryMode: {mode:?}, expected \"half\"");
            apply(a)
        },
    },
    Op {
        name: "InterleaveRope",
        since: Since::V8_5,
        params: &[tensor("x"), tensor("cos"), tensor("sin"), tensor("out").out()],
        plan: interleave,
    },
    Op {
        name: "RopeWithSinCosCache",
        since: Since::V8_1,
        params: &[
            tensor("positions"),
            tensor("queryIn"),
            tensor("keyIn"),
            tensor("cosSinCache"),
            ints("mropeSection").or_null(),
            int64("headSize"),
            flag("isNeoxStyle"),
            tensor("queryOut").out(),
            tensor("keyOut").out(),
        ],
        plan: from_cache,
    },
];

/// Which elements of a head turn together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Style {
    /// The first half with the second.
    Half,
    /// Neighbours.
    Neighbours,
}

impl Style {
    fn of_neox(neox: bool) -> Self {
        if neox { Self::Half } else { Self::Neighbours }
    }

    /// The two elements of a pair.
    fn pair(self, number: usize, width: usize) -> (usize, usize) {
        match self {
            Self::Half => (number, number + width / 2),
            Self::Neighbours => (2 * number, 2 * number + 1),
        }
    }
}

/// `x · cos + rot(x) · sin` of one head; cos and sin have all of its elements.
pub(crate) fn rotate(x: &mut [f32], cos: &[f32], sin: &[f32], style: Style) {
    for number in 0..x.len() / 2 {
        let (first, second) = style.pair(number, x.len());
        let (a, b) = (x[first], x[second]);
        x[first] = a * cos[first] - b * sin[first];
        x[second] = b * cos[second] + a * sin[second];
    }
}

/// Neighbours brought to the two halves, then turned by halves, as DeepSeek's checkpoints want it.
pub(crate) fn rotate_deinterleaved(x: &mut [f32], cos: &[f32], sin: &[f32]) {
    let half = x.len() / 2;
    let sorted: Vec<f32> = (0..x.len()).map(|i| x[2 * (i % half) + i / half]).collect();
    x.copy_from_slice(&sorted);
    rotate(x, cos, sin, Style::Half);
}

fn check_angles(x: &View, angles: [&View; 2]) -> Result<(), Refusal> {
    x.expect_dtype(FLOATS)?;
    for view in angles {
        view.expect_dtype(&[x.dtype])?.expect_rank(x.rank(), x.rank())?;
        ensure!(
            view.last() == x.last(),
            "{}: {} along the last axis, expected all {} of {}",
            view.name,
            view.last(),
            x.last(),
            x.name
        );
    }
    angles[1].expect_dims(&angles[0].dims)?;
    Ok(())
}

/// Turns all heads of a tensor.
fn turn(
    launch: &Launch<'_>,
    x: &View,
    angles: [&View; 2],
    each: impl Fn(&mut [f32], &[f32], &[f32]),
) -> Result<Vec<f32>, Fault> {
    let mut values: Vec<f32> = launch.read(x)?;
    let (cos, sin): (Vec<f32>, Vec<f32>) = (launch.read(angles[0])?, launch.read(angles[1])?);
    let width = x.last().max(1);
    let rows =
        values.chunks_exact_mut(width).zip(cos.chunks_exact(width).zip(sin.chunks_exact(width)));
    rows.for_each(|(row, (cos, sin))| each(row, cos, sin));
    Ok(values)
}

fn rotary(a: &Args<'_>) -> Result<Work, Refusal> {
    let (x, cos, sin, out) = (a.tensor("x")?, a.tensor("cos")?, a.tensor("sin")?, a.tensor("out")?);
    let style = if a.choice("mode", &[0, 1])? == 0 { Style::Half } else { Style::Neighbours };
    // Three dims are taken by newer releases only.
    x.expect_rank(4, 4)?;
    check_angles(&x, [&cos, &sin])?;
    let width = x.last();
    ensure!(
        width.is_multiple_of(2) && width < 896,
        "x: {width} along the last axis, expected an even number below 896"
    );
    out.expect_dims(&x.dims)?.expect_dtype(&[x.dtype])?.expect_contiguous()?;
    let wide = [cos.expanded(&x.dims)?, sin.expanded(&x.dims)?];
    check_layout(&x, &cos, style, a.soc.vector_cores as usize)?;
    let [cos, sin] = wide;
    Ok(Work::new(move |launch| {
        let turned = turn(launch, &x, [&cos, &sin], |x, cos, sin| rotate(x, cos, sin, style))?;
        launch.write(&out, &turned)
    })
    .with_workspace(u64::from(a.soc.vector_cores) * 64))
}

/// Of which layouts angles may be: the axes of batch, tokens and heads, and which of batch and heads the angles have.
fn check_layout(x: &View, cos: &View, style: Style, cores: usize) -> Result<(), Refusal> {
    const LAYOUTS: [[usize; 3]; 3] = [[0, 1, 2], [0, 2, 1], [1, 0, 2]];
    let has = |axis: usize| cos.dims[axis] == x.dims[axis];
    let alone = |axis: usize| cos.dims[axis] == 1;
    let pairs = x.last() / 2 * x.dtype.bits() / 8;
    let fits = LAYOUTS.iter().any(|&[batch, token, head]| {
        let (b, s, n) = (x.dims[batch], x.dims[token], x.dims[head]);
        if style == Style::Neighbours {
            return has(token) && alone(batch) && alone(head) && b * n < 1000;
        }
        let shape = has(token) && (alone(head) || (has(head) && has(batch)));
        // With heads outside of tokens there must be enough tokens for the cores.
        let enough = if head > token {
            true
        } else if pairs.is_multiple_of(32) {
            b * n <= s * 8
        } else {
            b * n * 2 <= s.div_ceil(cores.max(1)) || x.last() >= 80
        };
        shape && (has(batch) || alone(batch)) && b < 1000 && n < 1000 && enough
    });
    ensure!(
        fits,
        "cos: shape {:?} with x of {:?}, expected tokens with one head (in half style also all heads) of a layout \
         BSND, BNSD or SBND, batch and heads below 1000 (interleaved: their product), and for BNSD many tokens",
        cos.dims,
        x.dims
    );
    Ok(())
}

fn apply(a: &Args<'_>) -> Result<Work, Refusal> {
    let (cos, sin) = (a.tensor("cos")?, a.tensor("sin")?);
    let rank = if a.int("layout")? == 4 { 3 } else { 4 };
    let mut parts = Vec::new();
    for name in ["queryRef", "keyRef"] {
        let x = a.tensor(name)?;
        x.expect_rank(rank, rank)?;
        check_angles(&x, [&cos, &sin])?;
        let width = x.last();
        ensure!([64, 128].contains(&width), "{name}: heads of {width}, expected 64 or 128");
        let mut dims = x.dims.clone();
        dims[rank - 2] = 1;
        cos.expect_dims(&dims)?;
        parts.push((cos.expanded(&x.dims)?, sin.expanded(&x.dims)?, x));
    }
    Ok(Work::new(move |launch| {
        parts.iter().try_for_each(|(cos, sin, x)| {
            let turned =
                turn(launch, x, [cos, sin], |x, cos, sin| rotate(x, cos, sin, Style::Half))?;
            launch.write(x, &turned)
        })
    })
    .with_workspace(u64::from(a.soc.vector_cores) * 64))
}

fn interleave(a: &Args<'_>) -> Result<Work, Refusal> {
    let (x, cos, sin, out) = (a.tensor("x")?, a.tensor("cos")?, a.tensor("sin")?, a.tensor("out")?);
    x.expect_rank(4, 4)?.expect_dtype(HALVES)?;
    check_angles(&x, [&cos, &sin])?;
    ensure!(x.last() == 64, "x: {} along the last axis, expected 64", x.last());
    out.expect_dims(&x.dims)?.expect_dtype(&[x.dtype])?;
    cos.expect_dims(&[x.dims[0], 1, x.dims[2], 64])?;
    let (cos, sin) = (cos.expanded(&x.dims)?, sin.expanded(&x.dims)?);
    Ok(Work::new(move |launch| {
        let turned = turn(launch, &x, [&cos, &sin], rotate_deinterleaved)?;
        launch.write(&out, &turned)
    })
    .with_workspace(u64::from(a.soc.vector_cores) * 64))
}

fn from_cache(a: &Args<'_>) -> Result<Work, Refusal> {
    let (positions, cache) = (a.tensor("positions")?, a.tensor("cosSinCache")?);
    let (head, style) = (a.int("headSize")?, Style::of_neox(a.flag("isNeoxStyle")?));
    let sections = a.ints("mropeSection")?.unwrap_or_default();
    ensure!(
        sections.iter().all(|s| *s == 0),
        "mropeSection: {sections:?}, expected null or zeros here"
    );
    positions.expect_dtype(INDICES)?.expect_rank(1, 1)?;
    cache.expect_rank(2, 2)?;
    let rotated = cache.last();
    ensure!(head > 0, "headSize: {head}, expected at least 1");
    let head = head as usize;
    ensure!(
        rotated <= head && rotated.is_multiple_of(2),
        "cosSinCache: shape {:?}, expected an even width up to headSize {head}",
        cache.dims
    );
    let mut parts = Vec::new();
    for (from, to) in [("queryIn", "queryOut"), ("keyIn", "keyOut")] {
        let (x, out) = (a.tensor(from)?, a.tensor(to)?);
        x.expect_dtype(FLOATS)?.expect_rank(2, 2)?;
        cache.expect_dtype(&[x.dtype, DType::F32])?;
        ensure!(
            x.dims[0] == positions.len() && x.last().is_multiple_of(head),
            "{from}: shape {:?}, expected {} rows of heads of {head}",
            x.dims,
            positions.len()
        );
        out.expect_dims(&x.dims)?.expect_dtype(&[x.dtype])?;
        parts.push((x, out));
    }
    Ok(Work::new(move |launch| {
        let rows: Vec<i64> = launch.read(&positions)?;
        for (x, out) in &parts {
            let mut values: Vec<f32> = launch.read(x)?;
            for (row, &position) in values.chunks_exact_mut(x.last().max(1)).zip(&rows) {
                let at = checked(&positions, position, cache.dims[0])?;
                let angles: Vec<f32> = launch.read(&cache.select(0, at))?;
                let (cos, sin) = spread(&angles, style);
                row.chunks_exact_mut(head)
                    .for_each(|x| rotate(&mut x[..rotated], &cos, &sin, style));
            }
            launch.write(out, &values)?;
        }
        Ok(())
    })
    .with_workspace(u64::from(a.soc.vector_cores) * 64))
}

/// Cosines and sines of each pair, given to both of its elements.
fn spread(angles: &[f32], style: Style) -> (Vec<f32>, Vec<f32>) {
    let width = angles.len();
    let mut both = (vec![0.0; width], vec![0.0; width]);
    for number in 0..width / 2 {
        let (first, second) = style.pair(number, width);
        for at in [first, second] {
            both.0[at] = angles[number];
            both.1[at] = angles[width / 2 + number];
        }
    }
    both
}
