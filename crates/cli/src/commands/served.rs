//! A server on a free port, inside a command that asks it over HTTP.

use crate::{Context, Error, node::Node};
use bitdelta_server::{HttpOptions, Service};
use std::sync::Arc;
use tokio::{runtime::Runtime, sync::oneshot, task::JoinHandle};

/// A running server.
pub struct Served {
    /// Its client.
    pub node: Node,
    /// What it serves.
    pub service: Arc<Service>,
    stop: oneshot::Sender<()>,
    runtime: Runtime,
    running: JoinHandle<()>,
}

impl Served {
    /// Starts it, with as many threads of its own as `bitdelta serve` has.
    ///
    /// # Errors
    /// No threads, or no free port.
    pub fn start(service: Service) -> Result<Self, Error> {
        let doing = "starting a server";
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(2).enable_all().build().context(doing)?;
        let listener = runtime.block_on(bitdelta_server::bind("127.0.0.1", 0, false)).context(doing)?;
        let node = Node::new(format!("http://{}", listener.local_addr().context(doing)?));
        let service = Arc::new(service);
        let (stop, stopped) = oneshot::channel::<()>();
        let wait = async {
            // A dropped sender means the same: stop.
            let _ = stopped.await;
        };
        let running =
            runtime.spawn(bitdelta_server::serve(listener, Arc::clone(&service), wait, HttpOptions::default()));
        Ok(Self { node, service, stop, runtime, running })
    }

    /// Stops it.
    ///
    /// # Errors
    /// A server that had died.
    pub fn stop(self) -> Result<(), Error> {
        let _already_stopped = self.stop.send(());
        self.runtime.block_on(self.running).context("stopping the server")
    }
}
