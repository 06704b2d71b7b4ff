//! Attention against f64, and the same bits however the queries come.

use super::*;
use crate::cell::Cell;
use crate::elem::{Elem, Rows};
use crate::kv::{Cache, KvShape, KvWrite, Plane, PlaneShape, Scales};
use crate::noise::noise;

/// Where a case's keys and values come from.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Kind {
    Paged(Cell),
    /// Latents of `dims[1]`; keys go on to `dims[0]`.
    Latent(Elem),
    Rows,
}

/// Sequences with keys, values and queries for every position.
struct Case {
    kind: Kind,
    block: usize,
    heads: usize,
    /// Of keys and of values.
    dims: [usize; 2],
    q_heads: usize,
    lens: Vec<usize>,
    rules: Rules,
    sinks: Option<Vec<f32>>,
}

/// Scales of up to three heads of an 8-bit cache.
const SCALES: [f32; 3] = [0.013, 0.02, 0.0171];

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

/// 0, and the sum up to each.
fn sums(counts: &[usize]) -> Vec<i32> {
    let mut sums = vec![0];
    sums.extend(counts.iter().scan(0, |n, &count| {
        *n += count as i32;
        Some(*n)
    }));
    sums
}

/// The dims of each head from one on.
fn part(heads: Heads, from: usize) -> Heads {
    let base = heads.rows.base.wrapping_add(4 * from);
    Heads { rows: Rows { base, ..heads.rows }, ..heads }
}

