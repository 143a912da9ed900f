//! docs/api/openapi.yaml is what a running nginx does: every path and method of it is served and no other is, every answer has
//! the shape that is written there, and whatever may go wrong as it says there does.

#![allow(
    clippy::indexing_slicing,
    reason = "of JSON: what is not there is null, and a test says so by failing"
)]

use anyhow::{Context, Result, bail, ensure};
use e2e::{
    backend::Backend,
    door::Reply,
    place,
    site::{Site, VERSIONS},
};
use handoff_wire::{MAX_BODY, Owner, path};
use hyper::Method;
use serde_json::{Value, json};
use std::{cell::RefCell, collections::BTreeSet, fs};

/// What only happens when nginx is in trouble.
const UNSEEN: [&str; 1] = ["503"];

/// The file, and which of its answers were seen.
struct Document {
    root: Value,
    /// The same, where whatever it does not name is wrong.
    strict: Value,
    seen: RefCell<BTreeSet<String>>,
}

/// One question, and what it was answered.
struct Asked<'a> {
    method: &'a Method,
    path: &'a str,
    body: &'a str,
    reply: Reply,
}

// === impl Document ===

impl Document {
    fn read() -> Result<Self> {
        let text = fs::read_to_string(place::root().join("docs/api/openapi.yaml"))?;
        let root: Value = serde_saphyr::from_str(&text)?;
        let mut strict = root.clone();
        close(&mut strict);
        Ok(Self { root, strict, seen: RefCell::default() })
    }

    fn at<'a>(&'a self, pointer: &str) -> Option<&'a Value> {
        let value = self.root.pointer(pointer)?;
        match value.get("$ref").and_then(Value::as_str) {
            Some(to) => self.root.pointer(to.strip_prefix('#')?),
            None => Some(value),
        }
    }

    /// The methods of a path.
    fn methods(&self, template: &str) -> Result<BTreeSet<String>> {
        let path = self.at(&pointer(&["paths", template])).with_context(|| format!("no path {template}"))?;
        let keys = path.as_object().context("a path")?.keys();
        Ok(keys.filter(|key| *key != "parameters").map(|key| key.to_uppercase()).collect())
    }

    /// Why a value is not of this schema.
    fn fault(&self, schema: &Value, value: &Value) -> Result<Option<String>> {
        let mut root = json!({"$schema": "https://json-schema.org/draft/2020-12/schema"});
        let map = root.as_object_mut().context("an object")?;
        map.extend(schema.as_object().context("a schema")?.clone());
        map.insert("components".to_owned(), self.strict["components"].clone());
        let validator = jsonschema::validator_for(&root).map_err(|error| anyhow::anyhow!("{error}"))?;
        let faults = validator.iter_errors(value).map(|error| format!("{}: {error}", error.instance_path()));
        Ok(faults.reduce(|all, fault| format!("{all}\n{fault}")))
    }

    /// Whether it was answered as is written.
    fn check(&self, asked: &Asked<'_>) -> Result<()> {
        let Asked { method, path, body, reply } = asked;
        let (bare, _) = path.split_once('?').unwrap_or((path, ""));
        let bare = bare.strip_prefix("/readonly").unwrap_or(bare);
        let template = path::Path::parse(bare).with_context(|| format!("{bare} is no path"))?.template();
        let methods = self.methods(template)?;
        let status = reply.status.to_string();
        let served = if *method == Method::HEAD { "get" } else { &method.as_str().to_lowercase() };
        if !methods.contains(&served.to_uppercase()) {
            ensure!(reply.status == 405, "{} is served", method);
            let allowed: BTreeSet<_> = reply.header("allow").context("no Allow")?.split(", ").collect();
            let head = methods.contains("GET").then_some("HEAD");
            ensure!(
                allowed == methods.iter().map(String::as_str).chain(head).collect(),
                "Allow: {allowed:?}"
            );
            let error = json!({"$ref": "#/components/schemas/Error"});
            return if *method == Method::HEAD { Ok(()) } else { self.is(&error, reply) };
        }
        let operation = pointer(&["paths", template, served]);
        let answer = self
            .at(&format!("{operation}/responses/{status}"))
            .with_context(|| format!("{status} is not described: {}", reply.text()))?;
        self.seen.borrow_mut().insert(format!("{served} {template} {status}"));
        let (kind, content) =
            answer["content"].as_object().and_then(|all| all.iter().next()).context("content")?;
        let said = reply.header("content-type").unwrap_or_default();
        ensure!(said.split(';').next() == Some(kind), "{said} instead of {kind}");
        if *method == Method::HEAD || kind.starts_with("text/") {
            ensure!(reply.body.is_empty() == (*method == Method::HEAD), "{}", reply.text());
            return Ok(());
        }
        self.is(&content["schema"], reply)?;
        // What is written of the body that is sent must hold, too.
        let wanted = &self.root.pointer(&format!("{operation}/requestBody/content/application~1json/schema"));
        if let (Some(schema), 200) = (wanted, reply.status)
            && let Some(fault) = self.fault(schema, &serde_json::from_str(body)?)?
        {
            bail!("it was taken, though it should not be so: {fault}");
        }
        Ok(())
    }

    fn is(&self, schema: &Value, reply: &Reply) -> Result<()> {
        ensure!(reply.header("content-type") == Some("application/json"), "{:?}", reply.headers);
        let value: Value = serde_json::from_slice(&reply.body)?;
        if let Some(fault) = self.fault(schema, &value)? {
            bail!("{value}\n{fault}");
        }
        ensure!(
            reply.status == 200 || value["error"]["status"] == reply.status,
            "{} says {value}",
            reply.status
        );
        Ok(())
    }

    /// What is written there and was never answered.
    fn unseen(&self) -> Result<Vec<String>> {
        let mut unseen = Vec::new();
        for template in path::TEMPLATES {
            for method in self.methods(template)? {
                let method = method.to_lowercase();
                let answers = self.at(&pointer(&["paths", template, &method, "responses"]));
                let answers = answers.and_then(Value::as_object).context("answers")?;
                let all = answers.keys().filter(|status| !UNSEEN.contains(&status.as_str()));
                let all = all.map(|status| format!("{method} {template} {status}"));
                unseen.extend(all.filter(|answer| !self.seen.borrow().contains(answer)));
            }
        }
        Ok(unseen)
    }
}

