//! Which peers an app host brings: what stands in the store of them, from when on they are brought, and the farewell.

use super::{Desk, WAIT, book::Book, peer, unreachable};
use crate::{
    host::{Listeners, Locals, Proc},
    store::{
        StoreError,
        session::{Session, read, timely},
    },
    telemetry::Changes,
};
use handoff_wire::{
    Refusal,
    store::{AmissView, Left, LeftMember, Member, MembersValue, Name},
};
use std::{io, net::SocketAddr, time::Duration};
use tokio::time;

/// How often it is looked whether somebody listens where nobody has yet.
const LISTEN: Duration = Duration::from_millis(500);

impl Desk {
    /// What stands in the store of what this host brings.
    pub(super) async fn members(
        &self,
        session: &mut Session,
    ) -> Result<(i64, Option<MembersValue>), StoreError> {
        let found = timely(session.client.get(self.keys.members(&self.host), None)).await?;
        // What nobody understands is written anew.
        let value = found.kvs().first().and_then(|kv| Some((kv.mod_revision(), read(kv.value()).ok()?)));
        Ok(value.map_or((0, None), |(revision, value)| (revision, Some(value))))
    }

    /// Looks whether somebody listens where nobody has yet: until then nobody is told of the peer.
    pub(super) async fn meet_members(&self) {
        let mut log = Changes::default();
        loop {
            let unmet = self.book().bring.unmet();
            if unmet.is_empty() {
                return;
            }
            let looking = tokio::task::spawn_blocking(move || {
                let proc = Proc::default();
                let (listeners, locals) = (Listeners::read(&proc)?, Locals::read(&proc));
                // Behind an address translation nobody can know.
                let is_met =
                    |address: &SocketAddr| !locals.has(address.ip()) || !listeners.tcp(*address).is_empty();
                Ok::<_, io::Error>(unmet.into_iter().filter(is_met).collect::<Vec<_>>())
            });
            match looking.await {
                Ok(Ok(met)) => met.into_iter().for_each(|address| {
                    tracing::info!(
                        "somebody listens on {address}: this host brings it to every nginx in the store"
                    );
                    self.book().bring.meet(address);
                }),
                Ok(Err(error)) => {
                    log.warn(format!("cannot see who listens here, so nothing new is brought: {error}"))
                }
                Err(_) => {}
            }
            time::sleep(LISTEN).await;
        }
    }

    /// `DELETE /v1/store`: this host brings nothing any more. It is answered when every nginx has let go.
    pub async fn farewell(&self) -> Result<Left, Refusal> {
        self.book().instance()?;
        self.book().bring.leave();
        self.flush().await.map_err(|error| unreachable(&error))?;
        let revision = |book: &Book| book.bring.revision();
        if !self.everywhere(revision, WAIT).await.map_err(|error| unreachable(&error))? {
            let revision = self.book().bring.revision();
            return Err(self.book().waiting(revision));
        }
        let book = self.book();
        let left = |member: &Member| {
            let peer = peer(member);
            let stays = book.edges.of(&peer).map(|(edge, ..)| edge.clone());
            let amiss = book.edges.amiss(&peer);
            let why =
                |edge: &Name| amiss.iter().find(|amiss| amiss.edge == *edge).map(|amiss| amiss.text.clone());
            // Whoever has it and says nothing of it has it from somebody else.
            let theirs = || "nginx.conf names it, a person added it, or another host brings it".to_owned();
            let stays =
                stays.map(|edge| AmissView { text: why(&edge).unwrap_or_else(theirs), edge }).collect();
            LeftMember { upstream: member.upstream.clone(), address: member.address.clone(), stays }
        };
        Ok(Left { members: book.bring.all().iter().map(left).collect() })
    }
}
