//! The API: one request a line, `METHOD PATH BODY`, in the order of their arrival; `+N` lets N milliseconds pass.
//!
//! It is taken apart as the module does. A request that is refused changes nothing, and after each the gate of a peer is
//! what its marks say.

use crate::common::{A, APP, B, C, Stage, moment, plus_server, serving};
use handoff_core::Slots;
use handoff_core::control::{Control, find};
use handoff_core::plus::path::Method;
use handoff_core::plus::{self, Call, Fields, Nginx, Sight, Visitors};
use handoff_core::table::SlotId;
use handoff_core::tenancy::Tenure;
use handoff_core::{metrics, timeline, view};
use handoff_wire::path::Path;
use handoff_wire::{
    MarkSet, OrphanSet, Overview, Pause, PeerAdd, PeerRemove, Renew, Resume, State, ZoneView,
};
use serde::de::DeserializeOwned;

/// What nginx says of itself to those who ask as they ask NGINX Plus.
struct Plain;

/// Places for peers that are added.
const SLOTS: usize = 3;

pub fn api(input: &[u8]) {
    let mut stage = Stage::new();
    let slots = stage.table().reserve(APP, SLOTS, 1, |_| true).unwrap();
    stage.world.slots = Some(Slots { ids: slots, weighs: true });
    for line in String::from_utf8_lossy(input).lines() {
        match line.strip_prefix('+').and_then(|millis| millis.parse::<u32>().ok()) {
            Some(millis) => stage.now += u64::from(millis),
            None => ask(&stage, line),
        }
        stage.control().sweep();
        look_again(&mut stage);
        check(&stage);
    }
    // Whatever was said, all that is leased runs out.
    stage.sweep_after(u64::from(u32::MAX));
    check(&stage);
}

/// nginx's list follows the zone.
fn look_again(stage: &mut Stage) {
    let table = stage.zone.table();
    let is_taken = |id: &SlotId| table.slot(*id).is_some_and(|slot| slot.tenancy.tenure() == Tenure::Taken);
    let added = stage.world.slots.iter().flat_map(|slots| &slots.ids).copied().filter(is_taken);
    let named = [A, B, C].into_iter().filter_map(|peer| table.find(APP, peer));
    let peers = named.chain(added).map(serving).collect();
    stage.world.upstreams.insert(APP.to_owned(), peers);
}

