//! The marks of those who decide by hand, remembered: the operator's, and those of clients of the NGINX Plus API.
//!
//! They have no lease: what a person drained stays drained until a person says otherwise. nginx keeps them across a
//! reload but not across a restart, so the sidecar writes down those it sees and sets them again when it meets an nginx
//! that has lost its memory (another instance).

use crate::{
    control::{Control, ControlError},
    nginx::{View, Views},
    shutdown,
    telemetry::Changes,
};
use handoff_wire::{Expect, MarkRequest, MarkSet, Owner, State, Upstreams};
use serde::{Deserialize, Serialize};
use std::{
    env, fs, io,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};
use tokio::sync::watch;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Remembered {
    instance: String,
    marks: Vec<Remark>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Remark {
    #[serde(default = "Owner::operator")]
    owner: Owner,
    upstream: String,
    peer: String,
    state: State,
    expect: Expect,
    reason: String,
}

#[derive(Debug)]
pub struct Memory {
    path: Option<PathBuf>,
    known: Remembered,
    control: Control,
    log: Changes,
}

/// Where the file goes if nobody says otherwise.
pub fn default_dir() -> PathBuf {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if rustix::process::geteuid().is_root() {
        return "/var/lib/handoff".into();
    }
    set("XDG_STATE_HOME")
        .or_else(|| set("HOME").map(|home| home.join(".local/state")))
        .map_or_else(|| "/var/lib/handoff".into(), |dir| dir.join("handoff"))
}

// === impl Memory ===

impl Memory {
    pub fn open(dir: &Path, control: Control) -> Self {
        let path = dir.join("operator-marks.json");
        let mut memory = Self { path: None, known: Remembered::default(), control, log: Changes::default() };
        match fs::DirBuilder::new().recursive(true).mode(0o750).create(dir).and_then(|()| load(&path)) {
            Ok(known) => {
                memory.known = known;
                memory.path = Some(path);
            }
            Err(error) => memory.give_up(&path, &error),
        }
        memory
    }

    pub async fn run(mut self, mut views: Views, mut shutdown: watch::Receiver<bool>) {
        loop {
            tokio::select! {
                () = shutdown::requested(&mut shutdown) => return,
                changed = views.changed() => if changed.is_err() { return },
            }
            let view = views.borrow_and_update().clone();
            if let Some(view) = view {
                self.meet(&view).await;
            }
        }
    }

    async fn meet(&mut self, view: &View) {
        let seen = Remembered::of(&view.upstreams);
        let lost = self.known.lost_in(&view.upstreams, &seen);
        let mut next = seen;
        if !lost.is_empty() {
            match self.set_again(&lost).await {
                Ok(()) => next.marks.extend(lost),
                // Still remembered for the instance that had them: the next view tries again.
                Err(error) => {
                    return self
                        .log
                        .warn(format!("marks that were set by hand could not be set again: {error}"));
                }
            }
        }
        if next != self.known {
            self.known = next;
            self.save();
        }
    }

    async fn set_again(&mut self, lost: &[Remark]) -> Result<(), ControlError> {
        for mark in lost {
            tracing::info!(upstream = mark.upstream, peer = mark.peer, state = %mark.state, owner = %mark.owner, "nginx restarted: setting a mark again");
        }
        for owner in [Owner::operator(), Owner::plus()] {
            let its = lost.iter().filter(|mark| mark.owner == owner);
            let marks: Vec<MarkRequest> = its.map(Remark::request).collect();
            if !marks.is_empty() {
                // It was decided once, floor and all.
                self.control.mark(&MarkSet { owner, lease: None, force: true, marks }).await?;
            }
        }
        Ok(())
    }

    fn save(&mut self) {
        if let Some(path) = self.path.take() {
            match store(&path, &self.known) {
                Ok(()) => self.path = Some(path),
                Err(error) => self.give_up(&path, &error),
            }
        }
    }

    fn give_up(&mut self, path: &Path, error: &io::Error) {
        self.log.warn(format!(
            "{}: {error}. Marks that were set by hand are remembered while this process lives; make the directory writable or \
             give another one with --state-dir",
            path.display()
        ));
    }
}

// === impl Remembered ===

impl Remembered {
    fn of(view: &Upstreams) -> Self {
        let peers = view.upstreams.iter().flat_map(|up| up.peers.iter().map(move |peer| (up, peer)));
        let marks = peers.flat_map(|(up, peer)| {
            // One with a lease was meant to end by itself.
            let lasting =
                peer.marks.iter().filter(|mark| !mark.owner.kind().is_leased() && mark.lease.is_none());
            lasting.map(move |mark| Remark {
                owner: mark.owner.clone(),
                upstream: up.name.clone(),
                peer: peer.address.clone(),
                state: mark.state,
                expect: mark.expect,
                reason: mark.reason.clone(),
            })
        });
        Self { instance: view.instance.clone(), marks: marks.collect() }
    }

    /// What another instance had and this one should have: the same peer exists, and nobody has decided anew.
    fn lost_in(&self, view: &Upstreams, seen: &Self) -> Vec<Remark> {
        if self.instance == view.instance {
            return Vec::new();
        }
        let exists = |mark: &&Remark| {
            let mut peers =
                view.upstreams.iter().filter(|up| up.name == mark.upstream).flat_map(|up| &up.peers);
            peers.any(|peer| peer.address == mark.peer && peer.configured)
        };
        let is_new = |mark: &&Remark| !seen.marks.iter().any(|other| other.is_of(mark));
        self.marks.iter().filter(exists).filter(is_new).cloned().collect()
    }
}

// === impl Remark ===

impl Remark {
    fn is_of(&self, other: &Self) -> bool {
        (&self.owner, &self.upstream, &self.peer) == (&other.owner, &other.upstream, &other.peer)
    }

    fn request(&self) -> MarkRequest {
        MarkRequest {
            upstream: Some(self.upstream.clone()),
            peer: self.peer.clone(),
            state: self.state,
            expect: self.expect,
            reason: self.reason.clone(),
            all: false,
        }
    }
}

fn load(path: &Path) -> io::Result<Remembered> {
    match fs::read(path) {
        // A file that we cannot read any more is no reason to drain anything.
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).unwrap_or_default()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Remembered::default()),
        Err(error) => Err(error),
    }
}

