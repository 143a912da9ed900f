//! The store: whether it answers and believes us, whether there is room in it, and who is there.

use super::super::{
    catalogue::*,
    facts::{Facts, Login, Member, MemberAnswer, Store},
    finding::{About, Finding, Kind, Step},
};
use super::list;
use crate::{report::STALE, store::standing::Stand};
use handoff_wire::store::Name;
use std::collections::{BTreeMap, BTreeSet};

/// etcd's own, where it does not say what it is.
const QUOTA: u64 = 2 << 30;
const OLDEST: (u32, u32) = (3, 4);
/// Longer than an edge takes to see that its nginx does not answer.
const BEHIND_MS: u64 = 2_000;

pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    facts.stores.iter().flat_map(of).collect()
}

fn of(store: &Store) -> Vec<Finding> {
    let mut findings = members(store);
    if !store.unguarded.is_empty() {
        let step = Step::change("--store https://…, and --store-ca FILE, on every host");
        findings.push(found(STORE_CLEAR, list(&store.unguarded)).with(step));
    }
    match &store.login {
        Login::Untried => {}
        Login::Refused(why) => {
            let user = store.user.as_deref().unwrap_or("none was given");
            let step =
                Step::change("--store-user NAME, and --store-password-file FILE with what etcd has of it");
            let text = format!("{}, user {user}: {why}", store.name);
            findings.push(found(STORE_LOGIN, text).with(step));
        }
        Login::Lacks(lacks) if lacks.is_empty() => {}
        Login::Lacks(lacks) => {
            let role = store.user.as_deref().unwrap_or("ROLE");
            let grant = |what: &String| Step::run(format!("etcdctl role grant-permission {role} {what}"));
            let text = format!("{role} lacks: {}", list(lacks));
            findings.push(found(STORE_RIGHTS, text).with_all(lacks.iter().map(grant)));
        }
    }
    if findings.iter().all(|finding| finding.kind.severity != super::super::finding::Severity::Error) {
        findings.extend(sidecar(store));
        findings.extend(people(store));
    }
    findings
}

fn found(kind: &'static Kind, text: impl Into<String>) -> Finding {
    Finding::new(kind, About::Handoff, text)
}

fn members(store: &Store) -> Vec<Finding> {
    let speaks =
        |member: &Member| matches!(member.answer, MemberAnswer::Status { .. } | MemberAnswer::NoLeader);
    let is_reached = store.members.iter().any(speaks);
    let mut findings = Vec::new();
    for Member { endpoint, answer } in &store.members {
        let with = |why: &str| format!("{endpoint}: {why}");
        match answer {
            MemberAnswer::Unreached(why) => {
                let kind = if is_reached { STORE_MEMBER } else { STORE_UNREACHED };
                findings.push(found(kind, with(why)).with(Step::change(format!("see etcd on {endpoint}"))));
            }
            MemberAnswer::Unspoken(why) => {
                let step = Step::change(
                    "give --store the scheme that etcd listens with, --store-ca its authority, and --store-cert and \
                     --store-key if it asks for them; see that the clocks are right",
                );
                findings.push(found(STORE_TLS, with(why)).with(step));
            }
            MemberAnswer::File(why) => {
                findings.push(found(STORE_FILE, why).with(Step::change("the right path, readable here")));
            }
            MemberAnswer::NoLeader => {
                let step = Step::run("etcdctl endpoint health --cluster");
                findings.push(found(STORE_QUORUM, endpoint).with(step));
            }
            MemberAnswer::Status { version, database, errors } => {
                if is_old(version) {
                    let step = Step::change("upgrade etcd, one minor version after the other");
                    findings.push(found(STORE_OLD, with(version)).with(step));
                }
                if !errors.is_empty() {
                    findings.push(found(STORE_ALARM, with(&list(errors))).with_all(room(endpoint)));
                }
                let quota = database.quota.unwrap_or(QUOTA);
                if database.in_use > quota / 5 * 4 {
                    let text = format!("{} of {} MB are in use", database.in_use >> 20, quota >> 20);
                    findings.push(found(STORE_QUOTA, with(&text)).with_all(room(endpoint)));
                }
            }
        }
    }
    findings.dedup();
    findings
}

fn room(endpoint: &str) -> Vec<Step> {
    let etcdctl = format!("etcdctl --endpoints {endpoint}");
    vec![
        Step::change("start etcd with --auto-compaction-mode=periodic --auto-compaction-retention=5m"),
        Step::run(format!("{etcdctl} compact REVISION, which `{etcdctl} endpoint status -w json` shows")),
        Step::run(format!("{etcdctl} defrag")),
        Step::run(format!("{etcdctl} alarm disarm")),
    ]
}

/// What cannot be read is not called old.
fn is_old(version: &str) -> bool {
    let mut parts = version.split('.').map_while(|part| part.parse::<u32>().ok());
    matches!((parts.next(), parts.next()), (Some(major), Some(minor)) if (major, minor) < OLDEST)
}