fn ask(stage: &Stage, line: &str) {
    let mut words = line.splitn(3, ' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let body = words.next().unwrap_or_default();
    if plus::Path::is_below(path) {
        return ask_plus(stage, method, path, body);
    }
    let Some(path) = Path::parse(path) else { return };
    let (table, now) = (stage.table(), moment(stage.now));
    let begin = || Control::begin(table, &stage.world, now);
    let generation = table.header.generation();
    let written = match (&path, method) {
        (Path::Marks, "PUT") => read(body).map(|set: MarkSet| begin().mark(&set).map(|done| done.events)),
        (Path::Renew, "POST") => read(body).map(|renew: Renew| begin().renew(&renew).map(|done| done.events)),
        (Path::Orphans, "POST") => {
            read(body).map(|set: OrphanSet| begin().orphans(&set).map(|done| done.events))
        }
        (Path::Pause, "PUT") => read(body).map(|pause: Pause| begin().pause(&pause).map(|done| done.events)),
        (Path::Resume, "POST") => {
            read(body).map(|resume: Resume| begin().resume(&resume).map(|done| done.events))
        }
        (Path::Peers(upstream), "POST") => {
            read(body).map(|add: PeerAdd| begin().add(upstream, &add).map(|done| done.events))
        }
        (Path::Peer { upstream, peer }, "DELETE") => read(body)
            .map(|remove: PeerRemove| begin().remove_peer(upstream, peer, &remove).map(|done| done.events)),
        _ => return look(stage, &path),
    };
    if let Some(Err(refusal)) = written {
        assert!(!refusal.to_string().is_empty());
        assert_eq!(table.header.generation(), generation, "refused, and done: {line}");
    }
}

fn read<T: DeserializeOwned>(body: &str) -> Option<T> {
    serde_json::from_str(body).ok()
}

fn look(stage: &Stage, path: &Path) {
    let (table, now) = (stage.table(), moment(stage.now));
    match path {
        Path::Events => drop(table.recall(0)),
        Path::Timeline => drop(timeline::timeline(&table, now)),
        Path::Peer { upstream, peer } | Path::Drained { upstream, peer } => {
            if let Ok(id) = find(&table, upstream, peer) {
                view::drained(&table, &stage.world, id);
            }
        }
        Path::Quiet(upstream) => drop(view::quiet(&table, &stage.world, now, upstream)),
        Path::Upstream(upstream) => drop(view::upstream(&table, &stage.world, now, upstream)),
        _ => {
            let upstreams = view::upstreams(&table, &stage.world, now);
            serde_json::to_string(&upstreams).unwrap();
            metrics::render(&overview(stage), &upstreams).unwrap();
        }
    }
}

fn ask_plus(stage: &Stage, method: &str, path: &str, body: &str) {
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let method = match method {
        "GET" => Method::Read,
        "PATCH" => Method::Patch,
        "POST" => Method::Post,
        "DELETE" => Method::Delete,
        _ => Method::Other,
    };
    let sight = Sight { table: stage.table(), world: &stage.world, nginx: &Plain, now: moment(stage.now) };
    let answer = plus::Path::parse(path).and_then(|path| path.with(method)).and_then(|call| match call {
        Call::Read(path) => sight.answer(&path, &Fields::of(query)),
        Call::Patch { upstream, id } => sight.patch(&upstream, &id, body.as_bytes()).map(|done| done.body),
        Call::Post { upstream } => {
            let added = sight.post(&upstream, body.as_bytes())?;
            Ok(sight.server(&upstream, &added.peer))
        }
        Call::Delete { upstream, id } => sight.delete(&upstream, &id).map(|done| done.body),
    });
    match answer {
        Ok(body) => {
            body.iter().for_each(|body| drop(serde_json::from_slice::<serde_json::Value>(body).unwrap()))
        }
        Err(error) => assert!((400..500).contains(&error.status), "{}", error.status),
    }
}

fn check(stage: &Stage) {
    let (table, now) = (stage.table(), moment(stage.now));
    for id in table.ids() {
        let slot = table.slot(id).unwrap();
        let marks = slot.marks().iter().filter_map(|mark| mark.view(now)).map(|mark| mark.state);
        let state = if slot.tenancy.is_here() { marks.max().unwrap_or(State::Up) } else { State::Down };
        assert_eq!(slot.gate.state(), state);
    }
}

fn overview(stage: &Stage) -> Overview {
    let header = stage.table().header;
    Overview {
        api: 1,
        version: String::new(),
        nginx: String::new(),
        instance: header.instance(),
        started: header.started(),
        generation: header.generation(),
        events: header.told(),
        zone: ZoneView { size: 0, peers: 0, peers_max: 0, peers_uncovered: 0, processes_max: 0 },
        old_master: None,
        processes: Vec::new(),
        uncovered: Vec::new(),
    }
}

// === impl Plain ===

impl Nginx for Plain {
    fn about(&self) -> plus::About {
        plus::About { version: String::new(), address: String::new(), pid: 1, ppid: 1 }
    }

    fn visitors(&self) -> Option<Visitors> {
        None
    }

    fn servers(&self, upstream: &str) -> Vec<plus::Server> {
        let peers = [A, B, C].into_iter().zip(0..);
        let server = |(address, id)| plus_server(id, address);
        if upstream == APP { peers.map(server).collect() } else { Vec::new() }
    }

    fn zone(&self, _upstream: &str) -> String {
        String::new()
    }

    fn has_block(&self, upstream: &str) -> bool {
        upstream == APP
    }
}
