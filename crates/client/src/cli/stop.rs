//! Stops by a signal. Started work runs to completion.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Runs `work` to completion. The first SIGINT or SIGTERM cancels its token, so that it completes what is under
/// way. The second one drops it and returns `None`.
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
