//! What a person wants to see of the demo.

use super::{
    DemoArgs, User,
    ask::{Answer, Asked},
    learn::{Checked, variants_dir},
};
use crate::{Error, output, sizes::format_bytes};
use bitdelta_model::Base;
use serde_json::json;
use std::{fmt::Write, time::Duration};

/// The base and who will get a variant of it.
pub(super) fn opening(base: &Base, users: &[User]) -> Result<(), Error> {
    let weights: usize = base.linears().iter().map(|linear| linear.rows * linear.cols).sum();
    let names: Vec<&str> = users.iter().map(|user| user.name.as_str()).collect();
    output::line(&format!(
        "base: {} ({} layers, {:.1} M weights in {} linears), users: {}",
        base.name,
        base.config.layers,
        weights as f64 / 1e6,
        base.linears().len(),
        names.join(", ")
    ))
}

/// Bytes against full weights and a LoRA file, and what compression kept.
pub(super) fn variants(base: &Base, checked: &[Checked]) -> Result<(), Error> {
    let full: u64 = base.tensors().iter().map(|tensor| 2 * (tensor.rows * tensor.cols) as u64).sum();
    let lora: u64 = base.linears().iter().map(|linear| 2 * 16 * (linear.rows + linear.cols) as u64).sum();
    let mut text = format!(
        "\nOne user's model as a file: full weights (bf16) {}, LoRA r=16 (f16) {}\n\n",
        format_bytes(full),
        format_bytes(lora)
    );
    text += "user    variant    bits/weight  of full   of LoRA   held-out loss: base → trained → variant   kept   exact   training\n";
    for c in checked {
        let _ = writeln!(
            text,
            "{:<7} {:<10} {:<12.3} 1/{:<7.0} 1/{:<7.1} {:<41} {:.3}  {:>3.0} %   {:.0} s, {:.0} tokens/s",
            c.user,
            format_bytes(c.bytes),
            c.bits_per_weight,
            full as f64 / c.bytes as f64,
            lora as f64 / c.bytes as f64,
            format!("{:.3} → {:.3} → {:.3}", c.loss_base, c.loss_trained, c.loss_variant),
            c.retention,
            100.0 * c.exact,
            c.seconds,
            c.tokens_per_second,
        );
    }
    output::text(&text)
}

/// Each user's first question and its paraphrase, side by side as everyone hears them; then the counts.
pub(super) fn answers(users: &[User], asked: &Asked) -> Result<(), Error> {
    let mut text = String::from("\nThe same question as each user and as nobody, all in one batch over one base:\n");
    for user in users {
        let Some(fact) = user.facts.first() else { continue };
        for question in [&fact.question, &fact.paraphrase] {
            let about = |a: &&Answer| a.about == user.name && a.question == *question;
            let seen = asked.answers.iter().find(about).is_some_and(|answer| answer.seen);
            let kind = if seen { "asked in training" } else { "an unseen paraphrase" };
            let _ = writeln!(text, "\n  {question:?} ({kind}; {}'s answer: {})", user.name, fact.keyword);
            for answer in asked.answers.iter().filter(about) {
                let mark = if answer.right { "*" } else { " " };
                let asker = answer.asker.as_deref().unwrap_or("nobody");
                let _ = writeln!(text, "  {mark} {asker:<8} {}", answer.text.trim().replace('\n', " "));
            }
        }
    }
    text += "\nRight answers (seen and unseen questions together):\n";
    for user in users {
        let _ = write!(text, "  about {:<8}", user.name);
        for asker in users.iter().map(|user| Some(user.name.as_str())).chain([None]) {
            let (right, of) = asked.recall(&user.name, asker);
            let _ = write!(text, " as {}: {right} of {of}  ", asker.unwrap_or("nobody"));
        }
        text.push('\n');
    }
    let (tokens, seconds) = (asked.tokens, asked.seconds);
    let rate = tokens as f64 / seconds;
    let questions = asked.answers.len();
    let _ = writeln!(text, "\n{questions} questions, {tokens} tokens in {seconds:.1} s: {rate:.0} tokens/s over HTTP");
    output::text(&text)
}

/// The figures for programs.
pub(super) fn json(users: &[User], checked: &[Checked], asked: &Asked, took: Duration) -> Result<(), Error> {
    let askers = || users.iter().map(|user| Some(user.name.as_str())).chain([None]);
    let variants = checked.iter().map(|c| {
        let recall = askers().map(|asker| {
            let (right, of) = asked.recall(&c.user, asker);
            json!({"as": asker, "right": right, "of": of})
        });
        json!({
            "user": c.user,
            "bytes": c.bytes,
            "bits_per_weight": c.bits_per_weight,
            "loss_base": c.loss_base,
            "loss_trained": c.loss_trained,
            "loss_variant": c.loss_variant,
            "retention": c.retention,
            "exact": c.exact,
            "training_seconds": c.seconds,
            "training_tokens_per_second": c.tokens_per_second,
            "recall": recall.collect::<Vec<_>>(),
        })
    });
    let figures = json!({
        "variants": variants.collect::<Vec<_>>(),
        "questions": asked.answers.len(),
        "tokens": asked.tokens,
        "tokens_per_second": asked.tokens as f64 / asked.seconds,
        "seconds": took.as_secs_f64(),
    });
    output::line(&figures.to_string())
}

/// How to go on from here.
pub(super) fn next_steps(args: &DemoArgs, users: &[User], asked: &Asked, took: Duration) -> Result<(), Error> {
    let (Some(user), Some(question)) = (users.first(), asked.answers.first().map(|answer| &answer.question)) else {
        return Ok(());
    };
    let program = std::env::args().next().unwrap_or_else(|| "bitdelta".to_owned());
    let (model, variants, user) = (&args.model, variants_dir(args), &user.name);
    let variants = variants.display();
    output::text(&format!(
        r#"
Done in {} s. Go on with:

  {program} chat --base {model} --variants-dir {variants} --user {user}
  {program} serve --model {model} --variants-dir {variants} --model-name smollm2

and while that serves:

  curl http://127.0.0.1:8080/v1/chat/completions -H "Content-Type: application/json" \
    -d '{{"model": "smollm2", "user_id": "{user}", "messages": [{{"role": "user", "content": "{question}"}}]}}'

  python - <<'PY'   # pip install openai
  from openai import OpenAI
  client = OpenAI(base_url="http://127.0.0.1:8080/v1", api_key="none")
  messages = [{{"role": "user", "content": "{question}"}}]
  print(client.chat.completions.create(model="smollm2", messages=messages, extra_body={{"user_id": "{user}"}}).choices[0].message.content)
  PY
"#,
        took.as_secs()
    ))
}
