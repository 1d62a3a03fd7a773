//! `bitdelta keys add|revoke|list`, and the arguments that give a server its keys or tokens.
use crate::{Context, Error, output};
use bitdelta_server::auth::{
    Auth, Jwt, KeyFile, Limits, Right, Users,
    keys::{self, Key, NewKey},
};
use serde_json::json;
use std::path::PathBuf;

/// How a server asks who calls.
#[derive(Debug, Clone, clap::Args)]
pub struct AuthArgs {
    /// File of API keys that `bitdelta keys add` makes; changes hold from the next request on
    #[arg(long, value_name = "FILE", env = "BITDELTA_KEY_FILE", hide_env_values = true)]
    key_file: Option<PathBuf>,
    /// Take signed tokens (JWT) whose subject is the user: an Ed25519 public key in PEM, or a secret for HS256
    #[arg(long, value_name = "FILE")]
    jwt_key: Option<PathBuf>,
    /// Issuer that tokens must name
    #[arg(long, value_name = "ISS", requires = "jwt_key")]
    jwt_issuer: Option<String>,
    /// Audience that tokens must name
    #[arg(long, value_name = "AUD", requires = "jwt_key")]
    jwt_audience: Option<String>,
    /// Most requests a minute of each key that has no limit of its own, and of each token's user [default: no limit]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    requests_per_minute: Option<u32>,
    /// Most tokens a minute, prompts and answers, likewise [default: no limit]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    tokens_per_minute: Option<u32>,
}

impl AuthArgs {
    /// Reads the files.
    ///
    /// # Errors
    /// A file that is not there or does not hold what it should.
    pub fn open(&self) -> Result<Auth, Error> {
        let limits =
            Limits { requests_per_minute: self.requests_per_minute, tokens_per_minute: self.tokens_per_minute };
        if limits != Limits::default() && self.key_file.is_none() && self.jwt_key.is_none() {
            let message =
                "--requests-per-minute and --tokens-per-minute need --key-file or --jwt-key: limits are each key's";
            return Err(Error::Usage(message.to_owned()));
        }
        let keys = self.key_file.as_deref().map(KeyFile::open).transpose().context("--key-file")?;
        let jwt = |path| Jwt::open(path, self.jwt_issuer.as_deref(), self.jwt_audience.as_deref());
        let jwt = self.jwt_key.as_deref().map(jwt).transpose().context("--jwt-key")?;
        Ok(Auth::new(keys, jwt, limits))
    }
}

/// Arguments of `keys`.
#[derive(Debug, Clone, clap::Args)]
pub struct KeysArgs {
    #[command(subcommand)]
    command: KeysCommand,
}

/// Where the keys are.
#[derive(Debug, Clone, clap::Args)]
struct FileArgs {
    /// The key file, which `bitdelta serve --key-file` reads
    #[arg(long, value_name = "FILE", env = "BITDELTA_KEY_FILE", hide_env_values = true, default_value = "keys.json")]
    key_file: PathBuf,
    /// JSON on stdout
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum KeysCommand {
    /// Make a key and print it, this once
    Add {
        /// User that it may ask for; may be given several times
        #[arg(long = "user", value_name = "USER", required_unless_present = "all_users", conflicts_with = "all_users")]
        users: Vec<String>,
        /// For every user: a back end of your own
        #[arg(long)]
        all_users: bool,
        /// What it may do: chat, publish, train, admin; several with commas
        #[arg(long, value_name = "RIGHTS", value_delimiter = ',', default_value = "chat")]
        rights: Vec<Right>,
        /// Keys of one tenant share turns, the queue and the cache of prompts [default: each key by itself; with
        /// --all-users each user]
        #[arg(long, value_name = "NAME")]
        tenant: Option<String>,
        /// Most requests a minute
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        requests_per_minute: Option<u32>,
        /// Most tokens a minute, prompts and answers
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        tokens_per_minute: Option<u32>,
        /// A word to know it by
        #[arg(long, value_name = "TEXT", default_value = "")]
        note: String,
        #[command(flatten)]
        file: FileArgs,
    },
    /// Take a key back, from the next request on
    Revoke {
        /// Its id, as `keys list` shows it
        #[arg(value_name = "ID")]
        id: String,
        #[command(flatten)]
        file: FileArgs,
    },
    /// List the keys: ids and what they allow, never the keys
    List {
        #[command(flatten)]
        file: FileArgs,
    },
}

/// Runs the subcommand.
///
/// # Errors
/// A key file that cannot be read or written, an id that is not in it.
pub fn run(args: &KeysArgs) -> Result<(), Error> {
    let doing = "changing the keys";
    match &args.command {
        KeysCommand::Add { users, rights, tenant, requests_per_minute, tokens_per_minute, note, file, .. } => {
            let users = if users.is_empty() { Users::All } else { Users::Only(users.iter().cloned().collect()) };
            let (requests_per_minute, tokens_per_minute) = (*requests_per_minute, *tokens_per_minute);
            let new = NewKey {
                note: note.clone(),
                users,
                rights: rights.iter().copied().collect(),
                tenant: tenant.clone(),
                limits: Limits { requests_per_minute, tokens_per_minute },
            };
            let (secret, key) = keys::add(&file.key_file, new).context(doing)?;
            match file.json {
                true => output::line(&json!({"id": key.id, "key": secret}).to_string()),
                // The key alone on a line of its own, as a script wants it.
                false => output::line(&secret),
            }
        }
        KeysCommand::Revoke { id, file } => match keys::revoke(&file.key_file, id).context(doing)? {
            true if file.json => output::line(&json!({"revoked": id}).to_string()),
            true => output::line(&format!("revoked {id}")),
            false => Err(Error::Failed(format!("{} has no key {id:?}", file.key_file.display()))),
        },
        KeysCommand::List { file } => list(file),
    }
}

fn list(file: &FileArgs) -> Result<(), Error> {
    let keys = keys::list(&file.key_file).context("reading the keys")?;
    if file.json {
        let text = serde_json::to_string(&keys).context("writing the list")?;
        return output::line(&text);
    }
    if keys.is_empty() {
        return output::line("no keys");
    }
    keys.iter().try_for_each(|key| output::line(&line_of(key)))
}

fn line_of(key: &Key) -> String {
    let users = match &key.users {
        Users::All => "all users".to_owned(),
        Users::Only(users) => users.iter().cloned().collect::<Vec<_>>().join(" "),
    };
    let rights = key.rights.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let limit = |limit: Option<u32>, what: &str| limit.map(|limit| format!("  {limit} {what}/min")).unwrap_or_default();
    let (requests, tokens) =
        (limit(key.limits.requests_per_minute, "requests"), limit(key.limits.tokens_per_minute, "tokens"));
    let tenant = key.tenant.as_deref().map(|tenant| format!("  tenant {tenant}")).unwrap_or_default();
    format!("{}  {rights}  {users}{tenant}{requests}{tokens}  {}", key.id, key.note).trim_end().to_owned()
}
