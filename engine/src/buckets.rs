//! Numbers of sequences that decode steps are laid out for.
//!
//! A graph fixes the sizes of what it captured, so a step of other sizes is filled up with padding to the next of these. A step is laid
//! out alike whether it is then replayed or launched kernel by kernel: both are the same launches on the same bits.

/// Growing numbers of sequences; none where no step is filled up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Buckets(Vec<usize>);

impl Buckets {
    /// The most sequences that any has: a step with more has work enough to hide its launches.
    const MOST: usize = 512;

    /// 1, 2, 4, every 8th number to 256, every 16th to 512, as far as steps go, and the most that a step has.
    pub(crate) fn up_to(max_num_seqs: usize) -> Self {
        let most = max_num_seqs.min(Self::MOST);
        let numbers = [1, 2, 4].into_iter().chain((8..256).step_by(8));
        let numbers = numbers.chain((256..=Self::MOST).step_by(16));
        Self(numbers.take_while(|&number| number < most).chain([most]).collect())
    }

    pub(crate) fn sizes(&self) -> &[usize] {
        &self.0
    }

    /// The smallest that so many sequences fit.
    pub(crate) fn of(&self, seqs: usize) -> Option<usize> {
        self.0.get(self.0.partition_point(|&size| size < seqs)).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_grow_with_the_number() {
        assert_eq!(Buckets::up_to(1).sizes(), [1]);
        assert_eq!(Buckets::up_to(8).sizes(), [1, 2, 4, 8]);
        assert_eq!(Buckets::up_to(21).sizes(), [1, 2, 4, 8, 16, 21]);
        let all = Buckets::up_to(1000);
        assert_eq!(all.sizes()[all.sizes().len() - 3..], [480, 496, 512]);
        assert_eq!(
            [1, 3, 9, 250, 257, 512].map(|n| all.of(n)),
            [1, 4, 16, 256, 272, 512].map(Some)
        );
        assert_eq!((all.of(513), Buckets::default().of(1)), (None, None));
    }
}
