//! Attention against f64, and the same bits however the queries come.

use super::*;
use crate::elem::{Elem, Rows};
use crate::kv::{KvShape, KvWrite};
use crate::pack::ggml::tests::noise;

/// Sequences with keys, values and queries for every position.
struct Case {
    shape: KvShape,
    q_heads: usize,
    lens: Vec<usize>,
    rules: Rules,
    sinks: Option<Vec<f32>>,
}

/// Numbers that every element type holds exactly.
fn numbers(count: usize, seed: u64, divisor: f32) -> Vec<f32> {
    noise(seed, count).iter().map(|&b| f32::from(b.cast_signed()) / divisor).collect()
}

fn heads(data: &[f32], heads: usize, dim: usize) -> Heads {
    Heads {
        rows: Rows { row_stride: 4 * heads * dim, ..Rows::dense(data.as_ptr(), dim) },
        head_stride: 4 * dim,
    }
}

/// What a call gives: outputs and log-sum-exps.
#[derive(PartialEq, Debug)]
struct Answer {
    o: Vec<f32>,
    lse: Vec<f32>,
}

impl Case {
    fn total(&self) -> usize {
        self.lens.iter().sum()
    }

    fn q(&self) -> Vec<f32> {
        numbers(self.total() * self.q_heads * self.shape.dim_k, 1, 64.0)
    }

    fn k(&self) -> Vec<f32> {
        numbers(self.total() * self.shape.heads * self.shape.dim_k, 2, 64.0)
    }

    fn v(&self) -> Vec<f32> {
        numbers(self.total() * self.shape.heads * self.shape.dim_v, 3, 64.0)
    }

    /// Runs the last `new[b]` tokens of each sequence, with its first `len[b]` cached.
    fn run(&self, isa: Isa, pool: &Pool, len: &[usize], new: &[usize]) -> Answer {
        let s = self.shape;
        let (q, k, v) = (self.q(), self.k(), self.v());
        let per_seq: Vec<usize> = self.lens.iter().map(|n| n.div_ceil(s.block)).collect();
        let blocks: usize = per_seq.iter().sum::<usize>() + 1;
        let stride = per_seq.iter().max().unwrap() + 1;
        // Blocks in descending order, table entries past the end invalid, unwritten slots NaN.
        let mut table = vec![i32::MIN; self.lens.len() * stride];
        let mut next = blocks as i32;
        for (b, &n) in per_seq.iter().enumerate() {
            for i in 0..n {
                next -= 1;
                table[b * stride + i] = next;
            }
        }
        let (k_bytes, v_bytes) = (s.k_block_bytes().unwrap(), s.v_block_bytes().unwrap());
        let mut k_mem = vec![0xffu8; blocks * k_bytes];
        let mut v_mem = vec![0xffu8; blocks * v_bytes];
        let cache = Cache {
            shape: s,
            blocks,
            k: k_mem.as_mut_ptr(),
            v: v_mem.as_mut_ptr(),
            k_block_bytes: k_bytes,
            v_block_bytes: v_bytes,
        };
        let mut slots = Vec::new();
        for (b, &n) in self.lens.iter().enumerate() {
            slots.extend((0..n).map(|i| {
                let block = table[b * stride + i / s.block] as usize;
                if i < len[b] { (block * s.block + i % s.block) as i64 } else { -1 }
            }));
        }
        let write = KvWrite {
            cache,
            k: heads(&k, s.heads, s.dim_k),
            v: heads(&v, s.heads, s.dim_v),
            slots: &slots,
        };
        // SAFETY: sizes and slots as made above.
        unsafe { write.run(isa, pool) };

        let (mut rows, mut cu_q, mut first) = (Vec::new(), vec![0], 0);
        for (b, &n) in self.lens.iter().enumerate() {
            rows.extend(first + len[b] - new[b]..first + len[b]);
            cu_q.push(rows.len() as i32);
            first += n;
        }
        let width = self.q_heads * s.dim_k;
        let q: Vec<f32> = rows.iter().flat_map(|&t| q[t * width..][..width].to_vec()).collect();
        let kv_len: Vec<i32> = len.iter().map(|&n| n as i32).collect();
        let tokens = rows.len();
        let mut o = vec![f32::NAN; tokens * self.q_heads * s.dim_v];
        let mut lse = vec![f32::NAN; tokens * self.q_heads];
        let bytes = scratch_bytes(pool.threads(), len.iter().copied().max().unwrap(), s.padded_v());
        let mut scratch = vec![f64::NAN; bytes / 8 + 1];
        let call = Attention {
            rules: self.rules,
            cache,
            q: heads(&q, self.q_heads, s.dim_k),
            q_heads: self.q_heads,
            cu_q: &cu_q,
            kv_len: &kv_len,
            block_table: &table,
            table_stride: stride,
            tokens,
            o: Out {
                rows: RowsMut {
                    row_stride: 4 * self.q_heads * s.dim_v,
                    ..RowsMut::dense(o.as_mut_ptr(), s.dim_v)
                },
                head_stride: 4 * s.dim_v,
            },
            lse: Some(Lse {
                base: lse.as_mut_ptr().cast(),
                token_stride: 4 * self.q_heads,
                head_stride: 4,
            }),
            sinks: self.sinks.as_ref().map(|s| s.as_ptr()),
            scratch: scratch.as_mut_ptr().cast(),
            scratch_bytes: bytes,
        };
        // SAFETY: sizes, lengths and blocks as made above.
        unsafe { call.run(isa, pool) };
        Answer { o, lse }
    }

