//! CUB's collectives and libcu++ (`cccl.cu`).

use crate::machine::{numbers, words};
use crate::{F32, F64, args, assert_within, doubles, on_each};
use halyard_sim_cuda_exec::FaultKind;
use std::cell::Cell;

const THREADS: usize = 128;
/// Of a block with four items a thread.
const TILE: usize = 4 * THREADS;

fn integers(count: usize, seed: u64) -> Vec<i32> {
    words(count, seed).map(|word| word as i32).collect()
}

fn longs(count: usize, seed: u64) -> Vec<u64> {
    words(2 * count, seed)
        .collect::<Vec<_>>()
        .chunks_exact(2)
        .map(|word| u64::from(word[0]) << 32 | u64::from(word[1]))
        .collect()
}

#[test]
fn a_grid_sums_by_its_last_block() {
    on_each("cccl_reduce", |machine| {
        for count in [1, 1000, 4001] {
            let x = numbers(count, 1);
            let (sum, place) = (machine.space(4), machine.f32s(&x));
            let value: f64 = x.iter().map(|x| f64::from(*x)).sum();
            let size: f64 = x.iter().map(|x| f64::from(x.abs())).sum();
            let args = || {
                let (parts, done) = (machine.space(4 * 5), machine.u32s(&[0]));
                args![sum, place, count as i32, parts, done]
            };
            let want = [(value, count as f64 * F32 * size)];
            machine.run("reduce", (5, [THREADS, 1]), args, || {
                let got = machine.read(sum, 1, f32::from_le_bytes);
                assert_within(got.into_iter().map(f64::from), &want);
            });
        }
    });
}

#[test]
fn a_block_finds_its_highest_by_raking() {
    on_each("cccl_reduce", |machine| {
        for count in [1, 77, THREADS] {
            let x = doubles(3 * count, 2);
            let (highest, place) = (machine.space(8 * 3), machine.f64s(&x));
            let want: Vec<_> =
                x.chunks_exact(count).map(|x| x.iter().copied().fold(f64::MIN, f64::max)).collect();
            let args = || args![highest, place, count as i32];
            machine.run("reduce_raking", (3, [THREADS, 1]), args, || {
                assert_eq!(machine.read(highest, 3, f64::from_le_bytes), want);
            });
        }
    });
}

#[test]
fn warps_reduce_parts_and_segments() {
    on_each("cccl_reduce", |machine| {
        let x = integers(THREADS, 3);
        let heads: Vec<i32> = words(THREADS, 4).map(|word| i32::from(word % 5 == 0)).collect();
        let wide: Vec<i64> = longs(THREADS, 5).into_iter().map(u64::cast_signed).collect();
        let sum = |x: &[i32]| x.iter().fold(0i32, |sum, x| sum.wrapping_add(*x));
        let begins = |at: usize| at.is_multiple_of(32) || heads[at] == 1;
        let segments: Vec<_> = (0..THREADS)
            .map(|at| {
                let end = (at + 1..THREADS).find(|end| begins(*end)).unwrap_or(THREADS);
                if begins(at) { sum(&x[at..end]) } else { 0 }
            })
            .collect();
        let (sums, highest) = (machine.space(4 * THREADS / 8), machine.space(8 * THREADS / 32));
        let places = (machine.i32s(&x), machine.i32s(&heads), machine.i64s(&wide));
        let out = machine.i32s(&[0; THREADS]);
        let args = || args![sums, out, highest, places.0, places.1, places.2];
        machine.run("warp_reduce", (1, [THREADS, 1]), args, || {
            let want: Vec<_> = x.chunks_exact(8).map(sum).collect();
            assert_eq!(machine.read(sums, THREADS / 8, i32::from_le_bytes), want);
            assert_eq!(machine.read(out, THREADS, i32::from_le_bytes), segments);
            let want: Vec<_> = wide.chunks_exact(32).map(|x| *x.iter().max().unwrap()).collect();
            assert_eq!(machine.read(highest, THREADS / 32, i64::from_le_bytes), want);
        });
    });
}

