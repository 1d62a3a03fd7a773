//! `bitdelta serve` and `hanzo-node start`: one base, users' variants, OpenAI-compatible HTTP.
use crate::{
    Context, Error,
    commands::{base::BaseArgs, keys::AuthArgs},
    interrupt::Signals,
    output,
    sizes::parse_bytes,
};
use bitdelta_engine::{Engine, EngineOptions, Registry, RegistryOptions};
use bitdelta_server::{Defaults, HttpOptions, Service, http_options};
use std::{future::Future, path::PathBuf, sync::Arc, time::Duration};
use tokio::net::TcpListener;

/// What the help of a server's commands says of the ways to set an option.
pub const SETTINGS: &str = "\
Each option may also be set by a variable of the environment, BITDELTA_ and its name (BITDELTA_MAX_BATCH=16), or in the \
configuration file under `serve:` (max-batch: 16). Flags go before variables, variables before the file; --show-config \
tells what holds.";

/// Arguments of a server.
#[derive(Debug, Clone, clap::Args)]
pub struct ServeArgs {
    #[command(flatten)]
    pub(super) base: BaseArgs,
    /// Folder of variants: USER.safetensors or USER/variant.safetensors; made if it is not there
    #[arg(long, value_name = "DIR", default_value = "variants")]
    pub(super) variants_dir: PathBuf,
    /// One more name that requests may use for the base; may be given several times, or several with commas
    #[arg(long = "model-name", value_name = "ALIAS", value_delimiter = ',')]
    model_names: Vec<String>,
    /// Port; 0 picks a free one
    #[arg(long, value_name = "N", default_value_t = 8080)]
    pub(super) port: u16,
    /// Address to listen on
    #[arg(long, value_name = "HOST", default_value = "127.0.0.1")]
    pub(super) host: String,
    /// Listen beyond this machine, and answer under any host name, although the server has no authentication
    #[arg(long)]
    pub(super) allow_remote: bool,
    #[command(flatten)]
    pub(super) auth: AuthArgs,
    /// Certificate chain in PEM: HTTPS instead of HTTP
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The certificate's key in PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Origin whose pages may call from a browser, as in `https://app.example.org`, or * for all; may be given several
    /// times, or several with commas [default: none]
    #[arg(long, value_name = "ORIGIN", value_delimiter = ',')]
    cors_origin: Vec<String>,
    /// Most connections at a time; more wait to be accepted
    #[arg(long, value_name = "N", default_value_t = HttpOptions::default().max_connections)]
    max_connections: usize,
    /// Most requests in one step
    #[arg(long, value_name = "N", default_value_t = EngineOptions::default().max_batch)]
    max_batch: usize,
    /// Most requests that may wait; of one user as many as places are left, so half of them for one alone. One more is
    /// answered with 429
    #[arg(long, value_name = "N", default_value_t = EngineOptions::default().max_queue)]
    max_queue: usize,
    /// Longest prompt plus answer in tokens
    #[arg(long, value_name = "N", default_value_t = EngineOptions::default().max_context)]
    max_context: usize,
    /// Memory for the KV cache, as in 1GB or 512MiB
    #[arg(long, value_name = "SIZE", default_value = "1GiB", value_parser = parse_bytes)]
    pub(super) kv_cache_size: u64,
    /// Longest wait in the queue; a request that has not begun by then is answered with 503 [default: no limit]
    #[arg(long, value_name = "SECONDS")]
    max_wait: Option<u64>,
    /// Longest time for an answer, which ends there with what it has; answered with 504 where that is nothing [default:
    /// no limit]
    #[arg(long, value_name = "SECONDS")]
    request_timeout: Option<u64>,
    /// Memory for loaded variants, as in 2GB or 512MiB; the least recently used give way [default: a quarter of what is
    /// available]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub(super) variant_memory: Option<u64>,
    /// Sampling temperature of requests that name none; 0 answers with the likeliest token
    #[arg(long, value_name = "T", default_value_t = Defaults::default().temperature)]
    temperature: f32,
    /// Most tokens of answer of requests that name no limit
    #[arg(long, value_name = "N", default_value_t = Defaults::default().max_tokens)]
    max_tokens: usize,
    /// Seconds that running answers get to end when the server is asked to stop
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    shutdown_timeout: u64,
}

