//! nginx, watched: who is there, what it has, and that our marks stay alive in it.
//!
//! Each second every owner's marks are renewed. The answer says which instance answered and how often it has changed, so
//! the whole picture is fetched only when there is something new in it. This connection is not the one that carries
//! drains: those must not queue behind a long answer.

use crate::{
    control::{Address, Control, ControlError},
    telemetry::Changes,
};
use handoff_wire::{Owner, Renew, Upstreams};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    sync::{Notify, watch},
    time,
};

/// How often leases are renewed.
const BEAT: Duration = Duration::from_secs(1);
const FIRST_RETRY: Duration = Duration::from_millis(100);

/// What nginx had, and when it was asked.
#[derive(Clone, Debug)]
pub struct View {
    pub asked: Instant,
    pub upstreams: Upstreams,
}

/// The last view. None: nginx is not there.
pub type Views = watch::Receiver<Option<Arc<View>>>;

/// Asks for a view now.
pub type Refresh = Arc<Notify>;

#[derive(Debug)]
pub struct Nginx {
    control: Control,
    owners: Vec<Owner>,
    views: watch::Sender<Option<Arc<View>>>,
    refresh: Refresh,
}

impl Nginx {
    pub fn new(address: Address, owners: Vec<Owner>) -> (Self, Views, Refresh) {
        let (views, receiver) = watch::channel(None);
        let refresh = Refresh::default();
        let nginx = Self { control: Control::new(address), owners, views, refresh: refresh.clone() };
        (nginx, receiver, refresh)
    }

    /// Watches for ever: an nginx that is away is waited for.
    pub async fn run(mut self) {
        let mut log = Changes::default();
        let mut retry = FIRST_RETRY;
        let mut is_asked = true;
        loop {
            let wait = match self.beat(is_asked).await {
                Ok(instance) => {
                    log.info(format!("nginx answers on {} (instance {instance})", self.control.address()));
                    retry = FIRST_RETRY;
                    BEAT
                }
                Err(error) => {
                    log.warn(error.to_string());
                    self.views.send_replace(None);
                    retry = (retry * 3 / 2).min(BEAT);
                    retry
                }
            };
            is_asked = time::timeout(wait, self.refresh.notified()).await.is_ok();
        }
    }

    /// Renews, and looks if something changed. Returns the instance that answered.
    async fn beat(&mut self, is_asked: bool) -> Result<String, ControlError> {
        let mut is_new = is_asked;
        for owner in self.owners.clone() {
            let ack = self.control.renew(&Renew { owner, lease: None, marks: None }).await?;
            is_new |= self.known() != Some((ack.instance, ack.generation));
        }
        if self.owners.is_empty() {
            let overview = self.control.overview().await?;
            is_new |= self.known() != Some((overview.instance, overview.generation));
        }
        if is_new {
            let asked = Instant::now();
            let upstreams = self.control.upstreams().await?;
            self.views.send_replace(Some(Arc::new(View { asked, upstreams })));
        }
        let view = self.views.borrow();
        Ok(view.as_deref().map(|view| view.upstreams.instance.clone()).unwrap_or_default())
    }

    fn known(&self) -> Option<(String, u64)> {
        let view = self.views.borrow();
        view.as_deref().map(|view| (view.upstreams.instance.clone(), view.upstreams.generation))
    }
}
