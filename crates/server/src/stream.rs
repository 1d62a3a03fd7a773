//! An answer as server-sent events: `data: {chunk}` lines as text becomes known, then `data: [DONE]`.
//!
//! Dropping the response body (the client went away) drops the [`Admitted`], which ends the generation.
use crate::{
    ApiError,
    answer::{Admitted, Said},
    logprobs::Line,
    reply::Usage,
};
use axum::response::{
    IntoResponse, Response,
    sse::{self, KeepAlive, Sse},
};
use bitdelta_engine::{Error as EngineError, Event};
use futures_util::stream::unfold;
use std::{collections::VecDeque, convert::Infallible};

/// The streaming response to an admitted request.
pub fn response(admitted: Admitted) -> Response {
    let pending =
        (0..admitted.choices).filter_map(|index| admitted.reply.opening(index)).map(|c| c.to_string()).collect();
    let open = admitted.choices;
    let ahead = vec![Ahead { lines: admitted.logprobs.then(Vec::new), characters: 0 }; open];
    let state = State { admitted, pending, open, ahead, usage: Usage::default(), ended: false };
    let events = unfold(state, |mut state| async move {
        let data = state.next().await?;
        Some((Ok::<_, Infallible>(sse::Event::default().data(data)), state))
    });
    Sse::new(events).keep_alive(KeepAlive::default()).into_response()
}

struct State {
    admitted: Admitted,
    /// Lines ready to be sent.
    pending: VecDeque<String>,
    /// Answers not yet finished.
    open: usize,
    /// Of each answer, what goes with its next text.
    ahead: Vec<Ahead>,
    usage: Usage,
    ended: bool,
}

/// Log-probabilities come before their text.
#[derive(Clone)]
struct Ahead {
    /// `None` where they were not asked for.
    lines: Option<Vec<Line>>,
    /// Sent so far.
    characters: usize,
}

impl State {
    /// The next `data:` payload; `None` after `[DONE]`.
    async fn next(&mut self) -> Option<String> {
        while self.pending.is_empty() {
            if self.ended {
                return None;
            }
            let event = self.admitted.events.recv().await;
            self.take(event);
        }
        self.pending.pop_front()
    }

    fn take(&mut self, said: Option<(usize, Said)>) {
        let reply = &self.admitted.reply;
        match said {
            Some((index, Said::Scored(line))) => self.ahead[index].lines.get_or_insert_default().push(line),
            Some((index, Said::Event(Event::Text(text)))) => {
                let ahead = &mut self.ahead[index];
                let lines = ahead.lines.as_mut().map(std::mem::take);
                self.pending.push_back(reply.piece(index, &text, lines.as_deref(), ahead.characters).to_string());
                ahead.characters += text.chars().count();
            }
            Some((index, Said::Event(Event::Done(finish)))) => {
                self.usage.add(&finish);
                let ahead = &mut self.ahead[index];
                let lines = ahead.lines.as_mut().map(std::mem::take).filter(|lines| !lines.is_empty());
                let closing = reply.closing(index, finish.reason, lines.as_deref(), ahead.characters);
                self.pending.push_back(closing.to_string());
                self.open -= 1;
                if self.open == 0 {
                    if self.admitted.include_usage {
                        self.pending.push_back(reply.counts(self.usage).to_string());
                    }
                    self.admitted.done(self.usage, true);
                    self.end();
                }
            }
            Some((_, Said::Event(Event::Failed(error)))) => self.fail(error),
            None => self.fail(EngineError::Stopped),
        }
    }

    /// The status has been sent: the error goes into the stream, as OpenAI's clients expect it.
    fn fail(&mut self, error: EngineError) {
        self.pending.push_back(ApiError::from(error).body().to_string());
        self.end();
    }

    fn end(&mut self) {
        self.pending.push_back("[DONE]".to_owned());
        self.ended = true;
    }
}