/// The one that runs.
fn sidecar(store: &Store) -> Vec<Finding> {
    let Some(report) = &store.report else { return Vec::new() };
    let pid = report.sidecar.map_or(0, |sidecar| sidecar.pid);
    let named = format!("{} (pid {pid})", store.name);
    if report.age() > STALE {
        let step = Step::run(format!("kill -9 {pid}; handoff run"));
        return vec![found(SIDECAR_HANGS, named).with(step)];
    }
    let hosts = report.host.iter().map(|host| &host.stand);
    let stands: Vec<&Stand> = hosts.chain(report.edge.iter().map(|edge| &edge.stand)).collect();
    let mut findings = Vec::new();
    if let Some(out) = stands.iter().find(|stand| !stand.connected) {
        let why = out.problem.as_deref().unwrap_or("it has just begun");
        let step = Step::change(format!("see its log; it says: {why}"));
        findings.push(found(STORE_OUT, format!("{named}: {why}")).with(step));
    }
    let lost: u64 = stands.iter().map(|stand| stand.leases_lost).sum();
    if lost > 0 {
        let step = Step::change(
            "see its log for when, and what the host and etcd did then; a restart of it forgets this",
        );
        findings.push(found(STORE_LEASE, format!("{named}: {lost} times since it began")).with(step));
    }
    for edge in report.host.iter().flat_map(|host| &host.edges).filter(|edge| edge.behind_ms >= BEHIND_MS) {
        let text = format!("{}: for {}.{} s", edge.name, edge.behind_ms / 1000, edge.behind_ms % 1000 / 100);
        let step = Step::change(format!("see the log of `handoff run` on {}", edge.name));
        findings.push(found(STORE_BEHIND, text).with(step));
    }
    findings
}

fn people(store: &Store) -> Vec<Finding> {
    if store.edges.as_ref().is_some_and(BTreeSet::is_empty) {
        let step = Step::run(format!(
            "handoff run --role edge --store … --store-cluster {}, on each nginx host",
            store.cluster
        ));
        return vec![
            found(STORE_NO_EDGE, format!("none in the cluster {:?}", store.cluster.as_str())).with(step),
        ];
    }
    let hosts: BTreeSet<&Name> = store.acks.iter().map(|ack| &ack.host).collect();
    hosts.into_iter().flat_map(|host| uneven(store, host)).collect()
}

