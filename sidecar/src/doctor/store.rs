//! The store as a sidecar of this host would meet it: with its certificates, its user, and nothing written.

use super::{
    facts::{AckSeen, Login, Member, MemberAnswer, Store},
    finding::Unseen,
};
use crate::store::{
    Settings, StoreError,
    report::StoreReport,
    session::{PATIENCE, connect_to, read, timely},
};
use etcd_client::{Client, Compare, CompareOp, GetOptions, Txn, TxnOp, TxnOpResponse};
use handoff_wire::store::{AckValue, Key, Keys};
use std::collections::{BTreeMap, BTreeSet};
use tokio::{net::TcpStream, time};

/// Something that a role needs, and how `etcdctl` grants it.
struct Need {
    key: String,
    op: TxnOp,
    grant: String,
}

/// More answers of nginx hosts than this are not compared.
const MOST: i64 = 1000;

pub async fn look(settings: &Settings, report: Option<StoreReport>, unseen: &mut Vec<Unseen>) -> Store {
    let mut store = Store {
        name: settings.name.clone(),
        role: settings.role,
        cluster: settings.cluster.clone(),
        user: settings.user.as_ref().map(|(user, _)| user.clone()),
        unguarded: settings.unguarded().map(str::to_owned).collect(),
        members: Vec::new(),
        login: Login::Untried,
        edges: None,
        acks: Vec::new(),
        report,
    };
    for endpoint in &settings.endpoints {
        let answer = member(settings, endpoint).await;
        store.members.push(Member { endpoint: endpoint.clone(), answer });
    }
    let answers = |member: &&Member| matches!(member.answer, MemberAnswer::Status { .. });
    let Some(endpoint) = store.members.iter().find(answers).map(|member| member.endpoint.clone()) else {
        return store;
    };
    let mut client = match connect_to(settings, &endpoint).await {
        Ok(client) => client,
        Err(StoreError::File { path, error }) => {
            let answer = MemberAnswer::File(format!("{}: {error}", path.display()));
            store.members.iter_mut().for_each(|member| member.answer = answer.clone());
            return store;
        }
        Err(error) => {
            store.login = Login::Refused(error.to_string());
            return store;
        }
    };
    store.login = login(settings, &mut client, unseen).await;
    if store.login == Login::Lacks(Vec::new())
        && let Err(error) = people(settings, &mut client, &mut store, unseen).await
    {
        unseen.push(Unseen::new(format!("who is in the store ({})", settings.name), error));
    }
    store
}

/// Whoever may connect may ask for that, with no user.
async fn member(settings: &Settings, endpoint: &str) -> MemberAnswer {
    let authority = endpoint.split_once("://").map_or(endpoint, |(_, rest)| rest).trim_end_matches('/');
    let port = if endpoint.starts_with("https") { 443 } else { 80 };
    let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    let address = if has_port { authority.to_owned() } else { format!("{authority}:{port}") };
    match time::timeout(PATIENCE, TcpStream::connect(&address)).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => return MemberAnswer::Unreached(error.to_string()),
        Err(_) => return MemberAnswer::Unreached("no connection in 1.5 s".to_owned()),
    }
    let nobody = Settings { user: None, ..settings.clone() };
    let status = match connect_to(&nobody, endpoint).await {
        Ok(mut client) => timely(client.status()).await,
        Err(error) => Err(error),
    };
    match status {
        Ok(status) if status.leader() == 0 => MemberAnswer::NoLeader,
        Ok(status) => MemberAnswer::Status {
            version: status.version().to_owned(),
            database: (&status).into(),
            errors: status.errors().to_vec(),
        },
        Err(StoreError::File { path, error }) => MemberAnswer::File(format!("{}: {error}", path.display())),
        Err(StoreError::Silent) => MemberAnswer::Unreached("it does not answer in 1.5 s".to_owned()),
        Err(error) => match error.to_string() {
            text if text.contains("no leader") => MemberAnswer::NoLeader,
            text => MemberAnswer::Unspoken(text),
        },
    }
}

/// Asks for each thing that the role needs in a transaction whose condition is never so: etcd looks at rights first.
async fn login(settings: &Settings, client: &mut Client, unseen: &mut Vec<Unseen>) -> Login {
    let mut lacks = Vec::new();
    for Need { key, op, grant } in needs(settings) {
        let never = Compare::version(key, CompareOp::Equal, -1);
        match timely(client.txn(Txn::new().when([never]).and_then([op]))).await {
            Ok(_) => {}
            Err(error) if error.to_string().contains("permission denied") => lacks.push(grant),
            Err(error) => {
                let text = error.to_string();
                // Users are asked for, and none was given; or the token is none any more.
                if ["user name is empty", "invalid auth token", "authentication"]
                    .iter()
                    .any(|it| text.contains(it))
                {
                    return Login::Refused(text);
                }
                unseen.push(Unseen::new(format!("the rights of {} in the store", settings.name), text));
                return Login::Untried;
            }
        }
    }
    Login::Lacks(lacks)
}

