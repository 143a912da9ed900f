//! `handoff status --watch`: what the dashboard shows, in a terminal. Elsewhere the status, whenever it changed.

use super::{Status, collect, screen::Screen};
use crate::cli::{
    Context, Exit, Failure, events,
    progress::{
        Room, can_draw, has_colour,
        line::{Line, Style},
        room,
    },
    say,
};
use crate::{control::ControlError, report};
use handoff_wire::{
    Deploy, Event, Owner, OwnerKind, PeerState, PeerView, State, Timeline, Track, UpstreamView, Upstreams,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Write as _},
    time::{Duration, Instant},
};

const PAUSE: Duration = Duration::from_secs(1);
/// So many deploys are drawn, the newest first.
const DEPLOYS: usize = 3;
const EVENTS: usize = 8;
/// How wide the picture of a deploy is at least and at most.
const BAR: (usize, usize) = (10, 60);

/// What was seen until now.
#[derive(Default)]
struct Past {
    instance: String,
    generation: Option<u64>,
    timeline: Option<Timeline>,
    after: u64,
    events: Vec<Event>,
    sample: Option<Sample>,
}

/// How many requests each peer had been given, and when; and how many a second came since the last time.
struct Sample {
    at: Instant,
    requests: BTreeMap<(String, String), u64>,
    rates: BTreeMap<(String, String), f64>,
}

type Cell = (Style, String);

