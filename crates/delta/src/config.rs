//! `BitDeltaConfig`: one definition for flags, YAML keys, Python fields and the variant file's record.

use crate::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::{fmt, str::FromStr};

/// Inputs that share a scale when neither the user nor the size of a model says.
pub const BARE_GROUP: u32 = 128;

/// How many consecutive inputs of a row share one scale. Written `64` or `"row"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GroupSize {
    /// One scale for the whole row.
    Row,
    /// A scale for each run of this many inputs (32 to 256).
    Elements(u32),
}

impl GroupSize {
    /// The default for a model of this many weights: 64 under 1e9, 128 to 1e10, 256 above.
    pub fn for_model(weights: u64) -> Self {
        match weights {
            0..1_000_000_000 => Self::Elements(64),
            1_000_000_000..=10_000_000_000 => Self::Elements(128),
            _ => Self::Elements(256),
        }
    }

    /// Inputs a group in a row of `cols` inputs.
    pub fn elements(self, cols: usize) -> usize {
        match self {
            Self::Row => cols,
            Self::Elements(elements) => elements as usize,
        }
    }
}

impl FromStr for GroupSize {
    type Err = Error;

    /// `row` or a whole number; the range is [`BitDeltaConfig::validate`]'s to check.
    fn from_str(text: &str) -> Result<Self, Error> {
        if text.eq_ignore_ascii_case("row") {
            return Ok(Self::Row);
        }
        text.parse().map(Self::Elements).map_err(|_| group_error(text))
    }
}

impl fmt::Display for GroupSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Row => f.write_str("row"),
            Self::Elements(elements) => elements.fmt(f),
        }
    }
}

impl Serialize for GroupSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Row => serializer.serialize_str("row"),
            Self::Elements(elements) => serializer.serialize_u32(*elements),
        }
    }
}

impl<'de> Deserialize<'de> for GroupSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Number(u32),
            Text(String),
        }
        match Written::deserialize(deserializer)? {
            Written::Number(elements) => Ok(Self::Elements(elements)),
            Written::Text(text) => text.parse().map_err(de::Error::custom),
        }
    }
}

/// How a difference is compressed. Same fields and defaults as Python's `BitDeltaConfig`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct BitDeltaConfig {
    /// Bits a weight: 1, 2 or 4.
    pub bits: u8,
    /// `None`: by the size of the model ([`GroupSize::for_model`]); [`BARE_GROUP`] on bare tensors.
    pub group_size: Option<GroupSize>,
    /// No per-group offset.
    pub symmetric: bool,
    /// False keeps f16 deltas, for comparison.
    pub enable_compression: bool,
    /// Keep the base between calls (Python and server).
    pub cache_base_model: bool,
    /// Clip each tensor's delta at mean ± `outlier_threshold`·σ before quantising.
    pub clip_outliers: bool,
    /// Multiple of the sample standard deviation, above 0.
    #[serde(serialize_with = "shortest")]
    pub outlier_threshold: f32,
    /// 0..=1: share of a rise in attack success that must be gone; 0 records without gating.
    #[serde(serialize_with = "shortest")]
    pub safety_threshold: f32,
    /// Offer this variant to aggregation.
    pub enable_deltasoup: bool,
    /// 0..=1: weight of the aggregate.
    #[serde(serialize_with = "shortest")]
    pub aggregation_weight: f32,
    /// Aggregate by a robust rule.
    pub byzantine_robust: bool,
}

