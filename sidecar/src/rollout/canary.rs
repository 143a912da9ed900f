//! One worker more than the app has, of the new release, before any old one goes.
//!
//! PM2's own reload stops the old worker whatever became of the new one. So the new release first shows itself in a
//! worker that nobody needs. It has PM2's next number and the lowest free instance, the settings and the environment that
//! the others are going to get, and it is deleted as soon as it has proved itself or failed to.
//!
//! It is a [surplus] worker.

use super::{
    OnDeadline,
    event::Step,
    fitness::Expected,
    grip::{Call, Grip, Shared},
    logs::Logs,
    newcomer::{Newcomer, WATCH},
    parting,
    stop::{Broken, Role, Stop},
    surplus,
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

const LOOK_PAUSE: Duration = Duration::from_millis(25);
/// How much longer than its listen_timeout PM2 may need to say that a worker runs.
const ANSWER_GRACE: Duration = Duration::from_secs(10);

// === impl Canary ===

impl Canary {
    /// `before`: how the app answers without it. Returns how many requests its end cost.
    pub async fn sing(self, before: Answers, window: &mut Window) -> Result<u64, Stop> {
        let began = Instant::now();
        let answers = (before, Answers::of(&window.views().await?));
        let Self { app, model, surplus, hands, shared } = self;
        let home = shared.home.clone();
        let ask = async move {
            let mut rpc = Rpc::connect(&home).await.map_err(RpcError::from)?;
            match surplus {
                Some(app) => rpc.start_one(&app).await,
                None => rpc.duplicate(model).await,
            }
        };
        let (grip, mut call) = surplus::start(&app, &hands, &shared, ask).await?;
        grip.step(Step::Starting);
        let Seen { listed, .. } = grip.seen()?;
        let logs = Logs::note([listed.settings.err_log, listed.settings.out_log].into_iter().flatten());
        let proved = prove(&grip, &mut call, answers, window).await;
        let at_deadline = if proved.is_ok() { shared.options.on_deadline } else { OnDeadline::Cut };
        let cut = match ended(&grip, &mut call, at_deadline, window).await {
            Ok(cut) => cut,
            Err(stop) => return Err(surplus::left_behind(&grip, "canary", proved.err().unwrap_or(stop))),
        };
        // Now that it has ended, its last words are known.
        let proved = proved.map_err(|stop| grip.with_log(stop, &logs));
        if let Err(stop) = grip.delete().await {
            return Err(surplus::left_behind(&grip, "canary", proved.err().unwrap_or(stop)));
        }
        surplus::strike(&grip, &app);
        match proved {
            Err(Stop::Broken(broken)) => {
                let Broken { how, text, log, .. } = broken.clone();
                grip.step(Step::Failed { exit: how.exit() as u8, text, log });
                Err(Stop::Broken(Broken { role: Role::Canary, ..broken }))
            }
            proved => {
                let seconds = (began.elapsed().as_secs_f64() * 1000.0).round() / 1000.0;
                grip.step(Step::Deleted { seconds });
                proved.map(|()| cut)
            }
        }
    }
}

/// Takes away what a killed roll-out left behind.
pub async fn remove_left(grip: Grip, app: &str, window: &mut Window) -> Result<u64, Stop> {
    grip.note(format!("{} was the canary of a roll-out that was killed: it is deleted", grip.name));
    grip.in_hand.is_moving(true);
    let cut = stopped(&grip, grip.options().on_deadline, window).await?;
    grip.delete().await?;
    surplus::strike(&grip, app);
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
