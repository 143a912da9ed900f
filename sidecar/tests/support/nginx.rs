//! The control API of one nginx with one upstream, in memory.

use handoff_wire::{
    Ack, AckedMark, Code, ErrorBody, MarkRequest, MarkSet, Pause, PeerState, Quiet, Refusal, Resume, State,
    Was, path,
};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    sync::{Arc, Mutex},
    thread,
};

#[derive(Clone)]
pub struct Nginx(Arc<Mutex<Memory>>);

struct Memory {
    instance: String,
    generation: u64,
    peers: Vec<String>,
    /// By peer and owner.
    marks: BTreeMap<(String, String), MarkRequest>,
    in_flight: u64,
    paused: Option<Pause>,
    was: Was,
    refuses: Option<Refusal>,
    puts: Vec<MarkSet>,
    renewals: u64,
}

impl Nginx {
    pub fn start(dir: &Path, peers: &[String]) -> Self {
        let nginx = Self(Arc::new(Mutex::new(Memory {
            instance: "one".into(),
            generation: 1,
            peers: peers.to_vec(),
            marks: BTreeMap::new(),
            in_flight: 0,
            paused: None,
            was: Was::Running,
            refuses: None,
            puts: Vec::new(),
            renewals: 0,
        })));
        let socket = dir.join("nginx.sock");
        _ = std::fs::remove_file(&socket);
        let listener = UnixListener::bind(socket).unwrap();
        let memory = nginx.0.clone();
        thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                let memory = memory.clone();
                thread::spawn(move || serve(&memory, &socket));
            }
        });
        nginx
    }

    /// Forgets everything, as a restarted nginx does.
    pub fn restart(&self) {
        let mut memory = self.0.lock().unwrap();
        memory.instance.push('\'');
        memory.generation = 1;
        memory.marks.clear();
    }

    pub fn refuse(&self, code: Code, text: &str) {
        self.0.lock().unwrap().refuses = Some(code.says(text));
    }

    pub fn set_in_flight(&self, in_flight: u64) {
        self.0.lock().unwrap().in_flight = in_flight;
    }

    pub fn paused(&self) -> Option<Pause> {
        self.0.lock().unwrap().paused.clone()
    }

    /// A pause that was over before somebody ended it.
    pub fn lapse(&self) {
        let mut memory = self.0.lock().unwrap();
        (memory.paused, memory.was) = (None, Was::Lapsed);
    }

    /// What an owner holds of a peer.
    pub fn mark(&self, peer: &str, owner: &str) -> Option<State> {
        let memory = self.0.lock().unwrap();
        memory.marks.get(&(peer.to_owned(), owner.to_owned())).map(|mark| mark.state)
    }

    pub fn pm2_mark(&self, peer: &str) -> Option<State> {
        let memory = self.0.lock().unwrap();
        memory
            .marks
            .iter()
            .find(|((of, by), _)| of == peer && by.starts_with("pm2:"))
            .map(|(_, mark)| mark.state)
    }

    pub fn set_mark(&self, peer: &str, owner: &str, state: State) {
        let mut memory = self.0.lock().unwrap();
        let mark = json!({"upstream": "app", "peer": peer, "state": state, "expect": "gone"});
        memory.marks.insert((peer.to_owned(), owner.to_owned()), serde_json::from_value(mark).unwrap());
        memory.generation += 1;
    }

    pub fn renewals(&self) -> u64 {
        self.0.lock().unwrap().renewals
    }

    pub fn puts(&self) -> Vec<MarkSet> {
        self.0.lock().unwrap().puts.clone()
    }
}

fn serve(memory: &Mutex<Memory>, socket: &UnixStream) -> Option<()> {
    let mut reader = BufReader::new(socket);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let mut words = line.split(' ');
        let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
        let mut len = 0;
        loop {
            let mut header = String::new();
            reader.read_line(&mut header).ok()?;
            if header.trim().is_empty() {
                break;
            }
            if let Some(value) = header.to_lowercase().strip_prefix("content-length:") {
                len = value.trim().parse().ok()?;
            }
        }
        let mut body = vec![0; len];
        reader.read_exact(&mut body).ok()?;
        let (status, answer) = memory.lock().unwrap().answer(&method, &path, &body);
        let answer = answer.to_string();
        let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n", answer.len());
        (&mut &*socket).write_all((head + &answer).as_bytes()).ok()?;
    }
}