pub(super) async fn run(context: &Context, json: bool) -> Result<Exit, Failure> {
    let mut past = Past::default();
    let mut control = context.control();
    let mut screen = (!json && can_draw()).then(|| Screen::new(has_colour()));
    let mut last = String::new();
    loop {
        let status = collect(context).await;
        let written = match &mut screen {
            Some(screen) => {
                if let Some(view) = &status.view {
                    // What is not known is not shown; the status says that nginx is away.
                    _ = past.follow(&mut control, view).await;
                }
                let room = room();
                let drawn = screen.draw(&past.lines(&status, room), room);
                io::stdout().write_all(drawn.as_bytes()).and_then(|()| io::stdout().flush())
            }
            None => {
                let text = if json { status.json()? } else { plain(&status) };
                let is_news = json || text != last;
                last = text;
                if is_news { say(&last) } else { Ok(()) }
            }
        };
        // Whoever read us has gone.
        if written.is_err() {
            return Ok(status.exit);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn plain(status: &Status) -> String {
    let problems: String = status.problems.iter().map(|problem| format!("handoff: {problem}\n")).collect();
    format!("{}\n{problems}", status.text())
}

// === impl Past ===

impl Past {
    async fn follow(
        &mut self,
        control: &mut crate::control::Control,
        view: &Upstreams,
    ) -> Result<(), ControlError> {
        if self.instance != view.instance {
            // A restarted nginx counts from the beginning.
            *self = Self { instance: view.instance.clone(), ..Self::default() };
        }
        self.sample = Some(Sample::next(self.sample.take(), view));
        if self.generation != Some(view.generation) {
            self.timeline = Some(control.timeline().await?);
            let events = control.events(self.after).await?;
            self.after = events.next;
            // That a second owner says the same is no news.
            let news = events.events.into_iter().filter(|event| event.to.is_none() || event.from != event.to);
            self.events.extend(news);
            self.events.drain(..self.events.len().saturating_sub(EVENTS));
            self.generation = Some(view.generation);
        }
        Ok(())
    }

    fn lines(&self, status: &Status, room: Room) -> Vec<Line> {
        let mut lines = vec![Line::plain(&status.nginx.text())];
        let store = status.store.iter().map(super::store_text).collect::<String>();
        lines.extend(store.lines().map(Line::plain));
        lines.extend(status.nginx.paused.iter().map(|pause| styled(Style::Busy, pause.text().trim_end())));
        lines.extend(status.daemons.iter().map(|daemon| Line::plain(daemon.head().trim_end())));
        lines.extend(status.problems.iter().map(|problem| styled(Style::Bad, problem)));
        let forgotten = status.daemons.iter().filter_map(|daemon| report::of_forgotten(&daemon.forgotten));
        lines.extend(forgotten.map(|text| styled(Style::Bad, &text)));
        let workers = workers(status);
        for upstream in status.view.iter().flat_map(|view| &view.upstreams) {
            lines.push(Line::default());
            lines.extend(self.upstream(upstream, &workers));
        }
        lines.extend(self.deploys(room));
        let apps = status.daemons.iter().flat_map(|daemon| &daemon.apps);
        let levels: String = apps.map(|app| app.level_lines()).collect();
        if !levels.is_empty() {
            lines.push(Line::default());
            lines.extend(levels.lines().map(Line::plain));
        }
        if !self.events.is_empty() {
            lines.push(Line::default());
            lines.extend(self.events.iter().rev().map(|event| styled(Style::Dim, &events::text(event))));
        }
        fit(lines, room)
    }

    fn upstream(&self, upstream: &UpstreamView, workers: &BTreeMap<(&str, &str), String>) -> Vec<Line> {
        let UpstreamView { name, peers, queue, retry, .. } = upstream;
        let up = peers.iter().filter(|peer| peer.state.serves()).count();
        let rate: f64 = peers.iter().filter_map(|peer| self.rate(name, peer)).sum();
        let in_flight: u64 = peers.iter().map(|peer| peer.in_flight).sum();
        let held = queue.as_ref().map_or_else(String::new, |queue| format!("  {} held", queue.held));
        let style = if up == peers.len() { Style::Good } else { Style::Busy };
        let head = Line::plain(&format!("{name}  ")).with(style, &format!("{up} of {} up", peers.len()));
        let head = head.with(Style::Plain, &format!("  {rate:.1} requests/s  {in_flight} in flight{held}"));
        let heads = ["  PEER", "STATE", "IN FLIGHT", "REQ/S", "5XX", "CUT", "FAILS", "WORKER", "MARKS"];
        let mut rows = vec![heads.map(|head| (Style::Dim, head.to_owned())).to_vec()];
        rows.extend(peers.iter().map(|peer| {
            let worker = workers.get(&(name.as_str(), peer.address.as_str())).cloned();
            self.peer(name, peer, worker.unwrap_or_default())
        }));
        let mut lines = vec![head];
        lines.extend(columns(&rows));
        let help = [
            ("repeated", retry.as_ref().map(|retry| words(&retry.granted))),
            ("not repeated", retry.as_ref().map(|retry| words(&retry.refused))),
            (
                "waited",
                queue.as_ref().map(|queue| {
                    let ended = [
                        ("went on", queue.resumed),
                        ("as nginx alone", queue.released),
                        ("timed out", queue.timed_out),
                        ("client left", queue.left),
                        ("no room", queue.overflowed),
                    ];
                    ended.map(|(name, count)| (name.to_owned(), count)).to_vec()
                }),
            ),
        ];
        let help = help.into_iter().filter_map(|(name, counts)| {
            let some: Vec<String> = counts?
                .into_iter()
                .filter(|(_, count)| *count > 0)
                .map(|(of, count)| format!("{of} {count}"))
                .collect();
            (!some.is_empty()).then(|| format!("{name}: {}", some.join(", ")))
        });
        let help: Vec<String> = help.collect();
        if !help.is_empty() {
            lines.push(styled(Style::Dim, &format!("  {}", help.join("   "))));
        }
        lines
    }

    fn peer(&self, upstream: &str, peer: &PeerView, worker: String) -> Vec<Cell> {
        let rate = self.rate(upstream, peer).map_or_else(|| "-".to_owned(), |rate| format!("{rate:.1}"));
        let bad = |count: u64| (if count > 0 { Style::Bad } else { Style::Plain }, count.to_string());
        let marks: Vec<String> = peer.marks.iter().map(super::PeerStatus::mark).collect();
        vec![
            (Style::Plain, format!("  {}", peer.address)),
            (style_of(peer.state), peer.state.to_string()),
            (Style::Plain, peer.in_flight.to_string()),
            (Style::Plain, rate),
            bad(peer.responses.errors()),
            bad(peer.cut),
            bad(peer.fails),
            (Style::Plain, worker),
            (Style::Dim, marks.join(", ")),
        ]
    }

    fn rate(&self, upstream: &str, peer: &PeerView) -> Option<f64> {
        self.sample.as_ref()?.rates.get(&(upstream.to_owned(), peer.address.clone())).copied()
    }

    fn deploys(&self, room: Room) -> Vec<Line> {
        let Some(Timeline { deploys, now, .. }) = &self.timeline else { return Vec::new() };
        let mut lines = Vec::new();
        let mut seen = BTreeSet::new();
        for deploy in deploys.iter().rev().take(DEPLOYS) {
            // One that is under way is as long as it lasts until now, not until nginx was asked.
            let end = deploy.end(unix_now().max(*now));
            lines.push(Line::default());
            lines.push(head(deploy, end));
            let name = deploy.peers.iter().map(|track| track.peer.chars().count()).max().unwrap_or(0);
            let bar = room.columns.saturating_sub(name + 24).clamp(BAR.0, BAR.1);
            for track in &deploy.peers {
                seen.extend(track.steps.iter().map(|step| step.state));
                lines.push(picture(track, deploy, end, name, bar));
            }
        }
        if !lines.is_empty() {
            seen.insert(State::Up);
            let key: Vec<String> = seen.iter().map(|&state| format!("{} {state}", glyph(state))).collect();
            lines.push(styled(Style::Dim, &format!("  {}", key.join("   "))));
        }
        lines
    }
}

/// Which worker is behind which peer.
fn workers(status: &Status) -> BTreeMap<(&str, &str), String> {
    let mut names = BTreeMap::<(&str, &str), String>::new();
    for app in status.daemons.iter().flat_map(|daemon| &daemon.apps) {
        for worker in &app.workers {
            for peer in &worker.peers {
                let name = format!("{}:{} {}", app.app, worker.id, worker.phase);
                let names = names.entry((&peer.upstream, &peer.address)).or_default();
                let comma = if names.is_empty() { "" } else { ", " };
                *names = format!("{names}{comma}{name}");
            }
        }
    }
    names
}

fn head(deploy: &Deploy, end: u64) -> Line {
    let at = events::time_of_day(deploy.began);
    let lapsed: u64 = deploy.peers.iter().map(|track| track.lapsed).sum();
    let lasts = seconds(end.saturating_sub(deploy.began));
    let lasts = if deploy.ended.is_some() { lasts } else { format!("under way, {lasts}") };
    let line = Line::plain(&format!("{at}  {}  ", who(&deploy.owners)));
    let peers = u64::try_from(deploy.peers.len()).unwrap_or(u64::MAX);
    let line = line.with(Style::Dim, &format!("{}  {lasts}  {}", deploy.upstream, plural(peers, "peer")));
    if lapsed == 0 {
        return line;
    }
    line.with(Style::Bad, &format!("  {} lapsed: the owner fell silent", plural(lapsed, "mark")))
}

/// A roll-out is what everything else happens for.
fn who(owners: &[Owner]) -> String {
    let name = |owner: &Owner| match owner.kind() {
        OwnerKind::Rollout => "handoff reload".to_owned(),
        OwnerKind::Pm2 => "PM2".to_owned(),
        _ => owner.to_string(),
    };
    match owners.iter().find(|owner| owner.kind() == OwnerKind::Rollout) {
        Some(rollout) => name(rollout),
        None => owners.iter().map(name).collect::<Vec<_>>().join(", "),
    }
}

fn picture(track: &Track, deploy: &Deploy, end: u64, name: usize, bar: usize) -> Line {
    let mut line = Line::plain(&format!("  {:<name$}  ", track.peer));
    let cells: Vec<State> = cells(track, deploy.began, end, bar);
    for same in cells.chunk_by(|one, next| one == next) {
        let Some(&state) = same.first() else { continue };
        line = line.with(style_of(state.into()), &glyph(state).to_string().repeat(same.len()));
    }
    let away: u64 =
        track.spans(end).filter(|(state, ..)| *state != State::Up).map(|(_, from, to)| to - from).sum();
    let now = if track.state() == State::Up { String::new() } else { format!("  {}", track.state()) };
    line.with(Style::Dim, &format!("  {:>7}{now}", seconds(away)))
}

/// What the peer was, in so many parts of the time; of several states in a part the one that is worst: the shortest is seen.
fn cells(track: &Track, began: u64, end: u64, count: usize) -> Vec<State> {
    let (long, count) = (end.saturating_sub(began).max(1), u64::try_from(count).unwrap_or(1).max(1));
    let part = |at: u64| (at.saturating_sub(began) * count / long).min(count - 1);
    let spans: Vec<(State, u64, u64)> = track
        .spans(end)
        .filter(|(_, from, to)| to > from)
        .map(|(state, from, to)| (state, part(from), part(to - 1)))
        .collect();
    let worst =
        |at: u64| spans.iter().filter(|(_, from, to)| (*from..=*to).contains(&at)).map(|span| span.0).max();
    (0..count).map(|at| worst(at).unwrap_or(State::Up)).collect()
}

fn glyph(state: State) -> char {
    match state {
        State::Up => '█',
        State::Changing => '▓',
        State::Trial => '▄',
        State::Checking => '░',
        State::Unhealthy => 'x',
        State::Draining => '▒',
        State::Down => '·',
    }
}

fn style_of(state: PeerState) -> Style {
    match state {
        PeerState::Up => Style::Good,
        PeerState::Changing | PeerState::Draining | PeerState::Checking | PeerState::Trial => Style::Busy,
        PeerState::Down | PeerState::Unhealthy | PeerState::Unavail => Style::Bad,
    }
}

fn styled(style: Style, text: &str) -> Line {
    Line::default().with(style, text)
}

fn plural(count: u64, word: &str) -> String {
    format!("{count} {word}{}", if count == 1 { "" } else { "s" })
}

fn seconds(millis: u64) -> String {
    format!("{}.{} s", millis / 1000, millis % 1000 / 100)
}

fn unix_now() -> u64 {
    let since = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The names and numbers of a view that is nothing but counters.
fn words(counters: &impl serde::Serialize) -> Vec<(String, u64)> {
    let value = serde_json::to_value(counters).unwrap_or_default();
    let counters = value.as_object().into_iter().flatten();
    counters.filter_map(|(name, count)| Some((name.replace('_', " "), count.as_u64()?))).collect()
}

/// Rows of cells as lines, the columns as wide as their widest cell.
fn columns(rows: &[Vec<Cell>]) -> Vec<Line> {
    let mut widths = Vec::new();
    for row in rows {
        widths.resize(widths.len().max(row.len()), 0);
        for (width, (_, text)) in widths.iter_mut().zip(row) {
            *width = text.chars().count().max(*width);
        }
    }
    let line = |row: &Vec<Cell>| {
        row.iter().zip(&widths).fold(Line::default(), |line, ((style, text), &width)| {
            line.with(*style, &format!("{text:<width$}")).with(Style::Plain, "  ")
        })
    };
    rows.iter().map(line).collect()
}

/// What does not fit could not be drawn over.
fn fit(mut lines: Vec<Line>, room: Room) -> Vec<Line> {
    let most = room.rows.saturating_sub(1).max(1);
    if lines.len() > most {
        let more = lines.len() - most + 1;
        lines.truncate(most - 1);
        lines.push(styled(Style::Dim, &format!("… {more} more lines in a higher terminal")));
    }
    lines
}

// === impl Sample ===

impl Sample {
    fn next(last: Option<Self>, view: &Upstreams) -> Self {
        let at = Instant::now();
        let all = view
            .upstreams
            .iter()
            .flat_map(|upstream| upstream.peers.iter().map(move |peer| (upstream, peer)));
        let requests: BTreeMap<_, _> = all
            .map(|(upstream, peer)| ((upstream.name.clone(), peer.address.clone()), peer.requests))
            .collect();
        let rates = last.map(|last| {
            let passed = at.duration_since(last.at).as_secs_f64().max(0.001);
            let rate = |(peer, count): (&(String, String), &u64)| {
                let more = count.saturating_sub(*last.requests.get(peer)?);
                // Exact: nobody serves 2^52 requests a second.
                Some((peer.clone(), more as f64 / passed))
            };
            requests.iter().filter_map(rate).collect()
        });
        Self { at, rates: rates.unwrap_or_default(), requests }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use handoff_wire::Step;

    fn track(steps: &[(u64, State)]) -> Track {
        let steps = steps.iter().map(|&(at, state)| Step { at, state }).collect();
        Track { peer: "127.0.0.1:3000".into(), reason: String::new(), in_flight: 3, lapsed: 0, steps }
    }

    fn deploy(ended: Option<u64>, track: Track) -> Deploy {
        let owners = ["pm2:/home/shop/.pm2", "rollout:a1"].map(|owner| owner.parse().unwrap()).to_vec();
        Deploy { upstream: "shop".into(), began: 36_000_000, ended, owners, peers: vec![track] }
    }

    const ROOM: Room = Room { columns: 50, rows: 24 };

    fn drawn(deploys: Vec<Deploy>) -> Vec<String> {
        let timeline = Timeline { instance: String::new(), generation: 1, now: 0, deploys };
        let past = Past { timeline: Some(timeline), ..Past::default() };
        past.deploys(ROOM).iter().map(|line| line.render(ROOM.columns, false).trim_end().to_owned()).collect()
    }

    #[test]
    fn a_deploy_is_drawn_to_scale_and_the_shortest_state_is_seen() {
        let steps = [
            (36_001_000, State::Draining),
            (36_003_000, State::Down),
            (36_003_010, State::Checking),
            (36_006_000, State::Up),
        ];
        assert_eq!(
            drawn(vec![deploy(Some(36_010_000), track(&steps))]),
            [
                "",
                "10:00:00.000Z  handoff reload  shop  10.0 s  1 pe…",
                "  127.0.0.1:3000  █▒▒·░░░░████    5.0 s",
                "  █ up   ░ checking   ▒ draining   · down",
            ]
        );
    }

    #[test]
    fn a_silent_owner_is_told_and_who_did_it_without_a_roll_out() {
        let track = Track { lapsed: 1, ..track(&[(36_000_000, State::Down)]) };
        let mut deploy = deploy(Some(36_001_000), track);
        deploy.owners.pop();
        let line = head(&deploy, 36_001_000).render(99, false);
        assert_eq!(line, "10:00:00.000Z  PM2  shop  1.0 s  1 peer  1 mark lapsed: the owner fell silent");
    }

    #[test]
    fn what_does_not_fit_is_counted() {
        let lines: Vec<Line> = (0..9).map(|number| Line::plain(&number.to_string())).collect();
        let text = |rows| {
            let lines = fit(lines.clone(), Room { columns: 50, rows });
            lines.iter().map(|line| line.render(50, false)).collect::<Vec<_>>()
        };
        assert_eq!(text(10).len(), 9);
        assert_eq!(text(4), ["0", "1", "… 7 more lines in a higher terminal"]);
    }

    #[test]
    fn a_rate_is_what_came_since_the_last_look() {
        let view = |requests| {
            let text = format!(
                r#"{{"instance":"a","generation":1,"upstreams":[{{"name":"shop","peers":[{{"address":"a","state":"up",
                "marks":[],"in_flight":0,"requests":{requests},"fails":0,"refused":0,"retired_before":0,
                "configured":true,"weight":1,"backup":false}}]}}]}}"#
            );
            serde_json::from_str::<Upstreams>(&text).unwrap()
        };
        let first = Sample::next(None, &view(10));
        assert!(first.rates.is_empty());
        let ago = first.at.checked_sub(Duration::from_secs(2)).unwrap();
        let next = Sample::next(Some(Sample { at: ago, ..first }), &view(30));
        let rate = next.rates.values().next().copied().unwrap();
        assert!((9.0..=10.0).contains(&rate), "{rate}");
    }
}
