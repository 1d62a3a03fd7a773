//! `bitdelta compress`: a pair of models, base and fine-tuned, into one small file.
use crate::{
    Context, Error,
    commands::progress::Bar,
    cost::Cost,
    interrupt::Interrupt,
    output,
    sizes::{format_bytes, parse_bytes},
};
use bitdelta_delta::{BitDeltaConfig, GroupSize, Info, Variant, metrics::bits_per_weight};
use bitdelta_model::{Base, chat::Template};
use bitdelta_train::{
    batch::Example,
    budget::{self, SCALE_RATE, Schedule, Teacher, Watch, distil_scales},
    compress::{Report, compress_pair},
    data, draw,
    progress::Progress,
};
use serde_json::json;
use std::path::{Path, PathBuf};

/// Of what is drawn and of the order of training.
const SEED: u64 = 42;

/// Below so many bits a weight, weights alone lose much that draws keep.
const FEW_BITS: f64 = 0.1;
/// Weights of the linears up to which drawing and training on it takes minutes, and is done unasked.
const WEIGHTS_OF_MINUTES: u64 = 500_000_000;

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

/// Compresses the pair tensor by tensor and writes the variant.
///
/// # Errors
/// Options out of range, models that are no pair, weights that are not finite, or I/O.
pub fn run(args: &CompressArgs) -> Result<(), Error> {
    let config = args.config();
    config.validate().map_err(|error| Error::Usage(error.to_string()))?;
    let cost = Cost::begin();
    make_folder_of(&args.output)?;
    let base = Base::open(&args.base).context("opening the base model")?;
    let finetuned = Base::open_beside(&args.finetuned, &base).context("opening the fine-tuned model")?;
    let doing = format!("compressing {} against {}", args.finetuned, args.base);
    if let Some(bytes) = args.bytes(&base, &finetuned)? {
        return to_budget(args, bytes, (&base, &finetuned), &doing, cost);
    }
    let (mut variant, mut report) = compress_pair(&base, &finetuned, &config, &Bar::new()).context(doing.as_str())?;
    if args.data.is_some() || args.draw.is_some_and(|count| count > 0) {
        distil(args, &base, &finetuned, &mut variant, &mut report, &doing)?;
    }
    let bytes = args.write(&variant)?;
    let bits = bits_per_weight(bytes, report.weights);
    if args.json {
        let mut figures = json!({
            "path": args.output,
            "bytes": bytes,
            "bits_per_weight": bits,
            "config": variant.info.config,
            "report": report,
        });
        cost.add_to(&mut figures);
        return output::line(&figures.to_string());
    }
    output::text(&summary(&args.output, bytes, bits, &variant.info.config, &report))
}

/// Compresses the pair to a size, and trains what is kept where data is given.
fn to_budget(
    args: &CompressArgs,
    bytes: u64,
    (base, finetuned): (&Base, &Base),
    doing: &str,
    cost: Cost,
) -> Result<(), Error> {
    let bar = Bar::new();
    let unasked = args.draws_unasked(bytes, base, finetuned);
    let draws = args.draw.unwrap_or(if unasked { draw::COUNT } else { 0 });
    let examples = match args.examples(base, finetuned, draws) {
        Err(error) if unasked => {
            bar.say(&format!("warning: the weights alone are used: {error}"));
            Vec::new()
        }
        found => found?,
    };
    let mut options = budget::Options { rank: args.rank, ..budget::Options::new(bytes) };
    options.schedule = args.schedule(options.schedule);
    let mut info =
        Info::new(base.fingerprint(), &base.name, args.config(), &base.tokenizer.template_id(&Template::Model));
    info.notes.insert("method".into(), json!("compress"));
    info.notes.insert("budget".into(), json!(bytes));
    if !examples.is_empty() {
        info.notes.insert("trained_on".into(), json!({"examples": examples.len(), "drawn": draws}));
    }
    let watched = args.watched(base)?;
    let follow = |watch: Watch| budget::compress_to(base, finetuned, &examples, &options, info, watch);
    let variant = args.lesson(&bar, &watched, follow, doing)?;
    let bytes = args.write(&variant)?;
    let bits = bits_per_weight(bytes, variant.weights(base.linears().len()));
    if args.json {
        let mut figures = json!({"path": args.output, "bytes": bytes, "bits_per_weight": bits});
        cost.add_to(&mut figures);
        return output::line(&figures.to_string());
    }
    output::text(&format!("{}: {} ({bits:.4} bits a weight)\n", args.output.display(), format_bytes(bytes)))
}

