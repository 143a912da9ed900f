//! What an app host knows: what it holds and brings, what every nginx has of it, and what follows from both. Nothing here
//! speaks to anybody.

use crate::{
    peer::Peer,
    store::{bring::Bring, edges::Edges, lag::Lags, ledger::Ledger},
};
use handoff_wire::{
    Code, Drained, MarkView, Owner, PeerState, Refusal, Span, State, UpstreamView,
    store::{Name, at_edge},
};
use std::time::Instant;

#[derive(Debug, Default)]
pub(super) struct Book {
    pub(super) ledger: Ledger,
    pub(super) bring: Bring,
    pub(super) edges: Edges,
    pub(super) lags: Lags,
    /// Changes when the store may have lost what we hold. None: we are not in the store.
    pub(super) instance: Option<String>,
    pub(super) problem: Option<String>,
    pub(super) view: View,
}

/// Whether what we know of the edges is what there is.
#[derive(Clone, Copy, Debug, Default)]
pub(super) enum View {
    #[default]
    None,
    /// Those who have not answered our coming yet are waited for until then.
    Begun {
        since: i64,
        until: Instant,
    },
    Whole,
}

// === impl Book ===

impl Book {
    /// Half a picture would say that peers are gone.
    pub(super) fn complete(&mut self) {
        let View::Begun { since, until } = self.view else { return };
        if self.is_everywhere(since) || Instant::now() >= until {
            self.view = View::Whole;
        }
    }

    pub(super) fn instance(&self) -> Result<String, Refusal> {
        if self.instance.is_some() && !matches!(self.view, View::Whole) {
            return Err(Code::Waiting.says("the store is asked what nginx hosts have"));
        }
        self.instance.clone().ok_or_else(|| {
            let why = self.problem.as_deref().unwrap_or("not yet reached");
            Code::Waiting.says(format!("the store is out of reach: {why}"))
        })
    }

    /// Of the last that was said of these. None: it is not written yet.
    pub(super) fn revision(&self, peers: &[Peer]) -> Option<i64> {
        peers.iter().try_fold(0, |last, peer| Some(self.ledger.written(peer)?.max(last)))
    }

    pub(super) fn is_unwritten(&self) -> bool {
        !self.ledger.unwritten().is_empty() || self.bring.unwritten().is_some()
    }

    pub(super) fn is_everywhere(&self, revision: i64) -> bool {
        !self.edges.is_empty() && self.edges.behind(revision).is_empty()
    }

    pub(super) fn state(&self, peer: &Peer) -> PeerState {
        let said = self.ledger.effective(peer);
        match self.ledger.written(peer) {
            Some(revision) => self.edges.state(peer, said, revision),
            None => PeerState::Up,
        }
    }

    /// Who is waited for, for the one who waits.
    pub(super) fn waiting(&self, revision: Option<i64>) -> Refusal {
        let behind: Vec<&str> = match revision {
            Some(revision) => self.edges.behind(revision).into_iter().map(Name::as_str).collect(),
            None => return Code::Waiting.says("it is being written to the store"),
        };
        Code::Waiting.says(match (self.edges.is_empty(), behind.as_slice()) {
            (true, _) => {
                "no nginx is in the store: does `handoff run --role edge` run on the nginx hosts?".to_owned()
            }
            (false, []) => "the store is asked who is there".to_owned(),
            (false, behind) => format!("waiting for nginx on {}", behind.join(", ")),
        })
    }

    /// An edge that has just come, or come back, and has not said what its nginx has.
    fn is_half(&self) -> bool {
        !self.edges.behind(0).is_empty()
    }

    /// What nobody has, one that has not spoken yet may have.
    pub(super) fn or_waiting(&self, refusal: Refusal) -> Refusal {
        let is_missing = matches!(refusal.code, Code::PeerNotFound | Code::UpstreamNotFound);
        if is_missing && self.is_half() { self.waiting(Some(0)) } else { refusal }
    }

