//! Who wrote each word of an allocation last, as far as it was asked to be remembered.

use std::sync::{
    OnceLock,
    atomic::{AtomicU64, Ordering::Relaxed},
};

/// Bytes of a word.
pub const WORD: usize = 4;
/// Words of a page: pages that nobody writes take no memory.
const PAGE: usize = 1024;
/// Pages of a region: regions without a page take little.
const REGION: usize = 1024;

/// What is remembered of a write: two numbers that only whoever notes them understands, zero at first.
#[derive(Debug, Default)]
pub struct Writer([AtomicU64; 2]);

type Page = Box<[Writer]>;
type Region = Box<[OnceLock<Page>]>;

/// The writers of an allocation's words.
#[derive(Debug)]
pub struct Writers(Box<[OnceLock<Region>]>);

impl Writer {
    /// What was noted last. Threads that race may find one number of each.
    #[must_use]
    pub fn get(&self) -> [u64; 2] {
        [self.0[0].load(Relaxed), self.0[1].load(Relaxed)]
    }

    /// Notes a write.
    pub fn set(&self, [first, second]: [u64; 2]) {
        self.0[0].store(first, Relaxed);
        self.0[1].store(second, Relaxed);
    }
}

impl Writers {
    /// Of `bytes` bytes.
    pub(crate) fn new(bytes: usize) -> Self {
        let regions = bytes.div_ceil(WORD * PAGE * REGION);
        Self((0..regions).map(|_| OnceLock::new()).collect())
    }

    /// What was noted of a word, if anything was of it or one near it.
    ///
    /// # Panics
    /// The word lies outside.
    #[must_use]
    pub fn find(&self, word: usize) -> Option<&Writer> {
        let region = self.0[word / (PAGE * REGION)].get()?;
        Some(&region[word / PAGE % REGION].get()?[word % PAGE])
    }

    /// Where to note what is to be known of a word.
    ///
    /// # Panics
    /// The word lies outside.
    pub fn entry(&self, word: usize) -> &Writer {
        let region = self.0[word / (PAGE * REGION)]
            .get_or_init(|| (0..REGION).map(|_| OnceLock::new()).collect());
        let page = region[word / PAGE % REGION]
            .get_or_init(|| (0..PAGE).map(|_| Writer::default()).collect());
        &page[word % PAGE]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_noted_of_a_word_is_found() {
        let writers = Writers::new(10 << 20);
        let last = (10 << 20) / WORD - 1;
        assert!(writers.find(0).is_none() && writers.find(last).is_none());
        writers.entry(last).set([1, 2]);
        assert_eq!(writers.find(last).unwrap().get(), [1, 2]);
        assert_eq!(writers.find(last - 1).unwrap().get(), [0, 0]);
        assert!(writers.find(0).is_none());
    }
}
