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
    logprobs::Line,
    observed::{Clock, Observed},
    reply::{Choice, Reply, Usage},
    service::{Service, blocking, fresh_number},
    stream,
    wanted::{Endpoint, Prompt, Wanted},
};
use axum::{
    Json,
    response::{IntoResponse, Response},
};
use bitdelta_engine::{Cancel, Error as EngineError, Event, Extras, Request, Resident, Sampling, Scored, Scores};
use std::{sync::Arc, time::Instant};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// A request that the engine has taken.
pub struct Admitted {
    /// The answer's frame.
    pub reply: Reply,
    /// Number of answers being made.
    pub choices: usize,
    /// Whether the stream ends with the token counts.
    pub include_usage: bool,
    /// Events, each with the index of its answer. Bounded by the answers' lengths, so the channel need not be.
    pub events: UnboundedReceiver<(usize, Said)>,
    /// Whether log-probabilities were asked for.
    pub logprobs: bool,
    caller: Caller,
    observed: Observed,
    /// Of the caller's tokens a minute.
    _reserved: Option<Reserved>,
    user: Option<String>,
    started: Instant,
    _wanted: WhileWanted,
}

/// What the engine's thread sends of an answer.
#[derive(Debug)]
pub enum Said {
    /// Text, the end, or an error.
    Event(Event),
    /// A token's log-probabilities, before its text.
    Scored(Line),
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
    /// Counts a finished answer and writes the log's line about it. Never what was asked or said.
    pub fn done(&self, usage: Usage, streamed: bool) {
        let milliseconds = self.started.elapsed().as_millis();
        let (prompt_tokens, completion_tokens) = (usage.prompt_tokens, usage.completion_tokens);
        self.observed.used(self.caller.id(), prompt_tokens, completion_tokens);
        let user = self.user.as_deref().unwrap_or("-");
        let key = self.caller.id();
        tracing::info!(user, key, prompt_tokens, completion_tokens, streamed, milliseconds, "answered");
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
        Prompt::Tokens(_) => {}
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
        Prompt::Messages(messages) => service.chat_prompt(variant.as_deref(), messages),
        // A raw prompt is the caller's to write: nothing is put into it.
        Prompt::Text(text) => tokenizer.encode(text, true).map_err(bitdelta_engine::Error::from),
        // Checked by the engine.
        Prompt::Tokens(tokens) => Ok(tokens.clone()),
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
    let clock = service.observed.clock(started);
    let seed = wanted.seed.unwrap_or_else(fresh_number);
    let tenant = caller.tenant(user.as_deref());
    let most = wanted.max_tokens.unwrap_or(service.defaults.max_tokens).min(service.engine.max_context() - 1);
    let reserved = caller.reserve_tokens(prompt.len() + wanted.choices * most)?;
    let deadline = service.defaults.timeout.and_then(|limit| started.checked_add(limit));
    let spent = reserved.as_ref().map(Reserved::spent).unwrap_or_default();
    // Before the first is queued: when a later one is refused, those before it are not wanted either.
    let still_wanted = WhileWanted::default();
    for index in 0..wanted.choices {
        let extras = extras(service, &wanted, index, &sender)?;
        let sender = sender.clone();
        let sampling = Sampling {
            temperature: wanted.temperature.unwrap_or(service.defaults.temperature),
            top_p: wanted.top_p,
            top_k: wanted.top_k,
            seed: seed.wrapping_add(index as u64),
        };
        let request = Request {
            tenant: tenant.clone(),
            prompt: prompt.clone(),
            variant: variant.clone(),
            sampling,
            max_tokens: wanted.max_tokens.unwrap_or(service.defaults.max_tokens),
            stop: wanted.stop.clone(),
            deadline,
            cancel: still_wanted.0.clone(),
            sink: Box::new(counted(spent.clone(), clock.clone(), move |event| {
                sender.send((index, Said::Event(event))).is_ok()
            })),
        };
        service.engine.submit_with(request, extras)?;
    }
    spent.add(prompt.len());
    let reply = Reply::new(endpoint, wanted.model, &fingerprint);
    let (choices, include_usage, logprobs) = (wanted.choices, wanted.include_usage, wanted.logprobs.is_some());
    let (caller, observed) = (caller.clone(), service.observed.clone());
    Ok(Admitted {
        reply,
        choices,
        include_usage,
        events,
        logprobs,
        caller,
        observed,
        _reserved: reserved,
        user,
        started,
        _wanted: still_wanted,
    })
}

/// The log-probabilities and the form that are wanted of answer `index`.
fn extras(
    service: &Service,
    wanted: &Wanted,
    index: usize,
    sender: &UnboundedSender<(usize, Said)>,
) -> Result<Extras, ApiError> {
    let base = service.engine.model().base();
    let constraint = wanted.schema.as_ref().map(|schema| service.grammars.json(base, schema)).transpose()?;
    let scores = wanted.logprobs.map(|top| {
        let (sender, model) = (sender.clone(), Arc::clone(service.engine.model()));
        let bytes = Arc::clone(service.grammars.token_bytes(base));
        let sink = Box::new(move |scored: Scored| {
            let line = Line::new(&scored, &bytes, &model.base().tokenizer);
            // Who left hears of nothing any more.
            let _left = sender.send((index, Said::Scored(line)));
        });
        Scores { top, sink }
    });
    Ok(Extras { scores, constraint })
}

/// Counts and times what an answer spends while it is made: a client that leaves before its end has had that much.
fn counted(
    spent: Spent,
    mut clock: Clock,
    mut sink: impl FnMut(Event) -> bool + Send,
) -> impl FnMut(Event) -> bool + Send {
    let mut pieces = 0;
    move |event| {
        match &event {
            Event::Text(_) => {
                pieces += 1;
                spent.add(1);
                clock.piece();
            }
            Event::Done(finish) => spent.add(finish.completion_tokens.saturating_sub(pieces)),
            Event::Failed(_) => {}
        }
        sink(event)
    }
}

/// Waits for every answer and sends them in one body.
async fn whole(mut admitted: Admitted) -> Result<Response, ApiError> {
    let empty = Choice { logprobs: admitted.logprobs.then(Vec::new), ..Choice::default() };
    let mut choices = vec![empty; admitted.choices];
    let mut usage = Usage::default();
    while choices.iter().any(|choice| choice.finish.is_none()) {
        let Some((index, said)) = admitted.events.recv().await else { return Err(EngineError::Stopped.into()) };
        match said {
            Said::Scored(line) => choices[index].logprobs.get_or_insert_default().push(line),
            Said::Event(Event::Text(text)) => choices[index].text += &text,
            Said::Event(Event::Done(finish)) => {
                usage.add(&finish);
                choices[index].finish = Some(finish.reason);
            }
            Said::Event(Event::Failed(error)) => return Err(error.into()),
        }
    }
    admitted.done(usage, false);
    Ok(Json(admitted.reply.whole(&choices, usage)).into_response())
}