fn store(path: &Path, known: &Remembered) -> io::Result<()> {
    let new = path.with_extension("new");
    let file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o640).open(&new)?;
    serde_json::to_writer(&file, known)?;
    file.sync_all()?;
    fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(instance: &str, marks: &str) -> Upstreams {
        let text = format!(
            r#"{{"instance":"{instance}","generation":1,"upstreams":[{{"name":"app","peers":[{{"address":"127.0.0.1:1",
            "state":"up","marks":[{marks}],"in_flight":0,"requests":0,"fails":0,"refused":0,"retired_before":0,
            "configured":true,"weight":1,"backup":false}}]}}]}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    const OPERATOR: &str =
        r#"{"owner":"operator","state":"draining","expect":"gone","reason":"disk","epoch":1,"age":"1s"}"#;
    const PLUS: &str = r#"{"owner":"plus","state":"down","expect":"gone","reason":"","epoch":2,"age":"1s"}"#;
    const LEASED: &str = r#"{"owner":"operator","state":"down","expect":"gone","reason":"","epoch":1,"age":"1s","lease":"5s"}"#;
    const PM2: &str = r#"{"owner":"pm2:1","state":"down","expect":"back","reason":"","epoch":1,"age":"1s"}"#;

    #[test]
    fn what_a_restarted_nginx_lost_is_set_again() {
        let known = Remembered::of(&view("a", OPERATOR));
        assert_eq!(known.marks.len(), 1);
        let restarted = view("b", PM2);
        let lost = known.lost_in(&restarted, &Remembered::of(&restarted));
        assert_eq!(lost, known.marks);
    }

    #[test]
    fn what_was_taken_back_or_decided_anew_is_not_set_again() {
        let known = Remembered::of(&view("a", OPERATOR));
        let taken_back = view("a", "");
        assert_eq!(known.lost_in(&taken_back, &Remembered::of(&taken_back)), []);
        let decided = view("b", &OPERATOR.replace("draining", "down"));
        assert_eq!(known.lost_in(&decided, &Remembered::of(&decided)), []);
    }

    #[test]
    fn each_owner_has_its_own() {
        let known = Remembered::of(&view("a", &format!("{OPERATOR},{PLUS}")));
        let decided = view("b", OPERATOR);
        let lost = known.lost_in(&decided, &Remembered::of(&decided));
        assert_eq!(lost.iter().map(|mark| mark.owner.as_str()).collect::<Vec<_>>(), ["plus"]);
    }

    #[test]
    fn one_without_an_owner_is_the_operators() {
        let old = r#"{"upstream":"app","peer":"127.0.0.1:1","state":"down","expect":"gone","reason":""}"#;
        assert_eq!(serde_json::from_str::<Remark>(old).unwrap().owner, Owner::operator());
    }

    #[test]
    fn only_lasting_marks_by_hand_are_remembered() {
        assert_eq!(Remembered::of(&view("a", &format!("{LEASED},{PM2}"))).marks, []);
    }

    #[test]
    fn they_survive_the_sidecar() {
        let dir = crate::scratch::Dir::new();
        let path = dir.join("marks.json");
        let known = Remembered::of(&view("a", OPERATOR));
        assert_eq!(load(&path).unwrap(), Remembered::default());
        store(&path, &known).unwrap();
        assert_eq!(load(&path).unwrap(), known);
        fs::write(&path, "{").unwrap();
        assert_eq!(load(&path).unwrap(), Remembered::default());
    }
}
