//! `health`: a container's health check, where there is no curl.

use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpStream},
    time::Duration,
};

use clap::Args;

use super::{ConfigFile, Outcome, print};
use crate::config::Config;

/// Check whether a gateway on this machine is alive
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  efgs-gateway health --config efgs.toml --ready")]
pub(super) struct HealthArgs {
    #[command(flatten)]
    file: ConfigFile,
    /// Check whether it is ready, not only whether it runs
    #[arg(long)]
    ready: bool,
}

/// For everything but the database, for which `/health/ready` waits twice `database.timeout`.
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) fn run(args: &HealthArgs) -> Outcome {
    let config = Config::load(&args.file.config)?;
    let mut address = config.server.admin_listen;
    let patience = PATIENCE + if args.ready { config.database.timeout * 2 } else { Duration::ZERO };
    if address.ip().is_unspecified() {
        let loopback = |ip| {
            if matches!(ip, IpAddr::V4(_)) { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() }
        };
        address.set_ip(loopback(address.ip()));
    }
    let path = if args.ready { "/health/ready" } else { "/health/live" };
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_read_timeout(Some(patience))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.take(64 * 1024).read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer =
        ask().map_err(|e| format!("no gateway answers on `server.admin_listen` = {address}: {e}"))?;
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    if answer.starts_with("HTTP/1.1 200 ") {
        print(format!("{body}\n"))
    } else {
        Err(format!("the gateway on {address} is not ready: {body}").into())
    }
}
