//! The course of a deploy, forth and back.
//!
//! | it ends in | undone by |
//! |---|---|
//! | fetch, release, install, build, measure | removing the directory that was made |
//! | switch, reload, bake | the link goes back; then every worker whose process is not as it was is replaced, by the same roll-out |
//!
//! The link goes back first: whatever starts from then on, of itself or because we ask for it, is the old release. In place
//! the working tree goes back instead of a link, and is installed and built anew before a worker is touched.

use super::{
    super::{
        Context,
        exit::{Exit, Failure},
        work::hold,
    },
    Args, Ready,
    account::End,
    release::{Goal, Release, short},
    trouble::Trouble,
    voice::Voice,
};
use crate::{
    deploy::{
        event::{Stage, Told, What},
        ground::Ground,
        hook,
        journal::Journal,
        record::{self, Outcome, Records},
        settings::{KEEP, Settings},
        tally::Tally,
        traffic::Limits,
    },
    peer::Peer,
    pm2::{
        PmId,
        home::Home,
        monitor::Listed,
        rpc::{Rpc, RpcError},
    },
    rollout::{Options, brake::Brake, lock::Lock},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};
use tokio::sync::mpsc::UnboundedSender;

pub(super) struct Course<'a> {
    pub(super) context: &'a Context,
    pub(super) app: String,
    pub(super) settings: Settings,
    pub(super) ground: Ground,
    pub(super) options: Options,
    pub(super) limits: Limits,
    pub(super) goal: Goal,
    pub(super) again: bool,
    pub(super) home: Home,
    /// As they were before.
    pub(super) was: Vec<Listed>,
    pub(super) signals: Brake,
    pub(super) voice: Voice,
    pub(super) tally: Tally,
    /// Where each worker serves.
    pub(super) places: BTreeMap<PmId, BTreeSet<Peer>>,
    pub(super) cut: u64,
    pub(super) began: Instant,
    pub(super) began_at: String,
}

// === impl Course ===

impl<'a> Course<'a> {
    #[expect(clippy::too_many_arguments, reason = "it is put together in one place")]
    pub(super) fn new(
        context: &'a Context,
        args: &Args,
        settings: Settings,
        ground: Ground,
        options: Options,
        goal: Goal,
        ready: Ready,
        signals: Brake,
        told: UnboundedSender<Told>,
    ) -> Self {
        Self {
            context,
            app: args.app.clone(),
            limits: settings.limits(),
            settings,
            ground,
            options,
            goal,
            again: args.again,
            home: ready.home,
            was: ready.workers,
            signals,
            voice: Voice::new(&args.app, told),
            tally: Tally::default(),
            places: BTreeMap::new(),
            cut: 0,
            began: Instant::now(),
            began_at: record::now(),
        }
    }

    pub(super) async fn run(mut self) -> Result<Exit, Failure> {
        // Who is busy with this PM2 is better known now than after the build.
        drop(Lock::take(&self.home)?);
        self.mend().await?;
        self.look_around().await?;
        let from = self.serving().await.map_err(Failure::from)?;
        let mut release = match self.named(from).await {
            Ok(release) => release,
            Err(exit) => return Ok(exit),
        };
        self.alert(&self.settings.on_start, &self.record(&release, &End::begun())).await;
        let made = self.made(&mut release).await;
        let end = match made {
            Ok(()) => self.brought_out(&mut release).await,
            Err(trouble) => self.unmade(&release, trouble),
        };
        Ok(self.conclude(release, end).await)
    }

    /// From here on somebody may notice.
    async fn brought_out(&mut self, release: &mut Release) -> End {
        let mut lock = match Lock::take(&self.home) {
            Ok(lock) => lock,
            Err(error) => return self.unmade(release, Failure::from(error).into()),
        };
        let guard = Brake::default();
        let course = async {
            match self.moved(release, &guard).await {
                Ok(text) => End::done(text, self.cut),
                Err(trouble) => self.back(release, trouble).await,
            }
        };
        tokio::select! {
            biased;
            end = course => end,
            never = hold(&mut lock, &guard) => match never {
                Ok(exit) => End { outcome: Outcome::Mixed, exit, text: String::new() },
                Err(Failure { exit, text }) => End { outcome: Outcome::Mixed, exit, text },
            },
        }
    }