fn needs(settings: &Settings) -> Vec<Need> {
    let (keys, name) = (Keys::new(&settings.cluster), &settings.name);
    let put = |key: String, grant: String| Need { op: TxnOp::put(key.clone(), "{}", None), key, grant };
    let get = |key: String, grant: String| Need {
        op: TxnOp::get(key.clone(), Some(GetOptions::new().with_prefix().with_limit(1))),
        key,
        grant,
    };
    let mut needs = Vec::new();
    if settings.role.is_host() {
        let (host, acks) = (keys.host(name), keys.acks(name));
        let any = keys.worker(name, "", "");
        let workers = any.trim_end_matches('/').to_owned() + "/";
        needs.extend([
            put(host.clone(), format!("readwrite {host}")),
            put(keys.worker(name, "doctor", "0.0.0.0:0"), format!("readwrite {workers} --prefix=true")),
            get(keys.edges(), format!("read {} --prefix=true", keys.edges())),
            get(acks.clone(), format!("read {acks} --prefix=true")),
        ]);
    }
    if settings.role.is_edge() {
        let (first, end) = keys.said();
        // What stands before the name of a host.
        let acks = keys.ack(name, name);
        let acks = acks.strip_suffix(&format!("{name}/{name}")).unwrap_or(&acks).to_owned();
        let said = GetOptions::new().with_range(end.clone()).with_limit(1);
        needs.extend([
            put(keys.edge(name), format!("readwrite {} --prefix=true", keys.edges())),
            put(keys.ack(name, name), format!("readwrite {acks} --prefix=true")),
            Need {
                op: TxnOp::get(first.clone(), Some(said)),
                grant: format!("read {first} {end}"),
                key: first,
            },
        ]);
    }
    needs
}

/// Who is there, and what they have.
async fn people(
    settings: &Settings,
    client: &mut Client,
    store: &mut Store,
    unseen: &mut Vec<Unseen>,
) -> Result<(), StoreError> {
    let keys = Keys::new(&settings.cluster);
    let acks = match settings.role.is_edge() {
        // An edge may read those of all hosts.
        true => keys.ack(&settings.name, &settings.name).replace(&format!("{0}/{0}", settings.name), ""),
        false => keys.acks(&settings.name),
    };
    let names = GetOptions::new().with_prefix().with_keys_only();
    let some = GetOptions::new().with_prefix().with_limit(MOST);
    let txn = Txn::new().and_then([TxnOp::get(keys.edges(), Some(names)), TxnOp::get(acks, Some(some))]);
    let found = timely(client.txn(txn)).await?;
    let mut edges = BTreeSet::new();
    for response in found.op_responses() {
        let TxnOpResponse::Get(found) = response else { continue };
        if found.more() {
            let why = format!("only {MOST} of the answers of nginx hosts were compared");
            unseen.push(Unseen::new("the whole store", why));
        }
        for kv in found.kvs() {
            match kv.key_str().ok().and_then(|key| keys.parse(key)) {
                Some(Key::Edge(edge)) => _ = edges.insert(edge),
                Some(Key::Ack { host, edge }) => {
                    let Ok(value) = read::<AckValue>(kv.value()) else { continue };
                    let mut upstreams = BTreeMap::<String, BTreeSet<String>>::new();
                    for upstream in value.upstreams {
                        let peers = upstream.peers.into_iter().map(|peer| peer.address);
                        upstreams.entry(upstream.name).or_default().extend(peers);
                    }
                    store.acks.push(AckSeen { host, edge, upstreams });
                }
                _ => {}
            }
        }
    }
    // One that is gone said it in an earlier life.
    store.acks.retain(|ack| edges.contains(&ack.edge));
    store.edges = Some(edges);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    #[test]
    fn what_a_role_needs_is_what_the_documentation_grants() {
        let docs =
            include_str!("../../../docs/operations/many-hosts.md").replace("$P", "/handoff/v1/default");
        for (role, name, user) in [("host", "app1", "app1"), ("edge", "edge1", "edge")] {
            let text = format!(
                "endpoints = [\"http://127.0.0.1:1\"]\nrole = \"{role}\"\nname = \"{name}\"\naddresses = [\"10.0.0.5\"]"
            );
            let store: config::Store = toml::from_str(&text).unwrap();
            let settings = Settings::of(store, &"unix:/run/n.sock".parse().unwrap()).unwrap().unwrap();
            let needs = needs(&settings);
            assert!(needs.len() >= 3);
            for need in needs {
                let line = format!("etcdctl role grant-permission {user} {}", need.grant);
                assert!(docs.lines().any(|own| own == line), "{line}");
            }
        }
    }
}