#[test]
fn a_block_scans() {
    on_each("cccl_scan", |machine| {
        let x = integers(2 * TILE, 6);
        let (mut want_before, mut want_with, mut want_total) = (Vec::new(), Vec::new(), Vec::new());
        for tile in x.chunks_exact(TILE) {
            let mut sum = 0i32;
            for x in tile {
                want_before.push(sum);
                sum = sum.wrapping_add(*x);
                want_with.push(sum);
            }
            want_total.push(sum);
        }
        let [before, with] = [machine.space(4 * x.len()), machine.space(4 * x.len())];
        let (total, place) = (machine.space(8), machine.i32s(&x));
        let args = || args![before, with, total, place];
        machine.run("scan", (2, [THREADS, 1]), args, || {
            assert_eq!(machine.read(before, x.len(), i32::from_le_bytes), want_before);
            assert_eq!(machine.read(with, x.len(), i32::from_le_bytes), want_with);
            assert_eq!(machine.read(total, 2, i32::from_le_bytes), want_total);
        });
    });
}

#[test]
fn a_warp_scans_long_numbers() {
    on_each("cccl_scan", |machine| {
        let x = longs(2 * THREADS, 7);
        let (out, place) = (machine.space(8 * x.len()), machine.buffer(&x, u64::to_le_bytes));
        let mut want = x.clone();
        for warp in want.chunks_exact_mut(32) {
            (1..32).for_each(|at| warp[at] = warp[at].max(warp[at - 1]));
        }
        machine.run(
            "warp_scan",
            (2, [THREADS, 1]),
            || args![out, place],
            || {
                assert_eq!(machine.read(out, x.len(), u64::from_le_bytes), want);
            },
        );
    });
}

#[test]
fn a_block_sorts_keys_with_values_by_bits() {
    on_each("cccl_radix", |machine| {
        // Keys that are there more than once, whose values keep their order.
        let keys: Vec<u32> = words(2 * TILE, 8).map(|word| word & 0xf000_00ff).collect();
        let values: Vec<u32> = words(2 * TILE, 9).collect();
        let mut want: Vec<_> = keys.iter().copied().zip(values.iter().copied()).collect();
        want.chunks_exact_mut(TILE).for_each(|tile| tile.sort_by_key(|(key, _)| *key));
        let (want_keys, want_values): (Vec<_>, Vec<_>) = want.into_iter().unzip();
        let places = Cell::new((0, 0));
        let args = || {
            places.set((machine.u32s(&keys), machine.u32s(&values)));
            args![places.get().0, places.get().1]
        };
        machine.run("radix_sort", (2, [THREADS, 1]), args, || {
            let (keys, values) = places.get();
            assert_eq!(machine.read(keys, 2 * TILE, u32::from_le_bytes), want_keys);
            assert_eq!(machine.read(values, 2 * TILE, u32::from_le_bytes), want_values);
        });
    });
}

#[test]
fn a_block_sorts_floats_downwards() {
    on_each("cccl_radix", |machine| {
        let x = numbers(TILE, 10);
        let mut want = x.clone();
        want.sort_by(|a, b| b.total_cmp(a));
        let place = Cell::new(0);
        let args = || {
            place.set(machine.f32s(&x));
            args![place.get()]
        };
        machine.run("radix_sort_floats", (1, [THREADS, 1]), args, || {
            assert_eq!(machine.read(place.get(), TILE, f32::from_le_bytes), want);
        });
    });
}

#[test]
fn a_block_sorts_by_merging() {
    on_each("cccl_merge", |machine| {
        for count in [1, 400, TILE] {
            let x = integers(2 * count, 11);
            let mut want = x.clone();
            want.chunks_exact_mut(count).for_each(<[i32]>::sort_unstable);
            let place = Cell::new(0);
            let args = || {
                place.set(machine.i32s(&x));
                args![place.get(), count as i32, 1u8]
            };
            machine.run("merge_sort", (2, [THREADS, 1]), args, || {
                assert_eq!(machine.read(place.get(), x.len(), i32::from_le_bytes), want);
            });
        }
    });
}

