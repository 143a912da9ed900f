//! A PM2 daemon that says what it is told to say.

use super::SECRET;
use handoff::pm2::frame::{Argument, Decoder, Policy, encode};
use serde_json::{Value, json};
use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    thread,
    time::SystemTime,
};

pub struct Pm2 {
    home: PathBuf,
    workers: Arc<Mutex<Vec<Value>>>,
    readers: Arc<Mutex<Vec<UnixStream>>>,
}

struct All;

impl Policy for All {
    fn keeps(&self, _: &[Argument], _: u32) -> bool {
        true
    }
}

impl Pm2 {
    pub fn start(dir: &Path) -> Self {
        let home = dir.join("pm2");
        _ = fs::create_dir(&home);
        let pm2 = Self { home, workers: Arc::default(), readers: Arc::default() };
        pm2.listen();
        pm2
    }

    /// Lists one worker; the environment that PM2 sends along has a secret in it.
    pub fn list(&self, id: u32, app: &str, pid: u32, status: &str, more: Value) {
        let mut env = json!({"status": status, "exec_mode": "fork_mode", "treekill": true,
                             "DB_PASSWORD": SECRET, "env": {"DB_PASSWORD": SECRET}});
        env.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap_or_default());
        let worker = json!({"pm_id": id, "name": app, "pid": pid, "pm2_env": env});
        let mut workers = self.workers.lock().unwrap();
        workers.retain(|worker| worker["pm_id"] != id);
        workers.push(worker);
    }

    pub fn says(&self, line: &str) {
        self.publish(
            "log:PM2",
            &json!({"at": now(), "data": format!("{line}\n"), "process": {"pm_id": "PM2"}}),
        );
    }

    pub fn said_long_ago(&self, line: &str) {
        self.publish("log:PM2", &json!({"at": now() - 20_000, "data": line, "process": {"pm_id": "PM2"}}));
    }

    pub fn is_ready(&self, id: u32) {
        self.publish(
            "process:msg",
            &json!({"at": now(), "raw": "ready", "process": {"pm_id": id, "name": "x"}}),
        );
    }

    /// An event with the whole environment, as PM2 sends it.
    pub fn event(&self, id: u32, event: &str) {
        let process = json!({"pm_id": id, "DB_PASSWORD": SECRET});
        self.publish("process:event", &json!({"at": now(), "event": event, "process": process}));
    }

    pub fn publish(&self, topic: &str, payload: &Value) {
        self.send(&encode(&[format!("s:{topic}").as_bytes(), format!("j:{payload}").as_bytes()]));
    }

    /// Anything at all, on the bus.
    pub fn send(&self, bytes: &[u8]) {
        self.readers.lock().unwrap().retain_mut(|reader| reader.write_all(bytes).is_ok());
    }

    pub fn readers(&self) -> usize {
        self.readers.lock().unwrap().len()
    }

    fn listen(&self) {
        let bus = UnixListener::bind(self.home.join("pub.sock")).unwrap();
        let readers = self.readers.clone();
        thread::spawn(move || {
            for socket in bus.incoming().flatten() {
                readers.lock().unwrap().push(socket);
            }
        });
        let rpc = UnixListener::bind(self.home.join("rpc.sock")).unwrap();
        let workers = self.workers.clone();
        thread::spawn(move || {
            for socket in rpc.incoming().flatten() {
                let workers = workers.clone();
                thread::spawn(move || answer(&workers, socket));
            }
        });
    }
}

fn answer(workers: &Mutex<Vec<Value>>, mut socket: UnixStream) {
    let mut decoder = Decoder::new(All);
    let mut buffer = [0; 4096];
    loop {
        let Ok(len @ 1..) = socket.read(&mut buffer) else { return };
        let mut input = &buffer[..len];
        while let Some(message) = decoder.feed(&mut input).unwrap() {
            let [_, Argument::Kept(id)] = message.as_slice() else { panic!("{message:?}") };
            let reply = json!({"args": [*workers.lock().unwrap()]});
            let reply = encode(&[format!("j:{reply}").as_bytes(), id]);
            // Split where it hurts.
            for piece in [&reply[..3], &reply[3..]] {
                if socket.write_all(piece).is_err() {
                    return;
                }
            }
        }
    }
}

fn now() -> u64 {
    u64::try_from(SystemTime::UNIX_EPOCH.elapsed().unwrap().as_millis()).unwrap()
}
