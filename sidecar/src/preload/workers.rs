//! Workers that load the preload: who they are, and what became of their goodbyes.

use crate::{
    host::Process,
    look::{Examined, Look},
    pm2::{
        PmId,
        monitor::{KILL_TIMEOUT, Settings},
    },
};
use std::{collections::BTreeMap, time::Duration};

#[derive(Debug, Default)]
pub struct Preloads(BTreeMap<Process, Known>);

#[derive(Debug, Default)]
struct Known {
    /// Whose it is, and the process that PM2 started for it: itself, or what it descends from.
    worker: Option<(PmId, Process)>,
    listens: bool,
    named: Option<String>,
    goodbye: Option<Goodbye>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Goodbye {
    /// Nobody knew whose it was.
    Said,
    /// Its worker goes.
    Heard,
    /// It was told to wait.
    Waits,
    Answered,
}

/// What a worker that waits is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// nginx knows.
    Ack,
    /// nginx cannot be told.
    Nack,
    /// Nobody else serves yet.
    Wait(Duration),
}

/// How nginx and the others stand to one that goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Farewell {
    /// None of its addresses is a peer.
    Unknown,
    /// Others are needed first, for so long at most.
    Needed(Duration),
    /// nginx was not told yet.
    Untold,
    Told,
}

/// Longer than an app may need to start, if its kill_timeout allows it.
const MOST_PATIENCE: Duration = Duration::from_secs(30);
/// From PM2's signal until it kills the process.
pub fn kill_timeout(settings: &Settings) -> Duration {
    settings.kill_timeout.unwrap_or(KILL_TIMEOUT)
}

/// So long a worker stays for want of another one. The rest is for what it has in flight.
pub fn patience(settings: &Settings) -> Duration {
    (kill_timeout(settings) / 2).min(MOST_PATIENCE)
}

// === impl Preloads ===

impl Preloads {
    pub fn came(&mut self, process: Process, worker: Option<PmId>) {
        let worker = worker.map(|id| (id, process));
        self.0.insert(process, Known { worker, ..Known::default() });
    }

    pub fn listens(&mut self, process: Process, listens: bool) {
        if let Some(known) = self.0.get_mut(&process) {
            known.listens = listens;
        }
    }

    pub fn left(&mut self, process: Process) {
        self.0.remove(&process);
    }

    pub fn goodbye(&mut self, process: Process) {
        if let Some(known) = self.0.get_mut(&process) {
            known.goodbye.get_or_insert(Goodbye::Said);
        }
    }

    /// Learns whose they are. A process that PM2 has replaced stays whose it was.
    pub fn meet(&mut self, look: &Look) {
        let holds = |examined: &Examined, process: &Process| {
            let held =
                || examined.held.as_ref().is_ok_and(|held| held.sockets.values().any(|of| of == process));
            examined.process == *process || held()
        };
        for (process, known) in &mut self.0 {
            let of = look.examined.iter().find(|(_, examined)| holds(examined, process));
            known.worker = of.map(|(&id, examined)| (id, examined.process)).or(known.worker);
        }
    }

    /// Those who have just begun to go, each with its worker and that one's process.
    pub fn parting(&mut self) -> Vec<(PmId, Process)> {
        let known = self.0.values_mut().filter(|known| known.goodbye == Some(Goodbye::Said));
        let parting = known.filter_map(|known| {
            let worker = known.worker?;
            known.goodbye = Some(Goodbye::Heard);
            Some(worker)
        });
        parting.collect()
    }

    /// What those are to be told who wait for it.
    pub fn answers(&mut self, farewell: impl Fn(PmId, Process) -> Farewell) -> Vec<(Process, Answer)> {
        let mut answers = Vec::new();
        for (&process, known) in &mut self.0 {
            let Some((id, root)) = known.worker else { continue };
            let Some(goodbye @ (Goodbye::Heard | Goodbye::Waits)) = known.goodbye else { continue };
            let (next, answer) = match farewell(id, root) {
                Farewell::Unknown => (Goodbye::Answered, Answer::Nack),
                Farewell::Told => (Goodbye::Answered, Answer::Ack),
                Farewell::Needed(long) if goodbye == Goodbye::Heard => (Goodbye::Waits, Answer::Wait(long)),
                Farewell::Needed(_) | Farewell::Untold => continue,
            };
            known.goodbye = Some(next);
            answers.push((process, answer));
        }
        answers
    }

