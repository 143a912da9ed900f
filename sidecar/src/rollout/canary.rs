//! One worker more than the app has, of the new release, before any old one goes.
//!
//! PM2's own reload stops the old worker whatever became of the new one. So the new release first shows itself in a
//! worker that nobody needs. It has PM2's next number and the lowest free instance, the settings and the environment that
//! the others are going to get, and it is deleted as soon as it has proved itself or failed to.
//!
//! What it must not outlive is the roll-out: it is [noted](super::notes) before PM2 is asked for it.

use super::{
    OnDeadline,
    event::Step,
    fitness::Expected,
    grip::{Call, Grip, Said, Shared},
    logs::Logs,
    newcomer::{Newcomer, WATCH},
    notes::{Note, Notes},
    parting,
    stop::{Broken, Stop},
    toll::Toll,
    verdict::Answers,
    window::Window,
    world::{Hands, Seen},
};
use crate::pm2::{
    PmId,
    orders::Sealed,
    rpc::{Rpc, RpcError},
};
use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::time;

/// What is needed to start one.
#[derive(Debug)]
pub struct Canary {
    pub app: String,
    /// Whose double it is.
    pub model: PmId,
    /// What PM2 is to make it of, if not of its model.
    pub surplus: Option<Sealed>,
    pub hands: Hands,
    pub shared: Arc<Shared>,
}

/// PM2 lists a new worker as soon as it was asked.
const LISTED: Duration = Duration::from_secs(5);
const LOOK_PAUSE: Duration = Duration::from_millis(25);
/// How much longer than its listen_timeout PM2 may need to say that a worker runs.
const ANSWER_GRACE: Duration = Duration::from_secs(10);

// === impl Canary ===

impl Canary {
    /// `before`: how the app answers without it. Returns how many requests its end cost.
    pub async fn sing(self, before: Answers, window: &mut Window) -> Result<u64, Stop> {
        let began = Instant::now();
        let answers = (before, Answers::of(&window.views().await?));
        let notes = Notes::of(&self.shared.home);
        let (grip, mut call) = self.start(&notes).await?;
        grip.step(Step::Starting);
        let Seen { listed, .. } = grip.seen()?;
        let logs = Logs::note([listed.settings.err_log, listed.settings.out_log].into_iter().flatten());
        let proved = prove(&grip, &mut call, answers, window).await;
        let at_deadline = if proved.is_ok() { self.shared.options.on_deadline } else { OnDeadline::Cut };
        let cut = match ended(&grip, &mut call, at_deadline, window).await {
            Ok(cut) => cut,
            Err(stop) => return Err(left_behind(&grip, proved.err().unwrap_or(stop))),
        };
        // Now that it has ended, its last words are known.
        let proved = proved.map_err(|stop| grip.with_log(stop, &logs));
        if let Err(stop) = grip.delete().await {
            return Err(left_behind(&grip, proved.err().unwrap_or(stop)));
        }
        strike(&grip, &notes, &self.app);
        match proved {
            Err(Stop::Broken(broken)) => {
                let Broken { how, text, log, .. } = broken.clone();
                grip.step(Step::Failed { exit: how.exit() as u8, text, log });
                Err(Stop::Broken(Broken { is_canary: true, ..broken }))
            }
            proved => {
                let seconds = (began.elapsed().as_secs_f64() * 1000.0).round() / 1000.0;
                grip.step(Step::Deleted { seconds });
                proved.map(|()| cut)
            }
        }
    }

    async fn start(&self, notes: &Notes) -> Result<(Grip, Call<PmId>), Stop> {
        let mut worlds = self.shared.worlds.clone();
        let world = worlds.borrow().clone().ok_or(Stop::Pm2(RpcError::Closed))?;
        let known: BTreeSet<PmId> = world.workers.keys().copied().collect();
        let note = Note::asking(&self.app, world.listed.iter());
        let unnoted = |error| Stop::Refused(format!("the canary cannot be noted in PM2's home: {error}"));
        notes.put(note.clone()).map_err(unnoted)?;
        self.hands.expect_one_more();
        let mut call = self.ask();
        let until = Instant::now() + LISTED;
        let listed = loop {
            let world = worlds.borrow_and_update().clone().ok_or(Stop::Pm2(RpcError::Closed))?;
            if let Some(seen) = world.workers.values().find(|seen| !known.contains(&seen.listed.id)) {
                break seen.listed.clone();
            }
            call.answered().await?;
            if Instant::now() >= until {
                return Err(Stop::Refused(format!(
                    "PM2 started no canary of {} within {LISTED:?}",
                    self.app
                )));
            }
            _ = time::timeout_at(until.into(), worlds.changed()).await;
        };
        let grip = Grip::new(&self.app, listed.id, &self.hands, self.shared.clone());
        grip.in_hand.is_moving(true);
        notes.put(note.found(&listed)).map_err(unnoted)?;
        Ok((grip, call))
    }

