//! How long work reports itself without knowing terminals.

/// Receives the progress of one long piece of work; the command line draws bars, tests count.
pub trait Progress: Send + Sync {
    /// A phase begins: `total` steps of `unit` ("tensors", "steps", "conversations").
    fn begin(&self, phase: &str, total: u64, unit: &str);
    /// `n` more steps are done; `note` is a short status such as "loss 1.23".
    fn advance(&self, n: u64, note: &str);
    /// The phase is over.
    fn end(&self);
    /// A line worth keeping (per-epoch loss, a warning).
    fn say(&self, line: &str);
}

/// Reports nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn begin(&self, _: &str, _: u64, _: &str) {}
    fn advance(&self, _: u64, _: &str) {}
    fn end(&self) {}
    fn say(&self, _: &str) {}
}
