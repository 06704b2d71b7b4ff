//! Random-looking bytes for tests, the unit tests' too.

/// So many bytes that look random: xorshift64.
pub(crate) fn noise(seed: u64, count: usize) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 32) as u8
    };
    (0..count).map(|_| next()).collect()
}
