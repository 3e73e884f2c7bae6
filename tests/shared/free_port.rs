//! A port for a server that takes a number, not an open socket.

use std::{
    net::TcpListener,
    sync::atomic::{AtomicUsize, Ordering},
};

/// A loopback port that nobody listens on, another one with each call.
///
/// It is below the range from which the kernel takes ports for outgoing connections and for listeners on port 0. So no
/// other test gets it before the server has started, or while the server is down.
pub(crate) fn free_port() -> u16 {
    const PORTS: std::ops::Range<u16> = 10_000..30_000;
    static CALLS: AtomicUsize = AtomicUsize::new(0);
    // Two processes at the same time begin at different ports.
    let start = std::process::id() as usize * 31;
    loop {
        let port = PORTS.start + ((start + CALLS.fetch_add(1, Ordering::Relaxed)) % PORTS.len()) as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
