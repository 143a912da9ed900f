//! A real Chromium without a window, spoken to as its own developer tools do: JSON over a WebSocket.
//!
//! Every page remembers what a person would find in the console and in the list of requests: see [`Page::complaints`].

use crate::{place::Place, process, wait};
use anyhow::{Context, Result, anyhow, bail, ensure};
use futures_util::{
    SinkExt, StreamExt,
    stream::{SplitSink, SplitStream},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::{
    collections::HashMap,
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{net::TcpStream, spawn, sync::oneshot, time::timeout};
use tokio_tungstenite::{WebSocketStream, client_async, tungstenite::Message};

const PATIENCE: Duration = Duration::from_secs(20);
/// Debian's, the smaller one first: it needs no GTK. Not those in /usr/bin: a script there would end in its place.
const BINARIES: [&str; 2] = ["/usr/lib/chromium/chromium-headless-shell", "/usr/lib/chromium/chromium"];

type Socket = WebSocketStream<TcpStream>;

/// Ends when it is dropped.
pub struct Browser {
    child: Child,
    wire: Arc<Wire>,
    sink: tokio::sync::Mutex<SplitSink<Socket, Message>>,
}

/// One tab.
pub struct Page<'a> {
    browser: &'a Browser,
    session: String,
    url: String,
}

/// What comes back.
#[derive(Default)]
struct Wire {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    asked: u64,
    replies: HashMap<u64, oneshot::Sender<Value>>,
    /// Of each tab.
    events: HashMap<String, Vec<Value>>,
}

// === impl Browser ===

impl Browser {
    pub async fn start(place: &Place) -> Result<Self> {
        let binary = BINARIES.into_iter().find(|path| Path::new(path).is_file());
        let binary = binary.context("no Chromium here: run `build/setup`")?;
        let profile = place.file("chromium");
        fs::create_dir_all(&profile)?;
        let mut command = Command::new(binary);
        // Root has no sandbox; what is shown is our own.
        command.args(["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]);
        command.args([
            "--remote-debugging-port=0",
            "--disable-background-networking",
            "--disable-dev-shm-usage",
        ]);
        command.arg(format!("--user-data-dir={}", profile.display())).arg("about:blank");
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(place.file("chromium.log"))?);
        let mut child = command.spawn().with_context(|| format!("cannot run {binary}"))?;
        let port_file = profile.join("DevToolsActivePort");
        let door = wait::until("Chromium to listen", PATIENCE, async || {
            let text = fs::read_to_string(&port_file).ok()?;
            let (port, path) = text.trim_end().split_once('\n')?;
            Some((port.parse::<u16>().ok()?, path.to_owned()))
        });
        let opened = async {
            let (port, path) = door.await?;
            let stream = TcpStream::connect(("127.0.0.1", port)).await?;
            Ok(client_async(format!("ws://127.0.0.1:{port}{path}"), stream).await?.0)
        };
        let socket: Result<Socket> = opened.await;
        if socket.is_err() {
            process::end(&mut child, PATIENCE);
        }
        let (sink, stream) = socket?.split();
        let wire = Arc::new(Wire::default());
        spawn(wire.clone().hear(stream));
        Ok(Self { child, wire, sink: sink.into() })
    }

    /// A tab of this size that shows `url`.
    pub async fn open(&self, url: &str, width: u32, height: u32) -> Result<Page<'_>> {
        let target = self.call(None, "Target.createTarget", json!({"url": "about:blank"})).await?;
        let attach = json!({"targetId": text(&target, "/targetId"), "flatten": true});
        let attached = self.call(None, "Target.attachToTarget", attach).await?;
        let session = text(&attached, "/sessionId").to_owned();
        let page = Page { browser: self, session, url: url.to_owned() };
        for domain in ["Page", "Runtime", "Log", "Network", "Audits"] {
            page.call(&format!("{domain}.enable"), json!({})).await?;
        }
        page.resize(width, height).await?;
        page.go().await?;
        Ok(page)
    }

    async fn call(&self, session: Option<&str>, method: &str, params: Value) -> Result<Value> {
        let (id, reply) = self.wire.expect();
        let mut message = json!({"id": id, "method": method, "params": params});
        if let (Some(session), Some(message)) = (session, message.as_object_mut()) {
            message.insert("sessionId".to_owned(), session.into());
        }
        self.sink.lock().await.send(Message::text(message.to_string())).await?;
        let mut reply = timeout(PATIENCE, reply).await.with_context(|| format!("{method}: no answer"))??;
        if let Some(error) = reply.get("error") {
            bail!("{method}: {error}");
        }
        Ok(reply.get_mut("result").map(Value::take).unwrap_or_default())
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        process::end(&mut self.child, PATIENCE);
    }
}

// === impl Page ===

impl Page<'_> {
    pub async fn call(&self, method: &str, params: Value) -> Result<Value> {
        self.browser.call(Some(&self.session), method, params).await
    }

    async fn go(&self) -> Result<()> {
        let gone = self.call("Page.navigate", json!({ "url": self.url })).await?;
        ensure!(gone.get("errorText").is_none(), "{}: {gone}", self.url);
        self.until("the page to be there", "document.readyState === 'complete'").await
    }

    pub async fn resize(&self, width: u32, height: u32) -> Result<()> {
        let size = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500});
        self.call("Emulation.setDeviceMetricsOverride", size).await.map(drop)
    }

    /// As a person with these settings sees it.
    pub async fn prefers(&self, feature: &str, value: &str) -> Result<()> {
        let media = json!({"features": [{"name": feature, "value": value}]});
        self.call("Emulation.setEmulatedMedia", media).await.map(drop)
    }

    /// What an expression comes to. A promise is waited for.
    pub async fn eval<T: DeserializeOwned>(&self, expression: &str) -> Result<T> {
        let ask = json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let mut said = self.call("Runtime.evaluate", ask).await?;
        if let Some(thrown) = said.get("exceptionDetails") {
            bail!("{expression}: {thrown}");
        }
        let value = said.pointer_mut("/result/value").map(Value::take).unwrap_or_default();
        serde_json::from_value(value.clone()).with_context(|| format!("{expression}: {value}"))
    }

    pub async fn until(&self, what: &str, expression: &str) -> Result<()> {
        let mut last = None;
        let found = wait::until(what, PATIENCE, async || match self.eval::<bool>(expression).await {
            Ok(is) => is.then_some(()),
            Err(error) => {
                last = Some(error);
                None
            }
        });
        if let Err(error) = found.await {
            let shows: String = self.eval("document.documentElement.innerText").await.unwrap_or_default();
            bail!(
                "{error}: {expression} ({last:?})\nit complains: {:?}\nit shows:\n{shows}",
                self.complaints()
            );
        }
        Ok(())
    }

    pub async fn screenshot(&self, file: &Path) -> Result<()> {
        let shot = self.call("Page.captureScreenshot", json!({"format": "png"})).await?;
        fs::write(file, base64(text(&shot, "/data")).context("not base64")?)
            .with_context(|| file.display().to_string())
    }

    /// What stands in its console, what it was not allowed to do, and whom else it asked.
    pub fn complaints(&self) -> Vec<String> {
        let state = self.browser.wire.state();
        let all = state.events.get(&self.session).into_iter().flatten();
        all.filter_map(|event| self.complaint(event)).collect()
    }

    fn complaint(&self, event: &Value) -> Option<String> {
        let params = event.get("params")?;
        let bad = match event.get("method")?.as_str()? {
            "Runtime.exceptionThrown" => true,
            "Runtime.consoleAPICalled" => {
                matches!(params.get("type").and_then(Value::as_str), Some("error" | "warning" | "assert"))
            }
            "Log.entryAdded" => matches!(text(params, "/entry/level"), "error" | "warning"),
            "Audits.issueAdded" => true,
            "Network.requestWillBeSent" => {
                let url = text(params, "/request/url");
                !url.starts_with("data:") && host(url) != host(&self.url)
            }
            _ => false,
        };
        bad.then(|| params.to_string())
    }

    /// How many requests it made so far.
    pub fn requests(&self) -> usize {
        let state = self.browser.wire.state();
        let all = state.events.get(&self.session).into_iter().flatten();
        all.filter(|event| text(event, "/method") == "Network.requestWillBeSent").count()
    }
}

