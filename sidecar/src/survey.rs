//! One look at one daemon, for a command that wants to know how things are now.

use crate::{
    config::Override,
    host::{Proc, Processes},
    look::{self, Look},
    peer::Peer,
    pm2::{
        home::Home,
        rpc::{Rpc, RpcError},
        trust::Daemon,
    },
    roster::Roster,
};
use std::{collections::BTreeSet, io, time::Instant};

#[derive(Debug)]
pub struct Survey {
    pub daemon: Daemon,
    pub roster: Roster,
    pub look: Look,
}

#[derive(Debug, thiserror::Error)]
pub enum SurveyError {
    #[error(transparent)]
    Pm2(#[from] RpcError),
    #[error("cannot look at this host's sockets in /proc: {0}")]
    Host(#[from] io::Error),
}

pub async fn take(home: &Home, overrides: &[Override], peers: BTreeSet<Peer>) -> Result<Survey, SurveyError> {
    let began = Instant::now();
    let mut rpc = Rpc::connect(home).await.map_err(RpcError::from)?;
    let listed = rpc.list().await?;
    let daemon = rpc.daemon();
    let proc = Proc::default();
    let roots = look::roots(&proc, &listed);
    let processes = Processes::read(&proc);
    let mut look = Look::take(&proc, began, Some(daemon), &processes, &roots)?;
    look.listed = Some(listed);
    let mut roster = Roster::new(overrides.to_vec());
    roster.set_peers(peers);
    roster.look(&look, Instant::now());
    Ok(Survey { daemon, roster, look })
}
