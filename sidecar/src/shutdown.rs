//! SIGTERM and SIGINT: stop in good order.

use std::io;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

/// Becomes true when somebody asks us to end.
pub fn listen() -> io::Result<watch::Receiver<bool>> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let (sender, receiver) = watch::channel(false);
    tokio::spawn(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        sender.send_replace(true);
    });
    Ok(receiver)
}

/// Waits until it is asked for. One whose asker is gone counts as asked for.
pub async fn requested(shutdown: &mut watch::Receiver<bool>) {
    _ = shutdown.wait_for(|is_over| *is_over).await;
}