    pub(super) async fn conclude(&self, release: Release, end: End) -> Exit {
        let record = self.record(&release, &end);
        if let Err(error) = Records::of(self.ground.state()).add(&record) {
            self.voice.note(format!("this deploy could not be recorded: {error}"));
        }
        // What could not be moved back is the next one's first work.
        if end.outcome != Outcome::Mixed {
            self.strike();
        }
        if end.outcome == Outcome::Done && !self.ground.is_in_place() {
            let needed = [Some(release.journal.to.as_str()), release.journal.from.as_deref()];
            let needed: Vec<&str> = needed.into_iter().flatten().collect();
            for gone in self.ground.prune(self.settings.keep.unwrap_or(KEEP).max(1), &needed) {
                _ = std::fs::remove_file(hook::log(self.ground.state(), &gone));
            }
        }
        let hook =
            if end.outcome == Outcome::Done { &self.settings.on_success } else { &self.settings.on_failure };
        self.alert(hook, &record).await;
        let End { outcome, exit, text } = end;
        self.voice.tell(What::Deployed { exit: exit as u8, outcome, seconds: record.seconds, text });
        exit
    }

    // --- before

    /// Where each worker serves, and what nginx has counted until now.
    async fn look_around(&mut self) -> Result<(), Failure> {
        if self.was.is_empty() {
            return Ok(());
        }
        let rollout = self.prepared(None, Brake::default(), self.options.clone(), false).await?;
        self.places = rollout.plan().turns.iter().map(|turn| (turn.id, turn.peers.clone())).collect();
        self.tally = Tally::of(self.places.values().flatten().cloned());
        self.look().await;
        Ok(())
    }

    // --- forth

    async fn moved(&mut self, release: &mut Release, guard: &Brake) -> Result<String, Trouble> {
        let (voice, signals) = (self.voice.clone(), self.signals.clone());
        self.note_down(release, Stage::Switch)?;
        // Not to be ended in the middle: what follows it undoes it.
        voice.stage(Stage::Switch, None, self.switched(&release.journal.to)).await?;
        if self.ground.is_in_place() {
            self.hooks(release, Some(&signals)).await?;
            if !self.was.is_empty() {
                self.measured(Some(&signals)).await?;
            }
        }
        if self.was.is_empty() && self.settings.ecosystem.is_none() {
            let (path, app) = (self.ground.through(), &self.app);
            return Ok(format!(
                "the first release is in {}. Start it once: pm2 start FILE --only {app}, with cwd: '{0}' in its ecosystem file",
                path.display()
            ));
        }
        voice.stage(Stage::Reload, None, self.replaced(&[&signals, guard])).await?;
        let mut text = String::new();
        voice
            .stage(Stage::Bake, Some(&signals), async {
                text = self.baked(guard).await?;
                Ok(text.clone())
            })
            .await?;
        let Journal { to, .. } = &release.journal;
        let name = if self.ground.is_in_place() { short(to) } else { to };
        Ok(format!("{} serves {name} on every worker; {text}", self.app))
    }

    pub(super) async fn switched(&self, to: &str) -> Result<String, Trouble> {
        if self.ground.is_in_place() {
            self.tree().run(["checkout", "--quiet", "--detach", to]).await?;
            return Ok(format!("{} is {}", self.ground.path().display(), short(to)));
        }
        self.ground.switch(Some(to))?;
        Ok(format!("{} is {to}", self.ground.through().display()))
    }

    // --- back

    // --- what is written down

    // --- PM2

    pub(super) async fn listed(&self) -> Result<Vec<Listed>, Trouble> {
        let mut rpc = Rpc::connect(&self.home).await.map_err(RpcError::from)?;
        let mut workers = rpc.list().await?;
        workers.retain(|worker| worker.app == self.app);
        Ok(workers)
    }
}
