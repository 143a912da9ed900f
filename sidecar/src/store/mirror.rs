//! What an edge knows of its nginx: read whole when it has changed, and peer by peer where somebody waits.

use super::said::Said;
use crate::{
    control::{Control, ControlError},
    peer::{Peer, Place},
};
use handoff_wire::{
    Ack, MarkView, Owner, PeerState, PeerView, QueueView, Responses, SlotsView, UncoveredView, UpstreamView,
    store::{AckMark, AckPeer, AckUpstream, Elsewhere, Name, WorkerMark, is_bringer},
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    time::{Duration, Instant},
};

#[derive(Debug, Default)]
pub struct Mirror {
    instance: String,
    version: String,
    generation: u64,
    upstreams: BTreeMap<String, Upstream>,
    /// The peers at each address.
    at: HashMap<IpAddr, Vec<Peer>>,
    uncovered: Vec<UncoveredView>,
    /// It changed when it was read last: while nginx reloads, a worker that is about to go may have answered.
    is_unsettled: bool,
    /// When it was read whole, and how long that took.
    read: Option<(Instant, Duration)>,
}

/// What nginx has at the place of a peer that a host brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seat<'a> {
    NoUpstream,
    /// nginx.conf names it.
    Configured,
    /// It was added for an app host.
    Ours(&'a Owner),
    /// Somebody else added it.
    Foreign(Option<&'a Owner>),
    /// Nothing yet, and so many slots there are.
    Free(SlotsView),
    NoSlots,
}

#[derive(Debug, Default)]
struct Upstream {
    peers: BTreeMap<String, PeerView>,
    queue: Option<QueueView>,
    slots: Option<SlotsView>,
    looked: Option<Instant>,
}

/// A whole picture is read again when as much time has passed as it took to read it, so many times: nginx has others to
/// serve.
const SHARE: u32 = 20;
/// Larger upstreams are not read whole for the sake of counts.
const MANY: usize = 200;
/// So many peers of an upstream are read one by one.
const FEW: usize = 4;
/// One question for all costs nginx less than one for each, as long as the others are not so many times as many.
const CROWD: usize = 16;
const PACE: Duration = Duration::from_millis(200);

// === impl Mirror ===

impl Mirror {
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// Of nginx's marks and configuration, as they were read.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// nginx's version.
    pub fn nginx(&self) -> &str {
        &self.version
    }

    #[cfg(test)]
    pub(crate) fn of_views(views: serde_json::Value) -> Self {
        let views: Vec<UpstreamView> = serde_json::from_value(views).unwrap();
        let upstreams = views.into_iter().map(|view| (view.name.clone(), Upstream::of(view))).collect();
        let mut mirror = Self { upstreams, ..Self::default() };
        mirror.index();
        mirror
    }

    /// Asks who answers, and whether it has changed since it was read.
    pub async fn meet(&mut self, control: &mut Control) -> Result<bool, ControlError> {
        let overview = control.overview().await?;
        self.version = overview.nginx;
        self.uncovered = overview.uncovered;
        let is_new = (&self.instance, self.generation) != (&overview.instance, overview.generation);
        self.instance = overview.instance;
        let is_rested = self.read.is_none_or(|(at, long)| at.elapsed() >= long * SHARE);
        Ok((is_new || self.is_unsettled) && is_rested)
    }

    /// Reads all of it. True: other peers are there than before.
    pub async fn look(&mut self, control: &mut Control) -> Result<bool, ControlError> {
        let began = Instant::now();
        let view = control.upstreams().await?;
        self.read = Some((began, began.elapsed()));
        self.is_unsettled = self.generation != view.generation;
        (self.instance, self.generation) = (view.instance, view.generation);
        let before: Vec<Peer> = self.at.values().flatten().cloned().collect();
        let mut upstreams = BTreeMap::new();
        for view in view.upstreams {
            upstreams.insert(view.name.clone(), Upstream::of(view));
        }
        self.upstreams = upstreams;
        self.index();
        let count = self.at.values().map(Vec::len).sum::<usize>();
        Ok(before.len() != count || before.iter().any(|peer| !self.has(peer)))
    }

    /// Reads an upstream whose peers are others now.
    pub async fn look_into(&mut self, control: &mut Control, name: &str) -> Result<(), ControlError> {
        match control.upstream(name).await {
            Ok(view) => _ = self.upstreams.insert(name.to_owned(), Upstream::of(view)),
            Err(ControlError::Refused(_)) => _ = self.upstreams.remove(name),
            Err(error) => return Err(error),
        }
        self.index();
        Ok(())
    }

    fn index(&mut self) {
        self.at.clear();
        for (name, upstream) in &self.upstreams {
            for peer in upstream.peers.values().map(|view| Peer::new(name, &view.address)) {
                if let Some(Place::Tcp(address)) = peer.place() {
                    self.at.entry(address.ip()).or_default().push(peer);
                }
            }
        }
    }

    /// Reads these peers, of which many are in one upstream with one question. Answers which have other counts than before.
    pub async fn look_at(
        &mut self,
        control: &mut Control,
        peers: &BTreeSet<Peer>,
    ) -> Result<BTreeSet<Peer>, ControlError> {
        let mut by_upstream = BTreeMap::<&str, Vec<&Peer>>::new();
        for peer in peers {
            by_upstream.entry(&peer.upstream).or_default().push(peer);
        }
        let mut changed = BTreeSet::new();
        for (name, peers) in by_upstream {
            let all = self.upstreams.get(name).map_or(0, |upstream| upstream.peers.len());
            if peers.len() >= FEW && all <= peers.len() * CROWD {
                let before: Vec<_> = peers.iter().map(|peer| self.find(peer).map(counts)).collect();
                self.count(control, name).await?;
                let others = peers.iter().zip(before);
                let others = others.filter(|(peer, before)| self.find(peer).map(counts) != *before);
                changed.extend(others.map(|(peer, _)| (*peer).clone()));
            } else {
                for peer in peers {
                    if self.look_at_one(control, peer).await? {
                        changed.insert(peer.clone());
                    }
                }
            }
        }
        Ok(changed)
    }

    async fn look_at_one(&mut self, control: &mut Control, peer: &Peer) -> Result<bool, ControlError> {
        let view = match control.peer(&peer.upstream, &peer.address).await {
            Ok(view) => view,
            // It is gone; that is seen when all is read.
            Err(ControlError::Refused(_)) => return Ok(false),
            Err(error) => return Err(error),
        };
        let known = self.find_mut(peer);
        let is_other = known.as_ref().is_none_or(|known| counts(known) != counts(&view));
        if let Some(known) = known {
            *known = view;
        }
        Ok(is_other)
    }

    /// Reads what all peers of an upstream count together, now and then.
    pub async fn look_elsewhere(&mut self, control: &mut Control, name: &str) -> Result<(), ControlError> {
        let is_due = |upstream: &&mut Upstream| {
            upstream.peers.len() <= MANY && upstream.looked.is_none_or(|at| at.elapsed() >= PACE)
        };
        if self.upstreams.get_mut(name).filter(is_due).is_some() {
            self.count(control, name).await?;
        }
        Ok(())
    }

    /// Reads what the peers of an upstream count. Who they are is seen when all is read.
    async fn count(&mut self, control: &mut Control, name: &str) -> Result<(), ControlError> {
        let Some(upstream) = self.upstreams.get_mut(name) else { return Ok(()) };
        match control.upstream(name).await {
            Ok(view) => {
                *upstream = Upstream::of(view);
                upstream.looked = Some(Instant::now());
                Ok(())
            }
            Err(ControlError::Refused(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// nginx has done it: that it has changed is no news.
    pub fn acknowledge(&mut self, owner: &Owner, ack: &Ack) {
        self.generation = self.generation.max(ack.generation);
        self.keep(owner, ack);
    }

    /// What nginx has of an owner. What else has changed meanwhile is still to be read.
    pub fn keep(&mut self, owner: &Owner, ack: &Ack) {
        for acked in &ack.marks {
            let Some(view) = self.find_mut(&Peer::new(&acked.upstream, &acked.peer)) else { continue };
            if view.state != PeerState::Unavail || acked.state != handoff_wire::State::Up {
                view.state = acked.state.into();
            }
            view.in_flight = acked.in_flight;
            view.marks.retain(|mark| mark.owner != *owner);
            if acked.epoch != 0 {
                view.marks.push(MarkView {
                    owner: owner.clone(),
                    state: acked.state,
                    expect: handoff_wire::Expect::Gone,
                    reason: String::new(),
                    epoch: acked.epoch,
                    lease: None,
                    age: handoff_wire::Span::default(),
                });
            }
        }
    }

    /// The marks that are there for app hosts, whoever put them there.
    pub fn marks_of_hosts(&self) -> BTreeMap<(Peer, Owner), WorkerMark> {
        let peers = self
            .upstreams
            .iter()
            .flat_map(|(name, upstream)| upstream.peers.values().map(move |view| (name, view)));
        let marks = peers.flat_map(|(name, view)| {
            let of_hosts = view.marks.iter().filter(|mark| is_of_a_host(&mark.owner));
            of_hosts.map(move |mark| {
                let said = WorkerMark {
                    owner: mark.owner.clone(),
                    state: mark.state,
                    expect: mark.expect,
                    reason: mark.reason.clone(),
                    force: false,
                };
                ((Peer::new(name, &view.address), mark.owner.clone()), said)
            })
        });
        marks.collect()
    }

    pub fn has(&self, peer: &Peer) -> bool {
        self.find(peer).is_some()
    }

    /// What nginx has at a peer's place.
    pub fn seat(&self, peer: &Peer) -> Seat<'_> {
        let Some(upstream) = self.upstreams.get(&peer.upstream) else { return Seat::NoUpstream };
        match (upstream.peers.get(&peer.address), upstream.slots) {
            (Some(PeerView { dynamic: false, .. }), _) => Seat::Configured,
            (Some(PeerView { added_by: Some(owner), .. }), _) if is_bringer(owner) => Seat::Ours(owner),
            (Some(view), _) => Seat::Foreign(view.added_by.as_ref()),
            (None, Some(slots)) => Seat::Free(slots),
            (None, None) => Seat::NoSlots,
        }
    }

    /// Every peer that was added for an app host.
    pub fn seated(&self) -> impl Iterator<Item = (Peer, &Owner)> {
        self.upstreams.iter().flat_map(|(name, upstream)| {
            upstream.peers.values().filter_map(move |view| {
                let owner = view.added_by.as_ref().filter(|owner| is_bringer(owner))?;
                Some((Peer::new(name, &view.address), owner))
            })
        })
    }

    pub fn in_flight(&self, peer: &Peer) -> u64 {
        self.find(peer).map_or(0, |view| view.in_flight)
    }

    pub fn peers(&self, addresses: &[IpAddr]) -> impl Iterator<Item = Peer> {
        addresses.iter().filter_map(|address| self.at.get(&address.to_canonical())).flatten().cloned()
    }

    /// Whose peer it is.
    pub fn hosts(&self, peer: &Peer, said: &Said) -> Vec<Name> {
        match peer.place() {
            Some(Place::Tcp(address)) => said.at(address.ip()).cloned().collect(),
            _ => Vec::new(),
        }
    }

    pub fn uncovered(&self, addresses: &[IpAddr]) -> Vec<UncoveredView> {
        let is_theirs = |view: &&UncoveredView| matches!(Place::parse(&view.peer), Some(Place::Tcp(at)) if addresses.contains(&at.ip()));
        self.uncovered.iter().filter(is_theirs).cloned().collect()
    }

    /// The upstreams in which a host with these addresses has peers. Counts go along while somebody looks at them: they are
    /// others each moment.
    pub fn of(&self, addresses: &[IpAddr], with_counts: bool) -> Vec<AckUpstream> {
        let mut theirs = BTreeMap::<String, Vec<Peer>>::new();
        for peer in self.peers(addresses) {
            theirs.entry(peer.upstream.clone()).or_default().push(peer);
        }
        let upstream = |(name, mut peers): (String, Vec<Peer>)| {
            peers.sort();
            let upstream = self.upstreams.get(&name)?;
            let views: Vec<&PeerView> =
                peers.iter().filter_map(|peer| upstream.peers.get(&peer.address)).collect();
            Some(AckUpstream {
                name,
                elsewhere: upstream.elsewhere(&views, with_counts),
                peers: views.into_iter().map(|view| acked(view, with_counts)).collect(),
                queue: upstream.queue.clone(),
            })
        };
        theirs.into_iter().filter_map(upstream).collect()
    }

    fn find(&self, peer: &Peer) -> Option<&PeerView> {
        self.upstreams.get(&peer.upstream)?.peers.get(&peer.address)
    }

    fn find_mut(&mut self, peer: &Peer) -> Option<&mut PeerView> {
        self.upstreams.get_mut(&peer.upstream)?.peers.get_mut(&peer.address)
    }
}

// === impl Upstream ===

impl Upstream {
    fn of(view: UpstreamView) -> Self {
        let configured = view.peers.into_iter().filter(|peer| peer.configured);
        let peers: BTreeMap<String, PeerView> = configured.map(|peer| (peer.address.clone(), peer)).collect();
        // How many wait is another thing each moment, and nobody's business at another host.
        let queue = view.queue.map(|queue| QueueView {
            held: 0,
            bytes: 0,
            resumed: 0,
            released: 0,
            timed_out: 0,
            left: 0,
            overflowed: 0,
            ..queue
        });
        Self { peers, queue, slots: view.slots, looked: None }
    }

    /// All but these.
    fn elsewhere(&self, views: &[&PeerView], with_counts: bool) -> Option<Elsewhere> {
        if self.peers.len() <= views.len() {
            return None;
        }
        let is_theirs = |peer: &PeerView| views.iter().any(|view| view.address == peer.address);
        let serves =
            self.peers.values().any(|peer| peer.state == PeerState::Up && !peer.backup && !is_theirs(peer));
        if self.peers.len() > MANY || !with_counts {
            return Some(Elsewhere { serves, responses: Responses::default(), fails: 0 });
        }
        let (responses, fails) = sum(self.peers.values().filter(|peer| !is_theirs(peer)));
        Some(Elsewhere { serves, responses, fails })
    }
}

/// `pm2:app1//home/shop/.pm2`; of this nginx's own host it would be `pm2:/home/shop/.pm2`.
fn is_of_a_host(owner: &Owner) -> bool {
    let name = owner.as_str().split_once(':').and_then(|(_, name)| name.split_once('/'));
    name.is_some_and(|(host, _)| host.parse::<Name>().is_ok())
}

fn acked(view: &PeerView, with_counts: bool) -> AckPeer {
    let mark = |mark: &MarkView| AckMark { owner: mark.owner.clone(), state: mark.state, epoch: mark.epoch };
    let mut marks: Vec<AckMark> = view.marks.iter().map(mark).collect();
    marks.sort_by(|one, other| one.owner.cmp(&other.owner));
    AckPeer {
        address: view.address.clone(),
        state: view.state,
        marks,
        // In flight at a peer that serves is another number each moment.
        in_flight: if with_counts || !view.state.serves() { view.in_flight } else { 0 },
        requests: if with_counts { view.requests } else { 0 },
        responses: if with_counts { view.responses } else { Responses::default() },
        fails: if with_counts { view.fails } else { 0 },
        cut: if with_counts { view.cut } else { 0 },
        weight: view.weight,
        backup: view.backup,
    }
}

fn counts(view: &PeerView) -> (PeerState, u64, Responses, u64, u64) {
    (view.state, view.in_flight, view.responses, view.fails, view.cut)
}

fn sum<'a>(peers: impl Iterator<Item = &'a PeerView>) -> (Responses, u64) {
    peers.fold((Responses::default(), 0), |(sum, fails), peer| {
        let one = peer.responses;
        let sum = Responses {
            informational: sum.informational + one.informational,
            success: sum.success + one.success,
            redirection: sum.redirection + one.redirection,
            client_error: sum.client_error + one.client_error,
            server_error: sum.server_error + one.server_error,
        };
        (sum, fails + peer.fails)
    })
}
