//! `bitdelta compress`: a pair of models, base and fine-tuned, into one small file.
use crate::{
    Context, Error,
    commands::progress::Bar,
    cost::Cost,
    interrupt::Interrupt,
    output,
    sizes::{format_bytes, parse_bytes},
};
use bitdelta_delta::{BitDeltaConfig, GroupSize, metrics::bits_per_weight};
use bitdelta_model::Base;
use bitdelta_train::{
    budget::LESSON,
    compress::Report,
    data,
    pair::{self, General, Size, Wish},
    pool,
    progress::Progress,
};
use serde_json::json;
use std::{
    convert::Infallible,
    path::{Path, PathBuf},
    str::FromStr,
};

/// Arguments of `compress`.
#[derive(Debug, Clone, clap::Args)]
#[command(group(clap::ArgGroup::new("examples").args(["data", "draw"]).multiple(true)))]
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
    /// Make the file at most so large (340KB, 10MB): low-rank factors, and levels of what they leave where that pays
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes, conflicts_with_all = ["bits", "group_size", "asymmetric", "no_clip", "outlier_threshold", "no_compression"])]
    budget: Option<u64>,
    /// The same as bits a weight of the linears, such as 0.02
    #[arg(long, value_name = "B", conflicts_with_all = ["budget", "bits", "group_size", "asymmetric", "no_clip", "outlier_threshold", "no_compression"])]
    bits_per_weight: Option<f64>,
    /// Conversations to train what is kept on, towards the fine-tuned model (JSON or JSON lines)
    #[arg(long, value_name = "FILE")]
    data: Option<String>,
    /// Draw so many conversations from the fine-tuned model itself and train on them, beside --data or where there is none
    ///
    /// Without --data and below 0.1 bits a weight, models of up to 500 million weights draw 192 unasked: weights alone keep
    /// far less there, in seconds instead of minutes (0 asks for that)
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "192")]
    draw: Option<usize>,
    /// Conversations of no user's, or how many to draw from the base itself, to train on beside --data or draws: there the
    /// variant is to stay what the fine-tuned model is
    ///
    /// Without it and with --data, 24 are drawn for codes, and below 0.1 bits a weight, from models of up to 500 million weights
    /// (0: none)
    #[arg(long, value_name = "FILE|N", requires = "examples")]
    general: Option<GeneralSource>,
    /// Passes over data and draws; 0 trains nothing, which takes a minute: codes (--bits) are chosen for their inputs, bits of a
    /// budget go where their gradients say
    #[arg(long, value_name = "N", requires = "examples")]
    epochs: Option<f64>,
    /// Conversations that are not trained on but watched, four times a pass: what came nearest to the fine-tuned model on them
    /// is kept
    #[arg(long, value_name = "FILE", requires = "examples")]
    eval_data: Option<String>,
    /// End when so many looks at --eval-data in a row show no gain
    #[arg(long, value_name = "N", default_value_t = 4, requires = "eval_data")]
    patience: usize,
    /// Largest rank of the factors; by default what the size leaves about a bit for each of their entries
    #[arg(long, value_name = "R")]
    rank: Option<usize>,
    /// A code of so many bits for every weight (1, 2 or 4), 1 where another option of codes is given
    ///
    /// Without any of them and without a size: a quarter of a bit a weight by a budget, which keeps more than 1 bit does
    #[arg(long, value_name = "N")]
    bits: Option<u8>,
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
    #[arg(long, value_name = "K")]
    outlier_threshold: Option<f32>,
    /// Keep f16 deltas, for comparison; the other options of codes have no effect then
    #[arg(long)]
    no_compression: bool,
    /// JSON on stdout
    #[arg(long)]
    json: bool,
}

