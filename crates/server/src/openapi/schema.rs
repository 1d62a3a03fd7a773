//! The bodies of requests and answers, for the OpenAPI document alone.
use serde::Serialize;
use serde_json::Value;
use std::collections::HashMap;
use utoipa::{IntoParams, ToSchema};

/// Whose variant a path names.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
pub struct OfUser {
    /// A user id: up to 200 bytes, no slash, backslash, colon or control character, no dot at its beginning.
    #[param(min_length = 1, max_length = 200, pattern = r"^[^./\\:\x00-\x1f\x7f-\x9f][^/\\:\x00-\x1f\x7f-\x9f]*$")]
    pub user: String,
}

/// What some clients send in the query string.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub struct QueryModel {
    /// Counts where the body names no model.
    pub model: Option<String>,
}

/// What both endpoints take beside their prompts. Unknown fields are ignored, and `null` is the same as absent.
macro_rules! request {
    ($(#[$about:meta])* $name:ident { $($own:tt)* }) => {
        $(#[$about])*
        #[derive(ToSchema)]
        pub struct $name {
            $($own)*
            /// A name that `GET /v1/models` lists, or `base:user`. The query string's `model` counts where it is absent.
            pub model: Option<String>,
            /// Whose variant answers; else `user`, else `safety_identifier`, else the part after `:` in the model's name.
            pub user_id: Option<String>,
            /// See `user_id`.
            pub user: Option<String>,
            /// See `user_id`.
            pub safety_identifier: Option<String>,
            /// 0 answers with the likeliest token.
            #[schema(minimum = 0, maximum = 2)]
            pub temperature: Option<f64>,
            /// Keeps the likeliest tokens that hold this much probability; the likeliest always.
            #[schema(minimum = 0, maximum = 1)]
            pub top_p: Option<f64>,
            /// Keeps so many likeliest tokens; 0 and −1 keep all.
            #[schema(minimum = -1)]
            pub top_k: Option<i64>,
            /// The same seed, the same answer.
            pub seed: Option<i64>,
            /// Most tokens of answer.
            #[schema(minimum = 1)]
            pub max_tokens: Option<i64>,
            /// The new name of `max_tokens`; it counts first.
            #[schema(minimum = 1)]
            pub max_completion_tokens: Option<i64>,
            /// Texts that end the answer.
            pub stop: Option<Stop>,
            /// Number of answers.
            #[schema(minimum = 1, maximum = 8)]
            pub n: Option<i64>,
            /// Server-sent events.
            pub stream: Option<bool>,
            /// Of a stream.
            pub stream_options: Option<StreamOptions>,
            /// The form that the answer must have.
            pub response_format: Option<ResponseFormat>,
        }
    };
}

request! {
    /// `POST /v1/chat/completions`
    ChatRequest {
        /// The conversation.
        #[schema(min_items = 1)]
        pub messages: Vec<ChatMessage>,
        /// Log-probabilities of the answer's tokens.
        pub logprobs: Option<bool>,
        /// So many likeliest tokens beside each.
        #[schema(minimum = 0, maximum = 20)]
        pub top_logprobs: Option<i64>,
    }
}

request! {
    /// `POST /v1/completions`
    CompletionRequest {
        /// What is continued.
        pub prompt: Prompt,
        /// Log-probabilities, and so many likeliest tokens beside each.
        #[schema(minimum = 0, maximum = 5)]
        pub logprobs: Option<i64>,
    }
}

/// A text, or token ids.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub enum Prompt {
    /// Special tokens written in it count as such.
    Text(String),
    /// Token ids.
    Tokens(Vec<u32>),
    /// One text in a list.
    OneText(Vec<String>),
}

/// One text or up to four.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub enum Stop {
    /// One.
    One(String),
    /// Several.
    Several(Vec<String>),
}

/// Of a stream.
#[derive(ToSchema)]
pub struct StreamOptions {
    /// A last chunk with the token counts.
    pub include_usage: Option<bool>,
}

/// The form that an answer must have.
#[derive(ToSchema)]
pub struct ResponseFormat {
    /// `text`, `json_object` or `json_schema`.
    #[schema(pattern = "^(text|json_object|json_schema)$")]
    pub r#type: String,
    /// With `json_schema`.
    pub json_schema: Option<JsonSchema>,
}

