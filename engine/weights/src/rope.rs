//! The table of cosines and sines for the rotary embedding, with every scaling worked in.

use std::f64::consts::TAU;

use crate::config::{ModelConfig, RopeConfig, RopeScaling};

/// The table `[max_positions, R]` with `R = config.rope.dim`: row `p` holds `cos(p * f_i)` at `i` and `sin(p * f_i)`
/// at `R/2 + i`, times YaRN's magnitude factor where there is one.
///
/// Frequencies are rounded to `f32` and multiplied with the position in `f32`, as in the frameworks that models are
/// trained with: at position 100 000 the rounding is visible, and the model has learnt it.
#[must_use]
pub fn rope_table(config: &ModelConfig, max_positions: usize) -> Vec<f32> {
    let frequencies = inverse_frequencies(&config.rope);
    let magnitude = match config.rope.scaling {
        RopeScaling::Yarn { attention_factor, .. } => attention_factor,
        _ => 1.0,
    };
    let mut table = Vec::with_capacity(max_positions.saturating_mul(config.rope.dim));
    for position in 0..max_positions {
        let angle = |f: &f32| f64::from(to_f32(position) * f);
        table.extend(frequencies.iter().map(|f| narrow(angle(f).cos() * magnitude)));
        table.extend(frequencies.iter().map(|f| narrow(angle(f).sin() * magnitude)));
    }
    table
}

/// The `R/2` rotary frequencies after scaling.
#[must_use]
pub fn inverse_frequencies(rope: &RopeConfig) -> Vec<f32> {
    let plain = (0..rope.dim / 2).map(|i| rope.theta.powf(-2.0 * wide(i) / wide(rope.dim)));
    match &rope.scaling {
        RopeScaling::None => plain.map(narrow).collect(),
        RopeScaling::Linear { factor } => plain.map(|f| narrow(f / factor)).collect(),
        RopeScaling::Factors(factors) => {
            plain.zip(factors).map(|(f, factor)| narrow(f / f64::from(*factor))).collect()
        }
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings,
        } => {
            let original = wide(*original_max_position_embeddings);
            let scaled = |frequency: f64| {
                // How often this dimension turns within the original context.
                let turns = original * frequency / TAU;
                let ramp = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                let kept = ramp.clamp(0.0, 1.0);
                (1.0 - kept) * frequency / factor + kept * frequency
            };
            plain.map(scaled).map(narrow).collect()
        }
        RopeScaling::Yarn { factor, .. } => {
            let (low, high) = yarn_ramp(rope);
            let scaled = |(i, frequency): (usize, f64)| {
                let divided = ((wide(i) - low) / (high - low)).clamp(0.0, 1.0);
                frequency / factor * divided + frequency * (1.0 - divided)
            };
            plain.enumerate().map(scaled).map(narrow).collect()
        }
    }
}

/// The pair indices between which YaRN goes from keeping a frequency to dividing it.
fn yarn_ramp(rope: &RopeConfig) -> (f64, f64) {
    let RopeScaling::Yarn {
        beta_fast, beta_slow, original_max_position_embeddings, truncate, ..
    } = rope.scaling
    else {
        return (0.0, 1.0);
    };
    let dim = wide(rope.dim);
    let original = wide(original_max_position_embeddings);
    // The index whose dimension turns `turns` times within the original context.
    let index = |turns: f64| dim * (original / (turns * TAU)).ln() / (2.0 * rope.theta.ln());
    let (mut low, mut high) = (index(beta_fast), index(beta_slow));
    if truncate {
        (low, high) = (low.floor(), high.ceil());
    }
    low = low.max(0.0);
    high = high.min(dim - 1.0);
    // A ramp of no width would divide by zero.
    if high - low < 0.001 { (low, low + 0.001) } else { (low, high) }
}

#[expect(clippy::cast_precision_loss, reason = "dimensions and positions are below 2^30")]
fn wide(value: usize) -> f64 {
    value as f64
}

#[expect(
    clippy::cast_precision_loss,
    reason = "positions are rounded as the frameworks round them"
)]
fn to_f32(position: usize) -> f32 {
    position as f32
}

#[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is the point")]
fn narrow(value: f64) -> f32 {
    value as f32
}