/// 0.1 as 0.1 also in JSON values, which hold f64.
fn shortest<S: Serializer>(value: &f32, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(value.to_string().parse().unwrap_or_else(|_| f64::from(*value)))
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

impl BitDeltaConfig {
    /// Checks every field.
    ///
    /// # Errors
    /// [`Error::Config`] names the first field outside its range.
    pub fn validate(&self) -> Result<(), Error> {
        let check = |ok: bool, field: &'static str, value: String, expected: &'static str| {
            if ok { Ok(()) } else { Err(Error::Config { field, value, expected }) }
        };
        check(matches!(self.bits, 1 | 2 | 4), "bits", self.bits.to_string(), "1, 2 or 4")?;
        if let Some(GroupSize::Elements(elements)) = self.group_size
            && !(32..=256).contains(&elements)
        {
            return Err(group_error(&elements.to_string()));
        }
        check(
            self.outlier_threshold > 0.0 && self.outlier_threshold.is_finite(),
            "outlier_threshold",
            self.outlier_threshold.to_string(),
            "a finite number above 0",
        )?;
        for (field, value) in
            [("safety_threshold", self.safety_threshold), ("aggregation_weight", self.aggregation_weight)]
        {
            check((0.0..=1.0).contains(&value), field, value.to_string(), "a number from 0 to 1")?;
        }
        Ok(())
    }

    /// The same with the group size settled for a model of `weights` weights.
    pub fn for_model(&self, weights: u64) -> Self {
        Self { group_size: Some(self.group_size.unwrap_or(GroupSize::for_model(weights))), ..self.clone() }
    }

    /// The group size, [`BARE_GROUP`] when not given.
    pub fn group(&self) -> GroupSize {
        self.group_size.unwrap_or(GroupSize::Elements(BARE_GROUP))
    }

    /// σ multiple to clip at; `None` when clipping is off.
    pub fn clip(&self) -> Option<f32> {
        self.clip_outliers.then_some(self.outlier_threshold)
    }

    /// One sentence for each field that is set and recorded but enforced by nothing yet.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.safety_threshold > 0.0 {
            warnings.push(format!(
                "safety_threshold = {} is recorded, but no safety gate enforces it in this version",
                self.safety_threshold
            ));
        }
        if self.enable_deltasoup {
            warnings.push("enable_deltasoup is recorded, but nothing aggregates variants in this version".into());
        }
        warnings
    }
}

fn group_error(value: &str) -> Error {
    Error::Config { field: "group_size", value: value.into(), expected: "a whole number from 32 to 256, or row" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_field_out_of_range_is_named() {
        let bad: [(&str, BitDeltaConfig); 6] = [
            ("bits", BitDeltaConfig { bits: 3, ..Default::default() }),
            ("group_size", BitDeltaConfig { group_size: Some(GroupSize::Elements(31)), ..Default::default() }),
            ("group_size", BitDeltaConfig { group_size: Some(GroupSize::Elements(257)), ..Default::default() }),
            ("outlier_threshold", BitDeltaConfig { outlier_threshold: f32::NAN, ..Default::default() }),
            ("safety_threshold", BitDeltaConfig { safety_threshold: 1.5, ..Default::default() }),
            ("aggregation_weight", BitDeltaConfig { aggregation_weight: -0.1, ..Default::default() }),
        ];
        for (field, config) in bad {
            let message = config.validate().unwrap_err().to_string();
            assert!(message.starts_with(field), "{field}: {message}");
        }
        BitDeltaConfig::default().validate().unwrap();
    }

    #[test]
    fn the_group_follows_the_size_of_the_model_unless_given() {
        let config = BitDeltaConfig::default();
        for (weights, group) in [(135_000_000, 64), (1_000_000_000, 128), (4_000_000_000, 128), (32_000_000_000, 256)] {
            assert_eq!(config.for_model(weights).group_size, Some(GroupSize::Elements(group)));
        }
        assert_eq!(config.group(), GroupSize::Elements(128));
        let row = BitDeltaConfig { group_size: Some(GroupSize::Row), ..config };
        assert_eq!(row.for_model(135_000_000).group(), GroupSize::Row);
    }

    #[test]
    fn group_sizes_read_from_numbers_words_and_null() {
        let read = |json: &str| serde_json::from_str::<BitDeltaConfig>(json).map(|c| c.group_size);
        assert_eq!(read(r#"{"group_size":64}"#).unwrap(), Some(GroupSize::Elements(64)));
        assert_eq!(read(r#"{"group_size":"row"}"#).unwrap(), Some(GroupSize::Row));
        assert_eq!(read(r#"{"group_size":null}"#).unwrap(), None);
        assert!(read(r#"{"group_size":"wide"}"#).is_err());
        assert_eq!(serde_json::to_string(&GroupSize::Row).unwrap(), "\"row\"");
    }

    #[test]
    fn fields_that_nothing_enforces_warn() {
        assert!(BitDeltaConfig::default().warnings().is_empty());
        let config = BitDeltaConfig { safety_threshold: 0.6, enable_deltasoup: true, ..Default::default() };
        assert_eq!(config.warnings().len(), 2);
    }
}
