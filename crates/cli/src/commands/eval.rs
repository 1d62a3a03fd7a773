//! `bitdelta eval`: how much of a fine-tune variants keep, on held-out conversations.
use crate::{
    Context, Error,
    commands::{base::BaseArgs, progress::Bar},
    output,
    sizes::format_bytes,
};
use bitdelta_delta::{Variant, file};
use bitdelta_engine::{Model, ModelOptions};
use bitdelta_model::{
    Base,
    chat::{Template, Tokenizer},
};
use bitdelta_train::{
    data,
    evaluate::{Candidate, Report, Yardstick, recorded_template, samples},
    progress::Progress,
};
use serde_json::{Value, json};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

/// Arguments of `eval`.
#[derive(Debug, Clone, clap::Args)]
pub struct EvalArgs {
    /// Variant files, or folders that hold a variant.safetensors; several are measured in one pass over the data
    #[arg(value_name = "VARIANT", required = true)]
    variants: Vec<PathBuf>,
    #[command(flatten)]
    base: BaseArgs,
    /// Held-out conversations: JSON or JSON lines, as alpaca, sharegpt or openai messages
    #[arg(long, value_name = "FILE")]
    data: String,
    /// Conversations about other things, for the drift: how much the loss there rises
    #[arg(long, value_name = "FILE")]
    general: Option<String>,
    /// The fine-tuned model that the variant was made from, for retention and KL; held in memory beside the base
    #[arg(long, value_name = "PATH")]
    finetuned: Option<String>,
    /// Chat template: model, chatml or qwen3; by default the one that the variant recorded
    #[arg(long, value_name = "NAME")]
    template: Option<String>,
    /// JSON on stdout: an object, or an array of several variants' objects
    #[arg(long)]
    json: bool,
}

/// Evaluates and prints the figures.
///
/// # Errors
/// A damaged variant, one of another base, or data that does not read.
pub fn run(args: &EvalArgs) -> Result<(), Error> {
    args.base.check()?;
    let conversations = data::load(&args.data, Path::new(".")).context("reading the data")?;
    let general = args.general.as_deref().map(|file| data::load(file, Path::new("."))).transpose();
    let general = general.context("reading the general conversations")?.unwrap_or_default();
    let variants = args.variants.iter().map(|path| Read::new(path)).collect::<Result<Vec<_>, Error>>()?;
    let bar = Bar::new();
    let base = args.base.load()?;
    let finetuned = args.finetuned.as_deref().map(|name| load(name, &base, args.base.threads)).transpose()?;
    let tokenizer = &base.base().tokenizer;
    let chosen = template(args.template.as_deref(), Some(&variants[0].variant), tokenizer, &bar)?;
    for read in &variants[1..] {
        let other = template(args.template.as_deref(), Some(&read.variant), tokenizer, &bar)?;
        if other != chosen {
            let message = format!(
                "{} was made with another chat template than {}: evaluate them one by one, or pass --template",
                read.path.display(),
                variants[0].path.display()
            );
            return Err(Error::Usage(message));
        }
    }
    let samples = |from| samples(tokenizer, &chosen, from).context("making prompts of the data");
    let (samples, general) = (samples(&conversations)?, samples(&general)?);
    let (mut candidates, mut seconds) = (Vec::new(), Vec::new());
    for read in &variants {
        let (candidate, loading) = read.candidate(&base)?;
        candidates.push(candidate);
        seconds.push(loading);
    }
    let yardstick = Yardstick { base: &base, finetuned: finetuned.as_ref(), samples: &samples, general: &general };
    let reports = yardstick.measure(&candidates, &bar).context("evaluating")?;
    let named = variants.iter().zip(&reports).zip(&seconds);
    if args.json {
        let figures = named.map(|((read, report), seconds)| figures(read, report, *seconds));
        let mut figures = figures.collect::<Result<Vec<Value>, Error>>()?;
        let figures = if figures.len() == 1 { figures.remove(0) } else { Value::Array(figures) };
        return output::line(&figures.to_string());
    }
    for ((read, report), _) in named {
        if variants.len() > 1 {
            output::text(&format!("{}\n", read.path.display()))?;
        }
        output::text(&table(report))?;
    }
    Ok(())
}

/// A variant's file, read and checked.
struct Read {
    path: PathBuf,
    variant: Variant,
    bytes: u64,
    seconds: f64,
}

