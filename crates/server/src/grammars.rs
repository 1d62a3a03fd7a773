//! Answers of a certain form: `response_format` as a grammar over the model's tokens (llguidance).
//!
//! The grammar allows after each token only those that can follow, so an answer that ends by itself fits the schema; one
//! that is cut by `max_tokens` does not. Schemas come from strangers: what building one and a step of one may cost is
//! bounded by llguidance's own limits, and references beyond the schema itself are not followed.
use crate::ApiError;
use bitdelta_engine::Constraint;
use bitdelta_model::Base;
use llguidance::{
    Matcher, ParserFactory,
    api::{ParserLimits, TopLevelGrammar},
};
use serde_json::{Value, json};
use std::sync::{Arc, OnceLock};
use toktrie::{TokEnv, TokRxInfo, TokTrie, TokenId, TokenizerEnv};

/// Most characters of llguidance's words in an answer.
const MAX_REASON: usize = 300;

/// Grammars over one model's tokens, prepared when the first is asked for.
#[derive(Default)]
pub struct Grammars {
    tokens: OnceLock<Arc<Vec<Vec<u8>>>>,
    factory: OnceLock<Result<ParserFactory, String>>,
}

impl Grammars {
    /// The bytes of every token.
    pub fn token_bytes(&self, base: &Base) -> &Arc<Vec<Vec<u8>>> {
        self.tokens.get_or_init(|| Arc::new(base.tokenizer.token_bytes()))
    }

    /// A constraint to what the JSON schema describes.
    ///
    /// # Errors
    /// 400 for a schema that is none, or asks for what is not supported or costs too much.
    pub fn json(&self, base: &Base, schema: &Value) -> Result<Box<dyn Constraint>, ApiError> {
        let factory = self.factory.get_or_init(|| factory(base, self.token_bytes(base)));
        let factory = factory.as_ref().map_err(|reason| crate::api_error::internal(reason))?;
        let mut schema = schema.clone();
        // One way to write white space: a model that may add any amount of it need never come to an end.
        let style =
            json!({"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": ", "coerce_one_of": true});
        match schema.as_object_mut() {
            Some(fields) => fields.insert("x-guidance".to_owned(), style),
            None => return Err(refused("it must be an object")),
        };
        let matcher = Matcher::new(factory.create_parser(TopLevelGrammar::from_json_schema(schema)));
        match matcher.get_error() {
            Some(reason) => Err(refused(&reason)),
            None => Ok(Box::new(Grammar(matcher))),
        }
    }
}

fn refused(reason: &str) -> ApiError {
    let reason: String = reason.chars().take(MAX_REASON).collect();
    ApiError::invalid("response_format", format!("the JSON schema cannot be used: {reason}"))
}

fn factory(base: &Base, tokens: &[Vec<u8>]) -> Result<ParserFactory, String> {
    let Some(&end) = base.config.eos.first() else { return Err("the model has no token that ends an answer".into()) };
    let info = TokRxInfo::new(tokens.len() as u32, end);
    let ends: Vec<TokenId> = base.config.eos.iter().copied().filter(|end| (*end as usize) < tokens.len()).collect();
    if ends.is_empty() {
        return Err("the token that ends an answer is none of the tokenizer's".into());
    }
    let vocabulary: TokEnv = Arc::new(Vocabulary(TokTrie::from(&info, tokens).with_eos_tokens(&ends)));
    let mut factory = ParserFactory::new_simple(&vocabulary).map_err(|error| error.to_string())?;
    factory.quiet();
    // An error must not quote what was said so far.
    *factory.limits_mut() = ParserLimits { verbose_errors: false, ..ParserLimits::default() };
    Ok(factory)
}

/// The tokens as llguidance wants them.
struct Vocabulary(TokTrie);

impl TokenizerEnv for Vocabulary {
    fn tok_trie(&self) -> &TokTrie {
        &self.0
    }

    /// Only for text that a grammar forces, which this server leaves to the model.
    fn tokenize_bytes(&self, text: &[u8]) -> Vec<TokenId> {
        self.0.greedy_tokenize(text)
    }
}

struct Grammar(Matcher);

impl Constraint for Grammar {
    fn allow(&mut self, logits: &mut [f32]) -> Result<(), String> {
        let mask = self.0.compute_mask_or_eos().map_err(|error| error.to_string())?;
        let mut any = false;
        for (token, logit) in logits.iter_mut().enumerate() {
            if token < mask.len() && mask.get(token) {
                any = true;
            } else {
                *logit = f32::NEG_INFINITY;
            }
        }
        if any { Ok(()) } else { Err("no token can follow".to_owned()) }
    }

    fn accept(&mut self, token: u32) -> Result<(), String> {
        self.0.consume_token(token).map_err(|error| error.to_string())
    }
}
