//! `bitdelta export`: base plus variant as a model of its own.
use crate::{Context, Error, commands::progress::Bar, output};
use bitdelta_delta::{Variant, file};
use bitdelta_model::{Base, Dtype};
use bitdelta_train::merge::export_hf;
use clap::ValueEnum;
use std::path::PathBuf;

/// Arguments of `export`.
#[derive(Debug, Clone, clap::Args)]
pub struct ExportArgs {
    /// Variant file, or a folder that holds a variant.safetensors
    #[arg(value_name = "VARIANT")]
    variant: PathBuf,
    /// The base it was made on: a Hugging Face folder, a .gguf file, or a hub id
    #[arg(long, visible_alias = "model", value_name = "PATH", env = "BITDELTA_MODEL", hide_env_values = true)]
    base: String,
    /// What to write: a Hugging Face folder that transformers opens
    #[arg(long, value_name = "FORMAT", default_value = "hf")]
    format: Format,
    /// Element type; bf16 rounds small deltas away
    #[arg(long, value_name = "TYPE", default_value = "f32")]
    dtype: ExportDtype,
    /// The folder to write; it must not be there or be empty
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Hf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ExportDtype {
    F32,
    F16,
    Bf16,
}

/// Merges tensor by tensor and writes the folder.
///
/// # Errors
/// A damaged variant, one of another base, or a folder that cannot be written.
pub fn run(args: &ExportArgs) -> Result<(), Error> {
    let Format::Hf = args.format;
    let dtype = match args.dtype {
        ExportDtype::F32 => Dtype::F32,
        ExportDtype::F16 => Dtype::F16,
        ExportDtype::Bf16 => Dtype::Bf16,
    };
    let path = file::locate(&args.variant);
    let variant = Variant::read(&path).context("reading the variant")?;
    let base = Base::open(&args.base).context("opening the base model")?;
    let doing = format!("exporting to {}", args.output.display());
    export_hf(&base, &variant, &path, &args.output, dtype, &Bar::new()).context(doing)?;
    output::line(&format!("{}: {} with {} merged in", args.output.display(), base.name, path.display()))
}
