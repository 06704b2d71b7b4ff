//! Raw kernels of CuPy.

use crate::machine::{Machine, numbers, words};
use crate::{F32, F64, args, assert_within, doubles, on_each};
use half::f16;
use halyard_sim_cuda_exec::FaultKind;
use std::cell::Cell;

/// Power at each frequency of `y` at the times `x`, by least squares.
fn periodogram(x: &[f64], y: &[f64], frequency: f64) -> f64 {
    let sum = |f: &dyn Fn(f64, f64) -> f64| -> f64 {
        x.iter().zip(y).map(|(x, y)| f(frequency * x, *y)).sum()
    };
    let delay = (sum(&|x, _| (2.0 * x).sin())).atan2(sum(&|x, _| (2.0 * x).cos())) / 2.0;
    let part = |wave: fn(f64) -> f64| {
        sum(&|x, y| y * wave(x - delay)).powi(2) / sum(&|x, _| wave(x - delay).powi(2))
    };
    0.5 * (part(f64::cos) + part(f64::sin))
}

#[test]
fn lombscargle() {
    on_each("cupy_lombscargle", |machine| {
        let (samples, frequencies) = (64, 150);
        // Times that f32 has.
        let x: Vec<f64> = numbers(samples, 1).iter().map(|x| 8.0 * f64::from(*x)).collect();
        let y: Vec<f64> = numbers(samples, 2).iter().map(|y| f64::from(*y)).collect();
        let at: Vec<f64> =
            numbers(frequencies, 3).iter().map(|f| f64::from(f.abs()) * 9.0).collect();
        let narrow = |values: &[f64]| values.iter().map(|x| *x as f32).collect::<Vec<_>>();
        for bits in [32, 64] {
            let single = bits == 32;
            let bytes = bits / 8;
            let place = |values: &[f64]| {
                if single { machine.f32s(&narrow(values)) } else { machine.f64s(values) }
            };
            let (out, none) = (machine.space(bytes * frequencies), place(&[0.0]));
            let places = [&x, &y, &at].map(|values| place(values));
            let unit = if single { F32 } else { F64 };
            let want: Vec<_> = at
                .iter()
                .map(|f| {
                    let f = if single { f64::from(*f as f32) } else { *f };
                    // Angles of up to 80 radians are rounded, and each of the sums of 64 terms is, of which 13 make the result.
                    (periodogram(&x, &y, f), samples as f64 * (80.0 + 13.0 * 64.0) * unit)
                })
                .collect();
            let [x, y, at] = places;
            let args = || args![samples as i32, frequencies as i32, x, y, at, out, none];
            let entry = format!("_cupy_lombscargle_float{bits}");
            machine.run(&entry, (2, [64, 1]), args, || {
                let got: Vec<f64> = match single {
                    true => machine.read(out, frequencies, |b| f32::from_le_bytes(b).into()),
                    false => machine.read(out, frequencies, f64::from_le_bytes),
                };
                assert_within(got, &want);
            });
        }
    });
}

#[test]
fn upfirdn() {
    on_each("cupy_upfirdn", |machine| {
        for (samples, taps, up, down) in [(50, 7, 3, 2), (33, 12, 1, 4), (20, 5, 6, 1)] {
            let (x, h) = (numbers(2 * samples, 4), numbers(2 * taps, 5));
            // Every up-th tap from each phase on, backwards, with zeros behind the last.
            let phase = taps.div_ceil(up);
            let flipped = |part: usize| -> Vec<f32> {
                let tap = |at: usize| if at < taps { h[2 * at + part] } else { 0.0 };
                (0..up)
                    .flat_map(|first| (0..phase).rev().map(move |at| first + at * up))
                    .map(tap)
                    .collect()
            };
            let (real, imaginary) = (flipped(0), flipped(1));
            let pairs: Vec<f32> = real.iter().zip(&imaginary).flat_map(|(a, b)| [*a, *b]).collect();
            let count = ((samples - 1) * up + taps).div_ceil(down);
            let sizes = [up, down, 0, samples, phase, samples + phase - 1].map(|n| n as i32);
            let value = |at: usize, terms: &dyn Fn(usize, usize) -> f64| -> f64 {
                let tap = |sample: usize| (at * down).checked_sub(sample * up);
                (0..samples)
                    .filter_map(|sample| Some((sample, tap(sample).filter(|tap| *tap < taps)?)))
                    .map(|(sample, tap)| terms(sample, tap))
                    .sum()
            };
            let (x_at, h_at) = (|at: usize| f64::from(x[at]), |at: usize| f64::from(h[at]));
            let bound = |at| 4.0 * (phase as f64 + 2.0) * F32 * value(at, &|_, _| 1.0);

            let out = machine.space(8 * count);
            let alone: Vec<f32> = x.iter().step_by(2).copied().collect();
            let want: Vec<_> = (0..count)
                .map(|at| (value(at, &|s, t| x_at(2 * s) * h_at(2 * t)), bound(at)))
                .collect();
            check_upfirdn(machine, "float32", (&alone, &real), (sizes, count), (out, &want));

            let want: Vec<_> = (0..count)
                .flat_map(|at| {
                    let real = |s: usize, t: usize| {
                        x_at(2 * s) * h_at(2 * t) - x_at(2 * s + 1) * h_at(2 * t + 1)
                    };
                    let imaginary = |s: usize, t: usize| {
                        x_at(2 * s) * h_at(2 * t + 1) + x_at(2 * s + 1) * h_at(2 * t)
                    };
                    [value(at, &real), value(at, &imaginary)].map(|value| (value, 2.0 * bound(at)))
                })
                .collect();
            check_upfirdn(machine, "complex64", (&x, &pairs), (sizes, count), (out, &want));
        }
    });
}

