//! The two sockets of a PM2, byte by byte: what came over its bus, and questions that the sidecar does not ask.

use handoff::pm2::frame::{Argument, Decoder, Policy, encode};
use serde_json::{Value, json};
use std::{
    io::{Read as _, Write as _},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

/// All messages of the bus from now on.
#[derive(Clone)]
pub struct Tap(Arc<Mutex<Vec<Vec<Argument>>>>);

/// Stands between PM2's command line and its daemon: questions pass, orders are kept and answered.
pub struct Proxy(Arc<Mutex<Vec<Value>>>);

pub struct Messages {
    socket: UnixStream,
    decoder: Decoder<All>,
    input: Vec<u8>,
}

struct All;

impl Policy for All {
    fn keeps(&self, _: &[Argument], _: u32) -> bool {
        true
    }
}

/// Asks the daemon anything at all.
pub fn ask(socket: &Path, method: &str, args: Value) -> Value {
    let mut messages = Messages::new(UnixStream::connect(socket).unwrap());
    messages.send(&json!({ "type": "call", "method": method, "args": args }), b"s:test:1");
    let [answer, Argument::Kept(id)] = &messages.next().unwrap()[..] else { panic!("not an answer") };
    assert_eq!(id, b"s:test:1");
    serde_json::from_slice(answer.text(b'j').unwrap()).unwrap()
}

// === impl Tap ===

impl Tap {
    pub fn new(socket: &Path) -> Self {
        let tap = Self(Arc::default());
        let mut messages = Messages::new(UnixStream::connect(socket).unwrap());
        let heard = tap.0.clone();
        thread::spawn(move || {
            while let Some(message) = messages.next() {
                heard.lock().unwrap().push(message);
            }
        });
        tap
    }

    /// Every message has two arguments: a topic in plain text, and JSON.
    pub fn messages(&self) -> Vec<(String, Value)> {
        let heard = self.0.lock().unwrap();
        let read = |message: &Vec<Argument>| {
            let [topic, payload] = &message[..] else { panic!("{} arguments", message.len()) };
            let topic = String::from_utf8(topic.text(b's').unwrap().to_vec()).unwrap();
            (topic, serde_json::from_slice(payload.text(b'j').unwrap()).unwrap())
        };
        heard.iter().map(read).collect()
    }

    pub fn forget(&self) {
        self.0.lock().unwrap().clear();
    }

    /// PM2's own log lines that speak of a worker.
    pub fn lines(&self, of: &str) -> Vec<String> {
        let lines = self.messages().into_iter().filter(|(topic, _)| topic == "log:PM2");
        let lines = lines.map(|(_, payload)| payload["data"].as_str().unwrap().trim_end().to_owned());
        lines.filter(|line| line.contains(of)).collect()
    }

    /// Each event of a worker, and its status.
    pub fn events(&self, id: &Value) -> Vec<String> {
        let events = self.messages().into_iter().filter(|(topic, _)| topic == "process:event");
        let events = events.filter(|(_, payload)| payload["process"]["pm_id"] == *id);
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        events.map(|(_, event)| text(&event["event"]) + " " + &text(&event["process"]["status"])).collect()
    }
}

// === impl Proxy ===

impl Proxy {
    pub fn new(socket: &Path, daemon: &Path) -> Self {
        let proxy = Self(Arc::default());
        let listener = UnixListener::bind(socket).unwrap();
        let (orders, daemon) = (proxy.0.clone(), daemon.to_path_buf());
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (orders, daemon) = (orders.clone(), daemon.clone());
                thread::spawn(move || serve(client, &daemon, &orders));
            }
        });
        proxy
    }

    /// The arguments of all orders of one kind.
    pub fn orders(&self, method: &str) -> Vec<Value> {
        let orders = self.0.lock().unwrap();
        orders
            .iter()
            .filter(|order| order["method"] == method)
            .map(|order| order["args"][0].clone())
            .collect()
    }
}

fn serve(client: UnixStream, daemon: &Path, orders: &Mutex<Vec<Value>>) {
    let mut client = Messages::new(client);
    while let Some(message) = client.next() {
        let [call, Argument::Kept(id)] = &message[..] else { panic!("not a question") };
        let call: Value = serde_json::from_slice(call.text(b'j').unwrap()).unwrap();
        let method = call["method"].as_str().unwrap();
        let answer = if method.starts_with("get") {
            ask(daemon, method, call["args"].clone())
        } else {
            orders.lock().unwrap().push(call);
            json!({ "args": [[]] })
        };
        client.send(&answer, id);
    }
}

// === impl Messages ===

impl Messages {
    fn new(socket: UnixStream) -> Self {
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        Self { socket, decoder: Decoder::new(All), input: Vec::new() }
    }

    fn send(&mut self, json: &Value, id: &[u8]) {
        self.socket.write_all(&encode(&[format!("j:{json}").as_bytes(), id])).unwrap();
    }

    fn next(&mut self) -> Option<Vec<Argument>> {
        loop {
            let mut input = self.input.as_slice();
            let message = self.decoder.feed(&mut input).unwrap();
            self.input = input.to_vec();
            if message.is_some() {
                return message;
            }
            let mut buffer = [0; 64 * 1024];
            match self.socket.read(&mut buffer) {
                Ok(len @ 1..) => self.input.extend_from_slice(&buffer[..len]),
                _ => return None,
            }
        }
    }
}
