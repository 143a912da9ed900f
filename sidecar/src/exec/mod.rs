//! `handoff exec`: one worker, whoever started it.
//!
//! ```text
//!   whoever started us ──signals──►┐                      ┌──signals──► the command
//!        PM2 ◄──────channel──────► │ exec ◄── gate ──► nginx    ▲
//!    systemd ◄──────sd_notify───── ┘                      └─────┴── channel, sd_notify
//! ```
//!
//! Its peers are kept shut until it listens and is well; only then the service manager hears `READY=1`. What would end it is
//! kept back until nginx has nothing left with it. When it has ended, we end as it did.
//!
//! If nginx is not there, does not know the peers or does not answer, everything passes at once, as without us. If we are
//! killed, the child is told to end, and what nginx was told runs out.

pub mod channel;
pub mod family;
pub mod gate;
pub mod launch;
pub mod manager;
pub mod notify;
pub mod place;
pub mod signals;

use crate::{control::Address, host::Proc, rollout::health::Path};
use channel::{Channel, Word};
use family::{Ended, Family};
use gate::{Gate, Known, Stage, Wish};
use handoff_wire::Owner;
use manager::Manager;
use notify::{Ear, Said};
use place::Wanted;
use rustix::process::Pid;
use signals::{Meaning, Name};
use std::{
    ffi::OsString,
    io,
    time::{Duration, Instant},
};
use tokio::{sync::watch, time};

#[derive(Clone, Debug)]
pub struct Settings {
    pub control: Address,
    pub wanted: Vec<Wanted>,
    pub health: Option<Path>,
    /// It says when it can serve.
    pub waits_for_ready: bool,
    pub drain_timeout: Duration,
    pub stops: Vec<Name>,
    pub name: Option<String>,
    pub command: Vec<OsString>,
}

#[derive(Debug)]
struct Worker {
    settings: Settings,
    family: Family,
    manager: notify::Manager,
    channel: Option<Channel>,
    known: watch::Receiver<Known>,
    wishes: watch::Sender<Wish>,
    /// It said so itself.
    is_ready: bool,
    /// What it is not to be told, nor anybody else, before nginx sends requests.
    news: Option<News>,
    going: Option<Going>,
}

#[derive(Debug, Default)]
struct News {
    line: Option<Vec<u8>>,
}

/// It is to end.
#[derive(Debug)]
struct Going {
    since: Instant,
    /// Nothing is kept back for longer.
    until: time::Instant,
    how: How,
    is_told: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum How {
    Signal(Name),
    Line(Vec<u8>),
    /// It goes by itself.
    Itself,
}

/// nginx answers within a millisecond or two. An app needs longer to start than one that hangs may keep it.
const FIRST_WORD: Duration = Duration::from_millis(500);
/// And whoever waits for our end no longer than this for what only nginx needs.
const LAST_WORD: Duration = Duration::from_millis(500);
/// How often the service manager hears that it must wait, and until when it then does.
const BEAT: Duration = Duration::from_secs(1);
const EXTENSION: Duration = Duration::from_secs(10);
const LONGEST_OWNER: usize = 56;

/// Runs the command until it ends.
pub async fn run(settings: Settings) -> io::Result<Ended> {
    let mut signals = signals::listen()?;
    let mut family = Family::new()?;
    let started_by = Manager::find();
    if started_by.goes_past {
        tracing::warn!(
            "PM2 stops the command beside us, so that nginx is not told before: set `treekill: false`, or \
             `shutdown_with_message: true` for an app that heeds it"
        );
    }
    let settings = settings.within(started_by.patience);
    let (gate, mut known) = Gate::new(
        settings.control.clone(),
        settings.owner(started_by.name)?,
        settings.wanted.clone(),
        settings.health.clone(),
    );
    let (wishes, wished) = watch::channel(Wish::Come { may: !settings.waits_for_ready });
    tokio::spawn(gate.run(wished));
    let first_word = known.wait_for(|known| known.stage != Stage::Unknown);
    _ = time::timeout(FIRST_WORD, first_word).await;

    let ear = Ear::open()?;
    let mut channel = Channel::find();
    let mut environment = vec![(notify::SOCKET, ear.address())];
    let fd = channel.as_ref().and_then(Channel::fd);
    environment.extend(fd.map(|fd| (channel::FD, OsString::from(fd.to_string()))));
    let main = launch::begin(&settings.command, &environment)?;
    family.follow(main);
    if let Some(channel) = &mut channel {
        channel.is_inherited();
    }
    let mut worker = Worker {
        settings,
        family,
        manager: notify::Manager::find(),
        channel,
        known,
        wishes,
        is_ready: false,
        news: Some(News::default()),
        going: None,
    };
    let mut beat = time::interval(BEAT);
    worker.follow_stage();
    let ended = loop {
        tokio::select! {
            biased;
            ended = worker.family.ended() => break ended,
            Some(name) = signals.recv() => worker.signalled(name),
            said = ear.hear() => worker.heard(&said),
            word = word(&mut worker.channel) => worker.passes(word),
            Ok(()) = worker.known.changed() => worker.follow_stage(),
            () = overdue(worker.going.as_ref()) => worker.tell(),
            _ = beat.tick() => worker.asks_for_time(),
        }
    };
    worker.has_ended(ended).await;
    Ok(ended)
}

async fn word(channel: &mut Option<Channel>) -> Word {
    match channel {
        Some(channel) => channel.word().await,
        None => std::future::pending().await,
    }
}

async fn overdue(going: Option<&Going>) {
    match going {
        Some(going) if !going.is_told => time::sleep_until(going.until).await,
        _ => std::future::pending().await,
    }
}

// === impl Worker ===

impl Worker {
    fn stage(&self) -> Option<Stage> {
        let known = *self.known.borrow();
        // What is known of an earlier wish says nothing.
        (known.wish == *self.wishes.borrow()).then_some(known.stage)
    }

