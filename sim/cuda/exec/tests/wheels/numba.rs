//! Test kernels of numba-cuda: what a warp and a block do together, atomics, random numbers, and functions of libdevice.

use crate::machine::{Arg, Machine, numbers, words};
use crate::{F32, F64, args, assert_within, doubles, on_each};
use std::cell::Cell;

/// An array as numba passes it: two addresses of Python's, elements, their bytes, where they are, extents and strides.
fn array(place: u64, extents: &[usize], bytes: usize) -> Vec<Arg> {
    let count: usize = extents.iter().product();
    let mut args = args![0u64, 0u64, count as i64, bytes as i64, place];
    args.extend(extents.iter().map(|extent| Arg::from(*extent as i64)));
    let strides = (0..extents.len()).map(|at| extents[at + 1..].iter().product::<usize>() * bytes);
    args.extend(strides.map(|stride| Arg::from(stride as i64)));
    args
}

fn rows<const N: usize>(places: [u64; N], count: usize, bytes: usize) -> Vec<Arg> {
    places.into_iter().flat_map(|place| array(place, &[count], bytes)).collect()
}

#[test]
fn matmul_by_tiles_in_shared_memory() {
    let n = 48;
    on_each("numba_matmul", |machine| {
        let (a, b) = (numbers(n * n, 1), numbers(n * n, 2));
        let places = [machine.f32s(&a), machine.f32s(&b), machine.space(4 * n * n)];
        let want: Vec<_> = (0..n * n)
            .map(|at| {
                let product = |i| f64::from(a[at / n * n + i]) * f64::from(b[i * n + at % n]);
                let size: f64 = (0..n).map(|i| product(i).abs()).sum();
                ((0..n).map(product).sum(), n as f64 * F32 * size)
            })
            .collect();
        for seed in 1..4 {
            machine.seed.set(seed);
            let args: Vec<_> = places.iter().flat_map(|place| array(*place, &[n, n], 4)).collect();
            let shape = ([3, 3, 1], [16, 16, 1], 0);
            machine.launch("numba_matmul", shape, &args).unwrap_or_else(|fault| panic!("{fault}"));
            let got = machine.read(places[2], n * n, f32::from_le_bytes);
            assert_within(got.into_iter().map(f64::from), &want);
        }
    });
}

/// A kernel of `threads` threads that fills a row of 32-bit numbers; `more` are arguments behind it.
fn fills(name: &str, threads: usize, more: impl Fn() -> Vec<Arg>, want: impl Fn(usize) -> u32) {
    on_each(name, |machine| {
        let out = machine.space(4 * threads);
        let args = || rows([out], threads, 4).into_iter().chain(more()).collect();
        machine.run(name, (1, [threads, 1]), args, || {
            let want: Vec<_> = (0..threads).map(&want).collect();
            assert_eq!(machine.read(out, threads, u32::from_le_bytes), want);
        });
    });
}

/// A kernel that takes a row and fills another.
fn maps(name: &str, x: &[u32], want: impl Fn(usize) -> u32) {
    on_each(name, |machine| {
        let (place, out) = (machine.u32s(x), machine.space(4 * x.len()));
        machine.run(
            name,
            (1, [x.len(), 1]),
            || rows([place, out], x.len(), 4),
            || {
                let want: Vec<_> = (0..x.len()).map(&want).collect();
                assert_eq!(machine.read(out, x.len(), u32::from_le_bytes), want);
            },
        );
    });
}

#[test]
fn shuffles() {
    fills("numba_shfl_sync_idx", 32, || args![4], |_| 4);
    on_each("numba_shfl_sync_up", |machine| {
        let out = machine.space(8 * 32);
        let args = || rows([out], 32, 8).into_iter().chain(args![3]).collect();
        machine.run("numba_shfl_sync_up", (1, [32, 1]), args, || {
            let want: Vec<_> =
                (0..32u32).map(|at| f64::from(if at < 3 { at } else { at - 3 })).collect();
            assert_eq!(machine.read(out, 32, f64::from_le_bytes), want);
        });
    });
}