impl Memory {
    fn answer(&mut self, method: &str, path: &str, body: &[u8]) -> (u16, Value) {
        match (method, path.split('?').next().unwrap_or_default()) {
            ("GET", path::UPSTREAMS) => (200, self.view()),
            ("POST", path::RENEW) => {
                self.renewals += 1;
                (200, json!({"instance": self.instance, "generation": self.generation, "marks": []}))
            }
            ("GET", path::EVENTS) => (200, json!({"instance": self.instance, "events": [], "next": 0})),
            ("GET", path) if path.ends_with("/drained") => {
                let drained = self.in_flight == 0;
                (200, json!({"drained": drained, "state": "draining", "in_flight": self.in_flight}))
            }
            ("GET", path) if path.ends_with("/quiet") => {
                let left = self.paused.as_ref().map(|pause| pause.max);
                let quiet =
                    Quiet { quiet: left.is_some() && self.in_flight == 0, in_flight: self.in_flight, left };
                (200, serde_json::to_value(quiet).unwrap())
            }
            ("PUT", path::PAUSE) => self.pause(serde_json::from_slice(body).unwrap()),
            ("POST", path::RESUME) => self.resume(serde_json::from_slice(body).unwrap()),
            ("PUT", path::MARKS) => match self.mark(serde_json::from_slice(body).unwrap()) {
                Ok(ack) => (200, serde_json::to_value(ack).unwrap()),
                Err(error) => (error.status, serde_json::to_value(ErrorBody { error }).unwrap()),
            },
            _ => (404, json!({"error": {"status": 404, "code": "PathNotFound", "text": "no such path"}})),
        }
    }

    fn pause(&mut self, pause: Pause) -> (u16, Value) {
        if let Some(error) = self.refuses.clone().filter(|_| !pause.force) {
            return (error.status, serde_json::to_value(ErrorBody { error }).unwrap());
        }
        let upstreams: Vec<_> = pause
            .upstreams
            .iter()
            .map(|upstream| json!({"upstream": upstream, "left": pause.max, "in_flight": self.in_flight}))
            .collect();
        (self.paused, self.was) = (Some(pause.clone()), Was::Paused);
        (200, json!({"instance": self.instance, "generation": self.generation, "upstreams": upstreams}))
    }

    fn resume(&mut self, resume: Resume) -> (u16, Value) {
        if let Some(error) = self.refuses.clone().filter(|_| !resume.force) {
            return (error.status, serde_json::to_value(ErrorBody { error }).unwrap());
        }
        self.paused = None;
        let was = std::mem::replace(&mut self.was, Was::Running);
        let upstreams: Vec<_> = resume
            .upstreams
            .iter()
            .map(|upstream| json!({"upstream": upstream, "was": was, "held": 7}))
            .collect();
        (200, json!({"instance": self.instance, "generation": self.generation, "upstreams": upstreams}))
    }

    fn mark(&mut self, set: MarkSet) -> Result<Ack, Refusal> {
        if let Some(refusal) = self.refuses.clone().filter(|_| !set.force) {
            return Err(refusal);
        }
        self.generation += 1;
        let mut marks = Vec::new();
        for mark in set.marks.clone() {
            let key = (mark.peer.clone(), set.owner.to_string());
            if mark.state == State::Up {
                self.marks.remove(&key);
            } else {
                self.marks.insert(key, mark.clone());
            }
            let upstream = "app".into();
            let in_flight = self.in_flight;
            marks.push(AckedMark { upstream, peer: mark.peer, state: mark.state, epoch: 1, in_flight });
        }
        self.puts.push(set);
        Ok(Ack { instance: self.instance.clone(), generation: self.generation, marks })
    }

    fn view(&self) -> Value {
        let peers = self.peers.iter().map(|peer| {
            let own = self.marks.iter().filter(|((of, _), _)| of == peer);
            let state = own.clone().map(|(_, mark)| mark.state).max().unwrap_or(State::Up);
            let marks = own.map(|((_, owner), mark)| {
                json!({"owner": owner, "state": mark.state, "expect": mark.expect, "reason": mark.reason,
                       "epoch": 1, "age": "0s"})
            });
            json!({"address": peer, "state": PeerState::from(state), "marks": marks.collect::<Vec<_>>(),
                   "in_flight": self.in_flight, "requests": 0, "fails": 0, "refused": 0, "retired_before": 0,
                   "configured": true, "weight": 1, "backup": false})
        });
        let peers: Vec<_> = peers.collect();
        let pause = self.paused.as_ref().map(
            |pause| json!({"owner": pause.owner, "reason": pause.reason, "left": pause.max, "age": "0s"}),
        );
        json!({"instance": self.instance, "generation": self.generation,
               "upstreams": [{"name": "app", "peers": peers, "pause": pause}]})
    }
}