impl Read {
    fn new(path: &Path) -> Result<Self, Error> {
        let path = file::locate(path);
        let started = Instant::now();
        let variant = Variant::read(&path).context("reading the variant")?;
        let seconds = started.elapsed().as_secs_f64();
        let bytes = std::fs::metadata(&path).context(format!("reading {}", path.display()))?.len();
        Ok(Self { path, variant, bytes, seconds })
    }

    /// Ready to run, and how long reading, checking and making it ready took.
    fn candidate(&self, base: &Model) -> Result<(Candidate, f64), Error> {
        let weights = self.variant.weights(base.base().linears().len());
        let variant = self.variant.clone();
        let started = Instant::now();
        let resident = base.prepare("evaluation", &self.path, variant).context("preparing the variant")?;
        let seconds = self.seconds + started.elapsed().as_secs_f64();
        Ok((Candidate { resident, bytes: self.bytes, weights }, seconds))
    }
}

fn figures(read: &Read, report: &Report, load_seconds: f64) -> Result<Value, Error> {
    let mut figures = serde_json::to_value(report).context("writing the figures")?;
    figures["path"] = json!(read.path);
    figures["load_seconds"] = json!(load_seconds);
    Ok(figures)
}

fn load(name: &str, base: &Model, threads: usize) -> Result<Model, Error> {
    let doing = || format!("loading the fine-tuned model {name}");
    Bar::new().during(&doing(), || {
        let finetuned = Base::open_beside(name, base.base()).context(doing())?;
        Model::load(Arc::new(finetuned), ModelOptions { threads, ..ModelOptions::default() }).context(doing())
    })
}

/// The template asked for, or the one that the variant recorded, else the model's; a sentence where the first two differ,
/// for that costs accuracy.
///
/// # Errors
/// [`Error::Usage`] for a name that is no template's.
pub(super) fn template(
    asked: Option<&str>,
    variant: Option<&Variant>,
    tokenizer: &Tokenizer,
    bar: &Bar,
) -> Result<Template, Error> {
    let asked = match asked {
        None => None,
        Some(name) => {
            let unknown = || Error::Usage(format!("unknown template {name:?}: model, chatml or qwen3"));
            Some(Template::from_name(name).ok_or_else(unknown)?)
        }
    };
    let recorded = variant.and_then(|variant| recorded_template(variant, tokenizer));
    let template = asked.or_else(|| recorded.clone()).unwrap_or_default();
    let made = variant.map_or("", |variant| &variant.info.template);
    if recorded.as_ref() != Some(&template) && !made.is_empty() {
        let used = tokenizer.template_id(&template);
        bar.say(&format!("warning: the variant was made with template {made}, it is asked with {used}"));
    }
    Ok(template)
}

fn table(report: &Report) -> String {
    let optional = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.4}"));
    let rows = [
        ("", "base".to_owned(), "variant".to_owned(), "fine-tuned".to_owned()),
        (
            "loss",
            format!("{:.4}", report.loss_base),
            format!("{:.4}", report.loss_variant),
            optional(report.loss_finetuned),
        ),
        (
            "exact answers",
            format!("{:.3}", report.exact_base),
            format!("{:.3}", report.exact),
            report.exact_finetuned.map_or_else(|| "-".to_owned(), |exact| format!("{exact:.3}")),
        ),
    ];
    let mut text = String::new();
    for (name, base, variant, finetuned) in rows {
        text += &format!("{name:<14}{base:>10}{variant:>10}{finetuned:>12}\n");
    }
    let Report { conversations, answers, tokens, .. } = report;
    text += &format!("retention     {:>10}\n", optional(report.retention));
    text += &format!("KL            {:>10} nats a token\n", optional(report.kl));
    if report.drift.is_some() {
        let percent =
            |drift: Option<f64>| drift.map_or_else(|| "-".to_owned(), |drift| format!("{:+.2} %", 100.0 * drift));
        let (variant, finetuned) = (percent(report.drift), percent(report.drift_finetuned));
        text += &format!("drift         {:>10}{variant:>10}{finetuned:>12}\n", "");
    }
    text +=
        &format!("file          {:>10} ({:.3} bits a weight)\n", format_bytes(report.bytes), report.bits_per_weight);
    text + &format!("over {tokens} tokens of {answers} answers in {conversations} conversations\n")
}
