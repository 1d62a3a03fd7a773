//! What a report compares: each way to make a variant, and the command that does it.

use crate::{Error, sizes::parse_bytes};
use serde::{Deserialize, Serialize};

/// What a variant is made from; a line of the plots for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Family {
    /// All projections trained, the change in f16.
    Full,
    /// A given fine-tune's change at some bits a weight.
    Dense,
    /// A given fine-tune in so many bytes, from its weights alone.
    Weights,
    /// The same, trained on what the fine-tune says by itself.
    Drawn,
    /// The same with the user's data.
    Data,
    /// Trained for so many bytes.
    Trained,
    /// LoRA in f16 files.
    Lora,
    /// LoRA on a base of four bits.
    Qlora,
}

impl Family {
    /// All, in the order of the plots' legends.
    pub const ALL: [Self; 8] =
        [Self::Full, Self::Lora, Self::Qlora, Self::Dense, Self::Weights, Self::Drawn, Self::Data, Self::Trained];

    /// In legends.
    pub fn label(self) -> &'static str {
        match self {
            Self::Full => "full fine-tune",
            Self::Dense => "its change at 1, 2, 4 bits a weight",
            Self::Weights => "budget, from a fine-tune's weights alone",
            Self::Drawn => "budget, from a fine-tune and what it says",
            Self::Data => "budget, from a fine-tune with data",
            Self::Trained => "trained for the budget",
            Self::Lora => "LoRA, f16",
            Self::Qlora => "QLoRA, f16",
        }
    }

    /// Whether it is what others do, and not ours.
    pub fn is_peer(self) -> bool {
        matches!(self, Self::Full | Self::Lora | Self::Qlora)
    }
}

/// How an entry's variant is made.
#[derive(Debug, Clone, PartialEq)]
pub enum Make {
    /// `bitdelta train` with these options beyond base, data, output and seed, at swept multiples of its own rate.
    Train(Vec<String>),
    /// The same at the rate that was best for the full fine-tune.
    TrainAsFull(Vec<String>),
    /// `bitdelta compress` of the full fine-tune.
    Compress {
        /// Beyond the pair and the output.
        options: Vec<String>,
        /// Whether the training data is given, too.
        data: bool,
    },
}

/// One row of the report.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Its folder's name, and what `--only` takes.
    pub id: String,
    /// In tables.
    pub label: String,
    /// Its line.
    pub family: Family,
    /// How.
    pub make: Make,
}

/// The full fine-tune's id: others are made from it.
pub const FULL: &str = "full";

/// Every entry, the full fine-tune first. `sizes` are budgets as a user writes them; `only` keeps the entries of these ids, and
/// the full fine-tune.
///
/// # Errors
/// [`Error::Usage`] for a size that is none, or an id that no entry has.
pub fn entries(sizes: &[String], only: &[String]) -> Result<Vec<Entry>, Error> {
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let entry = |id: String, label: String, family, make| Entry { id, label, family, make };
    let compress = |options: &str, data| Make::Compress { options: words(options), data };
    let full = "--method full --set enable_compression=false";
    let mut all = vec![
        entry(FULL.into(), "full fine-tune".into(), Family::Full, Make::Train(words(full))),
        entry(
            "full-best".into(),
            "full fine-tune, its best epoch".into(),
            Family::Full,
            Make::TrainAsFull(words(&format!("{full} --set load_best_model_at_end=true"))),
        ),
    ];
    for bits in [1, 2, 4] {
        let label = format!("{bits} bit, group 64");
        all.push(entry(format!("bits{bits}"), label, Family::Dense, compress(&format!("--bits {bits}"), false)));
    }
    for (id, how, options, data) in [
        ("bits1-drawn", "scales distilled on draws", "--bits 1 --draw", false),
        ("bits1-data", "scales distilled on the data", "--bits 1", true),
    ] {
        all.push(entry(id.into(), format!("1 bit, group 64, {how}"), Family::Dense, compress(options, data)));
    }
    for size in sizes {
        parse_bytes(size).map_err(|message| Error::Usage(format!("--sizes {size}: {message}")))?;
        let budget = format!("--budget {size}");
        let label = |how: &str| format!("{size}, {how}");
        let (weights, data) = (compress(&format!("{budget} --draw 0"), false), compress(&budget, true));
        all.push(entry(format!("weights-{size}"), label("from weights alone"), Family::Weights, weights));
        let drawn = compress(&format!("{budget} --draw"), false);
        all.push(entry(format!("drawn-{size}"), label("from the fine-tune and its draws"), Family::Drawn, drawn));
        all.push(entry(format!("data-{size}"), label("from the fine-tune with data"), Family::Data, data));
        let make = Make::Train(words(&budget));
        all.push(entry(format!("trained-{size}"), label("trained for it"), Family::Trained, make));
    }
    let make = Make::Train(words("--rank 16"));
    all.push(entry("trained-r16".into(), "rank 16, factors in 4 bits".into(), Family::Trained, make));
    for rank in [16, 8, 4, 1] {
        let make = Make::Train(words(&format!("--rank {rank} --factor-bits 16")));
        all.push(entry(format!("lora-r{rank}"), format!("LoRA r={rank}, f16"), Family::Lora, make));
    }
    let make = Make::Train(words("--rank 16 --factor-bits 16 --set quantization_bit=4"));
    all.push(entry("qlora-r16".into(), "QLoRA r=16, f16, base of 4 bits".into(), Family::Qlora, make));
    if let Some(unknown) = only.iter().find(|id| all.iter().all(|entry| entry.id != **id)) {
        let ids: Vec<&str> = all.iter().map(|entry| entry.id.as_str()).collect();
        return Err(Error::Usage(format!("--only {unknown}: there are {}", ids.join(", "))));
    }
    all.retain(|entry| only.is_empty() || entry.id == FULL || only.contains(&entry.id));
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_is_made_in_four_ways_and_ids_are_unique() {
        let all = entries(&["340KB".into(), "34KB".into()], &[]).expect("sizes");
        let mut ids: Vec<&str> = all.iter().map(|entry| entry.id.as_str()).collect();
        assert_eq!(ids[0], FULL);
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), all.len());
        for id in ["weights-340KB", "drawn-340KB", "bits1-drawn", "data-34KB", "trained-34KB", "qlora-r16"] {
            assert!(ids.contains(&id), "{id}");
        }
    }

    #[test]
    fn only_keeps_what_is_named_and_the_fine_tune_it_is_made_from() {
        let kept = entries(&["34KB".into()], &["bits1".into()]).expect("known");
        assert_eq!(kept.iter().map(|entry| entry.id.as_str()).collect::<Vec<_>>(), [FULL, "bits1"]);
        let unknown = entries(&[], &["bits3".into()]).expect_err("unknown").to_string();
        assert!(unknown.contains("bits3") && unknown.contains("lora-r16"), "{unknown}");
        assert!(entries(&["much".into()], &[]).is_err());
    }
}
