//! Ctrl-C and SIGTERM for work that should end well: the first one raises a flag while something runs, and ends the process with
//! code 130 while nothing does.
use crate::{Context, Error};
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// SIGINT and SIGTERM, which end the process no longer.
#[derive(Debug)]
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    /// Installs the handlers, in the runtime that the caller is in.
    ///
    /// # Errors
    /// When the system gives none.
    pub fn new() -> Result<Self, Error> {
        let handler = |kind| signal(kind).context("installing a signal handler");
        Ok(Self { interrupt: handler(SignalKind::interrupt())?, terminate: handler(SignalKind::terminate())? })
    }

    /// Waits for the next of either.
    pub async fn next(&mut self) {
        tokio::select! { _ = self.interrupt.recv() => {}, _ = self.terminate.recv() => {} }
    }
}

/// Watches for Ctrl-C from now on.
#[derive(Debug, Clone)]
pub struct Interrupt {
    busy: Arc<AtomicBool>,
    asked: Arc<AtomicBool>,
}

impl Interrupt {
    /// Installs the handler and its thread.
    ///
    /// # Errors
    /// When the system gives no thread or handler.
    pub fn watch() -> Result<Self, Error> {
        let this = Self { busy: Arc::default(), asked: Arc::default() };
        let doing = "watching for Ctrl-C";
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().context(doing)?;
        let watcher = this.clone();
        // Installed before this returns: work that has begun is never ended by a signal that nobody watches yet.
        let mut signals = {
            let _entered = runtime.enter();
            Signals::new()?
        };
        let watch = move || {
            runtime.block_on(async {
                loop {
                    signals.next().await;
                    let ends_the_process =
                        !watcher.busy.load(Ordering::SeqCst) || watcher.asked.swap(true, Ordering::SeqCst);
                    if ends_the_process {
                        std::process::exit(i32::from(Error::Interrupted.exit_code()));
                    }
                }
            });
        };
        std::thread::Builder::new().name("interrupt".to_owned()).spawn(watch).context(doing)?;
        Ok(this)
    }

    /// From now on one Ctrl-C only makes [`Self::asked`] true, until [`Self::free`].
    pub fn busy(&self) {
        self.asked.store(false, Ordering::SeqCst);
        self.busy.store(true, Ordering::SeqCst);
    }

    /// From now on Ctrl-C ends the process.
    pub fn free(&self) {
        self.busy.store(false, Ordering::SeqCst);
    }

    /// Runs `work`; meanwhile one Ctrl-C only makes [`Self::asked`] true, a second one ends the process.
    pub fn during<T>(&self, work: impl FnOnce() -> T) -> T {
        self.busy();
        let result = work();
        self.free();
        result
    }

    /// Whether Ctrl-C was pressed during the running or last [`Self::during`].
    pub fn asked(&self) -> bool {
        self.asked.load(Ordering::SeqCst)
    }

    /// The flag behind [`Self::asked`], for work that looks at it itself.
    pub fn flag(&self) -> &AtomicBool {
        &self.asked
    }
}