/// Trains the scales of the codes on the data; in no passes, chooses the codes for it instead.
fn distil(
    args: &CompressArgs,
    base: &Base,
    finetuned: &Base,
    variant: &mut Variant,
    report: &mut Report,
    doing: &str,
) -> Result<(), Error> {
    let bar = Bar::new();
    let examples = args.examples(base, finetuned, args.draw.unwrap_or(0))?;
    let schedule = args.schedule(Schedule { epochs: 2.0, batch: 8, rate: SCALE_RATE, seed: SEED });
    if schedule.epochs == 0.0 {
        budget::refine_codes(base, finetuned, variant, &examples, schedule.seed, &bar).context(doing)?;
        report.relative_error = budget::measure_errors(variant, base, finetuned).context(doing)?;
        variant.info.notes.insert("codes_chosen_for".into(), json!({"examples": examples.len()}));
        return Ok(());
    }
    let watched = args.watched(base)?;
    let follow = |watch: Watch| {
        let teacher = Teacher::new(finetuned, base, &[&examples[..], &watched].concat(), &bar)?;
        let found = distil_scales(base, &teacher, variant, &examples, schedule, watch)?;
        report.relative_error = budget::measure_errors(variant, base, finetuned)?;
        Ok(found)
    };
    let (first, last) = args.lesson(&bar, &watched, follow, doing)?;
    bar.say(&format!("KL to the fine-tuned model: {first:.4} nats a token in the first pass, {last:.4} in the last"));
    variant.info.notes.insert("distilled".into(), json!({"epochs": schedule.epochs, "examples": examples.len()}));
    Ok(())
}

/// Shows progress, and lets Ctrl-C end the process but while a lesson lasts, which is left with a checkpoint.
struct Lessons<'a> {
    bar: &'a Bar,
    interrupt: Interrupt,
}

