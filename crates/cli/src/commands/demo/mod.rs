//! `bitdelta demo`: the whole product on one machine, with a real base and two users.
//!
//! Each user's conversations become a variant (`learn`); both are published into one folder, served over HTTP by one
//! engine in one batch, and asked what they should know and what others should not (`ask`). `show` prints what a
//! person wants to see. A variant that did not learn makes the command fail.

mod ask;
mod learn;
mod show;

use crate::{Context, Error, commands::progress::Bar, interrupt::Interrupt};
use bitdelta_engine::{Model, ModelOptions};
use bitdelta_model::Base;
use serde::Deserialize;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

/// Arguments of `demo`.
#[derive(Debug, Clone, clap::Args)]
pub struct DemoArgs {
    /// Base model: a folder or a .gguf file
    #[arg(long, value_name = "PATH", env = "BITDELTA_MODEL", hide_env_values = true)]
    model: String,
    /// Folder of users: NAME.train.jsonl, NAME.held.jsonl and NAME.json with the questions to ask
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Folder for what the demo makes
    #[arg(long, value_name = "DIR", default_value = ".demo")]
    output: PathBuf,
    /// Fewer steps and questions, for a test
    #[arg(long)]
    short: bool,
    /// The figures as JSON on stdout
    #[arg(long)]
    json: bool,
}

/// One user of the demo, from NAME.json.
#[derive(Debug, Clone, Deserialize)]
struct User {
    #[serde(rename = "user")]
    name: String,
    facts: Vec<Fact>,
}

/// Something that only this user's variant knows.
#[derive(Debug, Clone, Deserialize)]
struct Fact {
    /// A question that training showed.
    question: String,
    /// The same, in words that training never showed.
    paraphrase: String,
    /// What a right answer holds.
    keyword: String,
}

/// Runs the demo.
///
/// # Errors
/// What any of its steps returns; [`Error::Failed`] when a variant did not learn.
pub fn run(args: &DemoArgs) -> Result<(), Error> {
    let begun = Instant::now();
    let users = users(&args.data)?;
    let base = Arc::new(Base::open(&args.model).context("opening the base model")?);
    if !args.json {
        show::opening(&base, &users)?;
    }

    let interrupt = Interrupt::watch()?;
    let learn = learn::Learn { args, base: &base, interrupt: &interrupt };
    let trained = users.iter().map(|user| learn.train(user)).collect::<Result<Vec<_>, _>>()?;

    let load = || Model::load(Arc::clone(&base), ModelOptions::default()).map(Arc::new);
    let model = Bar::new().during("loading the base model", load).context("loading the base model")?;
    let checked =
        trained.iter().map(|trained| learn::check_and_publish(args, &model, trained)).collect::<Result<Vec<_>, _>>()?;
    if !args.json {
        show::variants(&base, &checked)?;
    }

    let asked = ask::ask(args, &model, &users)?;
    if args.json {
        show::json(&users, &checked, &asked, begun.elapsed())?;
    } else {
        show::answers(&users, &asked)?;
        show::next_steps(args, &users, &asked, begun.elapsed())?;
    }
    verdict(&checked, &users, &asked)
}

fn users(dir: &Path) -> Result<Vec<User>, Error> {
    let doing = || format!("reading the users in {}", dir.display());
    let mut users = Vec::new();
    for entry in std::fs::read_dir(dir).context(doing())? {
        let path = entry.context(doing())?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            let text = std::fs::read_to_string(&path).context(doing())?;
            users.push(serde_json::from_str::<User>(&text).context(format!("reading {}", path.display()))?);
        }
    }
    users.sort_by(|a, b| a.name.cmp(&b.name));
    if users.iter().any(|user| user.facts.is_empty()) || users.len() < 2 {
        return Err(Error::Usage(format!("{} must describe two users, each with facts", dir.display())));
    }
    Ok(users)
}

/// Fails for a variant that kept less than [`KEPT`] of what training brought, that cannot answer most of its questions,
/// or whose facts others know as well.
fn verdict(checked: &[learn::Checked], users: &[User], asked: &ask::Asked) -> Result<(), Error> {
    for (checked, user) in checked.iter().zip(users) {
        let fail = |what: String| Err(Error::Failed(format!("{}'s variant did not learn: {what}", user.name)));
        if checked.loss_variant > LEARNT * checked.loss_base {
            return fail(format!("held-out loss {:.2} of {:.2}", checked.loss_variant, checked.loss_base));
        }
        if checked.retention < KEPT {
            return fail(format!("compression kept {:.3} of the gain", checked.retention));
        }
        let (known, of) = asked.recall(&user.name, Some(&user.name));
        if (known as f32) < RECALLED * of as f32 {
            return fail(format!("{known} of {of} questions answered"));
        }
        for other in users.iter().filter(|other| other.name != user.name).map(|other| Some(other.name.as_str())) {
            let (leaked, of) = asked.recall(&user.name, other);
            if leaked * 2 > of {
                return fail(format!("{} knows {leaked} of {of} of its facts", other.unwrap_or("nobody")));
            }
        }
    }
    Ok(())
}

/// Share of the base's held-out loss that a variant may keep.
const LEARNT: f64 = 0.6;
/// Share of training's gain that compression must keep.
const KEPT: f64 = 0.95;
/// Share of its questions that a variant must answer.
const RECALLED: f32 = 0.6;