fn pointer(keys: &[&str]) -> String {
    keys.iter().map(|key| format!("/{}", key.replace('~', "~0").replace('/', "~1"))).collect()
}

/// Whatever an object says of its fields, it has no others.
fn close(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.values_mut().for_each(close);
            if map.get("type") == Some(&json!("object")) && map.contains_key("properties") {
                map.insert("additionalProperties".to_owned(), false.into());
            }
        }
        Value::Array(values) => values.iter_mut().for_each(close),
        _ => {}
    }
}

fn marks(owner: &str, state: &str, peers: &[&str]) -> Value {
    let marks = peers.iter().map(|peer| json!({"upstream": "app", "peer": peer, "state": state}));
    json!({"owner": owner, "marks": marks.collect::<Vec<_>>()})
}

/// Asks all that can be asked, in an order in which each of it is answered.
async fn play(site: &Site, backend: &Backend, document: &Document) -> Result<()> {
    let ask = async |method: Method, path: &str, body: &Value| {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let reply = site.ask(method.clone(), path, body.clone()).await?;
        let asked = Asked { method: &method, path, body: &body, reply };
        document.check(&asked).with_context(|| format!("{method} {path} {body:.200}"))?;
        anyhow::Ok(asked.reply)
    };
    let says = async |status: u16, code: &str, method: Method, path: &str, body: &Value| {
        let reply = ask(method, path, body).await?;
        let refusal = reply.refusal().map(|refusal| format!("{:?}", refusal.code)).unwrap_or_default();
        ensure!(
            (reply.status, refusal.as_str()) == (status, code),
            "{path}: {} {}",
            reply.status,
            reply.text()
        );
        anyhow::Ok(())
    };
    let get = async |path: &str| ask(Method::GET, path, &Value::Null).await?.json::<Value>();
    let (a, b) = (backend.peer(0), backend.peer(1));
    let (peer, drained) = (path::peer("app", &a), path::drained("app", &a));
    let peers = path::peers("app");

    // Every method on every path.
    let written = [path::MARKS, path::RENEW, path::ORPHANS, path::PAUSE, path::RESUME, &peers];
    let read = [
        "/",
        "/metrics",
        "/v1/timeline",
        "/v1",
        "/v1/upstreams",
        "/v1/upstreams/app",
        "/v1/upstreams/app/quiet",
        &peer,
        &drained,
        "/v1/events",
    ];
    for path in read.into_iter().chain(written) {
        for method in ["GET", "HEAD", "PUT", "POST", "PATCH", "DELETE", "OPTIONS", "BREW"] {
            ask(method.parse()?, path, &json!({"x": 1})).await?;
            ask(method.parse()?, &format!("{}/", path.trim_end_matches('/')), &Value::Null).await?;
        }
        let (method, other) = match path {
            path::MARKS | path::PAUSE => (Method::PUT, "/readonly"),
            path if written.contains(&path) => (Method::POST, "/readonly"),
            _ => (Method::GET, ""),
        };
        says(400, "BadRequest", method.clone(), &format!("{path}?what=1"), &Value::Null).await?;
        if !other.is_empty() {
            says(403, "Forbidden", method.clone(), &format!("{other}{path}"), &json!({})).await?;
            let large = json!({"owner": "x".repeat(MAX_BODY)});
            says(413, "TooLarge", method, path, &large).await?;
        }
    }

    // Something of everything that a view can show.
    site.visitors().get("/status/200").await?;
    let mut drain = marks("pm2:1", "draining", &[&a]);
    drain["lease"] = "60s".into();
    drain["marks"][0]["expect"] = "back".into();
    drain["marks"][0]["reason"] = "a deploy".into();
    let ack: Value = ask(Method::PUT, path::MARKS, &drain).await?.json()?;
    let epoch = &ack["marks"][0]["epoch"];
    for path in read {
        ask(Method::GET, path, &Value::Null).await?;
    }
    ask(Method::GET, &format!("{drained}?timeout=1s"), &Value::Null).await?;
    ask(Method::GET, "/v1/events?after=0", &Value::Null).await?;
    for path in [
        "/v1/upstreams/no",
        "/v1/upstreams/no/quiet",
        "/v1/upstreams/no/peers/x",
        "/v1/upstreams/app/peers/x/drained",
    ] {
        let code = if path.contains("app") { "PeerNotFound" } else { "UpstreamNotFound" };
        says(404, code, Method::GET, path, &Value::Null).await?;
    }

    let renewal = |epoch: &Value| json!({"owner": "pm2:1", "lease": "60s", "marks": [{"upstream": "app", "peer": a, "epoch": epoch}]});
    ask(Method::POST, path::RENEW, &renewal(epoch)).await?.json::<Value>()?;
    ask(Method::POST, path::RENEW, &json!({"owner": "pm2:1"})).await?.json::<Value>()?;
    says(409, "Lapsed", Method::POST, path::RENEW, &renewal(&json!(7))).await?;
    let mut unknown = renewal(epoch);
    unknown["marks"][0]["peer"] = "x".into();
    says(404, "PeerNotFound", Method::POST, path::RENEW, &unknown).await?;

    says(409, "Floor", Method::PUT, path::MARKS, &marks("operator", "down", &[&b])).await?;
    says(404, "PeerNotFound", Method::PUT, path::MARKS, &marks("operator", "down", &["x"])).await?;
    for number in 2..=8 {
        ask(Method::PUT, path::MARKS, &marks(&format!("pm2:{number}"), "checking", &[&a]))
            .await?
            .json::<Value>()?;
    }
    says(507, "MarksFull", Method::PUT, path::MARKS, &marks("pm2:9", "down", &[&a])).await?;
    get(&peer).await?;
    let mut all = marks("operator", "up", &[&a]);
    all["marks"][0]["all"] = true.into();
    ask(Method::PUT, path::MARKS, &all).await?.json::<Value>()?;

    let orphans = |peer: &str| json!({"owner": "pm2:1", "connections": [{"peer": peer, "port": 1}]});
    ask(Method::POST, path::ORPHANS, &orphans(&a)).await?.json::<Value>()?;
    says(404, "PeerNotFound", Method::POST, path::ORPHANS, &orphans("x")).await?;

    let pause = |owner: &str, name: &str, max: &str| json!({"owner": owner, "upstreams": [name], "max": max, "reason": "schema 42"});
    let resume = |owner: &str, name: &str| json!({"owner": owner, "upstreams": [name]});
    ask(Method::PUT, path::PAUSE, &pause("operator", "app", "20s")).await?.json::<Value>()?;
    let paused = get("/v1/upstreams/app").await?;
    ensure!(paused["pause"]["owner"] == "operator", "{paused}");
    get("/v1/upstreams/app/quiet?timeout=1s").await?;
    says(409, "Paused", Method::PUT, path::PAUSE, &pause("plus", "app", "20s")).await?;
    says(409, "Paused", Method::POST, path::RESUME, &resume("plus", "app")).await?;
    says(409, "NoQueue", Method::PUT, path::PAUSE, &pause("plus", "hasty", "20s")).await?;
    says(404, "UpstreamNotFound", Method::PUT, path::PAUSE, &pause("plus", "no", "20s")).await?;
    says(404, "UpstreamNotFound", Method::POST, path::RESUME, &resume("plus", "no")).await?;
    ask(Method::POST, path::RESUME, &resume("operator", "app")).await?.json::<Value>()?;
    says(409, "TooLong", Method::PUT, path::PAUSE, &pause("plus", "app", "31s")).await?;
    let add = |peer: &str| json!({"owner": "operator", "peer": peer, "weight": 2, "reason": "host 7"});
    let new = path::peer("app", "127.0.0.1:9");
    ask(Method::POST, &peers, &add("127.0.0.1:9")).await?.json::<Value>()?;
    ask(Method::POST, &peers, &add("127.0.0.1:9")).await?.json::<Value>()?;
    ensure!(get(&new).await?["dynamic"] == true, "not dynamic");
    get("/v1/upstreams/app").await?;
    says(507, "SlotsFull", Method::POST, &peers, &add("127.0.0.1:10")).await?;
    says(409, "Configured", Method::POST, &peers, &add(&a)).await?;
    says(409, "NoSlots", Method::POST, &path::peers("hasty"), &add(&a)).await?;
    says(404, "UpstreamNotFound", Method::POST, &path::peers("no"), &add(&a)).await?;
    let remove = json!({"owner": "operator", "force": true});
    says(409, "Configured", Method::DELETE, &peer, &remove).await?;
    says(404, "PeerNotFound", Method::DELETE, "/v1/upstreams/app/peers/x", &remove).await?;
    says(403, "Forbidden", Method::DELETE, &format!("/readonly{new}"), &remove).await?;
    says(413, "TooLarge", Method::DELETE, &new, &json!({"owner": "x".repeat(MAX_BODY)})).await?;
    ask(Method::DELETE, &format!("{new}?timeout=1s"), &remove).await?.json::<Value>()?;
    let events = get("/v1/events").await?;
    ensure!(events["events"].as_array().is_some_and(|events| events.len() > 10), "{events}");
    Ok(())
}

