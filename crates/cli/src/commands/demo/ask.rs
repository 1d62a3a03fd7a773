//! Serve the variants and ask: each user's questions as that user, as the other, and as nobody, all in one batch.

use super::{DemoArgs, User, learn::variants_dir};
use crate::{
    Context, Error,
    commands::{progress::Bar, served::Served},
    node::Node,
};
use bitdelta_engine::{Engine, EngineOptions, Model, Registry};
use bitdelta_server::{Defaults, Service};
use bitdelta_train::progress::Progress;
use serde_json::{Value, json};
use std::{sync::Arc, time::Instant};

/// One question and its answer.
pub(super) struct Answer {
    /// Whose fact it is about.
    pub about: String,
    /// Who asks; `None` is nobody, answered by the base.
    pub asker: Option<String>,
    pub question: String,
    /// Whether training showed the question in these words.
    pub seen: bool,
    pub text: String,
    /// Whether the answer holds the fact.
    pub right: bool,
}

/// All answers, and how fast they came.
pub(super) struct Asked {
    pub answers: Vec<Answer>,
    pub tokens: u64,
    pub seconds: f64,
}

impl Asked {
    /// Right answers, of all, to the questions about `about` that `asker` asked.
    pub fn recall(&self, about: &str, asker: Option<&str>) -> (usize, usize) {
        let asked = || self.answers.iter().filter(|a| a.about == about && a.asker.as_deref() == asker);
        (asked().filter(|answer| answer.right).count(), asked().count())
    }
}

/// Starts a server on a free port, asks everything at once, and stops it.
///
/// # Errors
/// A server that does not start, or an answer that is an error.
pub(super) fn ask(args: &DemoArgs, model: &Arc<Model>, users: &[User]) -> Result<Asked, Error> {
    let engine = Engine::start(Arc::clone(model), EngineOptions::default()).context("serving the variants")?;
    let registry = Registry::new(Arc::clone(model), Some(variants_dir(args)));
    let served = Served::start(Service::new(engine, Some(registry), Vec::new(), Defaults::default()))?;
    let asked = ask_all(&served.node, &model.base().name, users, args.short);
    served.stop()?;
    asked
}

fn ask_all(node: &Node, model: &str, users: &[User], short: bool) -> Result<Asked, Error> {
    let mut questions = Vec::new();
    for user in users {
        let askers = users.iter().map(|user| Some(user.name.clone())).chain([None]);
        for asker in askers {
            for fact in user.facts.iter().take(if short { 3 } else { usize::MAX }) {
                for (question, seen) in [(&fact.question, true), (&fact.paraphrase, false)] {
                    questions.push((user, asker.clone(), question, seen, &fact.keyword));
                }
            }
        }
    }
    let bar = Bar::new();
    bar.begin("asking", questions.len() as u64, "questions");
    let begun = Instant::now();
    let results: Vec<Result<(Answer, u64), Error>> = std::thread::scope(|scope| {
        let bar = &bar;
        let ask = |(user, asker, question, seen, keyword): (&User, Option<String>, &String, bool, &String)| {
            let (text, tokens) = ask_one(node, model, asker.as_deref(), question)?;
            bar.advance(1, "");
            let right = text.to_lowercase().contains(&keyword.to_lowercase());
            let (about, question) = (user.name.clone(), question.clone());
            Ok((Answer { about, asker, question, seen, text, right }, tokens))
        };
        let running: Vec<_> = questions.into_iter().map(|question| scope.spawn(move || ask(question))).collect();
        let lost = |_| Err(Error::Failed("a thread that asked a question died".to_owned()));
        running.into_iter().map(|thread| thread.join().unwrap_or_else(lost)).collect()
    });
    bar.end();
    let seconds = begun.elapsed().as_secs_f64();
    let (answers, tokens): (Vec<_>, Vec<u64>) = results.into_iter().collect::<Result<Vec<_>, _>>()?.into_iter().unzip();
    Ok(Asked { answers, tokens: tokens.into_iter().sum(), seconds })
}

/// The answer's text and its number of tokens.
fn ask_one(node: &Node, model: &str, user: Option<&str>, question: &str) -> Result<(String, u64), Error> {
    let mut body = json!({
        "model": model,
        "messages": [{ "role": "user", "content": question }],
        "max_tokens": 32,
    });
    if let Some(user) = user {
        body["user_id"] = Value::from(user);
    }
    let answer = node.post("/v1/chat/completions", &body)?;
    let text = answer["choices"][0]["message"]["content"].as_str().unwrap_or_default().to_owned();
    Ok((text, answer["usage"]["completion_tokens"].as_u64().unwrap_or(0)))
}