#[test]
fn votes_and_matches() {
    for x in [vec![1; 32], vec![0; 32], (0..32).map(|at| u32::from(at == 9)).collect()] {
        let any = u32::from(x.iter().any(|x| *x != 0));
        let all = u32::from(x.iter().all(|x| *x != 0));
        let same = u32::from(x.iter().all(|value| *value == x[0]));
        maps("numba_vote_sync_any", &x, |_| any);
        maps("numba_vote_sync_all", &x, |_| all);
        maps("numba_vote_sync_eq", &x, |_| same);
        maps("numba_match_all_sync", &x, |_| if same == 1 { u32::MAX } else { 0 });
    }
    on_each("numba_match_any_sync", |machine| {
        // Some differ in the high half alone, some in the low one.
        let x: Vec<i64> =
            words(32, 3).map(|word| i64::from(word & 1) << 40 | i64::from(word >> 8 & 1)).collect();
        let (place, out) = (machine.i64s(&x), machine.space(4 * 32));
        let args =
            || [array(place, &[32], 8), array(out, &[32], 4)].into_iter().flatten().collect();
        machine.run("numba_match_any_sync", (1, [32, 1]), args, || {
            let mask =
                |value: &i64| (0..32).filter(|at| x[*at] == *value).map(|at| 1u32 << at).sum();
            let want: Vec<u32> = x.iter().map(mask).collect();
            assert_eq!(machine.read(out, 32, u32::from_le_bytes), want);
        });
    });
}

#[test]
fn parts_of_a_warp_go_their_own_ways() {
    fills("numba_independent_scheduling", 32, Vec::new, |at| 0x1111_1111 << (at % 4));
    on_each("numba_coop_syncwarp", |machine| {
        let out = machine.space(4);
        machine.run(
            "numba_coop_syncwarp",
            (1, [32, 1]),
            || rows([out], 1, 4),
            || {
                assert_eq!(machine.read(out, 1, i32::from_le_bytes), [496]);
            },
        );
    });
}

#[test]
fn barriers_that_count() {
    for threads in [32, 70, 256] {
        let mixed: Vec<_> = words(threads, 4).map(|word| word % 3).collect();
        for x in [mixed, vec![1; threads], vec![0; threads]] {
            let count = x.iter().filter(|x| **x != 0).count() as u32;
            maps("numba_syncthreads_count", &x, |_| count);
            maps("numba_syncthreads_and", &x, |_| u32::from(count == threads as u32));
            maps("numba_syncthreads_or", &x, |_| u32::from(count != 0));
        }
    }
}

#[test]
fn shared_memory_of_the_launch() {
    on_each("numba_dyn_shared_memory", |machine| {
        let out = machine.space(4 * 50);
        let shape = ([1; 3], [50, 1, 1], 200);
        machine.launch("numba_dyn_shared_memory", shape, &rows([out], 50, 4)).unwrap();
        let want: Vec<_> = (0..50).map(|at| 2.0 * at as f32).collect();
        assert_eq!(machine.read(out, 50, f32::from_le_bytes), want);
    });
}

