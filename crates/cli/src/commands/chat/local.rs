//! A conversation with a model loaded in this process.
use super::{Answer, ChatArgs, Partner, SamplingArgs};
use crate::{Context, Error};
use bitdelta_engine::{
    Cancel, Engine, EngineOptions, Event, Finish, FinishReason, Registry, Request, Resident, Sampling,
};
use bitdelta_model::chat::Message;
use bitdelta_server::{Defaults, Service};
use serde_json::json;
use std::{
    sync::{
        Arc,
        mpsc::{RecvTimeoutError, channel},
    },
    time::Duration,
};

/// The model, with the variant that answers.
pub struct Local {
    service: Service,
    variant: Option<Arc<Resident>>,
    sampling: SamplingArgs,
}

/// How often a wait for the next token looks whether to go on.
const PATIENCE: Duration = Duration::from_millis(100);

impl Local {
    /// Loads the base, and the variant if one is named.
    pub fn load(args: &ChatArgs) -> Result<Self, Error> {
        if args.user.is_some() && args.variants_dir.is_none() {
            return Err(Error::Usage("--user needs --variants-dir DIR, or --url of a running server".to_owned()));
        }
        let model = args.base.load()?;
        let registry = Registry::new(Arc::clone(&model), args.variants_dir.clone());
        let variant = match (&args.user, &args.variant) {
            (Some(user), _) => Some(registry.resolve(user).context(format!("loading the variant of {user}"))?),
            (None, Some(path)) => Some(registry.load(path).context(format!("loading {}", path.display()))?),
            (None, None) => None,
        };
        let engine = Engine::start(model, EngineOptions::default()).context("starting the engine")?;
        let service = Service::new(engine, Some(registry), Vec::new(), Defaults::default());
        Ok(Self { service, variant, sampling: args.sampling.clone() })
    }
}

impl Partner for Local {
    fn answer(&self, messages: &[Message], show: &mut dyn FnMut(&str) -> bool) -> Result<Answer, Error> {
        let template = self.service.template(self.variant.as_deref());
        let prompt = self.service.tokenizer().encode_chat(messages, &template, true).context("making the prompt")?;
        let (sender, events) = channel();
        let SamplingArgs { temperature, top_p, seed, max_tokens } = self.sampling;
        let request = Request {
            tenant: "".into(),
            prompt,
            variant: self.variant.clone(),
            sampling: Sampling { temperature, top_p, top_k: 0, seed },
            max_tokens,
            stop: Vec::new(),
            deadline: None,
            cancel: Cancel::default(),
            sink: Box::new(move |event| sender.send(event).is_ok()),
        };
        self.service.engine.submit(request).context("answering")?;
        let mut answer = Answer::default();
        loop {
            match events.recv_timeout(PATIENCE) {
                Ok(Event::Text(text)) => {
                    answer.text += &text;
                    if !show(&text) {
                        return Ok(answer);
                    }
                }
                Ok(Event::Done(Finish { reason, prompt_tokens, completion_tokens, .. })) => {
                    answer.finish_reason = json!(if reason == FinishReason::Stop { "stop" } else { "length" });
                    answer.usage = json!({"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens});
                    return Ok(answer);
                }
                Ok(Event::Failed(error)) => return Err(error).context("answering"),
                Err(RecvTimeoutError::Timeout) => {
                    if !show("") {
                        return Ok(answer);
                    }
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(bitdelta_engine::Error::Stopped).context("answering");
                }
            }
        }
    }
}
