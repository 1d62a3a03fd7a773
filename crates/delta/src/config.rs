//! `BitDeltaConfig`.
use serde::{Deserialize, Serialize};

/// How many consecutive inputs of a row share one scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum GroupSize {
    /// One scale for the whole row.
    Row,
    /// A scale for each run of this many inputs (32 to 256).
    Elements(u32),
}

/// See `design.md`, "Words on the surface": same fields and defaults as Python's `BitDeltaConfig`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct BitDeltaConfig {
    /// Bits a weight: 1, 2 or 4.
    pub bits: u8,
    /// `None`: by the size of the model (64 under 1B weights, 128 to 10B, 256 above); 128 on bare tensors.
    pub group_size: Option<GroupSize>,
    /// No per-group offset.
    pub symmetric: bool,
    /// False keeps f16 deltas.
    pub enable_compression: bool,
    /// Keep the base between calls (Python and server).
    pub cache_base_model: bool,
    /// Clip each tensor's delta at mean ± outlier_threshold·σ before quantising.
    pub clip_outliers: bool,
    /// σ multiple.
    pub outlier_threshold: f32,
    /// 0..=1; 0 records without gating.
    pub safety_threshold: f32,
    /// DeltaSoup.
    pub enable_deltasoup: bool,
    /// DeltaSoup weight.
    pub aggregation_weight: f32,
    /// DeltaSoup robust rule.
    pub byzantine_robust: bool,
}

impl Default for BitDeltaConfig {
    fn default() -> Self {
        Self {
            bits: 1,
            group_size: None,
            symmetric: true,
            enable_compression: true,
            cache_base_model: true,
            clip_outliers: true,
            outlier_threshold: 3.0,
            safety_threshold: 0.0,
            enable_deltasoup: false,
            aggregation_weight: 0.1,
            byzantine_robust: true,
        }
    }
}
