//! `bitdelta inspect`: what is in a variant file, weights and words.
use crate::{Context, Error, output, sizes::format_bytes};
use bitdelta_delta::{LinearDelta, PackedMatrix, Part, Variant, file, metrics::bits_per_weight, tread::Levels};
use bitdelta_model::{LinearKind, layout::TABLES};
use serde_json::{Value, json};
use std::path::PathBuf;

/// Arguments of `inspect`.
#[derive(Debug, Clone, clap::Args)]
pub struct InspectArgs {
    /// Variant file, or a folder that holds a variant.safetensors
    #[arg(value_name = "VARIANT")]
    variant: PathBuf,
    /// JSON on stdout
    #[arg(long)]
    json: bool,
}

/// Verifies the file and prints its info and each tensor's parts, bytes and error.
///
/// # Errors
/// What keeps the file from reading.
pub fn run(args: &InspectArgs) -> Result<(), Error> {
    let path = file::locate(&args.variant);
    let (variant, hash) = Variant::read_hashed(&path).context("reading the variant")?;
    let bytes = std::fs::metadata(&path).context(format!("reading {}", path.display()))?.len();
    let payload = variant.payload_bytes();
    let count = linears(&variant);
    let weights = variant.weights(count);
    let bits = bits_per_weight(bytes, weights);
    if args.json {
        let matrices = variant.linears.iter().enumerate();
        let mut linears: Vec<Value> =
            matrices.map(|(index, linear)| linear_json(&name(&variant, index), linear)).collect();
        let tables = linears.split_off(count);
        let extras = variant.extras.iter().map(|extra| json!({"tensor": extra.tensor, "elements": extra.values.len()}));
        let report = json!({
            "path": path,
            "bytes": bytes,
            "payload_bytes": payload,
            "content_hash": hash,
            "weights": weights,
            "bits_per_weight": bits,
            "info": variant.info,
            "linears": linears,
            "tables": tables,
            "vectors": extras.collect::<Vec<_>>(),
        });
        return output::line(&report.to_string());
    }
    let info = &variant.info;
    let mut text = format!("{}\n", path.display());
    let mut field = |name: &str, value: String| text += &format!("  {name:<14} {value}\n");
    let beside = bytes.saturating_sub(payload);
    field("bytes", format!("{bytes} ({}, {beside} of it not weights; {bits:.3} bits a weight)", format_bytes(bytes)));
    field("hash", hash);
    field("base", format!("{} ({})", info.base_name, info.base));
    field("template", if info.template.is_empty() { "not recorded".into() } else { info.template.clone() });
    field("config", serde_json::to_string(&info.config).context("printing the config")?);
    for (key, value) in &info.notes {
        field(key, value.to_string());
    }
    for (index, experience) in info.experiences.iter().enumerate() {
        field(&format!("experience {}", index + 1), experience.clone());
    }
    field("vectors", format!("{} norms and biases as f16", variant.extras.len()));
    field("linears", count.to_string());
    field("tables", format!("{} (embedding, head)", variant.linears.len() - count));
    if variant.linears.iter().all(|linear| linear.parts.is_empty()) {
        return output::text(&(text + "  no weight is changed\n"));
    }
    for (index, linear) in variant.linears.iter().enumerate() {
        text += &line(&name(&variant, index), linear);
    }
    output::text(&text)
}

/// How many of the matrices are linears: whole layers of them; one or two that are left over are tables. All, where the
/// order does not fit.
fn linears(variant: &Variant) -> usize {
    let matrices = variant.linears.len();
    let rest = matrices % LinearKind::ALL.len();
    if rest <= TABLES.len() { matrices - rest } else { matrices }
}

/// A matrix's name by its place in the fixed order, layer by layer; a plain number where the order does not fit.
fn name(variant: &Variant, index: usize) -> String {
    let (roles, linears) = (LinearKind::ALL.len(), linears(variant));
    match index.checked_sub(linears) {
        Some(table) => TABLES[table].trim_start_matches("model.").trim_end_matches(".weight").to_owned(),
        None if linears % roles == 0 => format!("layers.{}.{}", index / roles, LinearKind::ALL[index % roles].module()),
        None => format!("linear {index}"),
    }
}

fn line(name: &str, linear: &LinearDelta) -> String {
    let parts: Vec<String> = linear.parts.iter().map(describe).collect();
    let parts = if parts.is_empty() { "unchanged".to_owned() } else { parts.join(" + ") };
    // The file keeps two figures of an error.
    let error = match linear.relative_error {
        None => "error unknown".to_owned(),
        Some(error) if error < 0.01 => format!("error {error:.1e}"),
        Some(error) => format!("error {error:.2}"),
    };
    let bytes = format_bytes(linear.parts.iter().map(Part::bytes).sum());
    let shape = format!("{} x {}", linear.rows, linear.cols);
    format!("  {name:<28}{shape:>14}  {bytes:>8}  {error}  {parts}\n")
}

fn describe(part: &Part) -> String {
    match part {
        Part::Dense(matrix) => format!("dense {}", codes(matrix)),
        Part::LowRank { a, bt } => format!("lowrank {}: {}, {}", a.rows, codes(a), codes(bt)),
        Part::Sparse(rows) => format!("sparse {} levels coded", rows.count()),
        Part::Full { .. } => "full f16".to_owned(),
    }
}

fn codes(matrix: &PackedMatrix) -> String {
    if Levels::of_matrix(matrix).is_some() {
        return format!("{} bit coded", matrix.bits);
    }
    if matrix.is_float() {
        return format!("f{}", matrix.bits);
    }
    let offsets = if matrix.offsets.is_empty() { "" } else { " with offsets" };
    format!("{} bit, group {}{offsets}", matrix.bits, matrix.group)
}

fn linear_json(name: &str, linear: &LinearDelta) -> Value {
    let parts: Vec<Value> = linear.parts.iter().map(part_json).collect();
    json!({
        "name": name,
        "rows": linear.rows,
        "cols": linear.cols,
        "bytes": linear.parts.iter().map(Part::bytes).sum::<u64>(),
        "relative_error": linear.relative_error,
        "parts": parts,
    })
}

fn part_json(part: &Part) -> Value {
    let codes = |matrix: &PackedMatrix| json!({"bits": matrix.bits, "group": matrix.group, "symmetric": matrix.offsets.is_empty(), "bytes": matrix.bytes()});
    match part {
        Part::Dense(matrix) => json!({"kind": part.kind(), "bytes": part.bytes(), "codes": codes(matrix)}),
        Part::LowRank { a, bt } => {
            json!({"kind": part.kind(), "bytes": part.bytes(), "rank": a.rows, "a": codes(a), "bt": codes(bt)})
        }
        Part::Sparse(rows) => json!({"kind": part.kind(), "bytes": part.bytes(), "levels": rows.count()}),
        Part::Full { .. } => json!({"kind": part.kind(), "bytes": part.bytes()}),
    }
}