fn check_upfirdn(
    machine: &Machine,
    ty: &str,
    (x, h): (&[f32], &[f32]),
    (sizes, count): ([i32; 6], usize),
    (out, want): (u64, &[(f64, f64)]),
) {
    let (x, h) = (machine.f32s(x), machine.f32s(h));
    let [up, down, axis, samples, phase, padded] = sizes;
    let args = || args![x, h, up, down, axis, samples, phase, padded, out, count as i32];
    machine.run(&format!("_cupy_upfirdn1D_{ty}"), (2, [32, 1]), args, || {
        let got = machine.read(out, want.len(), f32::from_le_bytes);
        assert_within(got.into_iter().map(f64::from), want);
    });
}

/// Ascending knots, and points of which some are knots and some are outside.
fn knots_and_points(knots: usize, points: usize) -> (Vec<f64>, Vec<f64>) {
    let mut t = doubles(knots, 6);
    t.sort_by(f64::total_cmp);
    let mut x: Vec<f64> = doubles(points, 7).iter().map(|x| 1.2 * x).collect();
    x.iter_mut().step_by(7).zip(&t).for_each(|(x, t)| *x = *t);
    (t, x)
}

/// Which knot is the last one not behind `x`, of those from `k` to `n`.
fn interval(t: &[f64], x: f64, (k, n): (usize, usize)) -> i64 {
    let last = (k..n).rev().find(|at| t[*at] <= x).unwrap_or(k);
    last as i64
}

#[test]
fn find_interval() {
    on_each("cupy_find_interval", |machine| {
        let (k, n, count) = (3, 17, 150);
        let (t, mut x) = knots_and_points(n + k + 1, count);
        x[5] = f64::NAN;
        let (out, knots, points) = (machine.space(8 * count), machine.f64s(&t), machine.f64s(&x));
        for beyond in [false, true] {
            let want: Vec<_> = x
                .iter()
                .map(|x| {
                    let inside = t[k] <= *x && *x <= t[n];
                    if inside || beyond && !x.is_nan() { interval(&t, *x, (k, n)) } else { -1 }
                })
                .collect();
            let args =
                || args![knots, points, out, k as i32, n as i32, u8::from(beyond), count as i32];
            machine.run("find_interval", (2, [96, 1]), args, || {
                assert_eq!(machine.read(out, count, i64::from_le_bytes), want);
            });
        }
    });
}

/// B-spline `at` of degree `k` at `x`.
fn spline(t: &[f64], at: usize, k: usize, x: f64) -> f64 {
    if k == 0 {
        return f64::from(u8::from(t[at] <= x && x < t[at + 1]));
    }
    let left = (x - t[at]) / (t[at + k] - t[at]) * spline(t, at, k - 1, x);
    left + (t[at + k + 1] - x) / (t[at + k + 1] - t[at + 1]) * spline(t, at + 1, k - 1, x)
}

