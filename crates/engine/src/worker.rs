//! The engine's thread: takes requests, steps, and hands every sequence its token.

use crate::{
    Model,
    backend::Backend,
    forward::{Chunk, Workspace, forward},
    gate::Pace,
    schedule::{Job, Schedule},
    scheduler::{Command, EngineOptions, Shared},
    sequence::{Fate, Sequence},
};
use std::{
    sync::{
        Arc,
        atomic::Ordering,
        mpsc::{Receiver, Sender},
    },
    time::Instant,
};

/// All that a step needs.
pub(crate) struct Worker<'a, B: Backend> {
    pub model: &'a Model<B>,
    pub options: &'a EngineOptions,
    pub shared: &'a Shared,
    pub kv: B::Kv,
    pub space: Workspace<B>,
    pub schedule: Schedule<Sequence<'a, B>>,
    /// Requests taken so far.
    pub taken: u64,
    pub pace: Pace,
}

impl<B: Backend> Worker<'_, B> {
    /// Steps until told to stop or nobody is left who could submit.
    pub fn run(mut self, commands: &Receiver<Command<B>>) {
        let mut drained: Vec<Sender<()>> = Vec::new();
        loop {
            self.publish();
            let idle = self.schedule.is_idle();
            if idle {
                self.pace.idle();
                for sender in drained.drain(..) {
                    // Whoever waited may have given up.
                    let _ = sender.send(());
                }
            }
            let first = if idle { commands.recv().ok() } else { None };
            if idle && first.is_none() {
                return;
            }
            for command in first.into_iter().chain(commands.try_iter()) {
                match command {
                    Command::Submit(request, extras, start_by) => {
                        let tenant = request.tenant.clone();
                        // The user too: one tenant may ask for several, and what two users asked stays apart even where their
                        // files are equal.
                        let variant =
                            request.variant.as_ref().map(|variant| format!("{}/{}", variant.hash(), variant.user()));
                        let (sequence, tokens) =
                            Sequence::new(self.model.base(), request, extras, self.options.max_context, start_by);
                        let scope = crate::pages::Scope { tenant, variant };
                        self.schedule.push(Job::new(self.taken, scope, tokens, sequence));
                        self.taken += 1;
                    }
                    Command::Drain(sender) => drained.push(sender),
                    Command::Stop => return,
                }
            }
            self.sweep();
            let gate = &self.shared.gate;
            self.schedule.admit(|job| {
                if job.own.begin(job.computed) {
                    gate.leave(job.tenant(), job.own.prompt_tokens);
                }
            });
            self.step();
        }
    }

    /// Lets go of those whose client left or whose time is over, running or waiting.
    fn sweep(&mut self) {
        let now = Instant::now();
        for mut job in self.schedule.remove(|job| job.own.is_over(now)) {
            if !job.own.has_begun() {
                self.shared.gate.leave(job.tenant(), job.own.prompt_tokens);
            }
            let counter = if job.own.is_cancelled() { &self.shared.cancelled } else { &self.shared.expired };
            counter.fetch_add(1, Ordering::Relaxed);
            job.own.give_up(&mut job.tokens);
        }
    }

    /// Runs what the schedule plans.
    fn step(&mut self) {
        let take = self.schedule.plan();
        let running = &mut self.schedule.running;
        let mut order: Vec<usize> = (0..take.len()).filter(|i| take[*i] > 0).collect();
        order.sort_by_key(|i| running[*i].own.variant.as_ref().map(Arc::as_ptr));
        let mut chunks = Vec::with_capacity(order.len());
        let mut samplers = Vec::with_capacity(order.len());
        let mut jobs: Vec<_> = running.iter_mut().map(Some).collect();
        for &i in &order {
            let Some(Job { tokens, computed, pages, own, .. }) = jobs[i].take() else { continue };
            let (start, end) = (*computed, *computed + take[i]);
            let logits = if end == tokens.len() { take[i] - 1..take[i] } else { 0..0 };
            chunks.push(Chunk { tokens: &tokens[start..end], start, pages, variant: own.variant.as_deref(), logits });
            samplers.push(&mut own.sampler);
        }
        if chunks.is_empty() {
            return;
        }
        let mut next: Vec<Option<u32>> = vec![None; take.len()];
        let (model, kv, space) = (self.model, &mut self.kv, &mut self.space);
        model.backend().scope(|| {
            forward(model, &chunks, kv, space, &mut |chunk, _, logits| {
                next[order[chunk]] = Some(samplers[chunk].choose(logits));
            });
        });
        self.shared.note_phases(self.space.phases);
        let rows: usize = take.iter().sum();
        let generated = next.iter().flatten().count();
        self.shared.generated_tokens.fetch_add(generated as u64, Ordering::Relaxed);
        self.shared.prompt_tokens.fetch_add((rows - generated) as u64, Ordering::Relaxed);
        self.schedule.advance(&take);
        self.accept(&next);
    }

    /// Hands each sequence its token and lets go of those that ended.
    fn accept(&mut self, next: &[Option<u32>]) {
        let mut ended = 0;
        // From the end: the last one takes the place of one that stops.
        for at in (0..next.len()).rev() {
            let Job { tokens, own, .. } = &mut self.schedule.running[at];
            let fate = next[at].map_or(Fate::GoesOn, |token| own.accept(tokens, token));
            if fate == Fate::Left {
                self.shared.cancelled.fetch_add(1, Ordering::Relaxed);
            }
            if fate != Fate::GoesOn {
                self.schedule.stop(at);
                ended += 1;
            }
        }
        self.pace.step(&self.shared.gate, ended);
    }

    /// Shows where the schedule stands.
    fn publish(&self) {
        let (schedule, shared) = (&self.schedule, self.shared);
        let again = schedule.waiting().filter(|job| job.own.has_begun()).count();
        shared.running.store(schedule.running.len(), Ordering::Relaxed);
        shared.waiting_again.store(again, Ordering::Relaxed);
        shared.preemptions.store(schedule.preemptions, Ordering::Relaxed);
        shared.reused_tokens.store(schedule.reused, Ordering::Relaxed);
    }
}