/// What one nginx has of a host, and another has not.
fn uneven(store: &Store, host: &Name) -> Vec<Finding> {
    let acks = || store.acks.iter().filter(|ack| ack.host == *host);
    let mut all = BTreeMap::<&str, BTreeSet<&str>>::new();
    for (upstream, peers) in acks().flat_map(|ack| &ack.upstreams) {
        all.entry(upstream).or_default().extend(peers.iter().map(String::as_str));
    }
    if all.is_empty() {
        let step =
            Step::change("name its workers in the upstreams of each nginx, or give it its --store-address");
        return vec![found(STORE_NO_PEER, host.as_str()).with(step)];
    }
    let mut findings = Vec::new();
    for ack in acks() {
        for (upstream, peers) in &all {
            let own = ack.upstreams.get(*upstream);
            let lacks: Vec<&&str> =
                peers.iter().filter(|peer| own.is_none_or(|own| !own.contains(**peer))).collect();
            if lacks.is_empty() {
                continue;
            }
            let text = format!("nginx on {}, upstream {upstream:?}, of {host}: {}", ack.edge, list(lacks));
            let step = Step::change(format!(
                "on {}: upstream {upstream} with handoff; and these servers, then nginx -s reload",
                ack.edge
            ));
            findings.push(found(STORE_MISSING, text).with(step));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::stage::{good, only_in};
    use super::*;
    use crate::{
        doctor::facts::AckSeen,
        store::{Role, report::stage::report, standing::Database},
    };

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    fn ack(edge: &str, upstreams: &[(&str, &[&str])]) -> AckSeen {
        let peers = |peers: &[&str]| peers.iter().map(|peer| (*peer).to_owned()).collect();
        let upstreams = upstreams.iter().map(|(upstream, of)| ((*upstream).to_owned(), peers(of))).collect();
        AckSeen { host: name("app1"), edge: name(edge), upstreams }
    }

    fn well() -> MemberAnswer {
        let database = Database { size: 9 << 20, in_use: 1 << 20, quota: None };
        MemberAnswer::Status { version: "3.4.23".into(), database, errors: Vec::new() }
    }

    fn with(change: impl FnOnce(&mut Store)) -> Facts {
        let peers: &[(&str, &[&str])] = &[("shop", &["10.0.0.5:3000", "10.0.0.5:3001"])];
        let member = |endpoint: &str| Member { endpoint: endpoint.into(), answer: well() };
        let mut store = Store {
            name: name("app1"),
            role: Role::Host,
            cluster: name("default"),
            user: Some("app1".into()),
            unguarded: Vec::new(),
            members: vec![member("https://10.0.0.2:2379"), member("https://10.0.0.3:2379")],
            login: Login::Lacks(Vec::new()),
            edges: Some([name("edge1"), name("edge2")].into()),
            acks: vec![ack("edge1", peers), ack("edge2", peers)],
            report: Some(report()),
        };
        change(&mut store);
        Facts { stores: vec![store], ..good() }
    }

    fn right() -> Facts {
        with(|_| {})
    }

    fn one(answer: MemberAnswer) -> Facts {
        with(|store| store.members[0].answer = answer)
    }

    fn every(answer: &MemberAnswer) -> Facts {
        with(|store| store.members.iter_mut().for_each(|member| member.answer = answer.clone()))
    }

    #[test]
    fn a_member_answers_is_believed_and_has_a_leader() {
        let away = MemberAnswer::Unreached("Connection refused".into());
        let finding = only_in("store-member-away", &one(away.clone()), &every(&away));
        assert!(finding.found.starts_with("https://10.0.0.2:2379: Connection refused"), "{}", finding.found);
        only_in("store-unreached", &every(&away), &one(away.clone()));
        only_in("store-tls", &every(&MemberAnswer::Unspoken("UnknownIssuer".into())), &every(&away));
        only_in("store-file", &every(&MemberAnswer::File("/ca: No such file".into())), &right());
        only_in("store-no-quorum", &one(MemberAnswer::NoLeader), &right());
    }

    #[test]
    fn it_is_new_enough_and_has_room() {
        let status = |version: &str, in_use, quota, errors: &[&str]| {
            let database = Database { size: in_use, in_use, quota };
            let errors = errors.iter().map(|error| (*error).to_owned()).collect();
            one(MemberAnswer::Status { version: version.into(), database, errors })
        };
        only_in("store-old", &status("3.3.27", 1, None, &[]), &status("3.10.0", 1, None, &[]));
        only_in("store-alarm", &status("3.5.1", 1, None, &["memberID:1 alarm:NOSPACE "]), &right());
        let (gigabyte, megabyte) = (1 << 30, 1 << 20);
        let large = status("3.6.0", 3 * gigabyte, Some(8 * gigabyte), &[]);
        only_in("store-nearly-full", &status("3.4.1", 2 * gigabyte - 9, None, &[]), &large);
        only_in("store-nearly-full", &status("3.6.0", 90 * megabyte, Some(100 * megabyte), &[]), &right());
    }

    #[test]
    fn it_is_spoken_to_by_https_as_somebody_who_may() {
        only_in(
            "store-in-clear",
            &with(|store| store.unguarded = vec!["http://10.0.0.2:1".into()]),
            &right(),
        );
        only_in(
            "store-user",
            &with(|store| store.login = Login::Refused("invalid password".into())),
            &right(),
        );
        let lacks = with(|store| {
            store.login = Login::Lacks(vec!["read /handoff/v1/default/edges/ --prefix=true".into()])
        });
        let finding = only_in("store-rights", &lacks, &right());
        let run = "etcdctl role grant-permission app1 read /handoff/v1/default/edges/ --prefix=true";
        assert_eq!(finding.mend, [Step::run(run)]);
    }

    #[test]
    fn the_sidecar_is_in_it_and_keeps_its_lease() {
        let sidecar = |change: fn(&mut crate::store::report::StoreReport)| {
            with(|store| change(store.report.as_mut().unwrap()))
        };
        let out = sidecar(|report| {
            let stand = &mut report.host.as_mut().unwrap().stand;
            (stand.connected, stand.problem) = (false, Some("another process is \"app1\" there".into()));
        });
        assert!(only_in("store-not-in", &out, &right()).found.contains("another process"));
        let lost = sidecar(|report| report.edge.as_mut().unwrap().stand.leases_lost = 2);
        only_in("store-lease-lost", &lost, &right());
        let behind = sidecar(|report| report.host.as_mut().unwrap().edges[0].behind_ms = 2_300);
        assert!(only_in("store-edge-behind", &behind, &right()).found.contains("edge1: for 2.3 s"));
        only_in("sidecar-hangs", &sidecar(|report| report.at = 0), &right());
        // Where etcd does not answer that is what is said.
        let mut away = every(&MemberAnswer::Unreached("Connection refused".into()));
        away.stores[0].report = out.stores[0].report.clone();
        only_in("store-not-in", &out, &away);
    }

    #[test]
    fn some_nginx_is_there_and_each_has_the_same() {
        only_in(
            "store-no-edge",
            &with(|store| store.edges = Some(BTreeSet::new())),
            &with(|store| store.edges = None),
        );
        let nothing = with(|store| store.acks.iter_mut().for_each(|ack| ack.upstreams.clear()));
        only_in("store-no-peer", &nothing, &right());
        let less = with(|store| _ = store.acks[1].upstreams.get_mut("shop").unwrap().remove("10.0.0.5:3001"));
        let finding = only_in("store-upstream-missing", &less, &right());
        assert_eq!(finding.found, "nginx on edge2, upstream \"shop\", of app1: 10.0.0.5:3001");
        let none = with(|store| store.acks[0].upstreams.clear());
        assert!(only_in("store-upstream-missing", &none, &nothing).found.contains("edge1"));
    }
}