#[test]
fn splines_by_de_boor() {
    on_each("cupy_d_boor", |machine| {
        let (k, n, columns, count) = (3usize, 17usize, 2usize, 70usize);
        let (t, x) = knots_and_points(n + k + 1, count);
        let x: Vec<f64> = x.into_iter().filter(|x| t[k] <= *x && *x < t[n]).collect();
        let count = count.min(x.len());
        let c = doubles(n * columns, 8);
        let intervals: Vec<_> = x.iter().map(|x| interval(&t, *x, (k, n))).collect();
        let want: Vec<_> = (0..count * columns)
            .map(|at| {
                let (x, column) = (x[at / columns], at % columns);
                let terms = (0..n).map(|i| spline(&t, i, k, x) * c[i * columns + column]);
                // Distances of neighbouring knots are differences that lose digits.
                let least = t.windows(2).map(|t| t[1] - t[0]).fold(f64::MAX, f64::min);
                (terms.sum(), 64.0 * F64 / least)
            })
            .collect();
        let out = machine.space(8 * count * columns);
        let places = [&t, &c, &x].map(|values| machine.f64s(values));
        let intervals = machine.i64s(&intervals);
        let args = || {
            let scratch = machine.space(8 * count * (2 * k + 1));
            let [t, c, x] = places;
            let (columns, count) = (columns as i32, count as i32);
            args![t, c, k as i32, 0, x, intervals, out, scratch, columns, 1, count]
        };
        machine.run("d_boor", (2, [64, 1]), args, || {
            assert_within(machine.read(out, count * columns, f64::from_le_bytes), &want);
        });
    });
}

#[test]
fn complex_polynomials() {
    on_each("cupy_ppoly", |machine| {
        // Of degree 4, one in each interval, in two columns.
        let [order, pieces, columns] = [5, 3, 2];
        let count = 90;
        let c = doubles(2 * order * pieces * columns, 9);
        let breaks = [-1.0, -0.25, 0.5];
        let x = doubles(count, 10);
        let mut intervals: Vec<_> = x.iter().map(|x| interval(&breaks, *x, (0, pieces))).collect();
        intervals[3] = -1;
        let out = machine.space(16 * count * columns);
        let places = [&c[..], &breaks, &x].map(|values| machine.f64s(values));
        let dims = machine.i64s(&[order, pieces, columns].map(|extent: usize| extent as i64));
        let strides = machine.i64s(&[pieces * columns, columns, 1].map(|stride| stride as i64));
        let of = machine.i64s(&intervals);
        for derivative in [0usize, 1, 2] {
            let want: Vec<_> = (0..2 * count * columns)
                .map(|at| {
                    let (point, column, part) = (at / 2 / columns, at / 2 % columns, at % 2);
                    let Ok(piece) = usize::try_from(intervals[point]) else {
                        return (if part == 0 { f64::NAN } else { 0.0 }, 0.0);
                    };
                    let s = x[point] - breaks[piece];
                    let term = |power: usize| {
                        let row = order - 1 - power;
                        let factor: usize = (power - derivative + 1..=power).product();
                        let c = c[2 * ((row * pieces + piece) * columns + column) + part];
                        c * factor as f64 * s.powi((power - derivative) as i32)
                    };
                    let terms: Vec<f64> = (derivative..order).map(term).collect();
                    let size: f64 = terms.iter().map(|term| term.abs()).sum();
                    (terms.iter().sum(), 8.0 * order as f64 * F64 * size)
                })
                .collect();
            let [c, breaks, x] = places;
            let args =
                || args![c, breaks, x, of, derivative as i32, dims, strides, count as i32, out];
            machine.run("eval_ppoly", (2, [64, 1]), args, || {
                assert_within(machine.read(out, want.len(), f64::from_le_bytes), &want);
            });
        }
    });
}

/// Threads take what their neighbours have without waiting for it: right only where a warp is always in step.
#[test]
fn a_shift_register_without_barriers_is_a_race() {
    on_each("cupy_max_len_seq", |machine| {
        let (length, state) = (31i64, machine.buffer(&[1u8; 5], |bit| [bit]));
        let (taps, out) = (machine.i64s(&[3]), machine.space(31));
        let args = args![length, 1i64, 5, taps, state, out];
        let fault = machine.launch("max_len_seq", ([1; 3], [5, 1, 1], 0), &args).unwrap_err();
        assert_eq!(fault.kind, FaultKind::GlobalRace, "{fault}");
    });
}

/// Eighths from -4 to 4, with plateaus: sums and differences are exact in half precision.
fn hills(count: usize) -> Vec<f64> {
    words(count, 11).map(|word| f64::from(word >> 4 & 0x3f).floor() / 8.0 - 4.0).collect()
}

/// For each place but the ends, the middle and both ends of the peak that begins there.
fn peaks(x: &[f64]) -> Vec<Option<[i64; 3]>> {
    let peak = |at: usize| {
        let end = (at..x.len() - 1).find(|end| x[end + 1] != x[at]).unwrap_or(x.len() - 1);
        let high = x[at - 1] < x[at] && end < x.len() - 1 && x[end + 1] < x[at];
        high.then_some([(at + end) as i64 / 2, at as i64, end as i64])
    };
    (1..x.len() - 1).map(peak).collect()
}