    fn follow_stage(&mut self) {
        self.known.mark_unchanged();
        match self.stage() {
            Some(Stage::Serving | Stage::Alone) if self.going.is_none() => self.tell_news(),
            Some(Stage::Leaving { in_flight }) => {
                self.manager.say(&format!("STATUS=goes, {in_flight} in flight"));
            }
            Some(Stage::Drained | Stage::Alone) => self.tell(),
            _ => {}
        }
    }

    // --- it comes

    fn tell_news(&mut self) {
        if self.settings.waits_for_ready && !self.is_ready {
            return;
        }
        let Some(news) = self.news.take() else { return };
        self.manager.say("READY=1");
        if let (Some(line), Some(channel)) = (news.line, &self.channel) {
            channel.tell_manager(line);
        }
    }

    fn says_ready(&mut self) {
        self.is_ready = true;
        if self.going.is_none() {
            self.wish(Wish::Come { may: true });
        }
        self.follow_stage();
    }

    fn wish(&self, wish: Wish) {
        self.wishes.send_if_modified(|now| std::mem::replace(now, wish) != wish);
    }

    // --- what is said

    fn heard(&mut self, said: &Said) {
        if let Some(process) = said.main.and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?)) {
            self.family.follow(process);
        }
        if said.ready {
            // It reloads where it stands, and says so again.
            if self.news.is_none() {
                self.manager.say("READY=1");
            }
            self.says_ready();
        }
        self.manager.pass_on(&said.rest, &said.files);
        if said.stopping {
            self.goes(How::Itself);
        }
    }

    fn passes(&mut self, word: Word) {
        match word {
            Word::Ready(line) => {
                match (&mut self.news, &self.channel) {
                    (Some(news), _) => news.line = Some(line),
                    (None, Some(channel)) => channel.tell_manager(line),
                    (None, None) => {}
                }
                self.says_ready();
            }
            Word::Shutdown(line) => self.goes(How::Line(line)),
        }
    }

    // --- it goes

    fn signalled(&mut self, name: Name) {
        // It has ended, and so do we.
        let Some(main) = self.family.main() else { return };
        match signals::meaning(&Proc::default(), main, name, &self.settings.stops) {
            Meaning::Word => signals::pass(main, name),
            Meaning::Stop => self.goes(How::Signal(name)),
        }
    }

    fn goes(&mut self, how: How) {
        if let Some(going) = &mut self.going {
            let was_itself = going.how == How::Itself;
            going.how = how;
            // Who asks again does not want to wait.
            if was_itself || going.how != How::Itself {
                going.is_told = false;
                self.tell();
            }
            return;
        }
        let until = time::Instant::now() + self.settings.drain_timeout;
        let is_told = how == How::Itself;
        if !is_told {
            self.manager.say("STOPPING=1");
        }
        self.going = Some(Going { since: Instant::now(), until, how, is_told });
        self.wish(Wish::Leave);
        self.asks_for_time();
    }

    /// What was kept back.
    fn tell(&mut self) {
        let stage = self.stage();
        let Some(going) = &mut self.going else { return };
        if std::mem::replace(&mut going.is_told, true) {
            return;
        }
        let took = going.since.elapsed().as_secs_f64();
        match stage {
            Some(Stage::Drained) => tracing::info!("nginx has nothing left with it after {took:.1} s"),
            Some(Stage::Leaving { in_flight }) => {
                tracing::warn!("nginx still has {in_flight} in flight after {took:.1} s: it is told to go");
            }
            _ => {}
        }
        match &going.how {
            How::Signal(name) => self.family.main().into_iter().for_each(|main| signals::pass(main, *name)),
            How::Line(line) => {
                if let Some(channel) = &self.channel {
                    channel.tell_child(line.clone());
                }
            }
            How::Itself => {}
        }
    }

    /// systemd waits for `TimeoutStopSec`, and longer for whoever says that it needs longer.
    fn asks_for_time(&self) {
        if self.going.as_ref().is_some_and(|going| !going.is_told) {
            self.manager.say(&format!("EXTEND_TIMEOUT_USEC={}", EXTENSION.as_micros()));
        }
    }

    async fn has_ended(&mut self, ended: Ended) {
        let was_ordered = self.going.is_some();
        match &self.going {
            Some(going) if !going.is_told => {
                tracing::warn!(
                    "the command ended ({ended}) before we told it to: whoever started us stops it, too (systemd: \
                     KillMode=mixed; PM2: treekill: false)"
                );
            }
            Some(_) => {}
            None => tracing::warn!("the command ended by itself: {ended}"),
        }
        self.wish(Wish::Follow { was_ordered });
        let wish = Wish::Follow { was_ordered };
        let is_over = |known: &Known| known.wish == wish && matches!(known.stage, Stage::Done | Stage::Alone);
        _ = time::timeout(LAST_WORD, self.known.wait_for(is_over)).await;
    }
}