#[tokio::test]
async fn every_answer_is_as_it_is_written_and_everything_that_is_written_is_answered() -> Result<()> {
    let document = Document::read()?;
    let written: BTreeSet<&str> =
        document.root["paths"].as_object().context("paths")?.keys().map(String::as_str).collect();
    assert_eq!(written, BTreeSet::from(path::TEMPLATES), "its paths are not those of the API");
    let backend = Backend::start(2).await?;
    for version in VERSIONS {
        let mut site = Site::new(version).await?;
        site.write(&format!(
            "upstream app {{ zone app 256k; {} handoff; handoff_slots 1; }}\n\
             upstream hasty {{ zone hasty 64k; server 127.0.0.1:9; handoff; handoff_queue off; }}\n\
             upstream around {{ {} }}\n{}\n\
             server {{ listen unix:{}; access_log off; lingering_timeout 200ms;\n\
             location / {{ handoff_api write=on; }} location /readonly/ {{ handoff_api; }} }}",
            backend.servers(),
            backend.servers(),
            site.front("proxy_pass http://app;"),
            site.socket().display(),
        ))?;
        site.start().await?;
        play(&site, &backend, &document).await?;
        site.end().await?;
    }
    assert_eq!(document.unseen()?, Vec::<String>::new(), "written, and never answered");
    Ok(())
}