#[test]
fn atomics() {
    let bins: Vec<u32> = words(32, 5).map(|word| word % 40).collect();
    on_each("numba_atomic_add_double", |machine| {
        let of: Vec<_> = bins.iter().map(|bin| i64::from(*bin)).collect();
        let (of, out) = (machine.i64s(&of), machine.space(8 * 32));
        let counts = |at| bins.iter().filter(|bin| **bin % 32 == at).count() as f64;
        machine.run(
            "numba_atomic_add_double",
            (1, [32, 1]),
            || rows([of, out], 32, 8),
            || {
                let want: Vec<_> = (0..32).map(counts).collect();
                assert_eq!(machine.read(out, 32, f64::from_le_bytes), want);
            },
        );
    });
    // What one thread after another does to its bin.
    let after = |value: u32, at: u32, step: fn(u32) -> u32| {
        bins.iter().filter(|bin| **bin % 32 == at).fold(value, |value, _| step(value))
    };
    let start: Vec<u32> = words(32, 6).map(|word| word % 12).collect();
    let update = |name: &str, most: u32, turned: bool, step: fn(u32) -> u32| {
        on_each(name, |machine| {
            let of = machine.u32s(&bins);
            let place = Cell::new(0);
            let args = || {
                place.set(machine.u32s(&start));
                let places = if turned { [of, place.get()] } else { [place.get(), of] };
                rows(places, 32, 4).into_iter().chain(args![most]).collect()
            };
            machine.run(name, (1, [32, 1]), args, || {
                let want: Vec<_> = (0..32).map(|at| after(start[at as usize], at, step)).collect();
                assert_eq!(machine.read(place.get(), 32, u32::from_le_bytes), want);
            });
        });
    };
    update("numba_atomic_inc32", 7, false, |value| if value >= 7 { 0 } else { value + 1 });
    update(
        "numba_atomic_dec_global",
        7,
        true,
        |value| if value == 0 || value > 7 { 7 } else { value - 1 },
    );
    update("numba_atomic_exch", 99, false, |_| 99);
    on_each("numba_atomic_cas_1dim", |machine| {
        let there: Vec<i64> = words(64, 7).map(|word| i64::from(word % 2) << 33).collect();
        let new: Vec<_> = (0..64).collect::<Vec<i64>>();
        let (old, with) = (machine.space(8 * 64), machine.i64s(&new));
        let place = Cell::new(0);
        let args = || {
            place.set(machine.i64s(&there));
            let arrays = rows([place.get(), old, with], 64, 8);
            arrays.into_iter().chain(args![1i64 << 33]).collect()
        };
        machine.run("numba_atomic_cas_1dim", (2, [32, 1]), args, || {
            let swapped = |at: usize| if there[at] == 0 { 0 } else { new[at] };
            let want: Vec<_> = (0..64).map(swapped).collect();
            assert_eq!(machine.read(place.get(), 64, i64::from_le_bytes), want);
            assert_eq!(machine.read(old, 64, i64::from_le_bytes), there);
        });
    });
}

#[test]
fn reduction_of_full_and_partial_blocks() {
    on_each("numba_reduction", |machine| {
        for (blocks, threads, count) in [(2, 128, 1024), (1, 77, 77), (1, 1, 1)] {
            let x = doubles(count, 8);
            let (place, out) = (machine.f64s(&x), machine.space(8 * blocks));
            let of = |block: usize| (0..count).filter(move |at| at / threads % blocks == block);
            let want: Vec<_> = (0..blocks)
                .map(|block| {
                    let first = if block == 0 { 0.5 } else { 0.0 };
                    let size: f64 = of(block).map(|at| x[at].abs()).sum();
                    (
                        first + of(block).map(|at| x[at]).sum::<f64>(),
                        count as f64 * F64 * (size + 1.0),
                    )
                })
                .collect();
            let args = || {
                let arrays = [array(place, &[count], 8), array(out, &[blocks], 8)];
                arrays.into_iter().flatten().chain(args![0.5, 1u8]).collect()
            };
            machine.run("numba_reduction", (blocks, [threads, 1]), args, || {
                assert_within(machine.read(out, blocks, f64::from_le_bytes), &want);
            });
        }
    });
}

/// The generator xoroshiro128+, and uniform numbers of it.
fn uniform(state: &mut [u64; 2]) -> f64 {
    let [first, second] = *state;
    let mixed = first ^ second;
    *state = [first.rotate_left(55) ^ mixed ^ mixed << 14, mixed.rotate_left(36)];
    (first.wrapping_add(second) >> 11) as f64 / (1u64 << 53) as f64
}