    fn ask(&self) -> Call<PmId> {
        let (home, model) = (self.shared.home.clone(), self.model);
        let surplus = self.surplus.clone();
        Call::begin(async move {
            let mut rpc = Rpc::connect(&home).await.map_err(RpcError::from)?;
            match surplus {
                Some(app) => rpc.start_one(&app).await,
                None => rpc.duplicate(model).await,
            }
        })
    }
}

/// Takes away what a killed roll-out left behind.
pub async fn remove_left(grip: Grip, app: &str, window: &mut Window) -> Result<u64, Stop> {
    grip.note(format!("{} was the canary of a roll-out that was killed: it is deleted", grip.name));
    grip.in_hand.is_moving(true);
    let cut = stopped(&grip, grip.options().on_deadline, window).await?;
    grip.delete().await?;
    strike(&grip, &Notes::of(&grip.shared.home), app);
    Ok(cut)
}

async fn prove(
    grip: &Grip,
    call: &mut Call<PmId>,
    answers: (Answers, Answers),
    window: &mut Window,
) -> Result<(), Stop> {
    let mut newcomer = Newcomer { grip, expected: Expected::anew(), may_halt: true };
    newcomer.proves_itself(call, None, window).await?;
    grip.step(Step::Up);
    let watch = grip.options().watch.map_or(WATCH, |watch| watch.duration());
    newcomer.watched(window, answers, watch).await
}

/// PM2 7 forgets a worker that was not ready yet without stopping it for good: first its answer is waited for.
async fn ended(
    grip: &Grip,
    call: &mut Call<PmId>,
    at_deadline: OnDeadline,
    window: &mut Window,
) -> Result<u64, Stop> {
    let patience = grip.seen()?.listed.settings.listen_timeout.unwrap_or_default() + ANSWER_GRACE;
    let until = Instant::now() + patience;
    loop {
        match call.answered().await? {
            Some(&id) if id == grip.id => return stopped(grip, at_deadline, window).await,
            Some(&id) => {
                let text = format!("{} was added, beside our canary with the number {id}", grip.name);
                return Err(Stop::Foreign(text));
            }
            None if Instant::now() >= until => {
                let name = &grip.name;
                return Err(Stop::Refused(format!("PM2 did not say within {patience:?} that {name} runs")));
            }
            None => grip.next_look().await?,
        }
    }
}

async fn stopped(grip: &Grip, at_deadline: OnDeadline, window: &mut Window) -> Result<u64, Stop> {
    if let Some(process) = grip.seen()?.process {
        parting::finished(grip, process, at_deadline).await?;
    }
    // An nginx that is away is no reason to leave it there.
    if let Err(stop) = window.holds().await {
        grip.note(format!("{} is stopped all the same: {stop}", grip.name));
    }
    let mut toll = Toll::begin(window, grip.seen()?.process).await.ok();
    let stop = grip.stop_when_settled();
    tokio::pin!(stop);
    loop {
        tokio::select! {
            stopped = &mut stop => break stopped?,
            () = time::sleep(LOOK_PAUSE) => {
                if let Some(toll) = &mut toll {
                    toll.look(window).await;
                }
            }
        }
    }
    Ok(match toll {
        Some(toll) => toll.sum(window).await,
        None => 0,
    })
}

fn strike(grip: &Grip, notes: &Notes, app: &str) {
    if let Err(error) = notes.strike(app) {
        grip.note(format!("the note of the canary cannot be struck: {error}"));
    }
}

fn left_behind(grip: &Grip, stop: Stop) -> Stop {
    let text = format!("the canary {0} is still there: the next `handoff reload` deletes it", grip.name);
    _ = grip.shared.steps.send((grip.id, Said::Note(text)));
    stop
}