    /// Those that do not know yet what PM2 calls them.
    pub fn names(&mut self, name: impl Fn(PmId) -> Option<String>) -> Vec<(Process, String)> {
        let mut names = Vec::new();
        for (&process, known) in &mut self.0 {
            let Some(name) = known.worker.and_then(|(id, _)| name(id)) else { continue };
            if known.named.as_ref() != Some(&name) {
                known.named = Some(name.clone());
                names.push((process, name));
            }
        }
        names
    }

    /// That process of a worker speaks with us.
    pub fn has(&self, id: PmId, root: Process) -> bool {
        self.0.values().any(|known| known.worker == Some((id, root)))
    }

    /// And has not been told yet that it may go: it still takes what comes.
    pub fn may_stay(&self, id: PmId, root: Process) -> bool {
        let has_leave = |known: &Known| known.goodbye == Some(Goodbye::Answered);
        self.0.values().any(|known| known.worker == Some((id, root)) && !has_leave(known))
    }

    /// And says that it listens.
    pub fn listen(&self, id: PmId, root: Process) -> bool {
        self.0.values().any(|known| known.worker == Some((id, root)) && known.listens)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Process = Process { pid: 7, start: 1 };

    fn said(preloads: &mut Preloads, farewell: Farewell) -> Vec<Answer> {
        preloads.answers(|_, _| farewell).into_iter().map(|(_, answer)| answer).collect()
    }

    #[test]
    fn a_goodbye_is_answered_once_and_when_nginx_knows() {
        let mut preloads = Preloads::default();
        preloads.came(ONE, Some(PmId(0)));
        assert_eq!(said(&mut preloads, Farewell::Told), [], "it does not go");
        preloads.goodbye(ONE);
        preloads.goodbye(ONE);
        assert_eq!(preloads.parting(), [(PmId(0), ONE)]);
        assert_eq!(preloads.parting(), []);
        assert_eq!(said(&mut preloads, Farewell::Untold), []);
        assert_eq!(said(&mut preloads, Farewell::Told), [Answer::Ack]);
        preloads.goodbye(ONE);
        assert_eq!((preloads.parting(), said(&mut preloads, Farewell::Told)), (vec![], vec![]));
    }

    #[test]
    fn who_is_needed_is_told_once_to_wait_and_then_acknowledged() {
        let mut preloads = Preloads::default();
        preloads.came(ONE, Some(PmId(0)));
        preloads.goodbye(ONE);
        preloads.parting();
        let needed = Farewell::Needed(Duration::from_secs(1));
        assert_eq!(said(&mut preloads, needed), [Answer::Wait(Duration::from_secs(1))]);
        assert_eq!(said(&mut preloads, needed), []);
        assert!(preloads.may_stay(PmId(0), ONE));
        assert_eq!(said(&mut preloads, Farewell::Told), [Answer::Ack]);
        assert!(!preloads.may_stay(PmId(0), ONE), "it listens no more");
    }

    #[test]
    fn nobody_is_answered_before_it_is_known_whose_it_is() {
        let mut preloads = Preloads::default();
        preloads.came(ONE, None);
        preloads.goodbye(ONE);
        assert_eq!((preloads.parting(), said(&mut preloads, Farewell::Unknown)), (vec![], vec![]));
        assert!(!preloads.has(PmId(0), ONE));
    }

    #[test]
    fn a_name_is_told_when_it_is_new() {
        let mut preloads = Preloads::default();
        preloads.came(ONE, Some(PmId(0)));
        let shop = |_| Some("shop:0".to_owned());
        assert_eq!(preloads.names(shop), [(ONE, "shop:0".to_owned())]);
        assert_eq!(preloads.names(shop), []);
        assert_eq!(preloads.names(|_| Some("blog:0".to_owned())).len(), 1);
    }
}