/// Serves until SIGINT or SIGTERM. `variants`: whether users' variants are served or the base alone.
///
/// # Errors
/// Whatever keeps the server from starting.
pub fn run(args: &ServeArgs, variants: bool) -> Result<(), Error> {
    args.base.check()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("starting the server's threads")?;
    // The port first: that it is taken should not come out after a minute of loading.
    let auth = args.auth.open()?;
    let open = args.allow_remote || auth.is_required();
    let options = http_options(args)?;
    let bound = runtime.block_on(bitdelta_server::bind(&args.host, args.port, open));
    let listener = bound.context("starting the server")?;
    let service = Arc::new(load(args, variants)?.with_auth(auth));
    runtime.block_on(serve(listener, service, options))?;
    // Answers that outlived the limit are not waited for.
    runtime.shutdown_background();
    Ok(())
}

/// How connections are served.
///
/// # Errors
/// A certificate or an origin that cannot be.
pub(super) fn http_options(args: &ServeArgs) -> Result<HttpOptions, Error> {
    let tls = match (&args.tls_cert, &args.tls_key) {
        (Some(cert), Some(key)) => Some(http_options::tls(cert, key).context("reading the certificate")?),
        _ => None,
    };
    Ok(HttpOptions {
        shutdown: Duration::from_secs(args.shutdown_timeout),
        tls,
        cors: http_options::cors(&args.cors_origin).context("--cors-origin")?,
        loopback_names_only: !args.allow_remote,
        max_connections: args.max_connections,
        ..HttpOptions::default()
    })
}

fn load(args: &ServeArgs, variants: bool) -> Result<Service, Error> {
    let dir = &args.variants_dir;
    if variants {
        std::fs::create_dir_all(dir).context(format!("opening the variants folder {}", dir.display()))?;
    }
    let model = args.base.load()?;
    let options = EngineOptions {
        max_batch: args.max_batch,
        kv_bytes: args.kv_cache_size,
        max_context: args.max_context,
        max_queue: args.max_queue,
        max_wait: args.max_wait.map(Duration::from_secs),
        ..EngineOptions::default()
    };
    let engine = Engine::start(Arc::clone(&model), options).context("starting the engine")?;
    let registry = if variants {
        let options = RegistryOptions { resident_bytes: args.variant_memory };
        let registry = Registry::with_options(model, Some(dir.clone()), options).context("--variant-memory")?;
        tracing::info!(variant_memory = registry.stats().budget_bytes, "serving variants");
        Some(registry)
    } else {
        tracing::warn!("serving the base alone; --enable-bitdelta --variants-dir DIR serves users' variants");
        None
    };
    let timeout = args.request_timeout.map(Duration::from_secs);
    let defaults = Defaults { temperature: args.temperature, max_tokens: args.max_tokens, timeout };
    Ok(Service::new(engine, registry, args.model_names.clone(), defaults))
}

async fn serve(listener: TcpListener, service: Arc<Service>, options: HttpOptions) -> Result<(), Error> {
    let address = listener.local_addr().context("reading the address")?;
    let models: Vec<&str> = service.names.bases().collect();
    let known = service.registry.as_ref().map_or(0, |registry| registry.list().len());
    tracing::info!(model = models.join(", "), variants = known, "ready");
    let stopped = stop_signal()?;
    let scheme = if options.tls.is_some() { "https" } else { "http" };
    match (address.ip().is_loopback(), service.auth.is_required(), scheme) {
        (false, true, "http") => {
            tracing::warn!("keys travel unencrypted: give --tls-cert and --tls-key, or put a proxy with TLS in front");
        }
        (false, false, _) => {
            tracing::warn!("no key is asked for: whoever reaches {address} may ask for every user; give --key-file");
        }
        _ => {}
    }
    output::line(&format!("listening on {scheme}://{address}"))?;
    bitdelta_server::serve(listener, service, stopped, options).await;
    Ok(())
}

/// Resolves at the first SIGINT or SIGTERM; the second one ends the process at once.
fn stop_signal() -> Result<impl Future<Output = ()> + Send + 'static, Error> {
    let mut signals = Signals::new()?;
    Ok(async move {
        signals.next().await;
        tracing::info!("stopping: running answers are finished first; a second signal stops at once");
        tokio::spawn(async move {
            signals.next().await;
            std::process::exit(i32::from(Error::Interrupted.exit_code()));
        });
    })
}