/// A body that the file does not allow is refused, and the words are the same on both sides.
#[tokio::test]
async fn what_is_written_of_a_body_is_what_nginx_takes() -> Result<()> {
    let document = Document::read()?;
    let schema = |name: &str| json!({"$ref": format!("#/components/schemas/{name}")});
    let words = |name: &str| document.root["components"]["schemas"][name]["enum"].clone();
    let states: Vec<_> = handoff_wire::State::ALL.iter().map(|state| state.as_str()).collect();
    assert_eq!(words("State"), json!(states));
    let mut shown = states;
    shown.push("unavail");
    assert_eq!(words("PeerState"), json!(shown));
    for (owner, is_one) in [
        ("operator", true),
        ("pm2:/home/x/.pm2", true),
        ("root", false),
        ("pm2:", false),
        ("worker:a b", false),
    ] {
        assert_eq!(document.fault(&schema("Owner"), &json!(owner))?.is_none(), is_one, "{owner}");
        assert_eq!(owner.parse::<Owner>().is_ok(), is_one, "{owner}");
    }

    let backend = Backend::start(2).await?;
    let peer = backend.peer(0);
    let mark = json!({"peer": peer, "state": "draining"});
    let peers = path::peers("app");
    let bodies = [
        (Method::PUT, path::MARKS, "MarkSet", json!({"owner": "pm2:1", "marks": [mark]})),
        (Method::POST, path::RENEW, "Renew", json!({"owner": "pm2:1"})),
        (
            Method::POST,
            path::ORPHANS,
            "OrphanSet",
            json!({"owner": "pm2:1", "connections": [{"peer": peer, "port": 1}]}),
        ),
        (Method::PUT, path::PAUSE, "PauseSet", json!({"owner": "pm2:1", "upstreams": ["app"]})),
        (Method::POST, path::RESUME, "Resume", json!({"owner": "pm2:1", "upstreams": ["app"]})),
        (Method::POST, &peers, "PeerAdd", json!({"owner": "pm2:1", "peer": "127.0.0.1:9", "weight": 2})),
    ];
    for version in VERSIONS {
        let mut site = Site::new(version).await?;
        site.write(&site.usual(&backend).replace("handoff;", "handoff; handoff_slots 1;"))?;
        site.start().await?;
        for (method, path, name, good) in &bodies {
            let good = good.as_object().context("an object")?;
            let with = |key: &str, value: Value| {
                let mut map = good.clone();
                map.insert(key.to_owned(), value);
                map
            };
            let without = |key: &str| {
                let mut map = good.clone();
                map.remove(key);
                map
            };
            let mut variants = vec![
                good.clone(),
                with("surplus", json!(1)),
                with("owner", json!("root")),
                with("owner", json!(7)),
            ];
            variants.extend(good.keys().map(|key| without(key)));
            variants.extend(good.keys().skip(1).map(|key| with(key, json!([]))));
            variants
                .extend(["force", "lease", "max", "reason", "marks"].map(|key| with(key, json!({"x": 1}))));
            variants.extend(["1", "10", "1d", "-1s"].map(|lease| with("lease", json!(lease))));
            for body in variants {
                let body = Value::Object(body);
                let reply = site.ask(method.clone(), path, body.to_string()).await?;
                let fault = document.fault(&schema(name), &body)?;
                ensure!(
                    (reply.status == 200) == fault.is_none(),
                    "{path} {body}: {} though the file says {fault:?}",
                    reply.status
                );
            }
        }
        site.end().await?;
    }
    Ok(())
}
