//! A step of attention as a backend makes it: rows to pages of a cache, then attention over the pages, in one stream without a wait.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "tests: small sizes"
)]

mod common;

use common::*;

const WIDTH: i64 = 16;
const BLOCK: i64 = 16;
/// The bits of halves.
const ONE: u16 = 0x3c00;
const HALF: u16 = 0x3800;
const THREE_QUARTERS: u16 = 0x3a00;

/// Attention of one query over the pages of its sequence.
fn attend(tensors: [usize; 5], kv_len: i64, s: usize) -> i32 {
    let [query, key, value, table, out] = tensors;
    let (q_lens, kv_lens) = (int_array(&[1]), int_array(&[kv_len]));
    let (n, far, layout) = (0usize, i64::from(i32::MAX), c"TND".as_ptr());
    run("aclnnFusedInferAttentionScoreV4", s, |size, executor| {
        #[rustfmt::skip]
        let args = (
            query, key, value, n, n, q_lens, kv_lens, n, n, n, n, n, n, n, table, n, n, n, n, n, n, n, n, n, n, n, n, n, n,
            1i64, 1.0f64, far, far, layout, 1i64, 0i64, 0i64, BLOCK, 0i64, 0u8, 0i64, 0i64, 0i64, out, n, size, executor,
        );
        call("aclnnFusedInferAttentionScoreV4GetWorkspaceSize", args)
    })
}

/// A query over `kv_len` tokens of a page of which two were written; its status.
fn step(kv_len: i64) -> (i32, u64) {
    let s = stream();
    let rows = [2, 1, WIDTH];
    let width = WIDTH as usize;
    let keys = tensor(F16, &rows, upload(&vec![ONE; 2 * width]));
    let values = [vec![HALF; width], vec![ONE; width]].concat();
    let values = tensor(F16, &rows, upload(&values));
    let pages = [4, BLOCK, 1, WIDTH];
    let caches = [0; 2].map(|_| malloc((2 * 4 * BLOCK * WIDTH) as usize));
    let [key_cache, value_cache] = caches.map(|address| tensor(F16, &pages, address));
    // The first two of page 2; nothing else was ever written.
    let slots = tensor(I32, &[2], upload(&[2 * 16, 2 * 16 + 1]));
    let status = run("aclnnScatterPaKvCache", s, |size, executor| {
        let (n, mode, plain) = (0usize, c"Norm".as_ptr(), c"None".as_ptr());
        let args = (
            keys,
            key_cache,
            slots,
            values,
            value_cache,
            n,
            n,
            n,
            mode,
            plain,
            n,
            n,
            size,
            executor,
        );
        call("aclnnScatterPaKvCacheGetWorkspaceSize", args)
    });
    assert_eq!(status, 0, "{}", message());
    let (query, out) = (tensor(F16, &[1, 1, WIDTH], upload(&vec![ONE; width])), malloc(2 * width));
    let [key, value] = caches.map(|address| list(&[tensor(F16, &[4, BLOCK, WIDTH], address)]));
    let table = tensor(I32, &[1, 1], upload(&[2]));
    let status = attend([query, key, value, table, tensor(F16, &[1, 1, WIDTH], out)], kv_len, s);
    assert_eq!(status, 0, "{}", message());
    (call("aclrtSynchronizeStream", (s,)), out)
}

#[test]
fn a_step_over_pages() {
    use_device(0);
    let (status, out) = step(2);
    assert_eq!(status, 0, "{}", message());
    // Both keys are alike: the mean of the values.
    assert_eq!(download::<u16>(out, 16), [THREE_QUARTERS; 16]);
}

#[test]
fn a_length_beyond_what_was_written() {
    use_device(0);
    assert_eq!(step(3).0, 507_015);
    let said = message();
    assert!(
        said.contains("aclnnFusedInferAttentionScoreV4") && said.contains("nothing wrote"),
        "{said}"
    );
}