    fn whole(&self, isa: Isa, pool: &Pool) -> Answer {
        self.run(isa, pool, &self.lens, &self.lens)
    }

    /// The definition, in f64, for every position.
    fn oracle(&self) -> (Vec<f64>, Vec<f64>) {
        let (s, group) = (self.shape, self.q_heads / self.shape.heads);
        let (q, k, v) = (self.q(), self.k(), self.v());
        let (mut o, mut lse, mut first) = (Vec::new(), Vec::new(), 0);
        for &n in &self.lens {
            for p in 0..n {
                for h in 0..self.q_heads {
                    let q = &q[((first + p) * self.q_heads + h) * s.dim_k..][..s.dim_k];
                    let seen = if self.rules.causal {
                        self.rules.window.map_or(0, |w| p.saturating_sub(w))..p + 1
                    } else {
                        0..n
                    };
                    let row = |j: usize| (first + j) * s.heads + h / group;
                    let z: Vec<f64> = seen
                        .clone()
                        .map(|j| {
                            let k = &k[row(j) * s.dim_k..][..s.dim_k];
                            let dot: f64 = q.iter().zip(k).map(|(a, b)| f64::from(a * b)).sum();
                            let z = f64::from(self.rules.scale) * dot;
                            let cap = f64::from(self.rules.softcap);
                            if cap > 0.0 { cap * (z / cap).tanh() } else { z }
                        })
                        .collect();
                    let sink = self.sinks.as_ref().map(|s| f64::from(s[h]));
                    let max = z.iter().copied().chain(sink).fold(f64::MIN, f64::max);
                    let sum: f64 = z.iter().copied().chain(sink).map(|z| (z - max).exp()).sum();
                    lse.push(max + sum.ln());
                    o.extend((0..s.dim_v).map(|d| {
                        let a = z.iter().map(|z| (z - max).exp() / sum);
                        a.zip(seen.clone())
                            .map(|(a, j)| a * f64::from(v[row(j) * s.dim_v + d]))
                            .sum::<f64>()
                    }));
                }
            }
            first += n;
        }
        (o, lse)
    }

    fn check(&self, isa: Isa, pool: &Pool) {
        let got = self.whole(isa, pool);
        let (o, lse) = self.oracle();
        for (what, got, want) in [("o", &got.o, &o), ("lse", &got.lse, &lse)] {
            for (i, (&got, want)) in got.iter().zip(want).enumerate() {
                let close = (f64::from(got) - want).abs() <= 1e-5 + 1e-5 * want.abs();
                assert!(close, "{isa:?} {:?} {what}[{i}] = {got}, want {want}", self.shape);
            }
        }
    }
}

fn case(block: usize, q_heads: usize, heads: usize, dim: usize, lens: &[usize]) -> Case {
    Case {
        shape: KvShape { elem: Elem::F32, block, heads, dim_k: dim, dim_v: dim },
        q_heads,
        lens: lens.to_vec(),
        rules: Rules { scale: 0.3, causal: true, window: None, softcap: 0.0 },
        sinks: None,
    }
}

#[test]
fn shapes_match_the_definition() {
    let pool = Pool::new(2).unwrap();
    for isa in Isa::all_available() {
        for dim in [8, 16, 32, 40, 64, 72, 80, 96, 128, 192, 256] {
            case(16, 3, 1, dim, &[1, 33]).check(isa, &pool);
        }
        for block in [1, 2, 8, 16, 32, 64, 128, 256] {
            case(block, 4, 2, 32, &[70, 5]).check(isa, &pool);
        }
        for (q_heads, heads) in [(1, 1), (2, 1), (4, 1), (5, 1), (9, 3), (8, 1), (14, 2)] {
            case(16, q_heads, heads, 24, &[3, 1, 20]).check(isa, &pool);
        }
        case(16, 6, 2, 32, &[600]).check(isa, &pool);
        let mut wide = case(16, 2, 2, 64, &[40]);
        wide.shape.dim_v = 24;
        wide.check(isa, &pool);
    }
}

