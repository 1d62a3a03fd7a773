//! From an address to a running server, and back down without cutting anyone off.
use crate::{Error, Service, routes::router};
use std::{future::Future, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    net::{TcpListener, lookup_host},
    sync::oneshot,
};

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

/// Serves until `shutdown` resolves, then takes no new connections and waits up to `limit` for running answers.
///
/// # Errors
/// [`Error::Serve`] when the listener fails.
pub async fn serve(
    listener: TcpListener,
    service: Arc<Service>,
    shutdown: impl Future<Output = ()> + Send + 'static,
    limit: Duration,
) -> Result<(), Error> {
    let (begun, has_begun) = oneshot::channel();
    let app = router(service).into_make_service_with_connect_info::<SocketAddr>();
    let server = axum::serve(listener, app).with_graceful_shutdown(async move {
        shutdown.await;
        let _nobody_waits = begun.send(());
    });
    let too_long = async {
        match has_begun.await {
            Ok(()) => tokio::time::sleep(limit).await,
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        result = server => result.map_err(Error::Serve),
        () = too_long => {
            tracing::warn!(seconds = limit.as_secs(), "answers still running at the shutdown limit are cut off");
            Ok(())
        }
    }
}
