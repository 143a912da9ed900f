//! `POST …/servers` and `DELETE …/servers/{id}`: peers that come and go while nginx runs.

use super::answer::{Changed, REASON, Sight};
use super::patch::{boolean, malformed, number, object, time};
use super::{Code, Error, Fields, Nginx, Path};
use crate::control::{Control, World};
use crate::tenancy::Tenure;
use handoff_wire::{Event, Owner, PeerAdd, PeerRemove, Refusal, Span};
use serde_json::Value;

/// What a POST did. The answer is the [server](Sight::server) of the peer, which nginx's list has when the lock is free.
pub struct Added {
    pub peer: String,
    pub events: Vec<Event>,
}

// === impl Sight ===

impl<W: World, N: Nginx> Sight<'_, W, N> {
    /// Adds a peer.
    pub fn post(&self, upstream: &str, body: &[u8]) -> Result<Added, Error> {
        self.check(upstream)?;
        if self.world.slots(upstream).is_none() {
            let text =
                "method disabled: the upstream has no \"handoff_slots\", servers are added in nginx.conf";
            return Err(Code::MethodDisabled.says(text));
        }
        let add = read(body)?;
        let applied =
            Control::begin(self.table, self.world, self.now).add(upstream, &add).map_err(refused)?;
        if !applied.ack.changed {
            return Err(exists(&add.peer));
        }
        Ok(Added { peer: applied.ack.peer, events: applied.events })
    }

    /// The server of a peer.
    pub fn server(&self, upstream: &str, peer: &str) -> Option<Vec<u8>> {
        let servers = self.nginx.servers(upstream);
        let server = servers.iter().find(|server| server.address == peer)?;
        Fields::default().pick(&self.configured(upstream, server))
    }

    /// Removes a peer that was added. The answer is a barrier, and names those that are left.
    pub fn delete(&self, upstream: &str, id: &str) -> Result<Changed, Error> {
        let server = self.find(upstream, id)?;
        let slot = self.table.find(upstream, &server.address).and_then(|slot| self.table.slot(slot));
        if slot.is_none_or(|slot| slot.tenancy.tenure() != Tenure::Taken) {
            let text = format!("server \"{}\" is immutable: remove it in nginx.conf, and reload", server.id);
            return Err(Code::UpstreamServerImmutable.says(text));
        }
        let remove = PeerRemove { owner: Owner::plus(), reason: REASON.to_owned(), force: false };
        let control = Control::begin(self.table, self.world, self.now);
        let applied = control.remove_peer(upstream, &server.address, &remove)?;
        let body = self.answer(&Path::Servers(upstream.to_owned()), &Fields::default())?;
        Ok(Changed { body, events: applied.events })
    }
}

/// A server with all that it may have. What cannot be as it is wanted is refused, and not left out.
fn read(body: &[u8]) -> Result<PeerAdd, Error> {
    let parameters = object(body)?;
    let address = parameters.get("server").ok_or_else(|| malformed("server"))?;
    let address = address.as_str().ok_or_else(|| malformed("server"))?;
    let mut add = PeerAdd { reason: REASON.to_owned(), ..PeerAdd::new(Owner::plus(), with_port(address)) };
    let only = |code: Code, name: &str, is_default: bool| {
        if is_default { Ok(()) } else { Err(code.says(format!("invalid \"{name}\""))) }
    };
    let small = |name, value: &Value, least, code| {
        let number = number(name, value, least, code)?;
        u32::try_from(number).map_err(|_| code.says(format!("invalid \"{name}\"")))
    };
    for (name, value) in &parameters {
        match name.as_str() {
            "server" => {}
            "weight" => add.weight = small(name, value, 1, Code::UpstreamBadWeight)?,
            "max_conns" => add.max_conns = small(name, value, 0, Code::UpstreamBadMaxConns)?,
            "max_fails" => add.max_fails = small(name, value, 0, Code::UpstreamBadMaxFails)?,
            "fail_timeout" => add.fail_timeout = time(name, value, Code::UpstreamBadFailTimeout)?,
            "slow_start" => {
                let time = time(name, value, Code::UpstreamBadSlowStart)?;
                only(Code::UpstreamBadSlowStart, name, time == Span::default())?;
            }
            "route" => only(Code::UpstreamBadRoute, name, value.as_str() == Some(""))?,
            "service" => only(Code::UpstreamBadService, name, value.as_str() == Some(""))?,
            "backup" => only(Code::UpstreamNoBackup, name, !boolean(name, value)?)?,
            "drain" | "down" if !boolean(name, value)? => {}
            "drain" | "down" => {
                let text = format!("\"{name}\" of a server that is not there yet: add it, then PATCH it");
                return Err(Code::UpstreamConfFormatError.says(text));
            }
            _ => return Err(Code::UpstreamConfFormatError.says(format!("unknown parameter \"{name}\""))),
        }
    }
    Ok(add)
}

/// These clients leave out port 80.
fn with_port(address: &str) -> String {
    let is_bare = address.parse::<std::net::Ipv4Addr>().is_ok()
        || address.strip_prefix('[').is_some_and(|rest| rest.ends_with(']'));
    if is_bare { format!("{address}:80") } else { address.to_owned() }
}

fn exists(address: &str) -> Error {
    Code::EntryExists.says(format!("server \"{address}\" exists"))
}

fn refused(refusal: Refusal) -> Error {
    let code = match refusal.code {
        handoff_wire::Code::Configured => Code::EntryExists,
        handoff_wire::Code::SlotsFull => Code::UpstreamOutOfMemory,
        handoff_wire::Code::BadRequest if refusal.text.starts_with("the weight") => Code::UpstreamBadWeight,
        handoff_wire::Code::BadRequest if refusal.text.starts_with("the fail_timeout") => {
            Code::UpstreamBadFailTimeout
        }
        handoff_wire::Code::BadRequest => Code::UpstreamBadAddress,
        _ => return refusal.into(),
    };
    code.says(refusal.text)
}
