//! Stopping by a signal without leaving anything half done.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Does some work until its end. The first SIGINT or SIGTERM cancels its token, so that it brings to an end what
/// is under way; the second one drops it: then `None`.
pub(super) async fn stoppable<T>(
    work: impl AsyncFnOnce(CancellationToken) -> T,
) -> std::io::Result<Option<T>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut signalled = async || {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    };
    let stop = CancellationToken::new();
    tokio::select! {
        done = work(stop.clone()) => Ok(Some(done)),
        () = async {
            signalled().await;
            stop.cancel();
            signalled().await;
        } => Ok(None),
    }
}
