//! What a deploy says while it goes on, and what of it is remembered.

use super::trouble::Trouble;
use crate::{
    deploy::{
        event::{Event, Stage, State, Told, What},
        record::Step,
    },
    rollout::brake::Brake,
};
use std::{
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::{Instant, SystemTime},
};
use tokio::sync::mpsc::UnboundedSender;

#[derive(Clone, Debug)]
pub(super) struct Voice {
    app: String,
    told: UnboundedSender<Told>,
    steps: Arc<Mutex<Vec<Step>>>,
}

/// To a tenth of a millisecond nobody looks.
pub(super) fn seconds(began: Instant) -> f64 {
    (began.elapsed().as_secs_f64() * 1000.0).round() / 1000.0
}

// === impl Voice ===

impl Voice {
    pub(super) fn new(app: &str, told: UnboundedSender<Told>) -> Self {
        Self { app: app.to_owned(), told, steps: Arc::default() }
    }

    pub(super) fn tell(&self, what: What) {
        let since = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        let at = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        self.pass_on(Told::Deploy(Event { at, app: self.app.clone(), what }));
    }

    pub(super) fn pass_on(&self, told: Told) {
        _ = self.told.send(told);
    }

    pub(super) fn note(&self, text: impl Into<String>) {
        self.tell(What::Note { text: text.into() });
    }

    /// A stage, from its beginning to its end, or to the signal that ends it.
    pub(super) async fn stage(
        &self,
        stage: Stage,
        signals: Option<&Brake>,
        work: impl Future<Output = Result<String, Trouble>>,
    ) -> Result<(), Trouble> {
        self.tell(What::Stage { stage, state: State::Begun });
        let began = Instant::now();
        let halt = async {
            match signals {
                Some(signals) => signals.wait().await,
                None => std::future::pending().await,
            }
        };
        let ended = tokio::select! {
            biased;
            halt = halt => Err(Trouble::from(halt)),
            ended = work => ended,
        };
        let seconds = seconds(began);
        let step = Step { stage, seconds, ok: ended.is_ok() };
        self.steps.lock().unwrap_or_else(PoisonError::into_inner).push(step);
        let state = match &ended {
            Ok(text) => State::Done { seconds, text: text.clone() },
            Err(Trouble { text, log, .. }) => State::Failed { seconds, text: text.clone(), log: log.clone() },
        };
        self.tell(What::Stage { stage, state });
        ended.map(drop)
    }

    pub(super) fn steps(&self) -> Vec<Step> {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