fn cache(shape: KvShape, blocks: usize, k: &mut [u8], v: &mut [u8]) -> Cache {
    let plane = |shape: PlaneShape, memory: &mut [u8]| {
        let block_bytes = shape.block_bytes().unwrap();
        Plane { shape, base: memory.as_mut_ptr(), block_bytes }
    };
    Cache { blocks, k: plane(shape.k, k), v: plane(shape.v, v) }
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
        numbers(self.total() * self.q_heads * self.dims[0], 1, 64.0)
    }

    fn k(&self) -> Vec<f32> {
        numbers(self.total() * self.heads * self.dims[0], 2, 64.0)
    }

    fn v(&self) -> Vec<f32> {
        if let Kind::Latent(_) = self.kind {
            return self
                .k()
                .chunks(self.dims[0])
                .flat_map(|k| &k[..self.dims[1]])
                .copied()
                .collect();
        }
        numbers(self.total() * self.heads * self.dims[1], 3, 64.0)
    }

    /// What comes back of numbers that a cache has kept.
    fn kept(&self, mut x: Vec<f32>, dim: usize) -> Vec<f32> {
        let Kind::Paged(cell) = self.kind else { return x };
        for (i, x) in x.iter_mut().enumerate() {
            let scale = self.scales().map_or(1.0, |s| s[i / dim % self.heads]);
            let mut bytes = [0; 4];
            // SAFETY: no cell is larger.
            unsafe {
                cell.write(bytes.as_mut_ptr(), *x, scale);
                *x = cell.read(bytes.as_ptr()) * scale;
            }
        }
        x
    }

    fn scales(&self) -> Option<&'static [f32]> {
        match self.kind {
            Kind::Paged(Cell::E4m3 | Cell::I8) => Some(&SCALES[..self.heads]),
            _ => None,
        }
    }

    fn shape(&self) -> KvShape {
        match self.kind {
            Kind::Paged(cell) => KvShape::standard(cell, self.block, self.heads, self.dims),
            Kind::Latent(elem) => {
                KvShape::latent(elem, self.block, [self.dims[1], self.dims[0] - self.dims[1]])
            }
            Kind::Rows => KvShape::standard(Cell::Float(Elem::F32), 16, self.heads, self.dims),
        }
    }

    /// A block table, entries a sequence, and blocks: in descending order, entries past the end invalid.
    fn table(&self) -> (Vec<i32>, usize, usize) {
        let per_seq: Vec<usize> = self.lens.iter().map(|n| n.div_ceil(self.block)).collect();
        let blocks: usize = per_seq.iter().sum::<usize>() + 1;
        let stride = per_seq.iter().max().unwrap() + 1;
        let mut table = vec![i32::MIN; self.lens.len() * stride];
        let mut next = blocks as i32;
        for (b, &n) in per_seq.iter().enumerate() {
            for i in 0..n {
                next -= 1;
                table[b * stride + i] = next;
            }
        }
        (table, stride, blocks)
    }

    /// Rows of the first `len[b]` tokens of each sequence.
    fn rows(&self, x: &[f32], len: &[usize], dim: usize) -> Vec<f32> {
        let (mut at, mut rows) = (0, Vec::new());
        for (&n, len) in self.lens.iter().zip(len) {
            rows.extend(&x[at..at + len * self.heads * dim]);
            at += n * self.heads * dim;
        }
        rows
    }

    /// Runs the last `new[b]` tokens of each sequence, with its first `len[b]` cached.
    fn run(&self, isa: Isa, pool: &Pool, len: &[usize], new: &[usize]) -> Answer {
        let (s, block) = (self.shape(), self.block);
        let (q, k, v) = (self.q(), self.k(), self.v());
        let (table, stride, blocks) = self.table();
        let mut k_mem = vec![0xffu8; blocks * s.k.block_bytes().unwrap()];
        let mut v_mem = vec![0xffu8; blocks * s.v.block_bytes().unwrap()];
        let cache = cache(s, blocks, &mut k_mem, &mut v_mem);
        let mut slots = Vec::new();
        for (b, &n) in self.lens.iter().enumerate() {
            let slot =
                |i: usize| (table[b * stride + i / block] as usize * block + i % block) as i64;
            slots.extend((0..n).map(|i| if i < len[b] { slot(i) } else { -1 }));
        }
        let scales = Scales { k: self.scales(), v: self.scales() };
        let (keys, values) =
            (heads(&k, self.heads, self.dims[0]), heads(&v, self.heads, self.dims[1]));
        // A key of latents begins with the latent and goes on with the rotated part.
        let (first, second) = match self.kind {
            Kind::Latent(_) => (keys, part(keys, self.dims[1])),
            _ => (keys, values),
        };
        let write = KvWrite { cache, k: first, v: second, scales, slots: &slots };
        // SAFETY: sizes and slots as made above.
        unsafe { write.run(isa, pool) };

        let (mut rows, mut first) = (Vec::new(), 0);
        for (b, &n) in self.lens.iter().enumerate() {
            rows.extend(first + len[b] - new[b]..first + len[b]);
            first += n;
        }
        let cu_q = sums(new);
        let width = self.q_heads * self.dims[0];
        let q: Vec<f32> = rows.iter().flat_map(|&t| q[t * width..][..width].to_vec()).collect();
        let kv_len: Vec<i32> = len.iter().map(|&n| n as i32).collect();
        let tokens = rows.len();
        let mut o = vec![f32::NAN; tokens * self.q_heads * self.dims[1]];
        let mut lse = vec![f32::NAN; tokens * self.q_heads];
        let bytes = scratch_bytes(
            pool.threads(),
            len.iter().copied().max().unwrap(),
            self.dims[1].next_multiple_of(16),
        );
        let mut scratch = vec![f64::NAN; bytes / 8 + 1];
        let paged =
            Paged { cache, scales, kv_len: &kv_len, block_table: &table, table_stride: stride };
        let q = heads(&q, self.q_heads, self.dims[0]);
        let cu_k = sums(len);
        let (k_rows, v_rows) = (self.rows(&k, len, self.dims[0]), self.rows(&v, len, self.dims[1]));
        let source = match self.kind {
            Kind::Paged(_) => Source::Paged(paged),
            Kind::Latent(_) => Source::Latent(paged, part(q, self.dims[1])),
            Kind::Rows => Source::Rows {
                k: heads(&k_rows, self.heads, self.dims[0]),
                v: heads(&v_rows, self.heads, self.dims[1]),
                heads: self.heads,
                dims: self.dims,
                cu_k: &cu_k,
            },
        };
        let call = Attention {
            rules: self.rules,
            source,
            q,
            q_heads: self.q_heads,
            cu_q: &cu_q,
            tokens,
            o: Out {
                rows: RowsMut {
                    row_stride: 4 * self.q_heads * self.dims[1],
                    ..RowsMut::dense(o.as_mut_ptr(), self.dims[1])
                },
                head_stride: 4 * self.dims[1],
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
        let ([dim_k, dim_v], group) = (self.dims, self.q_heads / self.heads);
        let (q, k, v) = (self.q(), self.kept(self.k(), dim_k), self.kept(self.v(), dim_v));
        let (mut o, mut lse, mut first) = (Vec::new(), Vec::new(), 0);
        for &n in &self.lens {
            for p in 0..n {
                for h in 0..self.q_heads {
                    let q = &q[((first + p) * self.q_heads + h) * dim_k..][..dim_k];
                    let seen = if self.rules.causal {
                        self.rules.window.map_or(0, |w| p.saturating_sub(w))..p + 1
                    } else {
                        0..n
                    };
                    let row = |j: usize| (first + j) * self.heads + h / group;
                    let z: Vec<f64> = seen
                        .clone()
                        .map(|j| {
                            let k = &k[row(j) * dim_k..][..dim_k];
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
                    let a: Vec<f64> = z.iter().map(|z| (z - max).exp() / sum).collect();
                    o.extend((0..dim_v).map(|d| {
                        let values = seen.clone().map(|j| f64::from(v[row(j) * dim_v + d]));
                        a.iter().zip(values).map(|(a, v)| a * v).sum::<f64>()
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
                assert!(
                    close,
                    "{isa:?} {:?} {:?} {what}[{i}] = {got}, want {want}",
                    self.kind, self.dims
                );
            }
        }
    }
}

fn case(block: usize, q_heads: usize, heads: usize, dim: usize, lens: &[usize]) -> Case {
    Case {
        kind: Kind::Paged(Cell::Float(Elem::F32)),
        block,
        heads,
        dims: [dim, dim],
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
        for dim in [1, 8, 16, 32, 40, 60, 80, 112, 128, 192, 256, 512, 576] {
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
        wide.dims[1] = 24;
        wide.check(isa, &pool);
    }
}

#[test]
fn cache_types_and_rules_match_the_definition() {
    let pool = Pool::new(2).unwrap();
    for isa in Isa::all_available() {
        for elem in [Elem::F16, Elem::Bf16] {
            let mut c = case(16, 6, 2, 64, &[50, 300]);
            c.kind = Kind::Paged(Cell::Float(elem));
            c.check(isa, &pool);
            c.block = 8;
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
fn latents_rows_and_8_bit_caches_match_the_definition() {
    let pool = Pool::new(2).unwrap();
    let kinds = [
        (Kind::Latent(Elem::F32), [24, 16]),
        (Kind::Latent(Elem::Bf16), [576, 512]),
        (Kind::Latent(Elem::F16), [50, 37]),
        (Kind::Rows, [24, 16]),
        (Kind::Rows, [192, 128]),
        (Kind::Rows, [37, 61]),
        (Kind::Paged(Cell::I8), [64, 48]),
        (Kind::Paged(Cell::E4m3), [64, 48]),
        (Kind::Paged(Cell::E4m3), [37, 61]),
    ];
    for isa in Isa::all_available() {
        for (kind, dims) in kinds {
            for block in [16, 4] {
                let heads = if matches!(kind, Kind::Latent(_)) { 1 } else { 2 };
                let mut c = case(block, 6, heads, 0, &[270, 5, 33]);
                (c.kind, c.dims) = (kind, dims);
                c.rules.scale = 0.1;
                c.check(isa, &pool);
                c.rules.window = Some(20);
                c.check(isa, &pool);
            }
        }
    }
}

#[test]
fn bits_of_staged_keys_do_not_depend_on_how_queries_come() {
    let pools = [Pool::new(1).unwrap(), Pool::new(3).unwrap()];
    for isa in Isa::all_available() {
        for kind in [Kind::Latent(Elem::Bf16), Kind::Rows, Kind::Paged(Cell::E4m3)] {
            let mut c = case(16, 5, 1, 0, &[530]);
            (c.kind, c.dims) = (kind, [48, 32]);
            let whole = c.whole(isa, &pools[0]);
            assert!(whole == c.whole(isa, &pools[1]), "{kind:?}");
            for len in [1, 17, 256, 257, 530] {
                let alone = c.run(isa, &pools[1], &[len], &[1]);
                assert!(alone.o == whole.o[(len - 1) * 160..][..160], "{isa:?} {kind:?} {len}");
            }
        }
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
    let shape = c.shape();
    let mut k = vec![0u8; 8 * shape.k.block_bytes().unwrap()];
    let mut v = vec![0u8; 8 * shape.v.block_bytes().unwrap()];
    let q = c.q();
    let mut o = vec![f32::NAN; 5 * 2 * 32];
    let mut lse = vec![f32::NAN; 5 * 2];
    let call = Attention {
        rules: c.rules,
        source: Source::Paged(Paged {
            cache: cache(shape, 8, &mut k, &mut v),
            scales: Scales::default(),
            kv_len: &[0, 1],
            block_table: &[-1, 3],
            table_stride: 1,
        }),
        q: heads(&q, 2, 32),
        q_heads: 2,
        cu_q: &[0, 1, 4],
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
