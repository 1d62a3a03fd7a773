//! AdamW, gradient clipping, and the learning rate over time, as PyTorch and transformers define them.

use crate::{
    TrainConfig,
    config::Decay,
    graph::{matrix::Matrix, parameter::Parameter},
};
use rayon::prelude::*;
use std::sync::Arc;

/// Values that one task updates.
const VALUES_PER_TASK: usize = 1 << 14;

/// AdamW with decoupled decay (Loshchilov and Hutter 2019), `torch.optim.AdamW`'s order of operations.
#[derive(Debug)]
pub struct AdamW {
    beta1: f64,
    beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    weight_decay: f64,
    /// Steps done.
    pub step: usize,
    /// First and second moment of each parameter.
    pub moments: Vec<(Matrix, Matrix)>,
}

impl AdamW {
    /// No steps done, moments zero.
    pub fn new(config: &TrainConfig, parameters: &[Arc<Parameter>]) -> Self {
        let zeros = |p: &Arc<Parameter>| (Matrix::zeros(p.rows(), p.cols()), Matrix::zeros(p.rows(), p.cols()));
        Self {
            beta1: config.adam_beta1,
            beta2: config.adam_beta2,
            epsilon: config.adam_epsilon,
            weight_decay: config.weight_decay,
            step: 0,
            moments: parameters.iter().map(zeros).collect(),
        }
    }

    /// One step with the gathered gradients times `gradient_factor`; they are cleared. A parameter without a gradient stays.
    pub fn update(&mut self, parameters: &[Arc<Parameter>], learning_rate: f64, gradient_factor: f32) {
        self.step += 1;
        let steps = self.step as f64;
        let step_size = (learning_rate / (1.0 - self.beta1.powf(steps))) as f32;
        let root_correction = (1.0 - self.beta2.powf(steps)).sqrt() as f32;
        let keep = (1.0 - learning_rate * self.weight_decay) as f32;
        let (beta1, beta2, epsilon) = (self.beta1 as f32, self.beta2 as f32, self.epsilon as f32);
        // Rounded after the subtraction: 1 − 0.999f32 would be 10⁻⁵ off.
        let (rest1, rest2) = ((1.0 - self.beta1) as f32, (1.0 - self.beta2) as f32);
        for (parameter, (first, second)) in parameters.iter().zip(&mut self.moments) {
            let Some(gradient) = parameter.gradient().take() else { continue };
            let mut value = parameter.value_mut();
            value
                .values_mut()
                .par_chunks_mut(VALUES_PER_TASK)
                .zip(gradient.values().par_chunks(VALUES_PER_TASK))
                .zip(first.values_mut().par_chunks_mut(VALUES_PER_TASK))
                .zip(second.values_mut().par_chunks_mut(VALUES_PER_TASK))
                .for_each(|(((value, gradient), first), second)| {
                    for (((value, gradient), first), second) in value.iter_mut().zip(gradient).zip(first).zip(second) {
                        let gradient = gradient * gradient_factor;
                        *first = beta1 * *first + rest1 * gradient;
                        *second = beta2 * *second + rest2 * gradient * gradient;
                        *value = *value * keep - step_size * *first / (second.sqrt() / root_correction + epsilon);
                    }
                });
        }
    }
}

/// √Σ g² over all gathered gradients. The order of summation is fixed, so that a run repeats bit for bit.
pub fn gradient_norm(parameters: &[Arc<Parameter>]) -> f64 {
    let mut sum = 0.0f64;
    for parameter in parameters {
        if let Some(gradient) = &*parameter.gradient() {
            let partial: Vec<f64> = gradient
                .values()
                .par_chunks(VALUES_PER_TASK)
                .map(|chunk| chunk.iter().map(|&g| f64::from(g) * f64::from(g)).sum())
                .collect();
            sum += partial.iter().sum::<f64>();
        }
    }
    sum.sqrt()
}

