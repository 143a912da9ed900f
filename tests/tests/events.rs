//! Every change of a mark leaves one line in nginx's error log and one event: who, what, why, and what was in flight.

use anyhow::{Context, Result};
use e2e::{
    backend::Backend,
    site::{Say, Site, VERSIONS},
};
use handoff_wire::{Ack, Event, EventKind, Span, State};
use serde_json::json;
use tokio::spawn;

/// How many events nginx remembers.
const REMEMBERED: u64 = 256;

type Change = (EventKind, State, State);

/// The words of a line in the log.
fn line(event: &Event) -> String {
    let Event { upstream, peer, owner, from, to, in_flight, reason, .. } = event;
    let kind = event.kind.as_str();
    let [from, to] = [from, to].map(|state| state.map_or_else(String::new, |state| state.to_string()));
    format!(
        "{kind} of {owner}: peer {peer} in upstream \"{upstream}\" {from} -> {to}, {in_flight} in flight ({reason})"
    )
}

/// What nginx told of marks, without what it told of itself.
fn told(site: &Site) -> Vec<String> {
    let kinds = ["mark of ", "ready of ", "lapse of "];
    site.told().into_iter().filter(|line| kinds.iter().any(|kind| line.starts_with(kind))).collect()
}

#[tokio::test]
async fn each_change_is_told_once_with_its_owner_its_reason_and_what_is_in_flight() -> Result<()> {
    let backend = Backend::start(2).await?;
    let (one, two) = (backend.peer(0), backend.peer(1));
    for version in VERSIONS {
        let site = Site::with(version, &backend).await?;
        assert_eq!((site.events(0).await?.events, told(&site)), (vec![], vec![]));
        let visits: Vec<_> = (0..4)
            .map(|_| {
                let door = site.visitors();
                spawn(async move { door.get("/hold").await })
            })
            .collect();
        backend.holds(4).await?;

        let health =
            Say { owner: "health", state: State::Unhealthy, reason: "GET /health: 500", ..Say::DRAIN };
        let drain = Say { reason: "a new disk – Zoë's", ..Say::DRAIN };
        let down = Say { state: State::Down, reason: "it burns", ..Say::DRAIN };
        let ready = Say { reason: "all is well", ..Say::READY };
        // What is said, of whom, and what comes of it: nothing where nothing changes.
        let steps: [(&Say, &str, Option<Change>); 9] = [
            (&health, &one, Some((EventKind::Mark, State::Up, State::Unhealthy))),
            (&drain, &one, Some((EventKind::Mark, State::Unhealthy, State::Draining))),
            (&drain, &one, None),
            (&Say { reason: "the same, for another reason", ..Say::DRAIN }, &one, None),
            (&down, &one, Some((EventKind::Mark, State::Draining, State::Down))),
            (&ready, &two, None),
            (&ready, &one, Some((EventKind::Ready, State::Down, State::Unhealthy))),
            (&ready, &one, None),
            (
                &Say { owner: "health", ..ready.clone() },
                &one,
                Some((EventKind::Ready, State::Unhealthy, State::Up)),
            ),
        ];
        let mut wanted = Vec::new();
        for (say, peer, change) in steps {
            let generation = site.overview().await?.generation;
            let ack = site.say(say, &[peer]).await?;
            // A change is seen in the generation, and nothing else is.
            assert_eq!(ack.generation > generation, change.is_some(), "{say:?}");
            let Some((kind, from, to)) = change else { continue };
            assert_eq!(ack.marks.first().map(|mark| (mark.state, mark.in_flight)), Some((to, 2)));
            wanted.push((kind, say.owner.to_owned(), say.reason.to_owned(), Some(from), Some(to), 2));
        }
        let events = site.events(0).await?;
        let got: Vec<_> = (events.events.iter())
            .map(|event| {
                let (owner, reason) = (event.owner.to_string(), event.reason.clone());
                (event.kind, owner, reason, event.from, event.to, event.in_flight)
            })
            .collect();
        assert_eq!(got, wanted);
        assert!(events.events.iter().all(|event| event.peer == one && event.upstream == "app"));
        let numbers: Vec<u64> = events.events.iter().map(|event| event.seq).collect();
        assert_eq!((numbers, events.next), ((1..=wanted.len() as u64).collect(), wanted.len() as u64));
        assert!(events.events.is_sorted_by_key(|event| event.at), "time goes on");
        let lines: Vec<String> = events.events.iter().map(line).collect();
        assert_eq!(told(&site), lines);
        let notices = site
            .error_log()
            .lines()
            .filter(|log| log.contains("[notice]") && log.contains(" in flight ("))
            .count();
        assert_eq!(notices, lines.len(), "a planned change is no warning");

        // What came after what one knows already.
        let after = site.events(3).await?;
        assert_eq!(
            (after.events.as_slice(), after.next),
            (events.events.get(3..).context("more")?, events.next)
        );
        let after = site.events(events.next).await?;
        assert_eq!((after.events, after.next), (vec![], events.next));

        backend.release().await?;
        for visit in visits {
            assert_eq!(visit.await??.status, 200);
        }
        site.end().await?;
    }
    Ok(())
}

