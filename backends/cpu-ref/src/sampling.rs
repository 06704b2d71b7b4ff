//! How SAMPLE draws, on plain numbers: temperature, top-k, top-p, min-p, and a counter-based random number.

use crate::order::{best, ranked, value};

/// How a row is drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rule {
    /// Divides the logits; 0 takes the largest.
    pub temperature: f64,
    /// Best ids kept; 0 (or less) keeps all.
    pub top_k: i64,
    /// The shortest prefix with at least this probability is kept, at least one id.
    pub top_p: f64,
    /// Ids with less than this share of the best one's probability are dropped.
    pub min_p: f64,
}

impl Rule {
    /// `l / temperature`, NaN as -inf; with temperature 0 the logits themselves.
    pub(crate) fn scaled(&self, logits: &[f64]) -> Vec<f64> {
        let divisor = if self.temperature > 0.0 { self.temperature } else { 1.0 };
        logits.iter().map(|&l| value(l) / divisor).collect()
    }
}

/// The id that `u`, uniform in `[0, 1)`, draws.
///
/// Sorted descending (ties: lower id first); keep `top_k`; `p = softmax(kept)`; keep the shortest prefix with sum `>= top_p`; drop
/// `p < min_p p_0`; the first `i` with `Σ_{..=i} p > u Σ p`. A row without a finite largest logit gives its argmax.
#[must_use]
pub fn choose(logits: &[f64], rule: &Rule, u: f64) -> usize {
    let first = best(logits);
    let largest = logits.get(first).map_or(f64::NEG_INFINITY, |&l| value(l));
    let greedy = rule.temperature.is_nan() || rule.temperature <= 0.0;
    if greedy || largest.is_infinite() {
        return first;
    }
    let scaled = rule.scaled(logits);
    let mut kept = ranked(&scaled);
    if rule.top_k > 0 {
        kept.truncate(usize::try_from(rule.top_k).unwrap_or(usize::MAX));
    }
    let e: Vec<f64> = kept.iter().map(|&i| (scaled[i] - scaled[first]).exp()).collect();
    let sum: f64 = e.iter().sum();
    let p: Vec<f64> = e.iter().map(|e| e / sum).collect();

    let mut prefix = 0.0;
    let shortest = p.iter().position(|p| {
        prefix += p;
        prefix >= rule.top_p
    });
    let p = &p[..shortest.map_or(p.len(), |last| last + 1)];
    let p = &p[..p.iter().position(|&x| x < rule.min_p * p[0]).unwrap_or(p.len()).max(1)];

    let goal = u * p.iter().sum::<f64>();
    let mut so_far = 0.0;
    let drawn = p.iter().position(|p| {
        so_far += p;
        so_far > goal
    });
    kept[drawn.unwrap_or(p.len() - 1)]
}

/// A number in `[0, 1)` with 24 random bits.
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "the low word is meant")]
pub fn uniform(seed: u64, offset: u64) -> f64 {
    let words = |x: u64| [x as u32, (x >> 32) as u32];
    let [low, high] = words(offset);
    let random = philox4x32_10([low, high, 0, 0], words(seed));
    f64::from(random[0] >> 8) / f64::from(1 << 24)
}

/// The Philox4x32 generator with ten rounds (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3").
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "the low word of a product is meant")]
pub fn philox4x32_10(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for round in 0..10 {
        if round > 0 {
            key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
        }
        let a = u64::from(counter[0]) * 0xD251_1F53;
        let b = u64::from(counter[2]) * 0xCD9E_8D57;
        counter = [
            (b >> 32) as u32 ^ counter[1] ^ key[0],
            b as u32,
            (a >> 32) as u32 ^ counter[3] ^ key[1],
            a as u32,
        ];
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers published with the generator (Random123, `kat_vectors`).
    #[test]
    fn philox_known_answers() {
        assert_eq!(
            philox4x32_10([0; 4], [0; 2]),
            [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]
        );
        assert_eq!(
            philox4x32_10([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            philox4x32_10(
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0]
            ),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn seed_and_offset_fill_the_words_low_first() {
        let direct = philox4x32_10([3, 1, 0, 0], [7, 2]);
        let drawn = uniform((2 << 32) | 7, (1 << 32) | 3);
        assert_eq!(drawn.to_bits(), (f64::from(direct[0] >> 8) / 16_777_216.0).to_bits());
        assert_eq!(uniform(0, 0).to_bits(), (f64::from(0x66_27e8u32) / 16_777_216.0).to_bits());
    }

    const ALL: Rule = Rule { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0 };

    /// Probabilities 0.1, 0.4, 0.2, 0.3 at ids 0 to 3; sorted: 1, 3, 2, 0.
    fn logits() -> Vec<f64> {
        [0.1f64, 0.4, 0.2, 0.3].iter().map(|p| p.ln()).collect()
    }

    #[test]
    fn the_draw_walks_the_sorted_probabilities() {
        let draw = |u| choose(&logits(), &ALL, u);
        assert_eq!(
            [0.0, 0.39, 0.41, 0.69, 0.71, 0.89, 0.91, 0.999].map(draw),
            [1, 1, 3, 3, 2, 2, 0, 0]
        );
    }

    #[test]
    fn each_filter_by_hand() {
        let with = |rule: Rule| [0.0, 0.5, 0.999].map(|u| choose(&logits(), &rule, u));
        assert_eq!(with(Rule { top_k: 1, ..ALL }), [1, 1, 1]);
        // Kept 0.4 and 0.3: u = 0.5 is 0.35 of 0.7.
        assert_eq!(with(Rule { top_k: 2, ..ALL }), [1, 1, 3]);
        assert_eq!(with(Rule { top_p: 0.0, ..ALL }), [1, 1, 1]);
        assert_eq!(with(Rule { top_p: 0.39, ..ALL }), [1, 1, 1]);
        assert_eq!(with(Rule { top_p: 0.41, ..ALL }), [1, 1, 3]);
        // 0.2 and 0.1 are below 0.6 × 0.4.
        assert_eq!(with(Rule { min_p: 0.6, ..ALL }), [1, 1, 3]);
        assert_eq!(with(Rule { min_p: 1.5, ..ALL }), [1, 1, 1]);
        assert_eq!(with(Rule { temperature: 0.0, ..ALL }), [1, 1, 1]);
        // Squared and normalised: 16/30, 9/30, 4/30, 1/30.
        assert_eq!(with(Rule { temperature: 0.5, ..ALL }), [1, 1, 0]);
        assert_eq!(choose(&logits(), &Rule { temperature: 0.5, ..ALL }, 0.55), 3);
    }

    #[test]
    fn ties_masks_and_hopeless_rows() {
        assert_eq!(choose(&[1.0, 1.0], &ALL, 0.49), 0);
        assert_eq!(choose(&[1.0, 1.0], &ALL, 0.51), 1);
        let masked = [f64::NEG_INFINITY, 0.0, f64::NAN];
        assert_eq!(choose(&masked, &ALL, 0.999), 1);
        assert_eq!(choose(&[f64::NEG_INFINITY; 3], &ALL, 0.9), 0);
        assert_eq!(choose(&[0.0, f64::INFINITY], &ALL, 0.1), 1);
    }
}
