//! `bitdelta export`: a variant for other programs, merged into its base or as an adapter.
use crate::{Context, Error, commands::progress::Bar, output};
use bitdelta_delta::{Variant, file};
use bitdelta_model::{Base, Dtype};
use bitdelta_train::{
    merge::{export_adapter, export_gguf, export_hf},
    progress::Progress,
};
use clap::ValueEnum;
use serde_json::json;
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
    /// What to write: a Hugging Face folder that transformers opens, a GGUF file for llama.cpp, or, of a variant that is
    /// low-rank, a LoRA adapter for peft
    #[arg(long, value_name = "FORMAT", default_value = "hf")]
    format: Format,
    /// Element type of a merged model; bf16 and q8_0 (GGUF alone) round small deltas away
    #[arg(long, value_name = "TYPE", default_value = "f32")]
    dtype: ExportDtype,
    /// The folder or the .gguf file to write; a folder must not be there or be empty, a file must not be there
    #[arg(short, long, value_name = "PATH")]
    output: PathBuf,
    /// JSON on stdout
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Hf,
    Gguf,
    Peft,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ExportDtype {
    F32,
    F16,
    Bf16,
    #[value(name = "q8_0")]
    Q8_0,
}

/// Writes the folder or file, a merged model tensor by tensor.
///
/// # Errors
/// A damaged variant, one of another base, one that the format cannot hold, or a place that cannot be written.
pub fn run(args: &ExportArgs) -> Result<(), Error> {
    let dtype = match args.dtype {
        ExportDtype::F32 => Dtype::F32,
        ExportDtype::F16 => Dtype::F16,
        ExportDtype::Bf16 => Dtype::Bf16,
        ExportDtype::Q8_0 => Dtype::Q8_0,
    };
    match args.format {
        Format::Hf if dtype == Dtype::Q8_0 => {
            return Err(Error::Usage("--dtype q8_0 is of GGUF files: use --format gguf".to_owned()));
        }
        Format::Peft if dtype != Dtype::F32 => {
            return Err(Error::Usage("an adapter is written in f32: leave --dtype out".to_owned()));
        }
        _ => {}
    }
    let path = file::locate(&args.variant);
    let variant = Variant::read(&path).context("reading the variant")?;
    let base = Base::open(&args.base).context("opening the base model")?;
    let count = variant.info.experiences.len();
    if count > 0 && variant.linears.iter().all(|linear| linear.parts.is_empty()) {
        return Err(Error::Failed(format!(
            "{} changes no weight, so there is nothing to export: its {count} experiences are words for the system turn \
             (bitdelta inspect shows them; train --preferences {} makes a delta of them)",
            path.display(),
            path.display()
        )));
    }
    let doing = format!("exporting to {}", args.output.display());
    let output = &args.output;
    let bar = Bar::new();
    if count > 0 {
        bar.say(&format!(
            "warning: the {count} experiences of {} are words, which {} does not hold: put them into the system turn \
             (bitdelta inspect shows them)",
            path.display(),
            output.display()
        ));
    }
    match args.format {
        Format::Hf => export_hf(&base, &variant, &path, output, dtype, &bar),
        Format::Gguf => export_gguf(&base, &variant, &path, output, dtype, &bar),
        Format::Peft => export_adapter(&base, &variant, &path, output),
    }
    .context(doing)?;
    let format = args.format.to_possible_value().map(|value| value.get_name().to_owned());
    if args.json {
        let figures = json!({ "path": output, "format": format, "dtype": dtype.name(), "base": base.name });
        return output::line(&figures.to_string());
    }
    output::line(&match args.format {
        Format::Peft => format!("{}: {} as an adapter of {}", output.display(), path.display(), base.name),
        _ => format!("{}: {} with {} merged in", output.display(), base.name, path.display()),
    })
}
