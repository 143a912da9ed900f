//! Which workers are replaced, in which order, and whether that is safe.

use super::{
    Options,
    cluster::Cluster,
    spare::Spare,
    world::{Seen, World},
};
use crate::{
    mapping::Behind,
    peer::{Peer, Place},
    pm2::{PmId, is_template, monitor::Status},
};
use handoff_wire::{Overview, PeerView, UpstreamView, Upstreams};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub app: String,
    pub turns: Vec<Planned>,
    /// The app runs in cluster mode.
    pub cluster: Option<Cluster>,
    /// Nobody else serves in the place of its only worker.
    pub relief: Option<Relief>,
    /// One worker more than the app has, which a killed roll-out left behind.
    pub left: Option<PmId>,
}

/// What becomes of those who come while the only worker of an app in fork mode is replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Relief {
    /// Another one serves them.
    StandIn(Spare),
    /// They wait, and this is what the operator should know.
    Wait(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    pub id: PmId,
    pub peers: BTreeSet<Peer>,
    /// It serves now.
    pub serves: bool,
}

/// What is known of nginx and of earlier times.
#[derive(Clone, Copy, Debug)]
pub struct Surroundings<'a> {
    pub overview: &'a Overview,
    pub upstreams: &'a Upstreams,
    /// Where workers that do not listen now did so before, as a running sidecar remembers.
    pub remembered: &'a BTreeMap<PmId, BTreeSet<Peer>>,
    /// Those that speak with it themselves.
    pub preloads: &'a BTreeSet<PmId>,
    /// One worker more than the app has, which a killed roll-out left behind.
    pub left: Option<PmId>,
}

impl Plan {
    /// Error: every reason against it.
    pub fn make(
        app: &str,
        world: &World,
        chosen: impl Fn(PmId) -> bool,
        around: Surroundings<'_>,
        options: &Options,
    ) -> Result<Self, Vec<String>> {
        let own = || world.workers.iter().filter(|(id, _)| Some(**id) != around.left);
        let mut reasons = Vec::new();
        let cluster = match own().filter(|(_, seen)| seen.listed.settings.cluster).count() {
            0 => None,
            number => {
                let workers: BTreeMap<PmId, &Seen> = own().map(|(&id, seen)| (id, seen)).collect();
                if number < workers.len() {
                    reasons.push(format!("{app} has workers in cluster mode and others in fork mode"));
                }
                let cluster = Cluster::of(&workers, world, around);
                reasons.extend(cluster.reasons(app, &workers, around, options));
                Some(cluster)
            }
        };
        let places: BTreeMap<PmId, BTreeSet<Peer>> =
            own().map(|(&id, seen)| (id, peers(id, seen, world, around))).collect();
        let mut relief = None;
        let mut turns = Vec::new();
        for (&id, seen) in own().filter(|(id, _)| chosen(**id)) {
            let is_online = seen.listed.status == Status::Online;
            let planned = match &cluster {
                Some(cluster) => Planned { id, peers: cluster.peers.clone(), serves: is_online },
                None => {
                    let serves = is_online && (!seen.open.is_empty() || seen.listens.is_empty());
                    let peers = places.get(&id).cloned().unwrap_or_default();
                    let planned = Planned { id, peers, serves };
                    reasons.extend(planned.reasons(app, seen, world, around, options));
                    match planned.relief(app, seen, &places, world, around) {
                        Ok(found) => relief = found,
                        Err(_) if options.force => {}
                        Err(reason) => reasons.push(reason),
                    }
                    planned
                }
            };
            turns.push(planned);
        }
        // Where nobody is served, nothing can be lost: the new release shows itself there first.
        turns.sort_by_key(|planned| (planned.serves, planned.id));
        if !reasons.is_empty() {
            return Err(reasons);
        }
        Ok(Self { app: app.to_owned(), turns, cluster, relief, left: around.left })
    }

    /// What cannot be promised.
    pub fn caution(&self) -> Option<String> {
        if let Some(Relief::Wait(text)) = &self.relief {
            return Some(text.clone());
        }
        let cluster = self.cluster.as_ref().filter(|cluster| !cluster.finishes)?;
        Some(format!(
            "{} runs in cluster mode, where nginx cannot wait for what a certain worker still has: PM2 ends it {} after \
             the signal, so that what takes longer is cut, and all that it has if it ends at the signal itself. Two \
             workers or more that load the preload finish what they have first",
            self.app,
            handoff_wire::Span::from(cluster.kill_timeout)
        ))
    }
}

