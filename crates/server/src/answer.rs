//! One generation from an HTTP request to its answer: resolve the user, make the prompt, queue it, collect the events.
//!
//! A client that goes away drops its [`Admitted`], which calls its generations back, waiting or running.
use crate::{
    ApiError,
    auth::{
        Caller, Right,
        limits::{Reserved, Spent},
    },
    extract::Body,
    loads,
    reply::{Choice, Reply, Usage},
    service::{Service, blocking, fresh_number},
    stream,
    wanted::{Endpoint, Prompt, Wanted},
};
use axum::{
    Json,
    response::{IntoResponse, Response},
};
use bitdelta_engine::{Cancel, Error as EngineError, Event, Request, Resident, Sampling};
use std::{sync::Arc, time::Instant};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

/// A request that the engine has taken.
pub struct Admitted {
    /// The answer's frame.
    pub reply: Reply,
    /// Number of answers being made.
    pub choices: usize,
    /// Whether the stream ends with the token counts.
    pub include_usage: bool,
    /// Events, each with the index of its answer. Bounded by the answers' lengths, so the channel need not be.
    pub events: UnboundedReceiver<(usize, Event)>,
    /// Of the caller's tokens a minute.
    _reserved: Option<Reserved>,
    user: Option<String>,
    started: Instant,
    _wanted: WhileWanted,
}

/// Calls generations back when nobody holds it any more.
#[derive(Default)]
struct WhileWanted(Cancel);

impl Drop for WhileWanted {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

impl Admitted {
    /// Writes the access log's line about a finished answer. Never what was asked or said.
    pub fn log(&self, usage: Usage, streamed: bool) {
        let milliseconds = self.started.elapsed().as_millis();
        let (prompt_tokens, completion_tokens) = (usage.prompt_tokens, usage.completion_tokens);
        let user = self.user.as_deref().unwrap_or("-");
        tracing::info!(user, prompt_tokens, completion_tokens, streamed, milliseconds, "answered");
    }
}

/// Answers one request.
///
/// # Errors
/// Any status of [`ApiError`]; once a stream has begun, errors travel in it.
pub async fn answer(
    service: Arc<Service>,
    caller: Caller,
    endpoint: Endpoint,
    body: Body,
    query_model: Option<&str>,
) -> Result<Response, ApiError> {
    let started = Instant::now();
    caller.require(Right::Chat)?;
    let wanted = Wanted::read(endpoint, &body.fields, query_model)?;
    match &wanted.prompt {
        Prompt::Messages(messages) => service.room.check_messages(messages, service.engine.max_context())?,
        Prompt::Text(text) => service.room.check_text(text, service.engine.max_context())?,
    }
    let user = service.names.resolve(&wanted.model, wanted.user.as_deref())?;
    if let Some(user) = &user {
        // Before anything is looked up: the refusal must not tell whether there is such a user.
        caller.check_user(user)?;
    }
    let streamed = wanted.stream;
    let variant = match &user {
        // Loading takes no turn from those who only need a prompt.
        Some(user) => Some(loads::variant(&service, user).await?),
        None => None,
    };
    let turn = service.room.turn().await?;
    let admitted = blocking(&service, move |service| {
        // Both go with the work, which goes on when its client leaves.
        let _held = (turn, body);
        admit(service, &caller, endpoint, wanted, user, variant, started)
    });
    let admitted = admitted.await?;
    match streamed {
        true => Ok(stream::response(admitted)),
        false => whole(admitted).await,
    }
}

/// Makes the prompt and queues the generation. Blocks.
fn admit(
    service: &Service,
    caller: &Caller,
    endpoint: Endpoint,
    wanted: Wanted,
    user: Option<String>,
    variant: Option<Arc<Resident>>,
    started: Instant,
) -> Result<Admitted, ApiError> {
    let tokenizer = service.tokenizer();
    let prompt = match &wanted.prompt {
        Prompt::Messages(messages) => {
            let template = service.template(variant.as_deref());
            tokenizer.encode_chat(messages, &template, true)
        }
        Prompt::Text(text) => tokenizer.encode(text, true),
    };
    // What a template refuses (a system turn where it has none, turns out of order) is the caller's to change.
    let prompt = prompt.map_err(|error| {
        let param = if endpoint == Endpoint::Chat { "messages" } else { "prompt" };
        ApiError::invalid(param, format!("the prompt cannot be made: {error}"))
    })?;
    let fingerprint = match &variant {
        Some(variant) => variant.hash().to_owned(),
        None => service.engine.model().base().fingerprint().to_owned(),
    };
    let (sender, events) = unbounded_channel();
    let seed = wanted.seed.unwrap_or_else(fresh_number);
    let tenant = caller.tenant(user.as_deref());
    let most = wanted.max_tokens.unwrap_or(service.defaults.max_tokens).min(service.engine.max_context() - 1);
    let reserved = caller.reserve_tokens(prompt.len() + wanted.choices * most)?;
    let deadline = service.defaults.timeout.and_then(|limit| started.checked_add(limit));
    let spent = reserved.as_ref().map(Reserved::spent).unwrap_or_default();
    // Before the first is queued: when a later one is refused, those before it are not wanted either.
    let still_wanted = WhileWanted::default();
    for index in 0..wanted.choices {
        let sender = sender.clone();
        let sampling = Sampling {
            temperature: wanted.temperature.unwrap_or(service.defaults.temperature),
            top_p: wanted.top_p,
            top_k: wanted.top_k,
            seed: seed.wrapping_add(index as u64),
        };
        service.engine.submit(Request {
            tenant: tenant.clone(),
            prompt: prompt.clone(),
            variant: variant.clone(),
            sampling,
            max_tokens: wanted.max_tokens.unwrap_or(service.defaults.max_tokens),
            stop: wanted.stop.clone(),
            deadline,
            cancel: still_wanted.0.clone(),
            sink: Box::new(counted(spent.clone(), move |event| sender.send((index, event)).is_ok())),
        })?;
    }
    spent.add(prompt.len());
    let reply = Reply::new(endpoint, wanted.model, &fingerprint);
    let (choices, include_usage) = (wanted.choices, wanted.include_usage);
    Ok(Admitted { reply, choices, include_usage, events, _reserved: reserved, user, started, _wanted: still_wanted })
}

/// Counts what an answer spends while it is made: a client that leaves before its end has had that much.
fn counted(spent: Spent, mut sink: impl FnMut(Event) -> bool + Send) -> impl FnMut(Event) -> bool + Send {
    let mut pieces = 0;
    move |event| {
        match &event {
            Event::Text(_) => {
                pieces += 1;
                spent.add(1);
            }
            Event::Done(finish) => spent.add(finish.completion_tokens.saturating_sub(pieces)),
            Event::Failed(_) => {}
        }
        sink(event)
    }
}

/// Waits for every answer and sends them in one body.
async fn whole(mut admitted: Admitted) -> Result<Response, ApiError> {
    let mut choices = vec![Choice::default(); admitted.choices];
    let mut usage = Usage::default();
    while choices.iter().any(|choice| choice.finish.is_none()) {
        let Some((index, event)) = admitted.events.recv().await else { return Err(EngineError::Stopped.into()) };
        match event {
            Event::Text(text) => choices[index].text += &text,
            Event::Done(finish) => {
                usage.add(&finish);
                choices[index].finish = Some(finish.reason);
            }
            Event::Failed(error) => return Err(error.into()),
        }
    }
    admitted.log(usage, false);
    Ok(Json(admitted.reply.whole(&choices, usage)).into_response())
}