#[test]
fn half_warps_sort_by_merging() {
    on_each("cccl_merge", |machine| {
        let x = doubles(2 * TILE, 12);
        let mut want = x.clone();
        want.chunks_exact_mut(64).for_each(|part| part.sort_by(f64::total_cmp));
        let place = Cell::new(0);
        let args = || {
            place.set(machine.f64s(&x));
            args![place.get(), 1u8]
        };
        machine.run("warp_merge_sort", (2, [THREADS, 1]), args, || {
            assert_eq!(machine.read(place.get(), x.len(), f64::from_le_bytes), want);
        });
    });
}

/// What a merge takes from behind its runs does not matter to it; that nobody wrote it is found all the same.
#[test]
fn a_merge_reads_behind_its_runs() {
    on_each("cccl_merge", |machine| {
        let (integers, doubles) = (integers(TILE, 20), doubles(TILE, 21));
        let args = args![machine.i32s(&integers), TILE as i32, 0u8];
        let shape = ([1; 3], [THREADS as u32, 1, 1], 0);
        let fault = machine.launch("merge_sort", shape, &args).unwrap_err();
        assert_eq!(fault.kind, FaultKind::Uninitialised, "{fault}");
        let args = args![machine.f64s(&doubles), 0u8];
        let fault = machine.launch("warp_merge_sort", shape, &args).unwrap_err();
        assert_eq!(fault.kind, FaultKind::Uninitialised, "{fault}");
    });
}

#[test]
fn a_block_counts_bytes() {
    on_each("cccl_histogram", |machine| {
        let x: Vec<u8> = words(3 * TILE, 13).map(|word| (word >> 8 & word) as u8).collect();
        let place = machine.buffer(&x, u8::to_le_bytes);
        let mut want = [0u32; 256];
        x.iter().for_each(|x| want[usize::from(*x)] += 1);
        let places = Cell::new((0, 0));
        let args = || {
            places.set((machine.u32s(&[0; 256]), machine.u32s(&[0; 256])));
            args![places.get().0, places.get().1, place]
        };
        machine.run("histogram", (3, [THREADS, 1]), args, || {
            for counts in [places.get().0, places.get().1] {
                assert_eq!(machine.read(counts, 256, u32::from_le_bytes), want);
            }
        });
    });
}

#[test]
fn a_block_finds_where_runs_begin() {
    on_each("cccl_histogram", |machine| {
        let x: Vec<i32> = words(TILE, 14).map(|word| i32::from(word % 3 == 0)).collect();
        let begins = |at: &usize| *at == 0 || x[*at] != x[*at - 1];
        let want: Vec<i32> = (0..TILE).filter(begins).map(|at| at as i32).collect();
        let (count, starts, place) = (machine.space(4), machine.space(4 * TILE), machine.i32s(&x));
        machine.run(
            "run_starts",
            (1, [THREADS, 1]),
            || args![count, starts, place],
            || {
                assert_eq!(machine.read(count, 1, i32::from_le_bytes), [want.len() as i32]);
                assert_eq!(machine.read(starts, want.len(), i32::from_le_bytes), want);
            },
        );
    });
}

#[test]
fn atomics_of_every_order() {
    on_each("cccl_atomics", |machine| {
        let count = 3 * THREADS;
        let x = numbers(count, 15);
        let place = machine.f32s(&x);
        let total = (count * (count - 1) / 2) as u32;
        let mixed = (0..count as u32).fold(0, |mixed, at| mixed ^ at.wrapping_mul(0x9e37_79b9));
        let places = Cell::new([0; 4]);
        let args = || {
            let counts = machine.u32s(&[7, 0, 0, 1]);
            let bits = machine.buffer(&[0, u64::MAX], u64::to_le_bytes);
            places.set([counts, bits, machine.f32s(&[-9.0]), machine.f64s(&[0.0])]);
            let [counts, bits, highest, sum] = places.get();
            args![counts, bits, highest, sum, place]
        };
        let highest = x.iter().copied().fold(f32::MIN, f32::max);
        let size: f64 = x.iter().map(|x| f64::from(x.abs())).sum();
        let sum = (x.iter().map(|x| f64::from(*x)).sum(), count as f64 * F64 * size);
        machine.run("atomics", (3, [THREADS, 1]), args, || {
            let [counts, bits, most, place] = places.get();
            let want = [7 + total, count as u32 - 1, mixed, 1u32.wrapping_sub(total)];
            assert_eq!(machine.read(counts, 4, u32::from_le_bytes), want);
            assert_eq!(machine.read(bits, 2, u64::from_le_bytes), [u64::MAX, 0]);
            assert_eq!(machine.read(most, 1, f32::from_le_bytes), [highest]);
            assert_within(machine.read(place, 1, f64::from_le_bytes), &[sum]);
        });
    });
}