    pub(super) fn drained(&self, peer: &Peer) -> Result<Drained, Refusal> {
        // What is in flight at an nginx that has not spoken yet nobody knows.
        if self.ledger.effective(peer) != State::Up && self.is_half() {
            return Err(self.waiting(Some(0)));
        }
        if !self.edges.has(peer) {
            let missing = format!("no nginx that is there has the peer {peer}");
            return Err(self.or_waiting(Code::PeerNotFound.says(missing)));
        }
        let (state, in_flight) = (plain(self.state(peer)), self.edges.in_flight(peer));
        Ok(Drained { drained: !state.begins_requests() && in_flight == 0, state, in_flight })
    }

    pub(super) fn keep_tenures(&mut self, host: &Name, peers: &[Peer], owner: &Owner) {
        let Some(at_edge) = at_edge(host, owner) else { return };
        for peer in peers {
            let tenures = self.edges.tenures(peer, &at_edge);
            self.ledger.keep_tenures(peer, owner, tenures);
        }
    }

    /// Every nginx that has the peer has had the mark, from when all of them had it until now.
    pub(super) fn is_unbroken(&self, host: &Name, peer: &Peer, owner: &Owner) -> bool {
        let (Some(at_edge), Some(then)) = (at_edge(host, owner), self.ledger.tenures(peer, owner)) else {
            return false;
        };
        let now = self.edges.tenures(peer, &at_edge);
        self.edges.of(peer).all(|(edge, ..)| now.get(edge).is_some_and(|now| then.get(edge) == Some(now)))
    }

    pub(super) fn refusal(&self, host: &Name, peers: &[Peer], owner: &Owner) -> Option<Refusal> {
        let at_edge = at_edge(host, owner)?;
        let revision = self.revision(peers)?;
        self.edges.names().find_map(|edge| {
            let ack = self.edges.ack(edge).filter(|ack| ack.revision >= revision)?;
            let refused = ack.refused.iter().find(|refused| {
                let peer = Peer::new(&refused.upstream, &refused.address);
                refused.owner == at_edge && peers.contains(&peer)
            })?;
            let Refusal { status, code, text } = &refused.refusal;
            Some(Refusal { status: *status, code: *code, text: format!("nginx on {edge}: {text}") })
        })
    }

    pub(super) fn upstreams(&self, host: &Name) -> Vec<UpstreamView> {
        let now = Instant::now();
        let mut upstreams = self.edges.upstreams(|peer| self.state(peer));
        for upstream in &mut upstreams {
            for view in &mut upstream.peers {
                let peer = Peer::new(&upstream.name, &view.address);
                view.marks = self.ledger.views(&peer, now);
                view.marks.extend(self.foreign(host, &peer));
            }
        }
        upstreams
    }

    /// Marks that somebody else has set at an edge.
    fn foreign(&self, host: &Name, peer: &Peer) -> Vec<MarkView> {
        let ours: Vec<Owner> =
            self.ledger.owners(peer).iter().filter_map(|owner| at_edge(host, owner)).collect();
        let marks =
            self.edges.of(peer).flat_map(|(edge, _, seen)| seen.marks.iter().map(move |mark| (edge, mark)));
        let foreign = marks.filter(|(_, mark)| !ours.contains(&mark.owner) && !is_of(host, &mark.owner));
        let view = |(edge, mark): (&Name, &handoff_wire::store::AckMark)| MarkView {
            owner: mark.owner.clone(),
            state: mark.state,
            expect: handoff_wire::Expect::Gone,
            reason: format!("at nginx on {edge}"),
            epoch: mark.epoch,
            lease: None,
            age: Span::from_millis(0),
        };
        foreign.map(view).collect()
    }
}

/// It was set for this host, which has taken it back already.
fn is_of(host: &Name, owner: &Owner) -> bool {
    let name = owner.as_str().split_once(':').map(|(_, name)| name);
    name.is_some_and(|name| name.strip_prefix(host.as_str()).is_some_and(|rest| rest.starts_with('/')))
}

