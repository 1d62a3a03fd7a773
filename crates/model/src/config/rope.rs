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
                let scale =
                    |frequency: &f32| llama3_frequency(*frequency, factor, low_freq_factor, high_freq_factor, original);
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

#[cfg(test)]
// The expected values are printed as PyTorch prints them.
#[allow(clippy::excessive_precision)]
mod tests {
    use super::*;
    use crate::config::Architecture;

    fn config(rope_theta: f32, rope_scaling: RopeScaling) -> ModelConfig {
        ModelConfig {
            architecture: Architecture::Llama,
            hidden: 64,
            layers: 1,
            heads: 4,
            kv_heads: 4,
            head_dim: 16,
            intermediate: 64,
            vocab: 8,
            rms_eps: 1e-5,
            rope_theta,
            rope_scaling,
            tied: true,
            qk_norm: false,
            attention_bias: false,
            mlp_bias: false,
            max_positions: 2048,
            eos: vec![],
            bos: None,
        }
    }

    fn assert_frequencies(config: &ModelConfig, expected: [f32; 8], magnitude: f32) {
        let (frequencies, factor) = config.rope_frequencies();
        assert!((factor - magnitude).abs() < 1e-6, "{factor} for {magnitude}");
        for (frequency, expected) in frequencies.iter().zip(expected) {
            // Two powers in f32, computed by different libraries, may differ in the last bits.
            assert!((frequency / expected - 1.0).abs() < 1e-6, "{frequency} for {expected}");
        }
    }

    // Expected values: `ROPE_INIT_FUNCTIONS[…]` of transformers 5.23 for the same configurations.

    #[test]
    fn linear_scaling_is_that_of_transformers() {
        let expected = [0.25, 0.079056941, 0.025, 0.00790569466, 0.0025, 0.000790569466, 0.00025, 7.90569466e-5];
        assert_frequencies(&config(10_000.0, RopeScaling::Linear { factor: 4.0 }), expected, 1.0);
    }

    #[test]
    fn llama3_scaling_is_that_of_transformers() {
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_positions: 8192,
        };
        let expected = [
            1.0,
            0.193922758,
            0.0376060307,
            0.00729266508,
            0.000524846022,
            3.42810235e-5,
            6.64786967e-6,
            1.28917316e-6,
        ];
        assert_frequencies(&config(500_000.0, scaling), expected, 1.0);
    }

    #[test]
    fn yarn_scaling_is_that_of_transformers() {
        let scaling = RopeScaling::Yarn {
            factor: 4.0,
            original_max_positions: 32768,
            beta_fast: 32.0,
            beta_slow: 1.0,
            attention_factor: 1.138_629_4,
        };
        let expected =
            [1.0, 0.177827939, 0.0316227786, 0.00421755994, 0.0005, 4.44569851e-5, 7.90569356e-6, 1.40585337e-6];
        assert_frequencies(&config(1e6, scaling), expected, 1.138_629_4);
        let scaling = RopeScaling::Yarn {
            factor: 2.5,
            original_max_positions: 512,
            beta_fast: 16.0,
            beta_slow: 2.0,
            attention_factor: 1.25,
        };
        let expected = [1.0, 0.316227764, 0.08, 0.0189736672, 0.004, 0.00126491114, 0.0004, 0.000126491112];
        assert_frequencies(&config(10_000.0, scaling), expected, 1.25);
    }
}
