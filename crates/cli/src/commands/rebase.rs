//! `bitdelta rebase`: a variant moved to a new version of its base.
use crate::{
    Context, Error,
    commands::{base::Dtype, compress::make_folder_of, progress::Bar},
    interrupt::Interrupt,
    output,
    sizes::format_bytes,
};
use bitdelta_delta::{Variant, file};
use bitdelta_engine::ModelOptions;
use bitdelta_model::{Base, chat::Template};
use bitdelta_train::{
    data, pool,
    rebase::{Losses, Method, Report, Request, rebase},
};
use clap::ValueEnum;
use serde_json::json;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// Arguments of `rebase`.
#[derive(Debug, Clone, clap::Args)]
pub struct RebaseArgs {
    /// Variant file, or a folder that holds a variant.safetensors
    #[arg(value_name = "VARIANT")]
    variant: PathBuf,
    /// The base it was made on: a Hugging Face folder, a .gguf file, or a hub id
    #[arg(long, value_name = "PATH")]
    from: String,
    /// The new version of that base
    #[arg(long, value_name = "PATH")]
    to: String,
    /// The fine-tuned model that the variant was made from, to recompute the difference from the new base
    #[arg(long, value_name = "PATH")]
    finetuned: Option<String>,
    /// Held-out conversations of the user, to measure the loss before and after; the better method is taken
    #[arg(long, value_name = "FILE")]
    data: Option<String>,
    /// Conversations to refit the variant on, which is then tried too; without them --method refit draws some from the old
    /// base with the variant
    #[arg(long, value_name = "FILE")]
    train_data: Option<String>,
    /// The only method to try: keep the parts as they are, recompute them from the fine-tune, or refit them to answer as
    /// before
    #[arg(long, value_name = "METHOD")]
    method: Option<Way>,
    /// Chat template: model, chatml or qwen3; by default the one that the variant recorded
    #[arg(long, value_name = "NAME")]
    template: Option<String>,
    /// How a base's matrices are kept while it is measured
    #[arg(long, value_name = "TYPE", default_value = "auto")]
    base_dtype: Dtype,
    /// Threads that compute; 0 is one per core
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
    /// The variant file to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// JSON on stdout
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Way {
    Keep,
    Recompute,
    Refit,
}

/// Moves the variant and writes it.
///
/// # Errors
/// Bases that are no two versions of one model, a variant of another base, nothing to measure or recompute by, or a variant
/// that does not help on the new base.
pub fn run(args: &RebaseArgs) -> Result<(), Error> {
    let template = args.template.as_deref().map(|name| {
        Template::from_name(name)
            .ok_or_else(|| Error::Usage(format!("unknown template {name:?}: model, chatml or qwen3")))
    });
    let template = template.transpose()?;
    pool::join();
    make_folder_of(&args.output)?;
    let path = file::locate(&args.variant);
    let variant = Variant::read(&path).context("reading the variant")?;
    let load = |name: &Option<String>| name.as_deref().map(|name| data::load(name, Path::new("."))).transpose();
    let conversations = load(&args.data).context("reading the data")?;
    let lessons = load(&args.train_data).context("reading the training data")?;
    let from = Base::open(&args.from).context("opening the old base model")?;
    let to = Base::open(&args.to).context("opening the new base model")?;
    let finetuned = args.finetuned.as_deref().map(|name| Base::open_beside(name, &from)).transpose();
    let finetuned = finetuned.context("opening the fine-tuned model")?;
    let request = Request {
        variant: &variant,
        path: &path,
        from: Arc::new(from),
        to: Arc::new(to),
        finetuned: finetuned.as_ref(),
        conversations: conversations.as_deref(),
        lessons: lessons.as_deref(),
        template,
        method: args.method.map(|way| match way {
            Way::Keep => Method::Keep,
            Way::Recompute => Method::Recompute,
            Way::Refit => Method::Refit,
        }),
        options: ModelOptions { threads: args.threads, base_dtype: args.base_dtype.into(), ..ModelOptions::default() },
    };
    // Nothing is there to be kept before the end: Ctrl-C may end it at any time.
    let interrupt = Interrupt::watch()?;
    let doing = || format!("rebasing {}", path.display());
    let (moved, report) = rebase(&request, (&Bar::new(), interrupt.flag())).context(doing())?;
    let bytes = moved.write(&args.output).context("writing the variant")?;
    if args.json {
        return output::line(&json!({ "path": args.output, "bytes": bytes, "report": report }).to_string());
    }
    output::text(&summary(&args.output, bytes, &request.to.name, &report))
}

fn summary(path: &Path, bytes: u64, to: &str, report: &Report) -> String {
    let method = match report.method {
        Method::Keep => "its parts kept",
        Method::Refit => "refitted to answer as before",
        _ => "recomputed from the fine-tune",
    };
    let mut text = format!("{}: {}, on {to}, {method}\n", path.display(), format_bytes(bytes));
    let Report { base_moved, variant_moves, .. } = report;
    text += &format!("  the base moved by {base_moved:.1e} of itself, the variant moves it by {variant_moves:.1e}\n");
    let line = |what: &str, losses: Losses| {
        format!("  {what:<12} base alone {:.4}, with the variant {:.4}\n", losses.base, losses.variant)
    };
    if let (Some(before), Some(after)) = (report.before, report.after) {
        text += &line("loss before:", before);
        text += &line("loss after:", after);
    }
    if report.loses() {
        text += "  more than a tenth of its gain is lost: --method refit trains it to answer as before, in minutes\n";
    }
    for tried in report.tried.iter().filter(|tried| tried.method != report.method) {
        if let Some(losses) = tried.losses {
            text += &line(&format!("({})", tried.method.name()), losses);
        }
    }
    text
}
