//! Rotary positions, in the half-split form of `transformers` (`rotate_half`).

use bitdelta_model::ModelConfig;

/// cos and sin for every position up to a longest one.
#[derive(Debug, Clone)]
pub struct Rope {
    half: usize,
    /// (positions, half)
    cos: Vec<f32>,
    /// (positions, half)
    sin: Vec<f32>,
}

impl Rope {
    /// Tables for positions `0..positions`, with the model's scaling.
    pub fn new(config: &ModelConfig, positions: usize) -> Self {
        let (frequencies, factor) = config.rope_frequencies();
        let half = frequencies.len();
        let mut cos = Vec::with_capacity(positions * half);
        let mut sin = Vec::with_capacity(positions * half);
        for position in 0..positions {
            for frequency in &frequencies {
                // The product is rounded to f32 first, as the reference implementation does.
                let angle = position as f32 * frequency;
                cos.push(angle.cos() * factor);
                sin.push(angle.sin() * factor);
            }
        }
        Self { half, cos, sin }
    }

    /// Positions that the tables cover.
    pub fn positions(&self) -> usize {
        self.cos.len() / self.half.max(1)
    }

    /// Rotates one head's vector (2·half) in place.
    #[inline(always)]
    pub fn rotate(&self, position: usize, head: &mut [f32]) {
        let (cos, sin) = self.at(position);
        let (first, second) = head.split_at_mut(self.half);
        for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
            (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
        }
    }

    /// The transpose of [`Rope::rotate`]: what a gradient goes through on its way back.
    #[inline(always)]
    pub fn rotate_back(&self, position: usize, head: &mut [f32]) {
        let (cos, sin) = self.at(position);
        let (first, second) = head.split_at_mut(self.half);
        for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
            (*a, *b) = (*a * cos + *b * sin, *b * cos - *a * sin);
        }
    }

    #[inline(always)]
    fn at(&self, position: usize) -> (&[f32], &[f32]) {
        let range = position * self.half..(position + 1) * self.half;
        (&self.cos[range.clone()], &self.sin[range])
    }
}
