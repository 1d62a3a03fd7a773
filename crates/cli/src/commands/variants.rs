//! `variants load|unload|list`: the running server's variants, over HTTP.
use crate::{
    Context, Error,
    node::{Node, NodeArgs, segment},
    output,
    sizes::format_bytes,
};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Arguments of `variants`.
#[derive(Debug, Clone, clap::Args)]
pub struct VariantsArgs {
    #[command(subcommand)]
    command: VariantsCommand,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum VariantsCommand {
    /// Load variants into the running server, each under the user id that its name gives
    Load {
        /// Variant files, or folders that hold a variant.safetensors
        #[arg(required = true, value_name = "PATH")]
        paths: Vec<PathBuf>,
        /// JSON on stdout, a line for each
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        node: NodeArgs,
    },
    /// Free the memory of variants; their files stay
    Unload {
        /// User ids, or the paths that were loaded
        #[arg(required = true, value_name = "USER")]
        users: Vec<PathBuf>,
        /// JSON on stdout, a line for each
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        node: NodeArgs,
    },
    /// List the running server's variants
    List {
        /// JSON on stdout
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        node: NodeArgs,
    },
}

/// Runs the subcommand.
///
/// # Errors
/// No server, or what it answers.
pub fn run(args: &VariantsArgs) -> Result<(), Error> {
    match &args.command {
        VariantsCommand::Load { paths, json, node } => {
            paths.iter().try_for_each(|path| load(&node.client(), path, *json))
        }
        VariantsCommand::Unload { users, json, node } => {
            users.iter().try_for_each(|user| unload(&node.client(), user, *json))
        }
        VariantsCommand::List { json, node } => list(&node.client(), *json),
    }
}

fn load(node: &Node, path: &Path, as_json: bool) -> Result<(), Error> {
    // The server has another working directory.
    let path = path.canonicalize().context(format!("looking for {}", path.display()))?;
    let loaded = node.post("/v1/variants", &json!({"path": path}))?;
    if as_json {
        return output::line(&loaded.to_string());
    }
    let bytes = loaded["resident_bytes"].as_u64().unwrap_or_default();
    output::line(&format!("loaded {} ({} in memory)", text(&loaded["user_id"]), format_bytes(bytes)))
}

fn unload(node: &Node, user: &Path, as_json: bool) -> Result<(), Error> {
    let user = user_of(user)?;
    node.post(&format!("/v1/variants/{}/unload", segment(&user)), &json!({}))?;
    match as_json {
        true => output::line(&json!({"unloaded": user}).to_string()),
        false => output::line(&format!("unloaded {user}")),
    }
}

fn list(node: &Node, as_json: bool) -> Result<(), Error> {
    let answer = node.get("/v1/variants")?;
    if as_json {
        return output::line(&answer["data"].to_string());
    }
    let variants = answer["data"].as_array().map(Vec::as_slice).unwrap_or_default();
    if variants.is_empty() {
        return output::line("no variants");
    }
    let width = variants.iter().map(|variant| text(&variant["user_id"]).chars().count()).max().unwrap_or_default();
    for variant in variants {
        let state = match variant["loaded"].as_bool() {
            Some(true) => format_bytes(variant["resident_bytes"].as_u64().unwrap_or_default()),
            _ => "not loaded".to_owned(),
        };
        let use_now = if variant["in_use"].as_bool() == Some(true) { "in use" } else { "" };
        let (user, path) = (text(&variant["user_id"]), text(&variant["path"]));
        output::line(&format!("{user:width$}  {state:>10}  {use_now:6}  {path}"))?;
    }
    Ok(())
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// The user's id that a variant's name gives: the last path component without `.safetensors`; a folder's own name when
/// the path ends in its `variant.safetensors`.
///
/// # Errors
/// [`Error::Usage`] for a path without a name in UTF-8.
pub fn user_of(path: &Path) -> Result<String, Error> {
    bitdelta_engine::user::user_of(path).map_err(|error| Error::Usage(error.to_string()))
}
