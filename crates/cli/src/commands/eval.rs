//! `bitdelta eval`: how much of a fine-tune a variant keeps, on held-out conversations.
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
    evaluate::{Report, Subject, evaluate, recorded_template, samples},
    progress::Progress,
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// Arguments of `eval`.
#[derive(Debug, Clone, clap::Args)]
pub struct EvalArgs {
    /// Variant file, or a folder that holds a variant.safetensors
    #[arg(value_name = "VARIANT")]
    variant: PathBuf,
    #[command(flatten)]
    base: BaseArgs,
    /// Held-out conversations: JSON or JSON lines, as alpaca, sharegpt or openai messages
    #[arg(long, value_name = "FILE")]
    data: String,
    /// The fine-tuned model that the variant was made from, for retention and KL; held in memory beside the base
    #[arg(long, value_name = "PATH")]
    finetuned: Option<String>,
    /// Chat template: model, chatml or qwen3; by default the one that the variant recorded
    #[arg(long, value_name = "NAME")]
    template: Option<String>,
    /// JSON on stdout
    #[arg(long)]
    json: bool,
}

/// Evaluates and prints the figures.
///
/// # Errors
/// A damaged variant, one of another base, or data that does not read.
pub fn run(args: &EvalArgs) -> Result<(), Error> {
    args.base.check()?;
    let path = file::locate(&args.variant);
    let variant = Variant::read(&path).context("reading the variant")?;
    let bytes = std::fs::metadata(&path).context(format!("reading {}", path.display()))?.len();
    let conversations = data::load(&args.data, Path::new(".")).context("reading the data")?;
    let bar = Bar::new();
    let base = args.base.load()?;
    let finetuned = args.finetuned.as_deref().map(|name| load(name, &base, args.base.threads)).transpose()?;
    let tokenizer = &base.base().tokenizer;
    let template = template(args.template.as_deref(), Some(&variant), tokenizer, &bar)?;
    let samples = samples(tokenizer, &template, &conversations).context("making prompts of the data")?;
    let subject = Subject { base: &base, variant, path: &path, bytes, finetuned: finetuned.as_ref() };
    let report = evaluate(subject, &samples, &bar).context(format!("evaluating {}", path.display()))?;
    if args.json {
        let figures = serde_json::to_string(&report).context("writing the figures")?;
        return output::line(&figures);
    }
    output::text(&table(&report))
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
    text +=
        &format!("file          {:>10} ({:.3} bits a weight)\n", format_bytes(report.bytes), report.bits_per_weight);
    text + &format!("over {tokens} tokens of {answers} answers in {conversations} conversations\n")
}