#[test]
fn peaks_of_halves() {
    on_each("cupy_peaks", |machine| {
        let mut x = hills(300);
        (0..x.len() - 1).step_by(5).for_each(|at| x[at + 1] = x[at]);
        let place = machine.buffer(&x, |x| f16::from_f64(x).to_le_bytes());
        let found = peaks(&x);
        let count = found.len();
        let places: [u64; 3] = std::array::from_fn(|_| machine.space(8 * count));
        let args = || args![x.len() as i32, place, places[0], places[1], places[2]];
        machine.run("local_maxima", (3, [128, 1]), args, || {
            for (part, place) in places.iter().enumerate() {
                let want: Vec<_> =
                    found.iter().map(|peak| peak.map_or(-1, |peak| peak[part])).collect();
                assert_eq!(machine.read(*place, count, i64::from_le_bytes), want);
            }
        });

        let peaks: Vec<i64> = found.iter().flatten().map(|peak| peak[0]).collect();
        prominences(machine, &x, place, &peaks);
    });
}

/// How far each peak is above the higher of the lowest places on its sides, before a higher one; and how wide it is at half of that.
fn prominences(machine: &Machine, x: &[f64], place: u64, peaks: &[i64]) {
    let count = peaks.len();
    let lowest = |peak: usize, side: &mut dyn Iterator<Item = usize>| {
        let mut base = peak;
        for at in side.take_while(|at| x[*at] <= x[peak]) {
            base = if x[at] < x[base] { at } else { base };
        }
        base
    };
    let bases: Vec<[usize; 2]> = peaks
        .iter()
        .map(|peak| {
            let peak = *peak as usize;
            [lowest(peak, &mut (0..peak).rev()), lowest(peak, &mut (peak..x.len()))]
        })
        .collect();
    let heights: Vec<f64> = (peaks.iter().zip(&bases))
        .map(|(peak, [left, right])| x[*peak as usize] - x[*left].max(x[*right]))
        .collect();
    let at = machine.i64s(peaks);
    let [left, right] = [machine.space(8 * count), machine.space(8 * count)];
    let out = machine.space(2 * count);
    let args = || args![x.len() as i32, count as i32, place, at, -1i64, out, left, right];
    machine.run("peak_prominences", (2, [64, 1]), args, || {
        let got = machine.read(out, count, f16::from_le_bytes);
        assert_eq!(got.into_iter().map(f16::to_f64).collect::<Vec<_>>(), heights);
        for (side, place) in [left, right].into_iter().enumerate() {
            let want: Vec<_> = bases.iter().map(|base| base[side] as i64).collect();
            assert_eq!(machine.read(place, count, i64::from_le_bytes), want);
        }
    });

    let crossings: Vec<[f64; 2]> = (0..count)
        .map(|of| {
            let (peak, [from, to]) = (peaks[of] as usize, bases[of]);
            let height = x[peak] - heights[of] / 2.0;
            // Where the line between two samples is as high.
            let cross = |at: usize, inner: usize| {
                let (low, high) = (x[at], x[inner]);
                if low < height { (height - low) / (high - low) } else { 0.0 }
            };
            let left = (from..=peak).rev().find(|at| *at == from || x[*at] <= height).unwrap();
            let right = (peak..=to).find(|at| *at == to || x[*at] <= height).unwrap();
            [left as f64 + cross(left, left + 1), right as f64 - cross(right, right.max(1) - 1)]
        })
        .collect();
    let results: [u64; 4] = std::array::from_fn(|_| machine.space(8 * count));
    let [widths, levels, left_at, right_at] = results;
    let half = Cell::new(0.5);
    let args = || {
        args![
            count as i32,
            place,
            at,
            half.get(),
            out,
            left,
            right,
            widths,
            levels,
            left_at,
            right_at
        ]
    };
    machine.run("peak_widths", (2, [64, 1]), args, || {
        let bound = x.len() as f64 * 4.0 * F64;
        let near = |values: Vec<f64>| values.into_iter().map(|x| (x, bound)).collect::<Vec<_>>();
        let got = |place| machine.read(place, count, f64::from_le_bytes);
        assert_within(got(left_at), &near(crossings.iter().map(|[left, _]| *left).collect()));
        assert_within(got(right_at), &near(crossings.iter().map(|[_, right]| *right).collect()));
        assert_within(got(widths), &near(crossings.iter().map(|[a, b]| b - a).collect()));
    });
}
