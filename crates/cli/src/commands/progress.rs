//! Progress on stderr: bars on a terminal, a line a phase elsewhere. Nothing goes to stdout.
use bitdelta_train::progress::Progress;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::{
    io::IsTerminal,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Draws [`Progress`] with indicatif when stderr is a terminal. Otherwise each phase prints a line when it begins, a
/// line every `PLAIN_EVERY` while it lasts, and one when it ends, so that logs of long work show that it lives.
#[derive(Debug, Default)]
pub struct Bar {
    phase: Mutex<Option<Phase>>,
    quiet: bool,
}

/// How often work that is not shown on a terminal prints a line.
const PLAIN_EVERY: Duration = Duration::from_secs(10);

#[derive(Debug)]
struct Phase {
    name: String,
    unit: String,
    total: u64,
    done: u64,
    started: Instant,
    spoke: Instant,
    bar: Option<ProgressBar>,
}

impl Bar {
    /// Progress on stderr.
    pub fn new() -> Self {
        Self::default()
    }

    /// Says nothing at all (`--quiet`).
    pub fn quiet() -> Self {
        Self { quiet: true, ..Self::default() }
    }

    /// Runs `work` under a spinner named `phase`, for one step whose length is not known (loading a model).
    pub fn during<T>(&self, phase: &str, work: impl FnOnce() -> T) -> T {
        self.begin(phase, 0, "");
        let result = work();
        self.end();
        result
    }

    fn with<T>(&self, f: impl FnOnce(&mut Option<Phase>) -> T) -> T {
        f(&mut self.phase.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Progress for Bar {
    fn begin(&self, phase: &str, total: u64, unit: &str) {
        if self.quiet {
            return;
        }
        self.end();
        let now = Instant::now();
        let bar = std::io::stderr().is_terminal().then(|| draw(phase, total, unit));
        if bar.is_none() {
            line(&match total {
                0 => format!("{phase} …"),
                _ => format!("{phase}: {total} {unit} …"),
            });
        }
        let (name, unit) = (phase.to_owned(), unit.to_owned());
        self.with(|slot| *slot = Some(Phase { name, unit, total, done: 0, started: now, spoke: now, bar }));
    }

    fn advance(&self, n: u64, note: &str) {
        self.with(|slot| {
            let Some(phase) = slot else { return };
            phase.done += n;
            if let Some(bar) = &phase.bar {
                bar.inc(n);
                bar.set_message(note.to_owned());
            } else if phase.spoke.elapsed() >= PLAIN_EVERY {
                phase.spoke = Instant::now();
                line(&format!("{}: {} of {} {} {note}", phase.name, phase.done, phase.total, phase.unit));
            }
        });
    }

    fn end(&self) {
        let Some(phase) = self.with(Option::take) else { return };
        let seconds = phase.started.elapsed().as_secs_f64();
        match phase.bar {
            Some(bar) => bar.finish_and_clear(),
            None if seconds >= 1.0 => line(&format!("{} done in {seconds:.1} s", phase.name)),
            None => {}
        }
    }

    fn say(&self, text: &str) {
        if self.quiet {
            return;
        }
        self.with(|slot| match slot.as_ref().and_then(|phase| phase.bar.as_ref()) {
            Some(bar) => bar.suspend(|| line(text)),
            None => line(text),
        });
    }
}

#[allow(clippy::print_stderr)]
fn line(text: &str) {
    eprintln!("{}", text.trim_end());
}

/// A bar for `total` steps, a spinner where the total is 0.
fn draw(phase: &str, total: u64, unit: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr_with_hz(10));
    let template = match total {
        0 => "{spinner} {prefix} {elapsed} {msg}".to_owned(),
        _ => format!("{{prefix}} [{{bar:30}}] {{human_pos}}/{{human_len}} {unit} {{eta}} left {{wide_msg}}"),
    };
    let plain = || if total == 0 { ProgressStyle::default_spinner() } else { ProgressStyle::default_bar() };
    bar.set_style(ProgressStyle::with_template(&template).unwrap_or_else(|_| plain()));
    bar.set_prefix(phase.to_owned());
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_count_and_clear_themselves() {
        let bar = Bar::new();
        bar.begin("reading", 3, "tensors");
        bar.advance(2, "");
        assert_eq!(bar.with(|slot| slot.as_ref().map(|phase| phase.done)), Some(2));
        bar.end();
        assert!(bar.with(|slot| slot.is_none()));
        assert_eq!(bar.during("loading", || 7), 7);
    }
}