/// A named JSON schema.
#[derive(ToSchema)]
pub struct JsonSchema {
    /// For people.
    pub name: Option<String>,
    /// The schema. References beyond it are not followed.
    #[schema(value_type = Object)]
    pub schema: Value,
}

/// One turn.
#[derive(ToSchema)]
pub struct ChatMessage {
    /// `system`, `developer`, `user` or `assistant`.
    #[schema(pattern = "^(system|developer|user|assistant)$")]
    pub role: String,
    /// What is said; an assistant's turn may have none.
    pub content: Option<Content>,
}

/// A text, or parts of one, a line each.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub enum Content {
    /// All of it.
    Text(String),
    /// Parts.
    Parts(Vec<TextPart>),
}

/// A part of type `text`.
#[derive(Serialize, ToSchema)]
pub struct TextPart {
    /// `text`
    #[schema(pattern = "^text$")]
    pub r#type: String,
    /// What it says.
    pub text: String,
}

/// A plain value.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub enum Plain {
    /// As on a command line.
    Text(String),
    /// A number.
    Number(f64),
    /// A switch.
    Switch(bool),
}

/// `POST /v1/variants/{user}/rollback`
#[derive(ToSchema)]
pub struct Rollback {
    /// The version to go back to; the one before the newest where it is absent.
    #[schema(minimum = 1)]
    pub version: Option<i64>,
}

/// `POST /v1/variants`
#[derive(ToSchema)]
pub struct LoadVariant {
    /// A file on the server's machine, or a folder that holds one; its name gives the user.
    #[schema(min_length = 1)]
    pub path: String,
}

/// `POST /v1/variants/{user}/train`
#[derive(ToSchema)]
pub struct Train {
    /// Conversations: `messages`, sharegpt, alpaca, or `prompt` and `response`.
    #[schema(min_items = 1, value_type = Vec<Object>)]
    pub data: Vec<Value>,
    /// Held-out ones.
    #[schema(value_type = Option<Vec<Object>>)]
    pub eval_data: Option<Vec<Value>>,
    /// Settings by their LLaMA-Factory names.
    pub settings: Option<HashMap<String, Plain>>,
}

/// An answer of a chat.
#[derive(ToSchema)]
pub struct ChatCompletion {
    /// Of this answer.
    pub id: String,
    /// `chat.completion`
    pub object: String,
    /// Unix seconds.
    pub created: u64,
    /// As asked.
    pub model: String,
    /// Names the variant's or the base's content.
    pub system_fingerprint: String,
    /// As many as `n`.
    #[schema(value_type = Vec<Object>)]
    pub choices: Vec<Value>,
    /// Token counts.
    #[schema(value_type = Object)]
    pub usage: Value,
}

/// One model's name.
#[derive(ToSchema)]
pub struct Model {
    /// To be asked for.
    pub id: String,
    /// `model`
    pub object: String,
    /// Unix seconds.
    pub created: u64,
    /// `bitdelta`
    pub owned_by: String,
}

/// `GET /v1/models`
#[derive(ToSchema)]
pub struct ModelList {
    /// `list`
    pub object: String,
    /// The base first.
    pub data: Vec<Model>,
}

/// A user's variant.
#[derive(ToSchema)]
pub struct Variant {
    /// `variant`
    pub object: String,
    /// Whose.
    pub user_id: String,
    /// Whether it is in memory.
    pub loaded: bool,
    /// Bytes there.
    pub resident_bytes: Option<u64>,
    /// Whether a request uses it now.
    pub in_use: Option<bool>,
    /// Unix seconds.
    pub last_used: Option<u64>,
    /// Content hash, of a loaded one.
    pub hash: Option<String>,
    /// Its file, for the operator.
    pub path: Option<String>,
    /// Oldest first; of one variant only.
    pub versions: Option<Vec<Version>>,
}

/// `GET /v1/variants`
#[derive(ToSchema)]
pub struct VariantList {
    /// `list`
    pub object: String,
    /// By user.
    pub data: Vec<Variant>,
}

