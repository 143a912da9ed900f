//! `handoff run`: what it hears, what it makes of it, and what it asks of nginx. The code that decides is the sidecar's own:
//! [`Worker`], which turns facts into a wish, and [`reconcile::plan`].
//!
//! Its clock stands still: where the protocol waits for a lease, a step of the model says that it is over.

use crate::{
    common::APP,
    known::Known,
    world::Life,
    zone::{ADDRESSES, Owner, PEERS, Peer, Seen},
};
use handoff::{
    host::Process,
    mapping::Behind,
    peer,
    pm2::{
        PmId,
        monitor::{Settings, Status},
    },
    reconcile::{self, Observed},
    worker::{self, Worker},
};
use handoff_wire::{Expect, State};
use serde_json::json;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{LazyLock, Mutex},
    time::{Duration, Instant},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fact {
    /// PM2 says so on its bus.
    Stopping,
    Starting,
    Ready,
    /// The pidfd does.
    Died(Life),
    /// So long that it is trusted after a death that nobody ordered.
    StayedUp,
    /// It looks at PM2's list, and at who listens.
    Look {
        life: Option<Life>,
        status: Listed,
        listens: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Listed {
    Online,
    Stopping,
    Stopped,
    Launching,
}

/// What it knows of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Knows(u16);

/// How it has last seen nginx: its own mark, and what the peer is.
pub type View = [(Option<(State, Expect)>, State); PEERS];
pub type Asked = Vec<(Peer, State, Expect)>;

static WORKERS: LazyLock<Known<Worker>> = LazyLock::new(Known::default);
static BASE: LazyLock<Instant> = LazyLock::new(Instant::now);
type Heard = HashMap<(Knows, Peer, Fact), Knows>;
static HEARD: LazyLock<Mutex<Heard>> = LazyLock::new(Mutex::default);
type Plans = HashMap<(Vec<Knows>, View), Asked>;
static PLANS: LazyLock<Mutex<Plans>> = LazyLock::new(Mutex::default);

const LONG: Duration = Duration::from_secs(30);

fn address(peer: Peer) -> peer::Peer {
    peer::Peer::new(APP, ADDRESSES[peer])
}

fn process(life: Life) -> Process {
    Process { pid: u32::from(life) + 1, start: 1 }
}

// === impl Knows ===

impl Knows {
    pub fn nothing() -> Self {
        let mut worker = Worker::new(*BASE);
        worker.describe(APP, &Settings { wait_ready: true, treekill: true, ..Settings::default() });
        Self::of(worker)
    }

    fn of(worker: Worker) -> Self {
        Self(WORKERS.number(format!("{worker:?}"), || worker))
    }

    pub fn hears(self, peer: Peer, fact: Fact) -> Self {
        *HEARD.lock().unwrap().entry((self, peer, fact)).or_insert_with(|| {
            let mut worker = Worker::clone(&WORKERS.get(self.0));
            match fact {
                Fact::Stopping => _ = worker.stopping(*BASE),
                Fact::Starting => worker.starting(*BASE),
                Fact::Ready => worker.says_ready(*BASE),
                Fact::Died(life) => _ = worker.died(process(life), *BASE),
                Fact::StayedUp => worker.tick(*BASE + LONG),
                Fact::Look { life, status, listens } => {
                    let open = if listens { BTreeSet::from([address(peer)]) } else { BTreeSet::new() };
                    let (process, status) = (life.map(process), Some(status.into()));
                    let seen = worker::Seen { began: *BASE, process, status, open: Ok(open) };
                    // A listener that is missed once is looked for again.
                    worker.look(&seen, *BASE);
                    worker.look(&seen, *BASE);
                }
            }
            Self::of(worker)
        })
    }
}

impl From<Listed> for Status {
    fn from(listed: Listed) -> Self {
        match listed {
            Listed::Online => Self::Online,
            Listed::Stopping => Self::Stopping,
            Listed::Stopped => Self::Stopped,
            Listed::Launching => Self::Launching,
        }
    }
}

/// What is to be seen of its marks in nginx.
pub fn view(zone: &Seen) -> View {
    let own = |peer| zone.mark(peer, Owner::Sidecar).map(|mark| (mark.state, mark.expect));
    std::array::from_fn(|peer| (own(peer), zone.gates[peer]))
}

/// What it asks of nginx. Reasons are left out: no decision rests on them.
pub fn plan(knows: &[Knows], view: View) -> Asked {
    PLANS.lock().unwrap().entry((knows.to_vec(), view)).or_insert_with(|| asked(knows, view)).clone()
}

fn asked(knows: &[Knows], view: View) -> Asked {
    let workers: Vec<_> = knows.iter().map(|knows| WORKERS.get(knows.0)).collect();
    let claims = workers.iter().flat_map(|worker| worker.claims().iter().map(move |peer| (peer, worker)));
    let wish = |(peer, worker): (&peer::Peer, &std::sync::Arc<Worker>)| {
        (peer.clone(), worker::Wish { reason: String::new(), ..worker.wish(peer) })
    };
    let wishes: BTreeMap<_, _> = claims.map(wish).collect();
    let behind = workers.iter().enumerate().map(|(peer, worker)| {
        let found = if worker.open().is_empty() { Behind::Nobody } else { Behind::Worker(PmId(0)) };
        (address(peer), found)
    });
    let behind: BTreeMap<_, _> = behind.collect();
    let observed = observed(&view[..knows.len()]);
    let marks = reconcile::plan(&wishes, &observed, |peer| behind.get(peer), *BASE);
    let number = |mark: &str| ADDRESSES.iter().position(|address| *address == mark).unwrap();
    marks.into_iter().map(|mark| (number(&mark.peer), mark.state, mark.expect)).collect()
}

fn observed(view: &[(Option<(State, Expect)>, State)]) -> Observed {
    let peers = view.iter().zip(ADDRESSES).map(|(&(own, state), address)| {
        let own = own.map(|(state, expect)| {
            json!({"owner": Owner::Sidecar.name(), "state": state, "expect": expect, "reason": "", "epoch": 1, "age": "0s"})
        });
        json!({"address": address, "state": state, "marks": own.into_iter().collect::<Vec<_>>(), "in_flight": 0,
               "requests": 0, "fails": 0, "refused": 0, "retired_before": 0, "configured": true, "weight": 1,
               "backup": false})
    });
    let peers: Vec<_> = peers.collect();
    let view = json!({"instance": "1", "generation": 1, "upstreams": [{"name": APP, "peers": peers}]});
    Observed::new(&serde_json::from_value(view).unwrap(), &Owner::Sidecar.name().parse().unwrap(), *BASE)
}
