//! An answer as server-sent events: `data: {chunk}` lines as text becomes known, then `data: [DONE]`.
//!
//! Dropping the response body (the client went away) drops the [`Admitted`], which ends the generation.
use crate::{ApiError, answer::Admitted, reply::Usage};
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
    let state = State { admitted, pending, open, usage: Usage::default(), ended: false };
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
    usage: Usage,
    ended: bool,
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

    fn take(&mut self, event: Option<(usize, Event)>) {
        let reply = &self.admitted.reply;
        match event {
            Some((index, Event::Text(text))) => self.pending.push_back(reply.piece(index, &text).to_string()),
            Some((index, Event::Done(finish))) => {
                self.usage.add(&finish);
                self.pending.push_back(reply.closing(index, finish.reason).to_string());
                self.open -= 1;
                if self.open == 0 {
                    if self.admitted.include_usage {
                        self.pending.push_back(reply.counts(self.usage).to_string());
                    }
                    self.admitted.log(self.usage, true);
                    self.end();
                }
            }
            Some((_, Event::Failed(error))) => self.fail(error),
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
