//! What comes over unix sockets from processes that we do not trust: PM2's daemon, and apps.

use handoff::{
    pm2::{bus, monitor},
    preload::message::Said,
};
use tokio::{io::BufReader, runtime};

/// More than any target needs: the readers never wait for anything but their input.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

/// PM2's bus: it is read the same however it is cut into pieces.
pub fn bus(input: &[u8]) {
    let whole = block_on(heard(input, input.len().max(1)));
    for piece in [1, 7] {
        assert_eq!(block_on(heard(input, piece)), whole, "in pieces of {piece}");
    }
}

async fn heard(input: &[u8], piece: usize) -> (Vec<String>, String) {
    let (bus, mut notices) = bus::channel();
    let error = bus.read(BufReader::with_capacity(piece, input)).await;
    let mut heard = Vec::new();
    while let Some(notice) = notices.try_next() {
        heard.push(format!("{:?} {}", notice.event, notice.at));
    }
    (heard, error.to_string())
}

/// PM2's list of its workers.
pub fn listing(input: &[u8]) {
    let Ok((reply,)) = serde_json::from_slice::<(monitor::Reply,)>(input) else { return };
    for worker in reply.0 {
        assert!(worker.pid.is_none_or(|pid| pid > 0), "{worker:?}");
    }
}

/// What an app says to the sidecar.
pub fn preload(input: &[u8]) {
    let whole = block_on(said(input, input.len().max(1)));
    assert_eq!(block_on(said(input, 1)), whole);
}

async fn said(input: &[u8], piece: usize) -> Vec<String> {
    let mut reader = BufReader::with_capacity(piece, input);
    let mut said = Vec::new();
    while let Ok(Some(one)) = Said::read(&mut reader).await {
        said.push(format!("{one:?}"));
    }
    said
}