/// Where it listens; of one that does not, where it did, and where its port says that it will.
pub(super) fn peers(id: PmId, seen: &Seen, world: &World, around: Surroundings<'_>) -> BTreeSet<Peer> {
    if !seen.open.is_empty() {
        return seen.open.clone();
    }
    let is_free = |peer: &Peer| world.behind.get(peer) == Some(&Behind::Nobody);
    let port = |peer: &Peer| match peer.place() {
        Some(Place::Tcp(address)) => Some(address.port()),
        _ => None,
    };
    let remembered = around.remembered.get(&id).into_iter().flatten();
    let meant =
        world.behind.keys().filter(|peer| port(peer).is_some() && port(peer) == seen.listed.settings.port);
    let meant = meant.filter(|_| seen.process.is_none() || !seen.listens.is_empty());
    remembered.chain(meant).filter(|peer| is_free(peer)).cloned().collect()
}

/// Ways to a worker that Handoff does not see.
pub(super) fn uncovered(
    name: &str,
    peers: &BTreeSet<Peer>,
    listens: &[String],
    around: Surroundings<'_>,
) -> Vec<String> {
    if peers.is_empty() && !listens.is_empty() {
        let listens = listens.join(", ");
        return vec![format!(
            "{name} listens on {listens}, and no upstream with `handoff` has that address: requests that come another \
             way would be cut. Add it to an upstream, or say --uncovered-ok"
        )];
    }
    let past = around.overview.uncovered.iter();
    let past = past.filter(|past| peers.iter().any(|peer| peer.address == past.peer));
    let reason = |past: &handoff_wire::UncoveredView| {
        format!(
            "requests reach {name} past Handoff: {} is also used by {}. Give that one `handoff` too, or say \
             --uncovered-ok",
            past.peer, past.by
        )
    };
    past.map(reason).collect()
}

// === impl Planned ===

impl Planned {
    fn reasons(
        &self,
        app: &str,
        seen: &Seen,
        world: &World,
        around: Surroundings<'_>,
        options: &Options,
    ) -> Vec<String> {
        let name = self.id.of(app);
        if let Some(unknown) = &seen.unknown {
            return vec![format!("what {name} listens on is not known: {unknown}")];
        }
        let shared = world.behind.iter().find(|(_, behind)| match behind {
            Behind::Several(workers) => workers.contains(&self.id),
            _ => false,
        });
        if let Some((peer, _)) = shared {
            let address = &peer.address;
            return vec![format!("{name} shares {address} with other workers: give each a port of its own")];
        }
        if options.uncovered_ok { Vec::new() } else { uncovered(&name, &self.peers, &seen.listens, around) }
    }