// === impl Settings ===

impl Settings {
    /// The app needs some of that time for itself.
    fn within(self, patience: Option<Duration>) -> Self {
        let most = patience.map_or(self.drain_timeout, |patience| patience * 3 / 4);
        Self { drain_timeout: self.drain_timeout.min(most), ..self }
    }

    /// What a worker is called stays the same from one process to the next, so that each finds what the last one said.
    fn owner(&self, by_manager: Option<String>) -> io::Result<Owner> {
        let place = self.wanted.first().map(|wanted| match wanted {
            Wanted::Port(port) => port.to_string(),
            Wanted::Socket(path) => path.clone(),
        });
        let name = self.name.clone().or(by_manager).or(place);
        let name = name.unwrap_or_else(|| std::process::id().to_string());
        format!("worker:{}", printable(&name)).parse().map_err(|error| io::Error::other(format!("{error}")))
    }
}

/// The end of a name tells it from others: `app@1.service`, `/run/app/1.sock`.
fn printable(name: &str) -> String {
    let graphic = |c: char| if c.is_ascii_graphic() { c } else { '_' };
    let characters: Vec<char> = name.chars().map(graphic).collect();
    characters.iter().skip(characters.len().saturating_sub(LONGEST_OWNER)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(name: Option<&str>, wanted: Vec<Wanted>) -> Settings {
        Settings {
            control: "unix:/run/nginx.sock".parse().unwrap(),
            wanted,
            health: None,
            waits_for_ready: false,
            drain_timeout: Duration::from_secs(30),
            stops: Vec::new(),
            name: name.map(str::to_owned),
            command: Vec::new(),
        }
    }

    fn owner(name: Option<&str>, by_manager: Option<&str>, wanted: Vec<Wanted>) -> String {
        settings(name, wanted).owner(by_manager.map(str::to_owned)).unwrap().as_str().to_owned()
    }

    #[test]
    fn a_worker_is_called_the_same_from_one_process_to_the_next() {
        let port = || vec![Wanted::Port(3001)];
        assert_eq!(owner(Some("shop"), Some("app@1.service"), port()), "worker:shop");
        assert_eq!(owner(None, Some("app@1.service"), port()), "worker:app@1.service");
        assert_eq!(owner(None, None, port()), "worker:3001");
        assert_eq!(owner(None, None, Vec::new()), format!("worker:{}", std::process::id()));
        let long = owner(Some(&format!("{}é 1", "x".repeat(80))), None, Vec::new());
        assert!(long.len() == 63 && long.ends_with("x__1"), "{long}");
    }

    #[test]
    fn pm2_leaves_the_app_a_quarter_of_its_time() {
        let within = |ms| settings(None, Vec::new()).within(Some(Duration::from_millis(ms))).drain_timeout;
        assert_eq!(within(1600), Duration::from_millis(1200));
        assert_eq!(within(60_000), Duration::from_secs(30));
    }
}
