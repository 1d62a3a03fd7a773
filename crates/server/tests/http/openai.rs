//! `async-openai`, the Rust client that others wrote, on its own types: what it sends is understood, what it gets parses.
use crate::{
    node::{BASE, Node},
    tenants::{new_key, only},
};
use async_openai::{
    Client,
    config::OpenAIConfig,
    error::OpenAIError,
    types::{
        chat::{
            ChatCompletionRequestUserMessageArgs, ChatCompletionStreamOptions, CreateChatCompletionRequest,
            CreateChatCompletionRequestArgs, FinishReason,
        },
        completions::CreateCompletionRequestArgs,
    },
};
use bitdelta_server::{
    Auth,
    auth::{KeyFile, Limits, Right, keys},
};
use futures_util::StreamExt;
use serde_json::json;
use std::future::Future;

fn client(node: &Node, key: &str) -> Client<OpenAIConfig> {
    Client::with_config(OpenAIConfig::new().with_api_base(format!("{}/v1", node.url)).with_api_key(key))
}

fn wait<T>(answer: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("threads").block_on(answer)
}

/// What `Node::said` asks, too.
fn chat(user: &str) -> CreateChatCompletionRequest {
    let asked = crate::node::question(json!({}));
    let text = asked["messages"][0]["content"].as_str().expect("text");
    let message = ChatCompletionRequestUserMessageArgs::default().content(text).build().expect("a message");
    let length = asked["max_tokens"].as_u64().expect("a number") as u32;
    let mut request = CreateChatCompletionRequestArgs::default();
    request.model(BASE).messages([message.into()]).max_completion_tokens(length).temperature(0.0).user(user);
    request.build().expect("a request")
}

#[test]
fn its_user_is_answered_by_their_variant_whole_and_streamed() {
    let node = Node::start();
    node.publish("ann", 1);
    let said = node.said(json!({"user_id": "ann", "temperature": 0}));
    assert_ne!(said, node.said(json!({"temperature": 0})), "the variant says something else than the base");
    wait(async {
        let client = client(&node, "unused");
        let whole = client.chat().create(chat("ann")).await.expect("an answer");
        assert_eq!(whole.choices[0].message.content.as_deref(), Some(&*said));
        let usage = whole.usage.expect("usage");
        assert_eq!(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens);

        let mut request = chat("ann");
        request.stream_options =
            Some(ChatCompletionStreamOptions { include_usage: Some(true), include_obfuscation: None });
        let mut stream = client.chat().create_stream(request).await.expect("a stream");
        let (mut text, mut ended, mut counted) = (String::new(), None::<FinishReason>, None);
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.expect("a chunk that parses");
            for choice in &chunk.choices {
                text += choice.delta.content.as_deref().unwrap_or_default();
                ended = choice.finish_reason.or(ended);
            }
            counted = chunk.usage.or(counted);
        }
        assert_eq!(text, said);
        assert_eq!(ended, whole.choices[0].finish_reason);
        assert_eq!(counted.expect("usage at the end").completion_tokens, usage.completion_tokens);
    });
}

#[test]
fn it_lists_models_and_completes_text() {
    let node = Node::start();
    node.publish("ann", 1);
    wait(async {
        let client = client(&node, "unused");
        let listed = client.models().list().await.expect("models").data;
        assert_eq!(listed[0].id, BASE);
        assert!(listed.iter().any(|model| model.id == format!("{BASE}:ann")), "{listed:?}");
        assert_eq!(client.models().retrieve(BASE).await.expect("a model").id, BASE);
        let mut request = CreateCompletionRequestArgs::default();
        let request = request.model(BASE).prompt("Hello").max_tokens(4_u32).user("ann").build().expect("a request");
        let answer = client.completions().create(request).await.expect("an answer");
        assert_eq!(answer.usage.expect("usage").completion_tokens, 4);
    });
}

#[test]
fn it_sees_status_type_and_code_of_an_error() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("keys.json");
    let ann = keys::add(&file, new_key(only("ann"), &[Right::Chat])).expect("a key").0;
    let node = Node::guarded(Auth::new(Some(KeyFile::open(&file).expect("keys")), None, Limits::default()));
    node.publish("ann", 1);
    let refused = |key: &str, user| match wait(client(&node, key).chat().create(chat(user))) {
        Err(OpenAIError::ApiError(error)) => {
            (error.status_code.as_u16(), error.api_error.code.expect("a code"), error.api_error.message)
        }
        other => panic!("{other:?}"),
    };
    assert!(wait(client(&node, &ann).chat().create(chat("ann"))).is_ok());
    let (status, code, _) = refused("wrong", "ann");
    assert_eq!((status, &*code), (401, "invalid_api_key"));
    let (status, _, message) = refused(&ann, "bob");
    assert_eq!(status, 403, "{message}");
}
