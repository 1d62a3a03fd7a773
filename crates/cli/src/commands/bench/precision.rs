//! `bitdelta bench precision`: what rounding costs. The base is loaded twice, in exact f32 and as asked for, and both are
//! asked the same conversations.

use super::print_json;
use crate::{
    Context, Error,
    commands::{base::BaseArgs, eval, progress::Bar},
    output,
};
use bitdelta_delta::{Variant, file};
use bitdelta_engine::{BaseDtype, KvDtype, Model, ModelOptions, Resident};
use bitdelta_model::Base;
use bitdelta_train::{
    data,
    evaluate::{
        precision::{Precision, Side, compare},
        samples,
    },
};
use serde::Serialize;
use std::{
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Arguments of `bench precision`.
#[derive(Debug, Clone, clap::Args)]
pub struct PrecisionArgs {
    #[command(flatten)]
    base: BaseArgs,
    /// Variant file, or a folder that holds a variant.safetensors, on both sides; by default the base alone
    #[arg(long, value_name = "FILE")]
    variant: Option<PathBuf>,
    /// Held-out conversations: JSON or JSON lines, as alpaca, sharegpt or openai messages (examples/demo/make_data.py
    /// makes some); their answers are what is compared
    #[arg(long, value_name = "FILE")]
    data: String,
    /// Only the first N conversations
    #[arg(long, value_name = "N")]
    limit: Option<NonZeroUsize>,
    /// Chat template: model, chatml or qwen3; by default the one that the variant recorded, else the model's
    #[arg(long, value_name = "NAME")]
    template: Option<String>,
    /// JSON on stdout
    #[arg(long)]
    json: bool,
}

/// What was measured.
#[derive(Debug, Clone, Serialize)]
struct Measured {
    what: &'static str,
    isa: &'static str,
    base_dtype: String,
    kv_dtype: String,
    /// Whether a variant was added on both sides.
    variant: bool,
    conversations: usize,
    #[serde(flatten)]
    precision: Precision,
}

/// Measures.
///
/// # Errors
/// Data that does not read, a variant of another base, or memory that does not hold the base in both forms.
pub fn run(args: &PrecisionArgs) -> Result<(), Error> {
    let name = args.base.check()?;
    let mut conversations = data::load(&args.data, Path::new(".")).context("reading the data")?;
    conversations.truncate(args.limit.map_or(usize::MAX, NonZeroUsize::get));
    let variant = match &args.variant {
        None => None,
        Some(path) => {
            let path = file::locate(path);
            let variant = Variant::read(&path).context("reading the variant")?;
            Some((path, variant))
        }
    };
    let doing = || format!("loading the base model {name}");
    let bar = Bar::new();
    let base = Arc::new(Base::open(&name).context(doing())?);
    let tokenizer = &base.tokenizer;
    let template = eval::template(args.template.as_deref(), variant.as_ref().map(|(_, v)| v), tokenizer, &bar)?;
    let experiences = variant.as_ref().map_or(&[][..], |(_, variant)| &variant.info.experiences);
    let samples = samples(tokenizer, &template, &conversations, experiences).context("making prompts of the data")?;

    let asked = args.base.options();
    let reference = ModelOptions { base_dtype: BaseDtype::F32, kv_dtype: KvDtype::F32, ..asked.clone() };
    let load = |options: ModelOptions| -> Result<(Model, Option<Arc<Resident>>), Error> {
        let model = bar.during(&doing(), || Model::load(base.clone(), options)).context(doing())?;
        let prepare = |(path, variant): &(PathBuf, Variant)| model.prepare("precision", path, variant.clone());
        let resident = variant.as_ref().map(prepare).transpose().context("preparing the variant")?;
        Ok((model, resident))
    };
    let (exact, rounded) = (load(reference)?, load(asked)?);
    let [exact, rounded] = [&exact, &rounded].map(|(model, variant)| Side { model, variant: variant.as_ref() });
    let precision = compare(exact, rounded, &samples, &bar).context("comparing")?;
    let measured = Measured {
        what: "precision",
        isa: bitdelta_kernels::Isa::selected().name(),
        base_dtype: format!("{:?}", args.base.base_dtype).to_lowercase(),
        kv_dtype: format!("{:?}", args.base.kv_dtype).to_lowercase(),
        variant: variant.is_some(),
        conversations: conversations.len(),
        precision,
    };
    if args.json { print_json(&measured) } else { output::text(&measured.table()) }
}

impl Measured {
    fn table(&self) -> String {
        let Self { base_dtype, kv_dtype, conversations, precision: figures, .. } = self;
        let alone = if self.variant { "with the variant" } else { "alone" };
        format!(
            "base {alone} in {base_dtype}, keys and values in {kv_dtype}, against f32 for both\n\
             loss          {:>10.4} (f32 {:.4}: {:+.3} %)\n\
             agreement     {:>10.2} % of {} positions of answers\n\
             agreement all {:>10.2} % of {} positions\n\
             KL            {:>10.5} nats a position\n\
             over {conversations} conversations\n",
            figures.loss,
            figures.loss_exact,
            1e2 * figures.loss_change,
            1e2 * figures.agreement,
            figures.positions,
            1e2 * figures.agreement_all,
            figures.positions_all,
            figures.kl,
        )
    }
}