#[test]
fn random_numbers() {
    let (threads, each) = (40, 3);
    let seeds: Vec<u64> = words(2 * threads, 9).map(|word| u64::from(word) << 31 | 5).collect();
    for bits in [32, 64] {
        let name = format!("numba_random{bits}");
        on_each(&name, |machine| {
            let bytes = bits / 8;
            let out = machine.space(bytes * threads * each);
            for distribution in [1, 2] {
                // Normal numbers, even doubles, are made of floats.
                let single = bits == 32 || distribution == 2;
                let single = move |x: f64| if single { f64::from(x as f32) } else { x };
                let want: Vec<_> = (seeds.chunks_exact(2))
                    .flat_map(|seed| {
                        let mut state = [seed[0], seed[1]];
                        (0..each).map(move |_| {
                            let u = single(uniform(&mut state));
                            if distribution == 1 {
                                return (u, 0.0);
                            }
                            let angle = std::f64::consts::TAU * single(uniform(&mut state));
                            let size = (-2.0 * u.ln()).sqrt();
                            // Four units each of logarithm (of a float, always), root and cosine; the angle is rounded twice.
                            (size * angle.cos(), size * F32 * (12.0 + 2.0 * angle))
                        })
                    })
                    .collect();
                let args = || {
                    let states = machine.buffer(&seeds, u64::to_le_bytes);
                    let arrays =
                        [array(states, &[threads], 16), array(out, &[threads * each], bytes)];
                    let more = args![each as i64, distribution];
                    arrays.into_iter().flatten().chain(more).collect()
                };
                machine.run(&name, (1, [threads, 1]), args, || {
                    let count = threads * each;
                    let got: Vec<f64> = match bits {
                        32 => machine.read(out, count, |bytes| f32::from_le_bytes(bytes).into()),
                        _ => machine.read(out, count, f64::from_le_bytes),
                    };
                    assert_within(got, &want);
                });
            }
        });
    }
}

/// Values of every size, and those at which functions do something special.
fn arguments(least: f64, most: f64) -> Vec<f64> {
    let mut x: Vec<_> = doubles(90, 10).iter().map(|x| 4.0 * x).collect();
    x.extend(doubles(20, 11).iter().map(|x| 1e-200 * x));
    x.extend(doubles(20, 12).iter().map(|x| 1e9 * x));
    x.extend(doubles(20, 13).iter().map(|x| 1e300 * x));
    x.extend([
        0.0,
        -0.0,
        1.0,
        -1.0,
        0.5,
        2.0,
        20.0,
        100.0,
        -100.0,
        f64::INFINITY,
        f64::NEG_INFINITY,
    ]);
    x.push(f64::NAN);
    x.retain(|x| x.is_nan() || least <= *x && *x <= most);
    x
}

/// Runs a kernel that maps rows of doubles to one, and compares with `want`, of which CUDA's manual allows so many units of the last place
/// (and one is this test's).
fn function<const N: usize>(
    name: &str,
    x: &[Vec<f64>; N],
    ulps: f64,
    want: impl Fn([f64; N]) -> f64,
) {
    let count = x[0].len();
    let want: Vec<_> = (0..count)
        .map(|at| {
            let value = want(std::array::from_fn(|of| x[of][at]));
            let bound = (ulps + 1.0) * 2.0 * F64 * value.abs();
            (
                value,
                if value.is_finite() { bound.max(f64::from_bits(ulps as u64 + 1)) } else { 0.0 },
            )
        })
        .collect();
    on_each(name, |machine| {
        let out = machine.space(8 * count);
        let mut places: Vec<_> = x.iter().map(|x| machine.f64s(x)).collect();
        places.push(out);
        let args = || places.iter().flat_map(|place| array(*place, &[count], 8)).collect();
        machine.run(name, (1, [count, 1]), args, || {
            assert_within(machine.read(out, count, f64::from_le_bytes), &want);
        });
    });
}

#[test]
fn functions_of_one_double() {
    let all = || [arguments(f64::NEG_INFINITY, f64::INFINITY)];
    function("numba_sin", &all(), 2.0, |[x]| x.sin());
    function("numba_tan", &all(), 2.0, |[x]| x.tan());
    function("numba_exp", &all(), 1.0, |[x]| x.exp());
    function("numba_log", &all(), 1.0, |[x]| x.ln());
    function("numba_acosh", &[arguments(1.0, 1e9)], 2.0, |[x]| libm::acosh(x));
    function("numba_erf", &all(), 2.0, |[x]| libm::erf(x));
    function("numba_erfc", &[arguments(-100.0, 25.0)], 5.0, |[x]| libm::erfc(x));
    // Away from its zeros and poles.
    function("numba_gamma", &[arguments(1e-3, 100.0)], 10.0, |[x]| libm::tgamma(x));
    function("numba_lgamma", &[arguments(3.0, 1e300)], 4.0, |[x]| libm::lgamma(x));
}

