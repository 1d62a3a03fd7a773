//! From an address to a running server, and back down without cutting anyone off.
//!
//! The accept loop is our own, because `axum::serve` has no limits: here a connection has a time for its TLS handshake and
//! for each request's head, and a client that does not read what it is sent is let go, with what was generated for it.
//! The limits of bodies are in `extract.rs`.
use crate::{Error, Service, http_options::HttpOptions, routes::router};
use axum::{
    Router,
    extract::{ConnectInfo, Request},
};
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::{GracefulShutdown, Watcher},
    service::TowerToHyperService,
};
use std::{future::Future, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream, lookup_host},
    sync::{Semaphore, watch},
};
use tokio_io_timeout::TimeoutStream;
use tokio_rustls::TlsAcceptor;

/// How long the accept loop rests when the system has no more file descriptors.
const REST: Duration = Duration::from_millis(200);

/// Listens on `host:port` (port 0 picks a free one). Called before the model is loaded, so that a taken port is an
/// error at once.
///
/// # Errors
/// [`Error::Remote`] for an address beyond loopback unless `allow_remote`.
pub async fn bind(host: &str, port: u16, allow_remote: bool) -> Result<TcpListener, Error> {
    let failed = |source| Error::Bind { host: host.to_owned(), port, source };
    let addresses: Vec<SocketAddr> = lookup_host((host, port)).await.map_err(failed)?.collect();
    if let Some(&address) = addresses.iter().find(|address| !address.ip().to_canonical().is_loopback())
        && !allow_remote
    {
        return Err(Error::Remote { address });
    }
    if addresses.is_empty() {
        return Err(Error::NoAddress { host: host.to_owned() });
    }
    TcpListener::bind(addresses.as_slice()).await.map_err(failed)
}

/// Serves until `shutdown` resolves, then takes no new connections and waits for running answers, up to the limit in
/// `options`.
pub async fn serve(
    listener: TcpListener,
    service: Arc<Service>,
    shutdown: impl Future<Output = ()> + Send + 'static,
    options: HttpOptions,
) {
    let app = router(Arc::clone(&service), &options);
    let places = Arc::new(Semaphore::new(options.max_connections));
    let graceful = GracefulShutdown::new();
    // Its end cuts connections off.
    let (_serving, cut_off) = watch::channel(());
    tokio::pin!(shutdown);
    loop {
        // A place first: who finds none waits in the system's queue.
        let accept = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            both = accept => both,
            () = &mut shutdown => break,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Of one connection, or of too many files: either way the listener itself is well.
                tracing::debug!(%error, "a connection was not accepted");
                tokio::time::sleep(REST).await;
                continue;
            }
        };
        let (app, options, watcher) = (app.clone(), options.clone(), graceful.watcher());
        let mut cut_off = cut_off.clone();
        tokio::spawn(async move {
            let _place = place;
            tokio::select! {
                () = connection(stream, peer, app, &options, watcher) => {}
                _ = cut_off.changed() => {}
            }
        });
    }
    drop(listener);
    service.jobs.close();
    tokio::select! {
        () = graceful.shutdown() => {}
        () = tokio::time::sleep(options.shutdown) => {
            let seconds = options.shutdown.as_secs();
            tracing::warn!(seconds, "answers still running at the shutdown limit are cut off");
        }
    }
}

/// One connection, with TLS if the server has a certificate.
async fn connection(stream: TcpStream, peer: SocketAddr, app: Router, options: &HttpOptions, watcher: Watcher) {
    // Tokens are small and should not wait for each other.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "the connection was gone");
    }
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(options.write_timeout));
    let stream = Box::pin(stream);
    let Some(tls) = &options.tls else { return requests(stream, peer, app, options, watcher).await };
    let handshake = TlsAcceptor::from(Arc::clone(tls)).accept(stream);
    match tokio::time::timeout(options.head_timeout, handshake).await {
        Ok(Ok(stream)) => requests(stream, peer, app, options, watcher).await,
        Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
        Err(_) => tracing::debug!("a TLS handshake took too long"),
    }
}

/// The requests of one connection, one after another.
async fn requests(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: SocketAddr,
    app: Router,
    options: &HttpOptions,
    watcher: Watcher,
) {
    let app = TowerToHyperService::new(app);
    let service = service_fn(move |mut request: Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(ConnectInfo(peer));
        hyper::service::Service::call(&app, request)
    });
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(options.head_timeout);
    let served = watcher.watch(server.serve_connection(TokioIo::new(stream), service)).await;
    if let Err(error) = served {
        tracing::debug!(%error, "a connection ended badly");
    }
}
