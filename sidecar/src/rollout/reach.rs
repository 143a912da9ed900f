//! A connection to one certain worker of several that share an address.
//!
//! Whom a connection is given to is decided by node, in PM2's daemon, one worker after the other. So we connect, and
//! before a byte is sent look in the kernel's tables whose the other end is; if it is another worker's, we close it and
//! connect again. A worker that cannot be reached in this way does not listen.

use crate::host::{
    Proc, Process,
    connections::{Holder, holder},
};
use std::{io, net::SocketAddr, time::Duration};
use tokio::{net::TcpStream, time};

/// Whom to reach, and by whose hand.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    pub address: SocketAddr,
    pub worker: Process,
    /// PM2's, in which node hands the connections on.
    pub daemon: u32,
}

/// Node hands a connection on within a millisecond or two; a busy daemon needs longer.
const HANDED_ON: Duration = Duration::from_millis(300);
const LOOK_PAUSE: Duration = Duration::from_millis(1);
/// The pause after the n-th vain try is n of these.
const TRY_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(25);

impl Way {
    /// Tries until that moment. None: every connection was somebody else's.
    pub async fn go(self, until: time::Instant) -> Option<TcpStream> {
        let mut pause = Duration::ZERO;
        loop {
            // An error is one of the moment: nobody listens, or too many files are open.
            let tried = time::timeout_at(until, self.attempt()).await.ok()?;
            if let Ok(Some(socket)) = tried {
                return Some(socket);
            }
            pause = (pause + TRY_PAUSE).min(LONGEST_PAUSE);
            time::timeout_at(until, time::sleep(pause)).await.ok()?;
        }
    }

    async fn attempt(self) -> io::Result<Option<TcpStream>> {
        let socket = TcpStream::connect(self.address).await?;
        let ends = (socket.local_addr()?, socket.peer_addr()?);
        let until = time::Instant::now() + HANDED_ON;
        loop {
            let look = move || holder(&Proc::default(), ends, self.worker, self.daemon);
            match tokio::task::spawn_blocking(look).await.map_err(io::Error::other)?? {
                Holder::Wanted => return Ok(Some(socket)),
                Holder::Nobody if time::Instant::now() < until => time::sleep(LOOK_PAUSE).await,
                Holder::Nobody | Holder::Other => return Ok(None),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn soon() -> time::Instant {
        time::Instant::now() + Duration::from_millis(300)
    }

    #[tokio::test]
    async fn a_connection_is_the_workers_or_none() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || listener.incoming().collect::<Vec<_>>());
        let own = Process::own().unwrap();
        let way = Way { address, worker: own, daemon: std::os::unix::process::parent_id() };
        assert_eq!(way.go(soon()).await.unwrap().peer_addr().unwrap(), address);
        let dead = Process { start: own.start + 1, ..own };
        assert!(Way { worker: dead, ..way }.go(soon()).await.is_none());
        let nobody = "127.0.0.1:1".parse().unwrap();
        assert!(Way { address: nobody, ..way }.go(soon()).await.is_none());
    }
}