#[test]
fn functions_of_two_doubles() {
    let x = arguments(f64::NEG_INFINITY, f64::INFINITY);
    let y: Vec<_> = x.iter().rev().copied().collect();
    let both = || [x.clone(), y.clone()];
    function("numba_pow", &both(), 2.0, |[x, y]| x.powf(y));
    function("numba_atan2", &both(), 2.0, |[x, y]| x.atan2(y));
    function("numba_fmod", &both(), 0.0, |[x, y]| x % y);
    function("numba_hypot", &both(), 2.0, |[x, y]| x.hypot(y));
    function("numba_copysign", &both(), 0.0, |[x, y]| x.copysign(y));
}

#[test]
fn functions_of_floats() {
    let x: Vec<f32> = arguments(-1e9, 1e9).iter().map(|x| *x as f32).collect();
    let y: Vec<f32> = x.iter().rev().copied().collect();
    let compare = |machine: &Machine, name: &str, places: &[u64], want: &[f64], ulps: f64| {
        let count = want.len();
        let want: Vec<_> = want
            .iter()
            .map(|value| {
                let narrow = *value as f32;
                let bound = (ulps + 1.0) * 2.0 * F32 * value.abs();
                match narrow.is_finite() {
                    true => (*value, bound.max(f64::from(f32::from_bits(ulps as u32 + 1)))),
                    false => (f64::from(narrow), 0.0),
                }
            })
            .collect();
        let args = || places.iter().flat_map(|place| array(*place, &[count], 4)).collect();
        machine.run(name, (1, [count, 1]), args, || {
            let got = machine.read(places[places.len() - 1], count, f32::from_le_bytes);
            assert_within(got.into_iter().map(f64::from), &want);
        });
    };
    on_each("numba_sin32", |machine| {
        let places = [machine.f32s(&x), machine.space(4 * x.len())];
        let want: Vec<_> = x.iter().map(|x| f64::from(*x).sin()).collect();
        compare(machine, "numba_sin32", &places, &want, 2.0);
    });
    on_each("numba_pow32", |machine| {
        let places = [machine.f32s(&x), machine.f32s(&y), machine.space(4 * x.len())];
        let want: Vec<_> = x.iter().zip(&y).map(|(x, y)| f64::from(*x).powf((*y).into())).collect();
        compare(machine, "numba_pow32", &places, &want, 4.0);
    });
}

#[test]
fn black_scholes() {
    on_each("numba_black_scholes", |machine| {
        let count = 100;
        let between = |seed, low: f64, high: f64| -> Vec<f64> {
            doubles(count, seed).iter().map(|x| low + (x + 1.0) / 2.0 * (high - low)).collect()
        };
        let inputs = [between(14, 5.0, 30.0), between(15, 1.0, 100.0), between(16, 0.25, 10.0)];
        let (rate, volatility) = (0.02, 0.3);
        // The polynomial that the kernel has for the normal distribution is within 7.5e-8 of it.
        let normal = |x: f64| libm::erfc(-x / std::f64::consts::SQRT_2) / 2.0;
        let (mut calls, mut puts) = (Vec::new(), Vec::new());
        let [prices, strikes, terms] = &inputs;
        for ((price, strike), years) in prices.iter().zip(strikes).zip(terms) {
            let spread = volatility * years.sqrt();
            let d =
                ((price / strike).ln() + (rate + volatility * volatility / 2.0) * years) / spread;
            let later = strike * (-rate * years).exp();
            let bound = 7.5e-8 * (price + later);
            calls.push((price * normal(d) - later * normal(d - spread), bound));
            puts.push((later * normal(spread - d) - price * normal(-d), bound));
        }
        let out = [machine.space(8 * count), machine.space(8 * count)];
        let places = inputs.each_ref().map(|values| machine.f64s(values));
        let args = || {
            let arrays = [rows(out, count, 8), rows(places, count, 8)];
            arrays.into_iter().flatten().chain(args![rate, volatility]).collect()
        };
        machine.run("numba_black_scholes", (2, [64, 1]), args, || {
            assert_within(machine.read(out[0], count, f64::from_le_bytes), &calls);
            assert_within(machine.read(out[1], count, f64::from_le_bytes), &puts);
        });
    });
}
