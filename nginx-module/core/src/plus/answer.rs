//! What is answered. Whoever calls holds the control lock.

use super::date::iso;
use super::patch::Wish;
use super::path::VERSIONS;
use super::server::{ConfServer, Server};
use super::status::Upstream;
use super::{Code, Error, Fields, Nginx, Path};
use crate::control::{Control, Moment, World};
use crate::table::Table;
use crate::view;
use handoff_wire::{Event, Expect, MarkRequest, MarkSet, Owner, State};
use serde::Serialize;
use std::collections::BTreeMap;

/// Everything that an answer is made of.
pub struct Sight<'a, W, N> {
    pub table: Table<'a>,
    pub world: &'a W,
    pub nginx: &'a N,
    pub now: Moment,
}

/// What a write did: the answer, and what is to be logged.
pub struct Changed {
    pub body: Option<Vec<u8>>,
    pub events: Vec<Event>,
}

#[derive(Serialize)]
struct About {
    version: String,
    /// A client asks a build of revision 33 or newer for its licence.
    build: &'static str,
    address: String,
    generation: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    load_timestamp: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timestamp: Option<String>,
    pid: u32,
    ppid: u32,
}

#[derive(Serialize)]
struct Processes {
    respawned: u64,
}

#[derive(Serialize)]
struct Connections {
    accepted: u64,
    dropped: u64,
    active: u64,
    idle: u64,
}

#[derive(Serialize)]
struct Requests {
    total: u64,
    current: u64,
}

#[derive(Serialize)]
struct Nothing {}

const ROOT: [&str; 8] = ["nginx", "processes", "connections", "slabs", "http", "resolvers", "ssl", "workers"];
const HTTP: [&str; 8] = [
    "requests",
    "server_zones",
    "location_zones",
    "caches",
    "limit_conns",
    "limit_reqs",
    "keyvals",
    "upstreams",
];

pub(super) const REASON: &str = "asked for through /api";

// === impl Sight ===

impl<W: World, N: Nginx> Sight<'_, W, N> {
    /// The JSON that a path names. None: it has no JSON form, which never happens.
    pub fn answer(&self, path: &Path, fields: &Fields) -> Result<Option<Vec<u8>>, Error> {
        Ok(match path {
            Path::Versions => Fields::default().pick(&VERSIONS),
            Path::Root => Fields::default().pick(&ROOT),
            Path::Http => Fields::default().pick(&HTTP),
            Path::Nginx => fields.pick(&self.about()),
            Path::Processes => fields.pick(&Processes { respawned: self.table.header.deaths() }),
            Path::Connections => self.connections(fields),
            Path::Requests => self.requests(fields),
            Path::NoZones => fields.pick(&Nothing {}),
            Path::NoWorkers => fields.pick(&[(); 0]),
            Path::Upstreams => {
                let names = self.world.upstreams();
                let all = names.into_iter().map(|name| (name.clone(), self.upstream(&name)));
                fields.pick_each(&all.collect::<BTreeMap<_, _>>())
            }
            Path::Upstream(name) => {
                self.check(name)?;
                fields.pick(&self.upstream(name))
            }
            Path::Servers(name) => {
                self.check(name)?;
                let servers = self.nginx.servers(name);
                let all: Vec<_> = servers.iter().map(|server| self.configured(name, server)).collect();
                Fields::default().pick(&all)
            }
            Path::Server { upstream, id } => {
                let server = self.find(upstream, id)?;
                Fields::default().pick(&self.configured(upstream, &server))
            }
        })
    }

    /// The answer is a barrier, as that of `PUT /v1/marks`.
    pub fn patch(&self, upstream: &str, id: &str, body: &[u8]) -> Result<Changed, Error> {
        let server = self.find(upstream, id)?;
        let wish = Wish::read(body, &server)?;
        let mark = self.mark(upstream, &server);
        let state = wish.state(mark);
        let mut events = Vec::new();
        if state != mark.unwrap_or(State::Up) {
            let set = MarkSet {
                owner: Owner::plus(),
                lease: None,
                force: false,
                marks: vec![MarkRequest {
                    upstream: Some(upstream.to_owned()),
                    peer: server.address.clone(),
                    state,
                    expect: Expect::Gone,
                    reason: REASON.to_owned(),
                    all: false,
                }],
            };
            events = Control::begin(self.table, self.world, self.now).mark(&set)?.events;
        }
        Ok(Changed { body: Fields::default().pick(&self.configured(upstream, &server)), events })
    }

    fn about(&self) -> About {
        let super::About { version, address, pid, ppid } = self.nginx.about();
        About {
            version,
            build: concat!("handoff-", env!("CARGO_PKG_VERSION"), "-r32"),
            address,
            generation: self.table.header.loads(),
            load_timestamp: iso(self.table.header.loaded_at()),
            timestamp: iso(self.now.unix),
            pid,
            ppid,
        }
    }

    fn connections(&self, fields: &Fields) -> Option<Vec<u8>> {
        let Some(visitors) = self.nginx.visitors() else { return fields.pick(&Nothing {}) };
        fields.pick(&Connections {
            accepted: visitors.accepted,
            dropped: visitors.accepted.saturating_sub(visitors.handled),
            active: visitors.active.saturating_sub(visitors.waiting),
            idle: visitors.waiting,
        })
    }

    fn requests(&self, fields: &Fields) -> Option<Vec<u8>> {
        let Some(visitors) = self.nginx.visitors() else { return fields.pick(&Nothing {}) };
        let current = visitors.reading.saturating_add(visitors.writing);
        fields.pick(&Requests { total: visitors.requests, current })
    }

    fn upstream(&self, name: &str) -> Upstream {
        let view = view::upstream(&self.table, self.world, self.now, name);
        Upstream::of(&view, &self.nginx.servers(name), self.nginx.zone(name))
    }

    /// Whether an upstream takes part.
    pub(super) fn check(&self, name: &str) -> Result<(), Error> {
        if self.world.upstreams().iter().any(|known| known == name) {
            return Ok(());
        }
        Err(if self.nginx.has_block(name) {
            Code::UpstreamStatic.says("upstream is static: nginx.conf has no \"handoff\" in it")
        } else {
            Code::UpstreamNotFound.says("upstream not found")
        })
    }

    pub(super) fn find(&self, upstream: &str, id: &str) -> Result<Server, Error> {
        self.check(upstream)?;
        let number: u32 = id.parse().map_err(|_| Code::UpstreamBadServerId.says("invalid server ID"))?;
        let servers = self.nginx.servers(upstream);
        let absent =
            || Code::UpstreamServerNotFound.says(format!("server with ID \"{number}\" does not exist"));
        servers.into_iter().find(|server| server.id == number).ok_or_else(absent)
    }

    pub(super) fn configured(&self, upstream: &str, server: &Server) -> ConfServer {
        ConfServer::of(server, self.mark(upstream, server))
    }

    /// What clients of this API said of a server last.
    fn mark(&self, upstream: &str, server: &Server) -> Option<State> {
        let slot = self.table.slot(self.table.find(upstream, &server.address)?)?;
        slot.mark_of(&Owner::plus())?.state()
    }
}
