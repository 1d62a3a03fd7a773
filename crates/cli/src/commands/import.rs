//! `bitdelta import`: a PEFT adapter as a variant file.
use crate::{
    Context, Error,
    commands::{compress::make_folder_of, progress::Bar},
    output,
    sizes::{format_bytes, parse_bytes},
};
use bitdelta_delta::metrics::bits_per_weight;
use bitdelta_model::{Adapter, Base};
use bitdelta_train::import::{Keep, Report, import};
use serde_json::json;
use std::path::{Path, PathBuf};

/// Arguments of `import`.
#[derive(Debug, Clone, clap::Args)]
pub struct ImportArgs {
    /// Folder of a LoRA, rsLoRA or DoRA adapter: adapter_config.json and adapter_model.safetensors
    #[arg(value_name = "ADAPTER")]
    adapter: PathBuf,
    /// The base it was trained on: a Hugging Face folder, a .gguf file, or a hub id
    #[arg(long, visible_alias = "model", value_name = "PATH", env = "BITDELTA_MODEL", hide_env_values = true)]
    base: String,
    /// Bits a factor's entry: 2, 3, 4 or 8; without it and --budget the factors are kept exactly as they are
    #[arg(long, value_name = "N")]
    bits: Option<u8>,
    /// Make the file at most so large (340KB, 10MB): one budget for all factors
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes, conflicts_with = "bits")]
    budget: Option<u64>,
    /// The variant file to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// JSON on stdout
    #[arg(long)]
    json: bool,
}

/// Reads and checks the adapter and writes the variant.
///
/// # Errors
/// Options out of range, an adapter that is damaged, of another model or of a kind that cannot be held, or I/O.
pub fn run(args: &ImportArgs) -> Result<(), Error> {
    if let Some(bits) = args.bits.filter(|bits| !matches!(bits, 2 | 3 | 4 | 8)) {
        return Err(Error::Usage(format!("--bits {bits}: 2, 3, 4 or 8")));
    }
    make_folder_of(&args.output)?;
    let base = Base::open(&args.base).context("opening the base model")?;
    let doing = || format!("importing {}", args.adapter.display());
    let adapter = Adapter::open(&args.adapter, &base).context(doing())?;
    let (variant, report) = import(&base, &adapter, args.keep(), &Bar::new()).context(doing())?;
    let bytes = variant.write(&args.output).context("writing the variant")?;
    let bits = bits_per_weight(bytes, report.weights);
    if args.json {
        let figures = json!({ "path": args.output, "bytes": bytes, "bits_per_weight": bits, "report": report });
        return output::line(&figures.to_string());
    }
    output::text(&summary(&args.output, bytes, bits, args.keep(), &report))
}

impl ImportArgs {
    fn keep(&self) -> Keep {
        match (self.bits, self.budget) {
            (_, Some(bytes)) => Keep::Bytes(bytes),
            (Some(bits), None) => Keep::Bits(bits),
            (None, None) => Keep::Exactly,
        }
    }
}

fn summary(path: &Path, bytes: u64, bits: f64, keep: Keep, report: &Report) -> String {
    let Report { method, rank, linears, tables, vectors, relative_error, .. } = report;
    let mut text = format!("{}: {} ({bits:.3} bits a weight)\n", path.display(), format_bytes(bytes));
    text += &format!("  {method} of rank {rank}, {linears} linears");
    if *tables > 0 {
        text += &format!(", {tables} tables");
    }
    if *vectors > 0 {
        text += &format!(", {vectors} norms and biases as f16");
    }
    text += &match keep {
        Keep::Exactly => ", factors as they are".to_owned(),
        Keep::Bits(bits) => format!(", factors at {bits} bit"),
        Keep::Bytes(bytes) => format!(", factors in {} at most", format_bytes(bytes)),
    };
    text += &format!("\n  relative error {relative_error:.4}");
    if let Some((name, error)) = report.worst.as_ref().filter(|(_, error)| *error > 0.0) {
        text += &format!(", at worst {error:.4} ({name})");
    }
    text + "\n"
}