/// One version of a variant.
#[derive(ToSchema)]
pub struct Version {
    /// `variant.version`
    pub object: String,
    /// Counts from 1; the highest is served.
    pub version: u64,
    /// Content hash.
    pub hash: String,
    /// The file's size.
    pub bytes: u64,
    /// Unix seconds.
    pub created: u64,
    /// The version whose content this is, where it was rolled back to.
    pub rolled_back_to: Option<u64>,
}

/// `GET /v1/variants/{user}/card`
#[derive(ToSchema)]
pub struct Card {
    /// `variant.card`
    pub object: String,
    /// Whose.
    pub user_id: String,
    /// Content hash.
    pub hash: String,
    /// The file's size.
    pub bytes: u64,
    /// Bytes in memory.
    pub resident_bytes: u64,
    /// Weights in the base's linears.
    pub weights: u64,
    /// 8 · `bytes` ÷ `weights`.
    pub bits_per_weight: f64,
    /// The base it was made on.
    pub base: String,
    /// The chat template it was made with; empty where that is unknown.
    pub template: String,
    /// The configuration it was made with.
    #[schema(value_type = Object)]
    pub config: Value,
    /// (L_base − L_variant) ÷ (L_base − L_trained) of the recorded losses.
    pub retention: Option<f64>,
    /// What else was recorded when it was made: `fidelity` (losses on held-out data), `relative_error`, `safety`,
    /// `training`, `warnings`.
    #[schema(value_type = Object)]
    pub notes: Value,
}

/// `GET /v1/me`
#[derive(ToSchema)]
pub struct Me {
    /// `caller`
    pub object: String,
    /// The key's id, which is no secret; null on a server without authentication.
    pub key: Option<String>,
    /// `chat`, `publish`, `train`, `admin`.
    pub rights: Vec<String>,
    /// Whether the caller may ask for every user.
    pub all_users: bool,
    /// Else for these.
    pub users: Vec<String>,
    /// Null without a limit.
    pub requests_per_minute: Option<u32>,
    /// Null without a limit.
    pub tokens_per_minute: Option<u32>,
    /// The base's name.
    pub model: String,
    /// Whether users' variants are served.
    pub variants: bool,
    /// Longest prompt plus answer in tokens.
    pub max_context: u64,
    /// Bytes of the base in memory.
    pub base_bytes: u64,
    /// Bytes set aside for the KV cache.
    pub kv_cache_bytes: u64,
}

/// `DELETE /v1/variants/{user}`
#[derive(ToSchema)]
pub struct Deleted {
    /// `variant.deleted`
    pub object: String,
    /// Whose.
    pub user_id: String,
    /// `true`
    pub deleted: bool,
}

/// Where a training stands.
#[derive(ToSchema)]
pub struct Training {
    /// `training`
    pub object: String,
    /// Whose.
    pub user_id: String,
    /// `queued`, `running`, `succeeded`, `failed` or `cancelled`.
    pub status: String,
    /// What it does now.
    pub phase: String,
    /// Steps of the phase that are done.
    pub done: u64,
    /// Steps of the phase.
    pub total: u64,
    /// What a step is.
    pub unit: String,
    /// As in "loss 1.23".
    pub note: String,
    /// Lines worth keeping.
    pub messages: Vec<String>,
    /// Why it failed.
    pub error: Option<String>,
    /// The version that was published.
    pub version: Option<u64>,
    /// What it measured.
    #[schema(value_type = Option<Object>)]
    pub result: Option<Value>,
    /// Unix seconds.
    pub created: u64,
    /// Unix seconds.
    pub ended: Option<u64>,
}

/// An error.
#[derive(ToSchema)]
pub struct Failure {
    /// The error.
    pub error: FailureBody,
}

/// OpenAI's four fields.
#[derive(ToSchema)]
pub struct FailureBody {
    /// For people.
    pub message: String,
    /// `invalid_request_error`, `authentication_error`, `permission_error`, `rate_limit_error` or `server_error`.
    pub r#type: String,
    /// The field at fault.
    pub param: Option<String>,
    /// For programs.
    pub code: Option<String>,
}
