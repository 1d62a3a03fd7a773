//! `bitdelta compress`: a pair of models, base and fine-tuned, into one small file.
use crate::{Context, Error, commands::progress::Bar, output, sizes::format_bytes};
use bitdelta_delta::{BitDeltaConfig, GroupSize, metrics::bits_per_weight};
use bitdelta_model::Base;
use bitdelta_train::compress::{Report, compress_pair};
use serde_json::json;
use std::path::{Path, PathBuf};

/// Arguments of `compress`.
#[derive(Debug, Clone, clap::Args)]
pub struct CompressArgs {
    /// Base model: a Hugging Face folder, a .gguf file, or a hub id
    #[arg(long, visible_alias = "model", value_name = "PATH", env = "BITDELTA_MODEL", hide_env_values = true)]
    base: String,
    /// The same model after fine-tuning
    #[arg(long, value_name = "PATH")]
    finetuned: String,
    /// The variant file to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Bits a weight: 1, 2 or 4
    #[arg(long, value_name = "N", default_value_t = BitDeltaConfig::default().bits)]
    bits: u8,
    /// Inputs that share a scale: 32 to 256, or row; by default 64 under 1B weights, 128 to 10B, 256 above
    #[arg(long, value_name = "N|row")]
    group_size: Option<GroupSize>,
    /// Give each group an offset beside its scale
    #[arg(long)]
    asymmetric: bool,
    /// Keep outliers as they are
    #[arg(long, conflicts_with = "outlier_threshold")]
    no_clip: bool,
    /// Clip each tensor's delta at this many standard deviations
    #[arg(long, value_name = "K", default_value_t = BitDeltaConfig::default().outlier_threshold)]
    outlier_threshold: f32,
    /// Keep f16 deltas, for comparison; the other options of codes have no effect then
    #[arg(long)]
    no_compression: bool,
    /// JSON on stdout
    #[arg(long)]
    json: bool,
}

/// Compresses the pair tensor by tensor and writes the variant.
///
/// # Errors
/// Options out of range, models that are no pair, weights that are not finite, or I/O.
pub fn run(args: &CompressArgs) -> Result<(), Error> {
    let config = args.config();
    config.validate().map_err(|error| Error::Usage(error.to_string()))?;
    make_folder_of(&args.output)?;
    let base = Base::open(&args.base).context("opening the base model")?;
    let finetuned = Base::open_beside(&args.finetuned, &base).context("opening the fine-tuned model")?;
    let doing = format!("compressing {} against {}", args.finetuned, args.base);
    let (variant, report) = compress_pair(&base, &finetuned, &config, &Bar::new()).context(doing)?;
    let bytes = variant.write(&args.output).context("writing the variant")?;
    let bits = bits_per_weight(bytes, report.weights);
    if args.json {
        let figures = json!({
            "path": args.output,
            "bytes": bytes,
            "bits_per_weight": bits,
            "config": variant.info.config,
            "report": report,
        });
        return output::line(&figures.to_string());
    }
    output::text(&summary(&args.output, bytes, bits, &variant.info.config, &report))
}

impl CompressArgs {
    fn config(&self) -> BitDeltaConfig {
        BitDeltaConfig {
            bits: self.bits,
            group_size: self.group_size,
            symmetric: !self.asymmetric,
            enable_compression: !self.no_compression,
            clip_outliers: !self.no_clip,
            outlier_threshold: self.outlier_threshold,
            ..BitDeltaConfig::default()
        }
    }
}

/// The output's folder is made before minutes of work, and a folder in the output's place is refused before them.
pub(super) fn make_folder_of(output: &Path) -> Result<(), Error> {
    if output.is_dir() || output.file_name().is_none() {
        return Err(Error::Usage(format!("{} is a folder: -o names the file to write", output.display())));
    }
    match output.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => {
            std::fs::create_dir_all(folder).context(format!("making the folder {}", folder.display()))
        }
        _ => Ok(()),
    }
}

fn summary(path: &Path, bytes: u64, bits: f64, config: &BitDeltaConfig, report: &Report) -> String {
    let Report { linears, unchanged, tables, vectors, relative_error, .. } = report;
    let tables = match tables {
        0 => "",
        1 => " and the embedding or head",
        _ => ", the embedding and the head",
    };
    let mut text = format!("{}: {} ({bits:.3} bits a weight)\n", path.display(), format_bytes(bytes));
    text += &match config.enable_compression {
        true => format!("  {linears} linears{tables} at {} bit, group {}", config.bits, config.group()),
        false => format!("  {linears} linears{tables} as f16"),
    };
    if *unchanged > 0 {
        text += &format!(", {unchanged} unchanged");
    }
    if *vectors > 0 {
        text += &format!(", {vectors} norms and biases as f16");
    }
    text += &format!("\n  relative error {relative_error:.4}");
    if let Some((name, error)) = &report.worst {
        text += &format!(", at worst {error:.4} ({name})");
    }
    text + "\n"
}