/// As a mark would have it.
pub(super) fn plain(state: PeerState) -> State {
    match state {
        // nginx alone leaves it out, and not for long.
        PeerState::Up | PeerState::Unavail => State::Up,
        PeerState::Changing => State::Changing,
        PeerState::Trial => State::Trial,
        PeerState::Checking => State::Checking,
        PeerState::Unhealthy => State::Unhealthy,
        PeerState::Draining => State::Draining,
        PeerState::Down => State::Down,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use handoff_wire::{
        Expect, MarkRequest, MarkSet, Responses,
        store::{AckPeer, AckUpstream, AckValue},
    };

    fn peer() -> Peer {
        Peer::new("shop", "10.0.0.5:3000")
    }

    /// Nobody is there yet, and this host has said that its peer is draining.
    fn book() -> Book {
        let mark = MarkRequest {
            upstream: Some(peer().upstream),
            peer: peer().address,
            state: State::Draining,
            expect: Expect::Back,
            reason: String::new(),
            all: false,
        };
        let owner = "rollout:1".parse().unwrap();
        let set = MarkSet { owner, lease: None, force: false, marks: vec![mark] };
        let mut book = Book { instance: Some("1".into()), view: View::Whole, ..Book::default() };
        book.ledger.mark(&set, &[peer()].into(), Instant::now()).unwrap();
        book.ledger.wrote(&peer(), 1, 5);
        book
    }

    fn comes(book: &mut Book, edge: &str, lease: i64) {
        book.edges.hear_edge(edge.parse().unwrap(), Some(lease));
    }

    fn says(book: &mut Book, edge: &str, lease: i64, peers: &[u64]) {
        let peer = |&in_flight: &u64| AckPeer {
            address: peer().address,
            state: PeerState::Draining,
            marks: Vec::new(),
            in_flight,
            requests: 0,
            responses: Responses::default(),
            fails: 0,
            cut: 0,
            weight: 1,
            backup: false,
        };
        let peers = peers.iter().map(peer).collect();
        let upstream = AckUpstream { name: "shop".into(), peers, elsewhere: None, queue: None };
        let ack = AckValue {
            revision: 5,
            instance: "a".into(),
            upstreams: vec![upstream],
            refused: Vec::new(),
            uncovered: Vec::new(),
            amiss: Vec::new(),
        };
        book.edges.hear_ack(edge.parse().unwrap(), Some((lease, ack)));
    }

    fn in_flight(book: &Book) -> Result<(bool, u64), Code> {
        let drained = book.drained(&peer());
        drained.map(|seen| (seen.drained, seen.in_flight)).map_err(|refusal| refusal.code)
    }

    #[test]
    fn a_peer_is_missing_when_all_have_spoken() {
        let mut book = book();
        assert_eq!(in_flight(&book), Err(Code::PeerNotFound));
        comes(&mut book, "edge1", 1);
        comes(&mut book, "edge2", 2);
        says(&mut book, "edge1", 1, &[]);
        assert_eq!(in_flight(&book), Err(Code::Waiting));
        says(&mut book, "edge2", 2, &[]);
        assert_eq!(in_flight(&book), Err(Code::PeerNotFound));
    }

    #[test]
    fn who_is_there_again_is_asked_before_a_peer_is_drained() {
        let mut book = book();
        for (edge, lease) in [("edge1", 1), ("edge2", 2)] {
            comes(&mut book, edge, lease);
            says(&mut book, edge, lease, &[0]);
        }
        assert_eq!(in_flight(&book), Ok((true, 0)));
        comes(&mut book, "edge2", 3);
        assert_eq!(in_flight(&book), Err(Code::Waiting));
        says(&mut book, "edge2", 3, &[1]);
        assert_eq!(in_flight(&book), Ok((false, 1)));
        says(&mut book, "edge2", 3, &[0]);
        assert_eq!(in_flight(&book), Ok((true, 0)));
    }

    #[test]
    fn only_what_is_missing_is_waited_for() {
        let mut book = book();
        comes(&mut book, "edge1", 1);
        let code = |code: Code| book.or_waiting(code.says("x")).code;
        assert_eq!(code(Code::UpstreamNotFound), Code::Waiting);
        assert_eq!(code(Code::PeerNotFound), Code::Waiting);
        assert_eq!(code(Code::Floor), Code::Floor);
    }
}