#[test]
fn cache_types_and_rules_match_the_definition() {
    let pool = Pool::new(2).unwrap();
    for isa in Isa::all_available() {
        for elem in [Elem::F16, Elem::Bf16] {
            let mut c = case(16, 6, 2, 64, &[50, 300]);
            c.shape.elem = elem;
            c.check(isa, &pool);
            c.shape.block = 8;
            c.check(isa, &pool);
        }
        let mut c = case(16, 4, 2, 32, &[290, 7]);
        c.sinks = Some(vec![0.5, -3.0, 8.0, 100.0]);
        c.check(isa, &pool);
        for window in [0, 1, 17, 255, 256, 1000] {
            c.rules.window = Some(window);
            c.check(isa, &pool);
        }
        c.rules.softcap = 2.0;
        c.check(isa, &pool);
        c.rules.causal = false;
        c.check(isa, &pool);
    }
}

#[test]
fn bits_do_not_depend_on_how_queries_come() {
    let pools = [Pool::new(1).unwrap(), Pool::new(2).unwrap(), Pool::new(3).unwrap()];
    for isa in Isa::all_available() {
        for window in [None, Some(100)] {
            let mut c = case(16, 9, 3, 64, &[530]);
            c.rules.window = window;
            let whole = c.whole(isa, &pools[0]);
            assert!(whole == c.whole(isa, &pools[2]));
            for (pool, size) in [(&pools[1], 512), (&pools[0], 16), (&pools[2], 37)] {
                let (mut o, mut lse) = (Vec::new(), Vec::new());
                for start in (0..530).step_by(size) {
                    let end = (start + size).min(530);
                    let part = c.run(isa, pool, &[end], &[end - start]);
                    o.extend(part.o);
                    lse.extend(part.lse);
                }
                assert!(whole == Answer { o, lse }, "{isa:?} {window:?} in parts of {size}");
            }
            // Decoding, alone (chunks shared among threads) and beside others.
            let width = 9 * 64;
            for len in [1, 16, 255, 256, 257, 530] {
                let alone = c.run(isa, &pools[2], &[len], &[1]);
                assert!(alone.o == whole.o[(len - 1) * width..][..width], "{isa:?} decode {len}");
            }
            let mut many = case(16, 9, 3, 64, &[530, 20, 3]);
            many.rules.window = window;
            let beside = many.run(isa, &pools[1], &[400, 20, 3], &[1, 20, 0]);
            assert!(beside.o[..width] == whole.o[399 * width..][..width]);
        }
    }
}

#[test]
fn queries_that_see_nothing_and_padding_give_zeros() {
    let pool = Pool::new(2).unwrap();
    let isa = Isa::detect();
    let c = case(16, 2, 1, 32, &[40, 10]);
    // The second sequence has three new tokens but claims one cached: two of them see nothing.
    let shape = c.shape;
    let (k, v) = (
        vec![0u8; 8 * shape.k_block_bytes().unwrap()],
        vec![0u8; 8 * shape.v_block_bytes().unwrap()],
    );
    let q = c.q();
    let mut o = vec![f32::NAN; 5 * 2 * 32];
    let mut lse = vec![f32::NAN; 5 * 2];
    let call = Attention {
        rules: c.rules,
        cache: Cache {
            shape,
            blocks: 8,
            k: k.as_ptr().cast_mut(),
            v: v.as_ptr().cast_mut(),
            k_block_bytes: shape.k_block_bytes().unwrap(),
            v_block_bytes: shape.v_block_bytes().unwrap(),
        },
        q: heads(&q, 2, 32),
        q_heads: 2,
        cu_q: &[0, 1, 4],
        kv_len: &[0, 1],
        block_table: &[-1, 3],
        table_stride: 1,
        tokens: 5,
        o: Out {
            rows: RowsMut { row_stride: 256, ..RowsMut::dense(o.as_mut_ptr(), 32) },
            head_stride: 128,
        },
        lse: Some(Lse { base: lse.as_mut_ptr().cast(), token_stride: 8, head_stride: 4 }),
        sinks: None,
        scratch: std::ptr::null_mut(),
        scratch_bytes: 0,
    };
    // SAFETY: all views span what the call says.
    unsafe { call.run(isa, &pool) };
    assert!(o.iter().all(|&x| x == 0.0));
    let seeing: Vec<_> = lse.iter().map(|x| x.is_finite()).collect();
    assert_eq!(seeing, [false, false, false, false, false, false, true, true, false, false]);
}