/// What gradients of this norm are multiplied by, as `torch.nn.utils.clip_grad_norm_` does; 0 as maximum leaves them.
pub fn clip_factor(norm: f64, max_norm: f64) -> f32 {
    if max_norm == 0.0 { 1.0 } else { (max_norm / (norm + 1e-6)).min(1.0) as f32 }
}

/// The rate of optimiser step `step` (from 0) of `total`.
pub fn learning_rate(config: &TrainConfig, step: usize, total: usize) -> f64 {
    let warmup = match config.warmup_steps {
        0 => (config.warmup_ratio * total as f64).ceil() as usize,
        steps => steps,
    };
    let peak = config.learning_rate();
    if step < warmup {
        return peak * step as f64 / warmup as f64;
    }
    let progress = (step - warmup) as f64 / total.saturating_sub(warmup).max(1) as f64;
    match config.lr_scheduler_type {
        Decay::Constant => peak,
        Decay::Linear => peak * (1.0 - progress).max(0.0),
        Decay::Cosine => peak * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_steps_equal_torchs() {
        // torch.optim.AdamW([1.0, -2.0], lr=0.1, weight_decay=0.01), gradients [0.5, -1.0] then [0.1, 0.3].
        let config = TrainConfig { weight_decay: 0.01, ..TrainConfig::default() };
        let parameter = Arc::new(Parameter::new("w", Matrix::new(1, 2, vec![1.0, -2.0])));
        let parameters = [parameter.clone()];
        let mut optimiser = AdamW::new(&config, &parameters);
        let mut want = [1.0f64, -2.0];
        let (mut m, mut v) = ([0.0f64; 2], [0.0f64; 2]);
        for (step, gradient) in [[0.5, -1.0], [0.1, 0.3]].into_iter().enumerate() {
            parameter.accumulate(Matrix::new(1, 2, gradient.map(|g| g as f32).to_vec()));
            optimiser.update(&parameters, 0.1, 1.0);
            let t = step as i32 + 1;
            for i in 0..2 {
                want[i] *= 1.0 - 0.1 * 0.01;
                m[i] = 0.9 * m[i] + 0.1 * gradient[i];
                v[i] = 0.999 * v[i] + 0.001 * gradient[i] * gradient[i];
                let root = (v[i] / (1.0 - 0.999f64.powi(t))).sqrt();
                want[i] -= 0.1 * (m[i] / (1.0 - 0.9f64.powi(t))) / (root + 1e-8);
            }
        }
        for (got, want) in parameter.value().values().iter().zip(want) {
            assert!((f64::from(*got) - want).abs() < 1e-6, "{got} {want}");
        }
        assert!(parameter.gradient().is_none(), "a step clears the gradient");
    }

    #[test]
    fn schedules_go_where_transformers_goes() {
        let linear = TrainConfig { learning_rate: Some(1.0), warmup_steps: 2, ..TrainConfig::default() };
        let rates: Vec<f64> = (0..6).map(|step| learning_rate(&linear, step, 6)).collect();
        assert_eq!(rates, [0.0, 0.5, 1.0, 0.75, 0.5, 0.25]);
        let cosine =
            TrainConfig { learning_rate: Some(1.0), lr_scheduler_type: Decay::Cosine, ..TrainConfig::default() };
        assert_eq!(learning_rate(&cosine, 0, 4), 1.0);
        assert!((learning_rate(&cosine, 2, 4) - 0.5).abs() < 1e-12);
        let by_share = TrainConfig { learning_rate: Some(1.0), warmup_ratio: 0.3, ..TrainConfig::default() };
        assert!((learning_rate(&by_share, 1, 5) - 0.5).abs() < 1e-12, "0.3 of 5 steps is 2 steps of warm-up");
    }

    #[test]
    fn clipping_leaves_small_gradients_alone() {
        assert_eq!(clip_factor(0.5, 1.0), 1.0);
        assert!((clip_factor(4.0, 1.0) - 0.25).abs() < 1e-6);
        assert_eq!(clip_factor(4.0, 0.0), 1.0);
    }
}
