//! One worker's turn in cluster mode, where its successor comes first.
//!
//! ```text
//!   draining ──► starting ──► checking ──► stopping ──► done
//!                   │            │
//!                   └────────────┴──► failed: PM2 stops it; those that were not touched serve on
//! ```
//!
//! Only who has the preload can be [drained](super::parting) beforehand; the others have until PM2's kill_timeout.
//!
//! PM2 starts the new process beside the old one and stops that one by itself: as soon as the new one is ready, and also
//! when it never gets ready. That the release is fit to serve was seen before, in its [canary](super::canary).

use super::{
    event::Step,
    fitness::Expected,
    grip::{Call, Grip, KILL_GRACE},
    logs::Logs,
    newcomer::Newcomer,
    parting,
    replace::Replaced,
    stop::{Broken, Stop},
    toll::Toll,
    verdict::Answers,
    window::Window,
};
use crate::pm2::orders::Sealed;
use std::time::Instant;

#[derive(Debug)]
pub struct Succession {
    pub grip: Grip,
    /// It serves now.
    pub serves: bool,
    pub env: Option<Sealed>,
    /// How the app answered before it was touched.
    pub before: Answers,
}

// === impl Succession ===

impl Succession {
    pub async fn run(mut self, window: &mut Window) -> Result<Replaced, Stop> {
        let began = Instant::now();
        self.grip.go_on()?;
        window.holds().await?;
        let settings = self.grip.seen()?.listed.settings;
        let logs = Logs::note([settings.err_log, settings.out_log].into_iter().flatten());
        if let (true, Some(process)) = (self.serves, self.grip.seen()?.process) {
            parting::finished(&self.grip, process, self.grip.options().on_deadline).await?;
            window.holds().await?;
        }
        match self.replaced(window).await {
            Ok(cut) => {
                let seconds = (began.elapsed().as_secs_f64() * 1000.0).round() / 1000.0;
                self.grip.step(Step::Done { seconds });
                Ok(Replaced { id: self.grip.id, cut })
            }
            Err(broken @ Stop::Broken(_)) => {
                if let Err(stop) = self.grip.stop_when_settled().await {
                    self.grip.note(format!("{} could not be taken out of service: {stop}", self.grip.name));
                }
                self.grip.announce("stop").await;
                // Now that it has ended, PM2 has written down its last words.
                let stop = self.grip.with_log(broken, &logs);
                if let Stop::Broken(Broken { how, text, log, .. }) = &stop {
                    let (exit, text, log) = (how.exit() as u8, text.clone(), log.clone());
                    self.grip.step(Step::Failed { exit, text, log });
                }
                Err(stop)
            }
            Err(stop) => Err(stop),
        }
    }

    async fn replaced(&mut self, window: &mut Window) -> Result<u64, Stop> {
        self.grip.in_hand.is_moving(true);
        if !self.serves {
            self.grip.stop_when_settled().await?;
            // Even one that PM2 has given up: as long as it says so, the next one seems to have crashed.
            self.grip.stop().await?;
        }
        let was = self.grip.seen()?;
        let since = Answers::of(&window.views().await?);
        let mut toll = Toll::begin(window, was.process).await?;
        let expected = Expected::after(&was);
        self.grip.step(Step::Starting);
        let mut call = self.grip.reload(&was, self.env.take());
        let grip = &self.grip;
        let mut newcomer = Newcomer { grip, expected, may_halt: false };
        let proved = newcomer.proves_itself(&mut call, Some(&mut toll), window).await;
        grip.step(Step::Stopping { cut: 0 });
        let over = over(grip, &mut call, &mut toll, window).await;
        let cut = toll.sum(window).await;
        if cut > 0 {
            grip.note(format!("{cut} requests were cut with the old {}", grip.name));
        }
        proved?;
        over?;
        newcomer.still_lives()?;
        if let Some(watch) = grip.options().watch {
            newcomer.watched(window, (self.before, since), watch.duration()).await?;
        }
        grip.in_hand.is_moving(false);
        grip.announce("reload").await;
        Ok(cut)
    }
}

/// Waits until the old process has ended.
async fn over(grip: &Grip, call: &mut Call, toll: &mut Toll, window: &mut Window) -> Result<(), Stop> {
    let settings = grip.seen()?.listed.settings;
    // PM2 stops it at the latest when it has waited for `ready` in vain.
    let patience =
        settings.listen_timeout.unwrap_or_default() + settings.kill_timeout.unwrap_or_default() + KILL_GRACE;
    let until = Instant::now() + patience;
    while !toll.is_over() {
        call.answered().await?;
        if Instant::now() >= until {
            return Err(Stop::Refused(format!("PM2 could not stop the old {} for {patience:?}", grip.name)));
        }
        toll.look(window).await;
        grip.next_look().await?;
    }
    Ok(())
}