/// Compresses the pair and writes the variant.
///
/// # Errors
/// Options out of range, models that are no pair, weights that are not finite, or I/O; [`Error::Interrupted`] after Ctrl-C.
pub fn run(args: &CompressArgs) -> Result<(), Error> {
    let config = args.config();
    config.validate().map_err(|error| Error::Usage(error.to_string()))?;
    let cost = Cost::begin();
    pool::join();
    make_folder_of(&args.output)?;
    let base = Base::open(&args.base).context("opening the base model")?;
    let finetuned = Base::open_beside(&args.finetuned, &base).context("opening the fine-tuned model")?;
    let load = |data: Option<&String>, doing| match data {
        Some(data) => data::load(data, Path::new(".")).map(Some).context(doing),
        None => Ok(None),
    };
    let (general, drawn) = match &args.general {
        Some(GeneralSource::File(file)) => (Some(file), None),
        Some(GeneralSource::Drawn(count)) => (None, Some(*count)),
        None => (None, None),
    };
    let data = load(args.data.as_ref(), "reading the data")?;
    let watched = load(args.eval_data.as_ref(), "reading the data to watch")?;
    let general = load(general, "reading the general data")?;
    let checkpoint = pair::checkpoint_of(&args.output);
    let wish = Wish {
        size: Size::of(args.budget, args.bits_per_weight, args.names_codes()),
        config: &config,
        rank: args.rank,
        data: data.as_deref(),
        draw: args.draw,
        general: General::of(general.as_deref(), drawn),
        epochs: args.epochs,
        watched: watched.as_deref().unwrap_or_default(),
        patience: args.patience,
        checkpoint: Some(&checkpoint),
    };
    let progress = Lessons { bar: Bar::new(), interrupt: Interrupt::watch()? };
    let (variant, report) = match pair::compress(&base, &finetuned, &wish, (&progress, progress.interrupt.flag())) {
        Err(stopped @ bitdelta_train::Error::Interrupted { .. }) => {
            progress.say(&stopped.to_string());
            return Err(Error::Interrupted);
        }
        made => made.context(format!("compressing {} against {}", args.finetuned, args.base))?,
    };
    let bytes = pair::write(&variant, &args.output).context("writing the variant")?;
    let bits = bits_per_weight(bytes, variant.weights(base.linears().len()));
    if args.json {
        let mut figures = json!({"path": args.output, "bytes": bytes, "bits_per_weight": bits});
        if let Some(report) = &report {
            figures["config"] = json!(variant.info.config);
            figures["report"] = json!(report);
        }
        cost.add_to(&mut figures);
        return output::line(&figures.to_string());
    }
    let size = format!("{}: {} ({bits:.4} bits a weight)\n", args.output.display(), format_bytes(bytes));
    let codes = report.map_or_else(String::new, |report| of_codes(&variant.info.config, &report));
    output::text(&(size + &codes))
}

/// What `--general` names.
#[derive(Debug, Clone)]
enum GeneralSource {
    Drawn(usize),
    File(String),
}

impl FromStr for GeneralSource {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(text.parse().map_or_else(|_| Self::File(text.to_owned()), Self::Drawn))
    }
}

/// Shows progress, and lets Ctrl-C end the process but while a lesson lasts, which is left with a checkpoint.
struct Lessons {
    bar: Bar,
    interrupt: Interrupt,
}

impl Progress for Lessons {
    fn begin(&self, phase: &str, total: u64, unit: &str) {
        if phase == LESSON {
            self.interrupt.busy();
        }
        self.bar.begin(phase, total, unit);
    }

    fn advance(&self, n: u64, note: &str) {
        self.bar.advance(n, note);
    }

    fn end(&self) {
        self.interrupt.free();
        self.bar.end();
    }

    fn say(&self, line: &str) {
        self.bar.say(line);
    }
}

impl CompressArgs {
    fn names_codes(&self) -> bool {
        let Self { bits, group_size, asymmetric, no_clip, outlier_threshold, no_compression, .. } = self;
        let named = bits.is_some() || group_size.is_some() || outlier_threshold.is_some();
        named || *asymmetric || *no_clip || *no_compression
    }

    fn config(&self) -> BitDeltaConfig {
        let default = BitDeltaConfig::default();
        BitDeltaConfig {
            bits: self.bits.unwrap_or(default.bits),
            group_size: self.group_size,
            symmetric: !self.asymmetric,
            enable_compression: !self.no_compression,
            clip_outliers: !self.no_clip,
            outlier_threshold: self.outlier_threshold.unwrap_or(default.outlier_threshold),
            ..default
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

/// What became of the linears.
fn of_codes(config: &BitDeltaConfig, report: &Report) -> String {
    let Report { linears, unchanged, tables, vectors, relative_error, .. } = report;
    let tables = match tables {
        0 => "",
        1 => " and the embedding or head",
        _ => ", the embedding and the head",
    };
    let mut text = match config.enable_compression {
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
