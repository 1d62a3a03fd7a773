//! Logs go to stderr, so that stdout holds nothing but what was asked for.
use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;

/// Starts logging at `level` (as given with `--log-level`), else at what `RUST_LOG` says, else at `default`.
/// Colours only on a terminal, and not when `NO_COLOR` is set (no-color.org).
///
/// # Errors
/// [`crate::Error::Usage`] when `level` is no filter.
pub fn start(level: Option<&str>, default: &str) -> Result<(), crate::Error> {
    let environment = std::env::var("RUST_LOG").ok().filter(|value| !value.is_empty());
    let wanted = level.or(environment.as_deref()).unwrap_or(default);
    let filter = EnvFilter::try_new(wanted)
        .map_err(|_| crate::Error::Usage(format!("{wanted:?} is no log level: error, warn, info, debug or trace")))?;
    let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let _already_started = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(colours)
        .with_target(false)
        .try_init();
    Ok(())
}