#[test]
fn halves_of_a_block_take_turns_by_barriers() {
    on_each("cccl_atomics", |machine| {
        let turns = 6;
        let out = machine.space(4 * 2 * 64);
        let want: Vec<_> =
            (0..128).map(|at| (0..turns).map(|turn| turn * (63 - at % 64)).sum::<i32>()).collect();
        machine.run(
            "barrier_turns",
            (2, [THREADS, 1]),
            || args![out, turns],
            || {
                assert_eq!(machine.read(out, 128, i32::from_le_bytes), want);
            },
        );
    });
}

#[test]
fn copies_run_a_step_ahead() {
    on_each("cccl_copies", |machine| {
        let steps = 5;
        let x = numbers(steps * TILE, 16);
        let (out, place) = (machine.space(4 * x.len()), machine.f32s(&x));
        let want: Vec<_> = (0..x.len()).map(|at| 2.0 * x[at ^ 1]).collect();
        machine.run(
            "copies",
            (1, [THREADS, 1]),
            || args![out, place, steps as i32],
            || {
                assert_eq!(machine.read(out, x.len(), f32::from_le_bytes), want);
            },
        );
    });
}

#[test]
fn complex_powers() {
    on_each("cccl_wide", |machine| {
        let count = 200;
        let x: Vec<f64> = doubles(2 * count, 17).iter().map(|x| 3.0 * x).collect();
        let want: Vec<_> = x
            .chunks_exact(2)
            .flat_map(|x| {
                let (size, angle) = (x[0].hypot(x[1]).sqrt(), x[1].atan2(x[0]) / 2.0);
                let (size, angle) = (size * x[0].exp(), angle + x[1]);
                // By x + 2.
                let (a, b) = (x[0] + 2.0, x[1]);
                let (size, angle) = (size / a.hypot(b), angle - b.atan2(a));
                // Each step is a few units of the last place wrong, and cancels at most what |x| and |x + 2| have lost.
                let bound = size * 64.0 * F64 * (1.0 + (x[0].abs() + 2.0) / a.hypot(b));
                [(size * angle.cos(), bound), (size * angle.sin(), bound)]
            })
            .collect();
        let (out, place) = (machine.space(8 * x.len()), machine.f64s(&x));
        let args = || args![out, place, count as i32];
        machine.run("complex_powers", (2, [THREADS, 1]), args, || {
            assert_within(machine.read(out, x.len(), f64::from_le_bytes), &want);
        });
    });
}

#[test]
fn division_of_128_bits() {
    on_each("cccl_wide", |machine| {
        let count = 200;
        let wide = |seed, shift: fn(usize) -> usize| -> Vec<u128> {
            let parts = longs(2 * count, seed);
            let whole = |at: usize| u128::from(parts[2 * at]) << 64 | u128::from(parts[2 * at + 1]);
            (0..count).map(|at| whole(at) >> shift(at)).collect()
        };
        let (a, mut b) = (wide(18, |at| at % 70), wide(19, |at| at % 127));
        b.iter_mut().for_each(|b| *b |= 1);
        let [quotients, rests] = [machine.space(16 * count), machine.space(16 * count)];
        let places = (machine.buffer(&a, u128::to_le_bytes), machine.buffer(&b, u128::to_le_bytes));
        let args = || args![quotients, rests, places.0, places.1, count as i32];
        let pairs = || a.iter().zip(&b);
        let want: Vec<_> = pairs().map(|(a, b)| a / b).collect();
        let want_rests: Vec<_> =
            pairs().map(|(a, b)| a.wrapping_mul(*b).wrapping_add(a % b)).collect();
        machine.run("long_division", (2, [THREADS, 1]), args, || {
            assert_eq!(machine.read(quotients, count, u128::from_le_bytes), want);
            assert_eq!(machine.read(rests, count, u128::from_le_bytes), want_rests);
        });
    });
}
