//! Where a server lives: the variants folder and its disk, keys and certificate, the port.
use super::{Check, chain};
use crate::{
    commands::serve::{self, ServeArgs},
    sizes::format_bytes,
};
use rustix::fs::{Access, access, statvfs};
use std::{net::TcpListener, path::Path, time::Duration};
use ureq::Agent;

/// Room under which publishing and training soon fail.
const LITTLE_DISK: u64 = 1_000_000_000;

/// The variants folder, and the disk below it.
pub(super) fn folder(dir: &Path) -> Vec<Check> {
    let name = "folder";
    let shown = dir.display();
    // The nearest elder that is there: the folder is made when a server starts.
    let there = std::path::absolute(dir).ok();
    let there = there.as_deref().and_then(|path| path.ancestors().find(|path| path.exists()));
    let Some(there) = there else {
        return vec![Check::problem(name, format!("{shown} cannot be looked at"), "name another --variants-dir")];
    };
    let writable = access(there, Access::WRITE_OK | Access::EXEC_OK).is_ok();
    let rights = "give the server's account the right to write there, or name another --variants-dir";
    let check = match (dir.is_dir(), writable) {
        (true, true) => Check::ok(name, format!("{shown}")),
        (true, false) => {
            let found = format!("{shown} cannot be written: nothing can be published or trained over HTTP");
            Check::warning(name, found, rights)
        }
        (false, _) if dir.exists() => {
            Check::problem(name, format!("{shown} is no folder"), "name another --variants-dir")
        }
        (false, true) => Check::ok(name, format!("{shown} is not there yet; a server makes it")),
        (false, false) => Check::problem(name, format!("{shown} is not there and cannot be made"), rights),
    };
    vec![check, disk(there)]
}

fn disk(there: &Path) -> Check {
    let name = "disk";
    match statvfs(there) {
        Err(error) => Check::warning(name, format!("{}: {error}", there.display()), "look at the disk by hand"),
        Ok(stat) => {
            let (free, of) = (stat.f_bavail * stat.f_frsize, stat.f_blocks * stat.f_frsize);
            let found = format!("{} free of {}", format_bytes(free), format_bytes(of));
            let check = match free < LITTLE_DISK {
                true => Check::warning(
                    name,
                    found,
                    "make room: a full disk leaves published variants whole, and takes no new ones",
                ),
                false => Check::ok(name, found),
            };
            check.with("free_bytes", free)
        }
    }
}

/// Keys, certificate, and whether the port can be had.
pub(super) fn network(args: &ServeArgs) -> Vec<Check> {
    let mut checks = Vec::new();
    let mut open = args.allow_remote;
    match args.auth.open() {
        Err(error) => checks.push(Check::problem("keys", chain(&error), "`bitdelta keys add` makes a key file")),
        Ok(auth) if auth.is_required() => {
            open = true;
            checks.push(Check::ok("keys", "callers need a key or a token"));
        }
        Ok(_) if args.allow_remote => {
            let found = "none: whoever reaches the port may ask for every user";
            checks.push(Check::warning("keys", found, "give --key-file or --jwt-key"));
        }
        Ok(_) => checks.push(Check::ok("keys", "none: programs of this machine alone may ask")),
    }
    match serve::http_options(args) {
        Err(error) => {
            checks.push(Check::problem("tls", chain(&error), "give a certificate chain and its key, both in PEM"))
        }
        Ok(options) if options.tls.is_some() => checks.push(Check::ok("tls", "HTTPS")),
        Ok(_) => checks.push(Check::ok("tls", "plain HTTP")),
    }
    checks.push(port(&args.host, args.port, open));
    checks
}

fn port(host: &str, port: u16, open: bool) -> Check {
    let name = "port";
    let address = format!("{host}:{port}");
    match TcpListener::bind((host, port)) {
        Ok(listener) => {
            let beyond = listener.local_addr().is_ok_and(|address| !address.ip().to_canonical().is_loopback());
            match beyond && !open {
                true => Check::problem(
                    name,
                    format!("{address} is reached from other machines"),
                    "give --key-file or --jwt-key, or say --allow-remote",
                ),
                false => Check::ok(name, format!("{address} is free")),
            }
        }
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse && is_ours(host, port) => {
            Check::ok(name, format!("{address}: a server answers there already"))
        }
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            Check::problem(name, format!("{address} is taken by another program"), "choose another --port, or stop it")
        }
        Err(error) => Check::problem(name, format!("{address}: {error}"), "choose another --host or --port"),
    }
}

/// Whether what listens there answers as a server of ours does, with or without TLS.
fn is_ours(host: &str, port: u16) -> bool {
    let config = Agent::config_builder().timeout_global(Some(Duration::from_secs(2)));
    let agent = Agent::new_with_config(config.build());
    let host = if host == "0.0.0.0" { "127.0.0.1" } else { host };
    agent.get(format!("http://{host}:{port}/health")).call().is_ok()
}
