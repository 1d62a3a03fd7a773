//! The base model: whether it opens, whether it can be talked to, and what memory it takes.
use super::{Check, chain};
use crate::{
    commands::{progress::Bar, serve::ServeArgs},
    sizes::format_bytes,
};
use bitdelta_engine::{BaseDtype, weights};
use bitdelta_model::{
    Base,
    chat::{Message, Template},
    memory,
};
use serde_json::{Map, Value};

/// Opens the base and checks it; `None` where that cannot be.
pub(super) fn open(args: &ServeArgs, checks: &mut Vec<Check>) -> Option<Base> {
    let name = match args.base.check() {
        Ok(name) => name,
        Err(error) => {
            checks.push(Check::problem("model", "none to look at", error.to_string()));
            return None;
        }
    };
    let base = match Bar::new().during(&format!("opening the base model {name}"), || Base::open(&name)) {
        Ok(base) => base,
        Err(error) => {
            let advice = "--model takes a Hugging Face folder, a .gguf file, an alias, or a hub id";
            checks.push(Check::problem("model", chain(&error), advice));
            return None;
        }
    };
    let config = &base.config;
    let weights: usize = base.tensors().iter().map(|tensor| tensor.rows * tensor.cols).sum();
    let found = format!(
        "{}: {}, {} layers, {:.1} M weights, {} stored, context {}",
        base.path.display(),
        config.architecture.class_name(),
        config.layers,
        weights as f64 / 1e6,
        format_bytes(base.stored_bytes()),
        config.max_positions,
    );
    let check = Check::ok("model", found).with("path", base.path.display().to_string());
    checks.push(check.with("architecture", config.architecture.class_name()).with("weights", weights));
    checks.push(tokenizer(&base));
    checks.push(template(&base));
    let fingerprint = Bar::new().during("reading the base model", || base.fingerprint().to_owned());
    checks.push(Check::ok("fingerprint", fingerprint.as_str()).with("fingerprint", fingerprint.as_str()));
    checks.push(needed(&base, args));
    Some(base)
}

/// Text to tokens and back.
fn tokenizer(base: &Base) -> Check {
    const TEXT: &str = "Hello, world! 1234";
    let name = "tokenizer";
    let advice = "take the model's own tokenizer files (tokenizer.json), or a GGUF that was made with them";
    match base.tokenizer.encode(TEXT, false) {
        Err(error) => Check::problem(name, chain(&error), advice),
        Ok(tokens) => {
            let back = base.tokenizer.decode(&tokens);
            let found = format!("{} entries", base.tokenizer.vocab_size());
            match back.trim() == TEXT {
                true => Check::ok(name, found),
                false => Check::warning(name, format!("{found}; {TEXT:?} comes back as {back:?}"), advice),
            }
        }
    }
}

/// A turn of a user as a prompt.
fn template(base: &Base) -> Check {
    let name = "chat template";
    let advice = "take a model with a chat template (tokenizer_config.json): prompts are made by it";
    let turn = Message { role: "user".to_owned(), content: "Hello!".to_owned() };
    match base.tokenizer.encode_chat(&[turn], &Template::Model, true) {
        Ok(tokens) => {
            let id = base.tokenizer.template_id(&Template::Model);
            Check::ok(name, format!("{id}; \"Hello!\" makes a prompt of {} tokens", tokens.len()))
        }
        Err(error) => Check::problem(name, chain(&error), advice),
    }
}

/// What the base takes in each type, beside what there is.
fn needed(base: &Base, args: &ServeArgs) -> Check {
    let name = "base memory";
    let types =
        [("auto", BaseDtype::Stored), ("f32", BaseDtype::F32), ("bf16", BaseDtype::Bf16), ("int8", BaseDtype::Int8)];
    let sizes = types.map(|(name, dtype)| (name, weights::bytes(base, dtype)));
    let listed = sizes.map(|(name, bytes)| format!("{name} {}", format_bytes(bytes))).join(", ");
    let chosen = weights::bytes(base, args.base.options().base_dtype);
    let cache = args.kv_cache_size;
    let found = format!("--base-dtype {listed}; beside it {} for keys and values", format_bytes(cache));
    let available = memory::available().unwrap_or(u64::MAX);
    let smaller: Vec<&str> = sizes.iter().filter(|(_, bytes)| *bytes < available).map(|(name, _)| *name).collect();
    let check = match () {
        () if chosen <= available && chosen.saturating_add(cache) <= available => Check::ok(name, found),
        () if chosen <= available => {
            Check::warning(name, found, "lower --kv-cache-size: both together are more than there is")
        }
        () if smaller.is_empty() => Check::problem(name, found, "no type fits: take a smaller model, or more memory"),
        () => Check::problem(name, found, format!("it does not fit; these do: --base-dtype {}", smaller.join(", "))),
    };
    let figures: Map<String, Value> =
        sizes.iter().map(|(name, bytes)| ((*name).to_owned(), Value::from(*bytes))).collect();
    check.with("base_bytes", figures).with("needed_bytes", chosen.saturating_add(cache))
}