// === impl Wire ===

impl Wire {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn expect(&self) -> (u64, oneshot::Receiver<Value>) {
        let (tell, told) = oneshot::channel();
        let mut state = self.state();
        state.asked += 1;
        let id = state.asked;
        state.replies.insert(id, tell);
        (id, told)
    }

    /// Until the browser is gone; whoever waits for an answer then sees that none comes.
    async fn hear(self: Arc<Self>, mut stream: SplitStream<Socket>) {
        while let Some(Ok(message)) = stream.next().await {
            let Message::Text(text) = message else { continue };
            let Ok(said) = serde_json::from_str::<Value>(&text) else { continue };
            let mut state = self.state();
            if let Some(reply) =
                said.get("id").and_then(Value::as_u64).and_then(|id| state.replies.remove(&id))
            {
                _ = reply.send(said);
            } else if let Some(session) = said.get("sessionId").and_then(Value::as_str).map(str::to_owned) {
                state.events.entry(session).or_default().push(said);
            }
        }
        self.state().replies.clear();
    }
}

/// A text at a place in JSON; empty if there is none.
fn text<'a>(value: &'a Value, place: &str) -> &'a str {
    value.pointer(place).and_then(Value::as_str).unwrap_or_default()
}

/// Of a URL, with its port, and without who asks.
fn host(url: &str) -> Option<&str> {
    let authority = url.split('/').nth(2)?;
    Some(authority.rsplit_once('@').map_or(authority, |(_, host)| host))
}

fn base64(text: &str) -> Result<Vec<u8>> {
    let digit = |byte: u8| match byte {
        b'A'..=b'Z' => Ok(byte - b'A'),
        b'a'..=b'z' => Ok(byte - b'a' + 26),
        b'0'..=b'9' => Ok(byte - b'0' + 52),
        b'+' => Ok(62),
        b'/' => Ok(63),
        byte => Err(anyhow!("{byte}")),
    };
    let (mut out, mut bits, mut count) = (Vec::with_capacity(text.len()), 0_u32, 0);
    for byte in text.bytes().filter(|&byte| byte != b'=') {
        bits = bits << 6 | u32::from(digit(byte)?);
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push(u8::try_from(bits >> count & 0xff)?);
        }
    }
    Ok(out)
}
