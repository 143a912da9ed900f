//! Tells whoever watches what happens to one app.

use super::{
    brake::Halt,
    event::{Event, What},
    grip::Said,
};
use crate::pm2::PmId;
use std::time::SystemTime;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};

#[derive(Clone, Debug)]
pub struct Teller {
    pub app: String,
    pub events: UnboundedSender<Event>,
}

// === impl Teller ===

impl Teller {
    pub fn tell(&self, what: What) {
        let since = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        let at = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        _ = self.events.send(Event { at, app: self.app.clone(), what });
    }

    pub fn halt(&self, halt: &Halt) {
        if let Halt::Signal(signal) = halt {
            let text =
                format!("{signal}: a worker that is being replaced comes up first; once more leaves at once");
            self.tell(What::Note { text });
        }
    }

    pub fn said(&self, (worker, said): (PmId, Said)) {
        self.tell(match said {
            Said::Step(step) => What::Step { worker, step },
            Said::Note(text) => What::Note { text },
        });
    }

    pub fn rest(&self, said: &mut UnboundedReceiver<(PmId, Said)>) {
        while let Ok(said) = said.try_recv() {
            self.said(said);
        }
    }
}
