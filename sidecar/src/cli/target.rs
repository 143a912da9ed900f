//! What an operator means: an app, one of its workers, or an address.

use super::{Context, Exit, Failure};
use crate::{
    peer::{Peer, Place},
    pm2::{PmId, home::Home},
    report, survey,
};
use handoff_wire::Upstreams;
use std::collections::BTreeSet;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Address(String),
    App { name: String, id: Option<PmId> },
}

impl Target {
    pub(super) fn parse(text: &str) -> Self {
        if Place::parse(text).is_some() {
            return Self::Address(text.to_owned());
        }
        let whole = || Self::App { name: text.to_owned(), id: None };
        let Some((name, id)) = text.rsplit_once(':') else { return whole() };
        match id.parse() {
            Ok(id) if !name.is_empty() => Self::App { name: name.to_owned(), id: Some(PmId(id)) },
            _ => whole(),
        }
    }

    /// The peers that are meant.
    pub(super) async fn resolve(&self, context: &Context, view: &Upstreams) -> Result<Vec<Peer>, Failure> {
        let known: BTreeSet<Peer> = peers(view).collect();
        match self {
            Self::Address(address) => by_address(address, &known),
            Self::App { name, id } => by_app(context, name, *id, known).await,
        }
    }
}

/// The upstreams that are meant: the one of this name, or those that an app's workers are in.
pub(super) async fn upstreams(
    text: &str,
    context: &Context,
    view: &Upstreams,
) -> Result<Vec<String>, Failure> {
    if view.upstreams.iter().any(|up| up.name == text) {
        return Ok(vec![text.to_owned()]);
    }
    let names = view.upstreams.iter().map(|up| up.name.as_str());
    let known = || unknown(format!("no upstream with `handoff` is named {text}"), names.clone());
    match Target::parse(text) {
        Target::App { name, id: None } => {
            let peers = by_app(context, &name, None, peers(view).collect()).await;
            let peers = peers
                .map_err(|failure| Failure { text: format!("{}; and {failure}", known()), ..failure })?;
            let upstreams: BTreeSet<String> = peers.into_iter().map(|peer| peer.upstream).collect();
            Ok(upstreams.into_iter().collect())
        }
        // One worker of several cannot be paused, nor can an address: that is a drain.
        Target::Address(_) | Target::App { id: Some(_), .. } => Err(known()),
    }
}

pub(super) fn peers(view: &Upstreams) -> impl Iterator<Item = Peer> {
    let of = |name: String| move |address: String| Peer::new(name.clone(), address);
    view.upstreams
        .iter()
        .flat_map(move |up| up.peers.iter().map(|peer| peer.address.clone()).map(of(up.name.clone())))
}

fn by_address(address: &str, known: &BTreeSet<Peer>) -> Result<Vec<Peer>, Failure> {
    let wanted = Place::parse(address);
    let found: Vec<Peer> = known.iter().filter(|peer| peer.place() == wanted).cloned().collect();
    if !found.is_empty() {
        return Ok(found);
    }
    let there: BTreeSet<&str> = known.iter().map(|peer| peer.address.as_str()).collect();
    Err(unknown(format!("no upstream with `handoff` has the peer {address}"), there.into_iter()))
}

async fn by_app(
    context: &Context,
    name: &str,
    id: Option<PmId>,
    known: BTreeSet<Peer>,
) -> Result<Vec<Peer>, Failure> {
    let mut found: Vec<(Home, Vec<Peer>)> = Vec::new();
    let mut there = BTreeSet::new();
    for home in &context.homes {
        let survey = survey::take(home, &context.overrides, known.clone()).await?;
        there.extend(survey.roster.workers().map(|(id, worker)| format!("{}:{id}", worker.app())));
        let is_meant = |app: &str, of: PmId| app == name && id.is_none_or(|id| id == of);
        let meant: Vec<_> =
            survey.roster.workers().filter(|(of, worker)| is_meant(worker.app(), *of)).collect();
        if meant.is_empty() {
            continue;
        }
        let now = meant.iter().flat_map(|(_, worker)| worker.claims().iter().cloned());
        // A worker that is being replaced listens nowhere: the sidecar knows where it did.
        let remembered = report::live(home).flat_map(|report| report.workers);
        let remembered =
            remembered.filter(|worker| is_meant(&worker.app, worker.id)).flat_map(|worker| worker.peers);
        let peers: BTreeSet<Peer> = now.chain(remembered.filter(|peer| known.contains(peer))).collect();
        found.push((home.clone(), peers.into_iter().collect()));
    }
    let wanted = id.map_or_else(|| name.to_owned(), |id| format!("{name}:{id}"));
    match found.as_slice() {
        [] => Err(unknown(format!("PM2 knows no {wanted}"), there.iter().map(String::as_str))),
        [(_, peers)] if peers.is_empty() => Err(Failure::new(
            Exit::Failed,
            format!("{wanted} has no peer in nginx that is certain: `handoff status` says why"),
        )),
        [(_, peers)] => Ok(peers.clone()),
        several => {
            let homes: Vec<String> = several.iter().map(|(home, _)| home.to_string()).collect();
            let homes = homes.join(" and ");
            Err(Failure::new(
                Exit::UnknownTarget,
                format!("{wanted} runs under {homes}: say which with --pm2-home"),
            ))
        }
    }
}

fn unknown<'a>(text: String, there: impl Iterator<Item = &'a str>) -> Failure {
    let there: Vec<&str> = there.collect();
    let there = if there.is_empty() { "nothing".to_owned() } else { there.join(", ") };
    Failure::new(Exit::UnknownTarget, format!("{text}. There is: {there}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_an_app_a_worker_or_an_address() {
        let app = |name: &str, id: Option<u32>| Target::App { name: name.into(), id: id.map(PmId) };
        assert_eq!(Target::parse("shop"), app("shop", None));
        assert_eq!(Target::parse("shop:3"), app("shop", Some(3)));
        assert_eq!(Target::parse("my:shop"), app("my:shop", None));
        assert_eq!(Target::parse(":3"), app(":3", None));
        for address in ["127.0.0.1:3000", "[::1]:3000", "unix:/run/a.sock"] {
            assert_eq!(Target::parse(address), Target::Address(address.into()));
        }
    }

    #[test]
    fn an_unknown_address_is_told_what_there_is() {
        let known =
            [Peer::new("app", "127.0.0.1:1"), Peer::new("app", "127.0.0.1:2"), Peer::new("b", "127.0.0.1:2")];
        let known = BTreeSet::from(known);
        assert_eq!(by_address("[::ffff:127.0.0.1]:2", &known).unwrap().len(), 2);
        let failure = by_address("127.0.0.1:3", &known).unwrap_err();
        assert_eq!(failure.exit, Exit::UnknownTarget);
        assert!(failure.text.ends_with("There is: 127.0.0.1:1, 127.0.0.1:2"), "{failure}");
    }
}