#[tokio::test]
async fn one_call_for_many_is_an_event_for_each() -> Result<()> {
    let backend = Backend::start(3).await?;
    let [one, two, three] = [backend.peer(0), backend.peer(1), backend.peer(2)];
    for version in VERSIONS {
        let mut site = Site::new(version).await?;
        // The same peers in two upstreams: an address alone means both.
        let usual = site.usual(&backend);
        site.write(&format!(
            "upstream twin {{ zone twin 256k; server {one}; server {three}; handoff; }}\n{usual}"
        ))?;
        site.start().await?;
        site.say(&Say { reason: "both", ..Say::DRAIN }, &[&one, &two]).await?;
        let events = site.events(0).await?.events;
        let mut whom: Vec<_> =
            events.iter().map(|event| (event.upstream.as_str(), event.peer.as_str())).collect();
        whom.sort_unstable();
        let mut wanted = [("app", one.as_str()), ("app", two.as_str()), ("twin", one.as_str())];
        wanted.sort_unstable();
        assert_eq!(whom, wanted);
        // An upstream that is named is meant alone; `all` removes every owner's mark, each with its event.
        site.say(&Say { owner: "health", state: State::Unhealthy, reason: "sick", ..Say::DRAIN }, &[&one])
            .await?;
        let last = site.events(0).await?.next;
        let all = json!({ "owner": "operator", "marks":
            [{ "upstream": "app", "peer": one, "state": "up", "all": true, "reason": "enough" }] });
        site.put(all).await?.json::<Ack>()?;
        let events = site.events(last).await?.events;
        let owners: Vec<&str> = events.iter().map(|event| event.owner.as_str()).collect();
        assert_eq!(owners, ["operator", "health"]);
        assert!(events.iter().all(|event| event.upstream == "app" && event.reason == "enough"));
        assert_eq!(told(&site).len(), site.events(0).await?.events.len());
        site.end().await?;
    }
    Ok(())
}

#[tokio::test]
async fn only_the_recent_past_is_remembered() -> Result<()> {
    let backend = Backend::start(2).await?;
    let one = backend.peer(0);
    for version in VERSIONS {
        let site = Site::with(version, &backend).await?;
        let changes = REMEMBERED + 44;
        for number in 1..=changes {
            let say = if number % 2 == 1 { Say::DRAIN } else { Say::READY };
            site.say(&say, &[&one]).await?;
            if number == changes / 2 {
                site.reload().await?;
            }
        }
        let events = site.events(0).await?;
        let numbers: Vec<u64> = events.events.iter().map(|event| event.seq).collect();
        assert_eq!(numbers, (changes - REMEMBERED + 1..=changes).collect::<Vec<_>>());
        assert_eq!(events.next, changes);
        // Each is still whole.
        let is_right = |event: &Event| match event.seq % 2 {
            1 => {
                (event.kind, event.from, event.to)
                    == (EventKind::Mark, Some(State::Up), Some(State::Draining))
            }
            _ => {
                (event.kind, event.from, event.to)
                    == (EventKind::Ready, Some(State::Draining), Some(State::Up))
            }
        };
        assert!(events.events.iter().all(is_right), "{:?}", events.events);
        // The log forgets nothing.
        assert_eq!(told(&site).len() as u64, changes);
        // Whoever knows of a future that never was is told nothing, and keeps its place.
        let after = site.events(u64::MAX).await?;
        assert_eq!((after.events, after.next), (vec![], u64::MAX));
        site.end().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_reason_cannot_forge_a_line() -> Result<()> {
    let backend = Backend::start(2).await?;
    let one = backend.peer(0);
    for version in VERSIONS {
        let site = Site::with(version, &backend).await?;
        // The longest that is taken, with all that a log or a format might trip over.
        let reason = format!("{:%<128}", "%s %n \" ' \\ { } $1 ${2} <b> ");
        let set = json!({ "owner": "pm2:a%sb", "lease": Span::from_secs(600).to_string(),
            "marks": [{ "peer": one, "state": "draining", "reason": reason }] });
        site.put(set).await?.json::<Ack>()?;
        let event = site.events(0).await?.events.pop().context("an event")?;
        assert_eq!(event.reason, reason);
        assert_eq!(told(&site), [line(&event)]);
        site.end().await?;
    }
    Ok(())
}