impl Progress for Lessons<'_> {
    fn begin(&self, phase: &str, total: u64, unit: &str) {
        if phase == budget::LESSON {
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
    /// Does `work`, whose lesson goes on from its checkpoint when the same command runs again.
    fn lesson<T>(
        &self,
        bar: &Bar,
        watched: &[Example],
        work: impl FnOnce(Watch<'_>) -> Result<T, bitdelta_train::Error>,
        doing: &str,
    ) -> Result<T, Error> {
        let interrupt = Interrupt::watch()?;
        let (progress, checkpoint) = (Lessons { bar, interrupt: interrupt.clone() }, self.checkpoint());
        let watch = Watch {
            progress: &progress,
            stop: interrupt.flag(),
            checkpoint: Some(&checkpoint),
            watched,
            patience: self.patience,
        };
        match work(watch) {
            Err(stopped @ bitdelta_train::Error::Interrupted { .. }) => {
                bar.say(&stopped.to_string());
                Err(Error::Interrupted)
            }
            result => result.context(doing),
        }
    }

    /// The folder of a lesson's checkpoints.
    fn checkpoint(&self) -> PathBuf {
        let mut name = self.output.file_name().unwrap_or_default().to_owned();
        name.push(".checkpoints");
        self.output.with_file_name(name)
    }

    /// Writes the variant; checkpoints have had their use then. Returns its bytes.
    fn write(&self, variant: &Variant) -> Result<u64, Error> {
        let bytes = variant.write(&self.output).context("writing the variant")?;
        let checkpoint = self.checkpoint();
        if checkpoint.exists() {
            std::fs::remove_dir_all(&checkpoint).context(format!("removing {}", checkpoint.display()))?;
        }
        Ok(bytes)
    }

    /// The conversations of `--eval-data` as the model sees them.
    fn watched(&self, base: &Base) -> Result<Vec<Example>, Error> {
        let Some(data) = &self.eval_data else { return Ok(Vec::new()) };
        let conversations = data::load(data, Path::new(".")).context("reading the data to watch")?;
        budget::examples(base, &Template::Model, &conversations).context("making prompts of the data to watch")
    }

    /// The conversations of `--data` and so many drawn ones as the model sees them.
    fn examples(&self, base: &Base, finetuned: &Base, draws: usize) -> Result<Vec<Example>, Error> {
        let mut conversations = match &self.data {
            Some(data) => data::load(data, Path::new(".")).context("reading the data")?,
            None => Vec::new(),
        };
        if draws > 0 {
            let drawn = draw::conversations(finetuned, None, &Template::Model, draws, SEED, &Bar::new());
            conversations.extend(drawn.context("drawing from the fine-tuned model")?);
        }
        budget::examples(base, &Template::Model, &conversations).context("making prompts of the data")
    }

    /// Whether a budget of so few bytes is worth draws that nobody asked for; says so, or what could be asked for.
    fn draws_unasked(&self, bytes: u64, base: &Base, finetuned: &Base) -> bool {
        if self.data.is_some() || self.draw.is_some() || bytes >= budget::bytes_at(base, FEW_BITS) {
            return false;
        }
        let possible = finetuned.tokenizer.chat_template().is_some();
        let worth = possible && base.linear_weights() <= WEIGHTS_OF_MINUTES;
        let how = match (worth, possible) {
            (true, _) => {
                "conversations are drawn from the fine-tuned model, which takes minutes (--data FILE gives yours, --draw 0 \
                 uses the weights alone)"
            }
            (_, true) => "--draw draws conversations from the fine-tuned model, --data FILE gives yours",
            _ => "--data FILE gives conversations",
        };
        Bar::new().say(&format!("so few bytes keep far more when they are trained: {how}"));
        worth
    }

    fn schedule(&self, default: Schedule) -> Schedule {
        Schedule { epochs: self.epochs.unwrap_or(default.epochs), ..default }
    }

    /// The budget in bytes, however it was given, or the default; `None` for dense codes.
    fn bytes(&self, base: &Base, finetuned: &Base) -> Result<Option<u64>, Error> {
        let given = self.budget.or_else(|| self.bits_per_weight.map(|bits| budget::bytes_at(base, bits)));
        if given.is_some() || self.names_codes() {
            return Ok(given);
        }
        let bytes = budget::default_bytes(base, finetuned).context("comparing the models")?;
        Bar::new().say(&match bytes {
            Some(bytes) => format!(
                "no size was named: {}, what keeps most for its bytes (--budget, --bits-per-weight or --bits 1 name one)",
                format_bytes(bytes)
            ),
            None => "no size was named: 1 bit a weight, since the embedding or the head moved too".to_owned(),
        });
        Ok(bytes)
    }

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

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        compress: CompressArgs,
    }

    #[test]
    fn few_bytes_without_data_are_worth_draws_that_nobody_asked_for() {
        let folder = |name: &str| format!("{}/../../tests/golden/{name}", env!("CARGO_MANIFEST_DIR"));
        let [base, tuned] =
            ["tiny-llama", "tiny-llama-ft"].map(|name| Base::open(&folder(name)).expect("a tiny model"));
        let draws = |bytes, more: &[&str]| {
            let pair = ["compress", "--base", "b", "--finetuned", "f", "-o", "v"];
            let line = Line::try_parse_from(pair.iter().chain(more)).expect("arguments");
            line.compress.draws_unasked(bytes, &base, &tuned)
        };
        let few = budget::bytes_at(&base, FEW_BITS) - 1;
        assert!(draws(few, &[]));
        assert!(!draws(few + 1, &[]));
        for asked in [&["--data", "d"][..], &["--draw"], &["--draw", "0"]] {
            assert!(!draws(few, asked), "{asked:?}");
        }
    }
}
