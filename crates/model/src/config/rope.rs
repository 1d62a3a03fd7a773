//! RoPE frequencies, as transformers' `ROPE_INIT_FUNCTIONS` compute them.

use super::{ModelConfig, RopeScaling};
use std::f64::consts::PI;

impl ModelConfig {
    /// RoPE inverse frequencies (head_dim/2) with scaling applied, and the factor on cos/sin (1.0 unless yarn).
    ///
    /// Position p turns pair i (elements i and i + head_dim/2 of a head) by p · frequency\[i\] radians. Linear:
    /// <https://kaiokendev.github.io/til>; llama3: Llama 3.1's code; yarn: <https://arxiv.org/abs/2309.00071>.
    pub fn rope_frequencies(&self) -> (Vec<f32>, f32) {
        let plain = (0..self.head_dim / 2)
            .map(|i| 1.0 / self.rope_theta.powf((2 * i) as f32 / self.head_dim as f32))
            .collect::<Vec<_>>();
        match self.rope_scaling {
            RopeScaling::None => (plain, 1.0),
            RopeScaling::Linear { factor } => (plain.iter().map(|frequency| frequency / factor).collect(), 1.0),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
                let original = original_max_positions as f32;
                let scale = |frequency: &f32| {
                    llama3_frequency(*frequency, factor, low_freq_factor, high_freq_factor, original)
                };
                (plain.iter().map(scale).collect(), 1.0)
            }
            RopeScaling::Yarn { factor, original_max_positions, beta_fast, beta_slow, attention_factor } => {
                let (low, high) = self.yarn_range(beta_fast, beta_slow, original_max_positions as f32);
                let blend = |(i, frequency): (usize, &f32)| {
                    let ramp = ((i as f32 - low) / (high - low)).clamp(0.0, 1.0);
                    frequency / factor * ramp + frequency * (1.0 - ramp)
                };
                (plain.iter().enumerate().map(blend).collect(), attention_factor)
            }
        }
    }

    /// The pairs between which yarn blends from unscaled to scaled: those that turn `beta_fast` and `beta_slow` times
    /// over the original context.
    fn yarn_range(&self, beta_fast: f32, beta_slow: f32, original: f32) -> (f32, f32) {
        // In f64, as the original: a rounding error could move a border by a whole pair.
        let width = self.head_dim as f64;
        let pair = |turns: f32| {
            width * (f64::from(original) / (f64::from(turns) * 2.0 * PI)).ln() / (2.0 * f64::from(self.rope_theta).ln())
        };
        let low = pair(beta_fast).floor().max(0.0) as f32;
        let high = pair(beta_slow).ceil().min(width - 1.0) as f32;
        // The paper's code widens an empty range so that the ramp has a slope.
        (low, if high == low { high + 0.001 } else { high })
    }
}

/// Llama 3.1's rule: long waves are slowed by `factor`, short ones kept, those between blended.
pub(super) fn llama3_frequency(frequency: f32, factor: f32, low: f32, high: f32, original: f32) -> f32 {
    let wavelength = 2.0 * PI as f32 / frequency;
    if wavelength < original / high {
        frequency
    } else if wavelength > original / low {
        frequency / factor
    } else {
        let smooth = (original / wavelength - low) / (high - low);
        (1.0 - smooth) * frequency / factor + smooth * frequency
    }
}