    /// None: somebody else serves meanwhile. Error: nobody does, and nobody waits.
    fn relief(
        &self,
        app: &str,
        seen: &Seen,
        places: &BTreeMap<PmId, BTreeSet<Peer>>,
        world: &World,
        around: Surroundings<'_>,
    ) -> Result<Option<Relief>, String> {
        let name = self.id.of(app);
        let is_free = |peer: &Peer| match world.behind.get(peer) {
            Some(Behind::Nobody) => !places.values().any(|peers| peers.contains(peer)),
            Some(Behind::Worker(worker)) => Some(*worker) == around.left,
            _ => false,
        };
        let is_alone = |upstream: &&UpstreamView| {
            let peer = |view: &PeerView| Peer::new(&upstream.name, &view.address);
            let mut used = upstream.peers.iter().filter(|view| view.configured && !view.backup).map(peer);
            let has = self.peers.iter().any(|peer| peer.upstream == upstream.name);
            self.serves && has && used.all(|peer| self.peers.contains(&peer) || is_free(&peer))
        };
        let alone: Vec<&UpstreamView> = around.upstreams.upstreams.iter().filter(is_alone).collect();
        let Some(first) = alone.first() else { return Ok(None) };
        let nobody = format!("nobody but {name} serves the upstream {:?}", first.name);
        if places.len() > 1 {
            return Err(format!(
                "{nobody}, so its requests would fail while it is replaced: run two workers or more there, or say --force"
            ));
        }
        let spare = match is_template(app) {
            true => Err("start another one of its units".to_owned()),
            false => Spare::find(&name, &seen.listed.settings, &self.peers, around.upstreams, is_free),
        };
        let mend = match spare {
            Ok(spare) => return Ok(Some(Relief::StandIn(spare))),
            Err(mend) => mend,
        };
        let longest = alone.iter().map(|upstream| upstream.queue.as_ref().map(|queue| queue.timeout)).min();
        match longest.flatten() {
            Some(longest) => Ok(Some(Relief::Wait(format!(
                "{nobody}: requests wait until its new process is ready, for {longest} at most, and nobody serves them if \
                 that is broken. So that another worker stands in: {mend}"
            )))),
            None => Err(format!(
                "{nobody}, so its requests would fail while it is replaced. So that another worker stands in: {mend}; or \
                 say --force"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        orphans::Cast,
        pm2::{
            monitor::{Listed, Settings},
            trust::Daemon,
        },
        rollout::OnDeadline,
    };
    use handoff_wire::Span;
    use serde_json::json;
    use std::time::Instant;

    fn options() -> Options {
        Options {
            drain_timeout: Span::from_secs(1),
            on_deadline: OnDeadline::Stop,
            start_timeout: Span::from_secs(1),
            health: None,
            health_passes: 3,
            health_timeout: Span::from_secs(1),
            watch: None,
            parallel: 1,
            force: false,
            uncovered_ok: false,
        }
    }

    fn peer(port: u16) -> Peer {
        Peer::new("shop", format!("127.0.0.1:{port}"))
    }

    fn online(port: u16) -> Seen {
        let settings = Settings { port: Some(port), port_var: Some("PORT".into()), ..Settings::default() };
        Seen {
            listed: Listed {
                id: PmId(0),
                app: "shop".into(),
                pid: Some(1),
                status: Status::Online,
                settings,
            },
            process: None,
            open: [peer(port)].into(),
            listens: vec![format!("127.0.0.1:{port}")],
            unknown: None,
            ready: None,
            threw: None,
            looked: Instant::now(),
        }
    }

    fn stopped(port: u16) -> Seen {
        let seen = online(port);
        let listed = Listed { status: Status::Stopped, pid: None, ..seen.listed };
        Seen { listed, open: BTreeSet::new(), listens: Vec::new(), ..seen }
    }

    /// An app of these workers, one peer for each port from 1 to `peers`, and what nginx says of itself.
    fn plan(workers: &[Seen], peers: u16, uncovered: &[&str], options: &Options) -> Result<Plan, String> {
        let numbered = workers.iter().zip(0..).map(|(seen, id)| (PmId(id), seen.clone())).collect();
        let workers: BTreeMap<PmId, Seen> = numbered;
        let behind = |port: u16| {
            let holders: BTreeSet<PmId> = workers
                .iter()
                .filter(|(_, seen)| seen.open.contains(&peer(port)))
                .map(|(id, _)| *id)
                .collect();
            match holders.len() {
                0 => Behind::Nobody,
                1 => Behind::Worker(holders.first().copied().unwrap()),
                _ => Behind::Several(holders),
            }
        };
        let behind = (1..=peers).map(|port| (peer(port), behind(port))).collect();
        let world = World {
            began: Instant::now(),
            daemon: Daemon { pid: 1, uid: 0 },
            workers,
            listed: Vec::new(),
            leavers: BTreeSet::new(),
            behind,
            cast: Cast::default(),
        };
        let view = |port: u16| {
            json!({"address": format!("127.0.0.1:{port}"), "state": "up", "marks": [], "in_flight": 0, "requests": 0,
                   "fails": 0, "refused": 0, "retired_before": 0, "configured": true, "weight": 1, "backup": false})
        };
        let views: Vec<_> = (1..=peers).map(view).collect();
        let upstreams =
            json!({"instance": "1", "generation": 1, "upstreams": [{"name": "shop", "peers": views}]});
        let past: Vec<_> =
            uncovered.iter().map(|peer| json!({"peer": peer, "by": "upstream \"b\"", "more": 0})).collect();
        let overview = json!({"api": 1, "version": "", "nginx": "", "instance": "1", "generation": 1, "processes": [],
                              "uncovered": past,
                              "zone": {"size": 1, "peers": 1, "peers_max": 1, "peers_uncovered": 0, "processes_max": 1}});
        let around = Surroundings {
            overview: &serde_json::from_value(overview).unwrap(),
            upstreams: &serde_json::from_value(upstreams).unwrap(),
            remembered: &BTreeMap::new(),
            preloads: &[PmId(0), PmId(1)].into(),
            left: None,
        };
        Plan::make("shop", &world, |_| true, around, options).map_err(|reasons| reasons.join("; "))
    }

    #[test]
    fn another_one_stands_in_for_the_only_worker_where_there_is_a_port_to_spare() {
        let plan = |worker: Seen, peers| plan(&[worker], peers, &[], &options());
        let spare = Spare { peers: [peer(1)].into(), variable: "PORT".into(), port: 1 };
        assert_eq!(plan(online(2), 3).unwrap().relief, Some(Relief::StandIn(spare)));
        assert_eq!(plan(stopped(2), 3).unwrap().relief, None, "nobody is served");
        let refused = plan(online(1), 1).unwrap_err();
        assert!(
            refused.contains("add `server 127.0.0.1:2;` to the upstream \"shop\"; or say --force"),
            "{refused}"
        );
        let mut fixed = online(1);
        fixed.listed.settings.port = Some(7);
        let refused = plan(fixed, 2).unwrap_err();
        assert!(refused.contains("no PORT of its environment says 127.0.0.1:1"), "{refused}");
    }

    fn order(plan: &Plan) -> Vec<(u32, bool)> {
        plan.turns.iter().map(|turn| (turn.id.0, turn.serves)).collect()
    }

    #[test]
    fn those_who_do_not_serve_go_first() {
        let plan = plan(&[online(1), stopped(2), online(3)], 3, &[], &options()).unwrap();
        assert_eq!(order(&plan), [(1, false), (0, true), (2, true)]);
        assert_eq!(plan.turns[0].peers, [peer(2)].into());
    }

    #[test]
    fn what_would_not_be_safe_is_refused_with_the_mend() {
        let with = |settings: Settings| {
            let seen = online(1);
            Seen { listed: Listed { settings, ..seen.listed.clone() }, ..seen }
        };
        let refused =
            |workers: &[Seen], peers, past: &[&str]| plan(workers, peers, past, &options()).unwrap_err();
        let cluster = with(Settings { cluster: true, instance: Some(0), ..Settings::default() });
        assert!(refused(&[cluster, online(2)], 2, &[]).contains("others in fork mode"));
        assert!(refused(&[online(1), online(1)], 2, &[]).contains("a port of its own"));
        assert!(refused(&[online(1)], 1, &[]).contains("say --force"));
        let elsewhere = Seen { open: BTreeSet::new(), ..online(9) };
        assert!(refused(&[online(1), elsewhere], 2, &[]).contains("say --uncovered-ok"));
        assert!(refused(&[online(1), online(2)], 2, &["127.0.0.1:2"]).contains("shop:1 past Handoff"));
        let hidden = Seen { unknown: Some("it hides".into()), ..online(1) };
        assert!(refused(&[hidden, online(2)], 2, &[]).contains("it hides"));
    }

    /// Workers of cluster mode behind port 1.
    fn cluster(settings: &[Settings]) -> Vec<Seen> {
        let online = |settings: &Settings| {
            let seen = online(1);
            let settings = Settings { cluster: true, ..settings.clone() };
            Seen { listed: Listed { settings, ..seen.listed.clone() }, ..seen }
        };
        settings.iter().map(online).collect()
    }

    fn instance(number: u32) -> Settings {
        Settings { instance: Some(number), ..Settings::default() }
    }

    #[test]
    fn workers_that_share_an_address_are_replaced_after_a_canary() {
        let mut workers = cluster(&[instance(0), instance(1), instance(2)]);
        workers[1].listed.status = Status::Stopped;
        let plan = plan(&workers, 1, &[], &options()).unwrap();
        assert_eq!(order(&plan), [(1, false), (0, true), (2, true)]);
        assert!(plan.turns.iter().all(|turn| turn.peers == [peer(1)].into()));
        assert_eq!(plan.cluster.as_ref().unwrap().model, Some(PmId(0)));
        assert!(plan.caution().unwrap().contains("1600ms"), "{:?}", plan.caution());
    }

    #[test]
    fn nothing_is_cut_where_every_worker_finishes_first_and_another_one_serves() {
        let caution = |workers: &[Settings]| plan(&cluster(workers), 1, &[], &options()).unwrap().caution();
        assert_eq!(caution(&[instance(0), instance(1)]), None);
        assert!(caution(&[instance(0)]).is_some());
    }

    #[test]
    fn what_a_canary_would_change_is_refused() {
        let refused = |workers: &[Seen], options: &Options| plan(workers, 1, &[], options).unwrap_err();
        let counting = Settings { increment_var: Some("PORT".into()), ..instance(0) };
        assert!(refused(&cluster(&[counting]), &options()).contains("increment_var"));
        assert!(refused(&cluster(&[instance(1), instance(2)]), &options()).contains("instance 0"));
        let mut hidden = cluster(&[instance(0)]);
        hidden[0].open = BTreeSet::new();
        assert!(refused(&hidden, &options()).contains("--uncovered-ok"));
    }

    #[test]
    fn an_operator_may_say_so_all_the_same() {
        let force = Options { force: true, ..options() };
        assert!(plan(&[online(1)], 1, &[], &force).is_ok());
        let uncovered_ok = Options { uncovered_ok: true, ..options() };
        assert!(plan(&[online(1), online(2)], 2, &["127.0.0.1:2"], &uncovered_ok).is_ok());
    }

    #[test]
    fn a_worker_that_listens_nowhere_is_restarted_without_nginx() {
        let jobs = Seen { open: BTreeSet::new(), listens: Vec::new(), ..online(9) };
        let plan = plan(&[jobs], 1, &[], &options()).unwrap();
        assert_eq!((order(&plan), plan.turns[0].peers.len()), (vec![(0, true)], 0));
    }
}
