//! The NGINX Plus API, request by request as its clients send them: every path with and without its slash, every status, every
//! error, byte by byte.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test says so by failing"
)]

mod common;

use common::dice::Dice;
use common::*;
use handoff_core::plus::path::Method;
use handoff_core::plus::{About, Call, Code, Error, Fields, Nginx, Path, Server, Sight, Visitors};
use handoff_core::timing::{Attempt, Times};
use handoff_wire::State::*;
use handoff_wire::{EventKind, Span, State};
use serde_json::{Value, json};

/// What nginx says of `app`, and of one upstream that does not take part.
struct Script {
    servers: Vec<Server>,
    visitors: Option<Visitors>,
}

struct Plus {
    stage: Stage,
    nginx: Script,
}

impl Nginx for Script {
    fn about(&self) -> About {
        About { version: "1.28.3".into(), address: "127.0.0.1".into(), pid: 812, ppid: 810 }
    }

    fn visitors(&self) -> Option<Visitors> {
        self.visitors
    }

    fn servers(&self, upstream: &str) -> Vec<Server> {
        if upstream == APP { self.servers.clone() } else { Vec::new() }
    }

    fn zone(&self, upstream: &str) -> String {
        format!("zone of {upstream}")
    }

    fn has_block(&self, upstream: &str) -> bool {
        [APP, "static"].contains(&upstream)
    }
}

impl Plus {
    fn new() -> Self {
        let mut servers = vec![plus_server(0, A), plus_server(1, B), plus_server(2, C)];
        servers[2].backup = true;
        let visitors = Visitors {
            accepted: 100,
            handled: 97,
            requests: 1000,
            active: 12,
            reading: 1,
            writing: 4,
            waiting: 7,
        };
        let mut stage = Stage::new();
        stage.regard(C, |peer| peer.backup = true);
        Self { stage, nginx: Script { servers, visitors: Some(visitors) } }
    }

    fn sight(&self) -> Sight<'_, common::Script, Script> {
        let now = moment(self.stage.now);
        Sight { table: self.stage.table(), world: &self.stage.world, nginx: &self.nginx, now }
    }

    /// What a GET is answered, by status and as it is.
    fn get(&self, path: &str) -> (u16, String) {
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let call = Path::parse(path).and_then(|path| path.with(Method::Read));
        let body = call.and_then(|call| match call {
            Call::Read(path) => self.sight().answer(&path, &Fields::of(query)),
            _ => unreachable!("it was a GET"),
        });
        said(body.map(Option::unwrap))
    }

    fn patch(&self, path: &str, body: &str) -> (u16, String) {
        let call = Path::parse(path).and_then(|path| path.with(Method::Patch));
        let body = call.and_then(|call| match call {
            Call::Patch { upstream, id } => self.sight().patch(&upstream, &id, body.as_bytes()),
            _ => unreachable!("it was a PATCH"),
        });
        said(body.map(|patched| patched.body.unwrap()))
    }

    fn json(&self, path: &str) -> Value {
        let (status, text) = self.get(path);
        assert_eq!(status, 200, "{path}: {text}");
        serde_json::from_str(&text).unwrap()
    }

    /// The first server, after a PATCH that must be taken.
    fn patched(&self, body: &str) -> (State, Value) {
        let (status, text) = self.patch("/api/9/http/upstreams/app/servers/0/", body);
        assert_eq!(status, 200, "{body}: {text}");
        let server: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(server, self.json("/api/9/http/upstreams/app/servers/0"));
        (self.stage.state(A), json!([server["down"], server.get("drain")]))
    }
}

fn said(body: Result<Vec<u8>, Error>) -> (u16, String) {
    match body {
        Ok(body) => (200, String::from_utf8(body).unwrap()),
        Err(error) => (error.status, serde_json::to_string(&error.body("3c6163da")).unwrap()),
    }
}

fn error(status: u16, code: &str, text: &str) -> (u16, String) {
    let text = serde_json::to_string(text).unwrap();
    let body = format!(
        r#"{{"error":{{"status":{status},"text":{text},"code":"{code}"}},"request_id":"3c6163da","href":"https://nginx.org/en/docs/http/ngx_http_api_module.html"}}"#
    );
    (status, body)
}

const SERVERS: &str = r#"[{"id":0,"server":"10.0.0.1:3000","weight":1,"max_conns":0,"max_fails":1,"fail_timeout":"10s","slow_start":"0s","route":"","backup":false,"down":false},{"id":1,"server":"10.0.0.2:3000","weight":1,"max_conns":0,"max_fails":1,"fail_timeout":"10s","slow_start":"0s","route":"","backup":false,"down":false},{"id":2,"server":"10.0.0.3:3000","weight":1,"max_conns":0,"max_fails":1,"fail_timeout":"10s","slow_start":"0s","route":"","backup":true,"down":false}]"#;

/// A peer that did nothing yet.
fn fresh(id: u32, address: &str, backup: bool) -> String {
    format!(
        r#"{{"id":{id},"server":"{address}","name":"{address}","backup":{backup},"weight":1,"state":"up","active":0,"max_conns":0,"requests":0,"responses":{{"1xx":0,"2xx":0,"3xx":0,"4xx":0,"5xx":0,"total":0}},"sent":0,"received":0,"fails":0,"unavail":0,"health_checks":{{"checks":0,"fails":0,"unhealthy":0}},"downtime":0}}"#
    )
}

fn upstream() -> String {
    let peers = [fresh(0, A, false), fresh(1, B, false), fresh(2, C, true)].join(",");
    format!(r#"{{"peers":[{peers}],"zombies":0,"zone":"zone of app"}}"#)
}

#[test]
fn every_request_of_a_client_is_answered_in_every_version_with_a_slash_and_without() {
    let plus = Plus::new();
    let about = r#"{"version":"1.28.3","build":"handoff-0.1.0-r32","address":"127.0.0.1","generation":1,"load_timestamp":"2023-11-14T22:13:20.000Z","timestamp":"2023-11-14T22:30:00.000Z","pid":812,"ppid":810}"#;
    let upstreams = format!(r#"{{"app":{}}}"#, upstream());
    let answers = [
        ("", r#"["nginx","processes","connections","slabs","http","resolvers","ssl","workers"]"#),
        ("/nginx", about),
        ("/processes", r#"{"respawned":0}"#),
        ("/connections", r#"{"accepted":100,"dropped":3,"active":5,"idle":7}"#),
        ("/slabs", "{}"),
        ("/resolvers", "{}"),
        ("/ssl", "{}"),
        ("/workers", "[]"),
        (
            "/http",
            r#"["requests","server_zones","location_zones","caches","limit_conns","limit_reqs","keyvals","upstreams"]"#,
        ),
        ("/http/requests", r#"{"total":1000,"current":5}"#),
        ("/http/server_zones", "{}"),
        ("/http/location_zones", "{}"),
        ("/http/caches", "{}"),
        ("/http/limit_reqs", "{}"),
        ("/http/limit_conns", "{}"),
        ("/http/keyvals", "{}"),
        ("/http/upstreams", &upstreams),
        ("/http/upstreams/app", &upstream()),
        ("/http/upstreams/%61pp", &upstream()),
        ("/http/upstreams/app/servers", SERVERS),
        ("/http/upstreams/app/servers/1", &servers()[1]),
    ];
    for slash in ["", "/"] {
        assert_eq!(plus.get(&format!("/api{slash}")), (200, "[3,4,5,6,7,8,9]".to_owned()));
        for version in 3..=9 {
            for (path, body) in answers {
                let path = format!("/api/{version}{path}{slash}");
                assert_eq!(plus.get(&path), (200, body.to_owned()), "{path}");
            }
        }
    }
}

fn servers() -> Vec<String> {
    let servers: Vec<Value> = serde_json::from_str(SERVERS).unwrap();
    let plus = Plus::new();
    (0..servers.len())
        .map(|id| {
            let (_, text) = plus.get(&format!("/api/9/http/upstreams/app/servers/{id}"));
            assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), servers[id]);
            text
        })
        .collect()
}

#[test]
fn what_is_not_there_is_an_error_with_its_status_and_its_code() {
    let plus = Plus::new();
    let version = || error(404, "UnknownVersion", "unknown version");
    let path = || error(404, "PathNotFound", "path not found");
    let upstream = || error(404, "UpstreamNotFound", "upstream not found");
    let fixed = || error(400, "UpstreamStatic", "upstream is static: nginx.conf has no \"handoff\" in it");
    let id = || error(400, "UpstreamBadServerId", "invalid server ID");
    for slash in ["", "/"] {
        for (at, says) in [
            ("/api/2", version()),
            ("/api/10/http/upstreams", version()),
            ("/api/v9", version()),
            ("/api/09", version()),
            ("/api/+9", version()),
            ("/api//9", version()),
            ("/api/9//http", path()),
            ("/api/9/stream", path()),
            ("/api/9/stream/upstreams", path()),
            ("/api/8/stream/server_zones", path()),
            ("/api/8/stream/limit_conns", path()),
            ("/api/8/stream/zone_sync", path()),
            ("/api/9/license", path()),
            ("/api/9/http/nothing", path()),
            ("/api/9/http/caches/one", path()),
            ("/api/9/http/upstreams/app/peers", path()),
            ("/api/9/http/upstreams/app/servers/0/more", path()),
            ("/api/9/http/upstreams/%zz", path()),
            ("/api/9/http/upstreams/%ff", path()),
            ("/api/9/HTTP/upstreams", path()),
            ("/api/9/http/upstreams/other", upstream()),
            ("/api/9/http/upstreams/APP", upstream()),
            ("/api/9/http/upstreams/other/servers", upstream()),
            ("/api/9/http/upstreams/other/servers/0", upstream()),
            ("/api/9/http/upstreams/static", fixed()),
            ("/api/9/http/upstreams/static/servers", fixed()),
            ("/api/9/http/upstreams/static/servers/0", fixed()),
            ("/api/9/http/upstreams/app/servers/x", id()),
            ("/api/9/http/upstreams/app/servers/-1", id()),
            ("/api/9/http/upstreams/app/servers/99999999999", id()),
            (
                "/api/9/http/upstreams/app/servers/3",
                error(404, "UpstreamServerNotFound", "server with ID \"3\" does not exist"),
            ),
        ] {
            assert_eq!(plus.get(&format!("{at}{slash}")), says, "{at}{slash}");
        }
    }
    for not_ours in ["/", "/v1", "/apis", "/ap", "/metrics"] {
        assert!(!Path::is_below(not_ours), "{not_ours}");
    }
    assert!(Path::is_below("/api") && Path::is_below("/api/x"));
}

#[test]
fn a_method_that_is_not_served_is_disabled() {
    let call = |path: &str, method| Path::parse(path).unwrap().with(method);
    for (path, method, says) in [
        ("/api", Method::Other, "method disabled"),
        ("/api/9/connections", Method::Other, "method disabled"),
        ("/api/9/processes/", Method::Patch, "method disabled"),
        ("/api/9/http/upstreams/app", Method::Other, "method disabled"),
        ("/api/9/http/upstreams/app", Method::Patch, "method disabled"),
        ("/api/9/http/upstreams/app/servers/", Method::Delete, "method disabled"),
        ("/api/9/http/upstreams/app/servers/0/", Method::Post, "method disabled"),
        ("/api/9/http/upstreams/app/servers/0/", Method::Other, "method disabled"),
    ] {
        assert_eq!(said(call(path, method).map(|_| Vec::new())), error(405, "MethodDisabled", says));
    }
    let patch = Call::Patch { upstream: "app".into(), id: "0".into() };
    assert_eq!(call("/api/9/http/upstreams/app/servers/0/", Method::Patch), Ok(patch));
    let post = Call::Post { upstream: "app".into() };
    assert_eq!(call("/api/9/http/upstreams/app/servers/", Method::Post), Ok(post));
    let delete = Call::Delete { upstream: "app".into(), id: "0".into() };
    assert_eq!(call("/api/9/http/upstreams/app/servers/0/", Method::Delete), Ok(delete));
    let allows = |path: &str| Path::parse(path).unwrap().allows();
    assert_eq!(allows("/api/9/http/upstreams/app/servers/0"), "GET, HEAD, PATCH, DELETE");
    assert_eq!(allows("/api/9/http/upstreams/app/servers"), "GET, HEAD, POST");
    assert_eq!(allows("/api/9/http/upstreams/app"), "GET, HEAD");
}

#[test]
fn a_peer_shows_what_it_did() {
    let mut plus = Plus::new();
    plus.nginx.servers[0] = Server {
        name: "localhost:3000".into(),
        weight: 5,
        max_conns: 20,
        max_fails: 3,
        fail_timeout: Span::from_millis(60_000),
        ..plus.nginx.servers[0].clone()
    };
    plus.stage.claim(A);
    let slot = plus.stage.slot(A);
    (0..4).for_each(|_| slot.count_request(1_656_410_961_602));
    slot.count_fail();
    for (status, header, response) in [(200, 20, 30), (200, 21, 40), (404, 0, 39)] {
        slot.answers.count(status);
        let answer = Some(Times { header, response });
        slot.timing.count(&Attempt { sent: 100, received: 1000, answer });
    }
    slot.timing.count(&Attempt { sent: 7, received: 0, answer: None });
    plus.stage.mark("pm2:1", A, Checking);
    handoff_core::outage::watch(&plus.stage.table(), &plus.stage.world, moment(plus.stage.now));
    plus.stage.now += 1500;
    let peer = &plus.json("/api/9/http/upstreams/app")["peers"][0];
    let wanted = json!({
        "id": 0, "server": A, "name": "localhost:3000", "backup": false, "weight": 5, "state": "checking",
        "active": 1, "max_conns": 20, "requests": 4, "header_time": 13, "response_time": 36,
        "responses": {"1xx": 0, "2xx": 2, "3xx": 0, "4xx": 1, "5xx": 0, "total": 3},
        "sent": 307, "received": 3000, "fails": 1, "unavail": 0,
        "health_checks": {"checks": 0, "fails": 0, "unhealthy": 0},
        "downtime": 1500, "downstart": "2023-11-14T22:30:00.000Z", "selected": "2022-06-28T10:09:21.602Z",
    });
    assert_eq!(*peer, wanted);
    let servers = plus.json("/api/9/http/upstreams/app/servers");
    assert_eq!((&servers[0]["fail_timeout"], &servers[0]["max_fails"]), (&json!("60s"), &json!(3)));
}

#[test]
fn a_peer_that_was_removed_and_still_serves_is_a_zombie() {
    let mut plus = Plus::new();
    plus.stage.claim(A);
    let a = plus.stage.id(A);
    plus.stage.world.upstreams.get_mut(APP).unwrap().retain(|standing| standing.slot != a);
    plus.nginx.servers.remove(0);
    let app = plus.json("/api/9/http/upstreams/app");
    assert_eq!((app["zombies"].clone(), app["peers"].as_array().unwrap().len()), (json!(1), 2));
    plus.stage.release(A);
    assert_eq!(plus.json("/api/9/http/upstreams/app")["zombies"], 0);
}

#[test]
fn fields_are_those_that_were_asked_for() {
    let plus = Plus::new();
    for (path, body) in [
        ("/nginx?fields=version,build", r#"{"build":"handoff-0.1.0-r32","version":"1.28.3"}"#),
        ("/connections/?fields=idle", r#"{"idle":7}"#),
        ("/http/requests?x=1&fields=current", r#"{"current":5}"#),
        ("/http/upstreams?fields=zone", r#"{"app":{"zone":"zone of app"}}"#),
        ("/http/upstreams?fields=", r#"{"app":{}}"#),
        ("/http/upstreams/app?fields=zombies,nothing", r#"{"zombies":0}"#),
        ("/slabs?fields=pages", "{}"),
        ("/http/upstreams/app/servers?fields=id", SERVERS),
    ] {
        assert_eq!(plus.get(&format!("/api/9{path}")), (200, body.to_owned()), "{path}");
    }
    assert_eq!(plus.get("/api/9/connections?other=1"), plus.get("/api/9/connections"));
}

#[test]
fn what_nginx_was_built_without_is_nothing() {
    let mut plus = Plus::new();
    plus.nginx.visitors = None;
    assert_eq!(plus.get("/api/9/connections"), (200, "{}".to_owned()));
    assert_eq!(plus.get("/api/9/http/requests"), (200, "{}".to_owned()));
}

#[test]
fn a_server_is_taken_out_and_given_back() {
    let plus = Plus::new();
    let (up, draining, down) = (json!([false, null]), json!([false, true]), json!([true, null]));
    for (body, state, shows) in [
        ("{}", Up, &up),
        (r#"{"drain":true}"#, Draining, &draining),
        // What is absent stays as it is: the client in Go cannot even say false.
        (r#"{"server":"10.0.0.1:3000"}"#, Draining, &draining),
        (r#"{"down":false}"#, Draining, &draining),
        (r#"{"drain":false}"#, Up, &up),
        (r#"{"down":true}"#, Down, &down),
        (r#"{"drain":false}"#, Down, &down),
        (r#"{"drain":true}"#, Down, &down),
        (r#"{"down":false,"drain":true}"#, Draining, &draining),
        (r#"{"down":true,"drain":true}"#, Down, &down),
        (r#"{"down":false}"#, Up, &up),
    ] {
        assert_eq!(plus.patched(body), (state, shows.clone()), "{body}");
    }
    let events = plus.stage.table().recall(0).events;
    let kinds: Vec<_> = events.iter().map(|event| (event.kind, event.to)).collect();
    use EventKind::{Mark, Ready};
    assert_eq!(
        kinds,
        [
            (Mark, Some(Draining)),
            (Ready, Some(Up)),
            (Mark, Some(Down)),
            (Mark, Some(Draining)),
            (Mark, Some(Down)),
            (Ready, Some(Up))
        ],
        "nothing is told where nothing changed"
    );
    assert!(events.iter().all(|event| event.owner.as_str() == "plus"));
}

#[test]
fn others_marks_are_no_business_of_a_patch() {
    let plus = Plus::new();
    plus.stage.mark("pm2:1", A, Draining);
    assert_eq!(plus.patched(r#"{"drain":false}"#), (Draining, json!([false, null])), "PM2 says so still");
    assert_eq!(plus.json("/api/9/http/upstreams/app")["peers"][0]["state"], "draining");
    assert_eq!(plus.patched(r#"{"drain":true}"#), (Draining, json!([false, true])));
    assert_eq!(plus.stage.owners(A), ["pm2:1", "plus"]);
    plus.stage.mark("pm2:1", A, Up);
    assert_eq!(plus.stage.state(A), Draining);
}

#[test]
fn the_last_one_stays() {
    let plus = Plus::new();
    plus.patched(r#"{"drain":true}"#);
    let (status, text) = plus.patch("/api/9/http/upstreams/app/servers/1", r#"{"drain":true}"#);
    let says: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (status, &says["error"]["status"], &says["error"]["code"]),
        (409, &json!(409), &json!("Floor"))
    );
    assert!(says["error"]["text"].as_str().unwrap().contains("nobody would be left"), "{text}");
    assert_eq!(plus.stage.state(B), Up);
}

#[test]
fn a_server_is_as_nginx_conf_says_but_for_drain_and_down() {
    let mut plus = Plus::new();
    plus.nginx.servers[0].name = "10.0.0.1".into();
    plus.nginx.servers[1].down = true;
    let at = "/api/9/http/upstreams/app/servers/0";
    let same = r#"{"server":"10.0.0.1:3000","weight":1,"max_conns":0,"max_fails":1,"fail_timeout":"10s","slow_start":"0s","route":"","service":"","backup":false,"down":false}"#;
    for body in [
        same,
        r#"{"fail_timeout":"10","slow_start":"0ms","server":"10.0.0.1"}"#,
        r#"{"fail_timeout":"10000ms"}"#,
    ] {
        assert_eq!(plus.patch(at, body).0, 200, "{body}");
    }
    let format = |text| error(400, "UpstreamConfFormatError", text);
    let fixed = |what| {
        let text = format!("server \"0\" {what} is immutable: change it in nginx.conf, and reload");
        error(400, "UpstreamServerImmutable", &text)
    };
    for (body, says) in [
        (r#"{"id":0}"#, format("unknown parameter \"id\"")),
        (r#"{"drains":true}"#, format("unknown parameter \"drains\"")),
        (r#"{"drain":"true"}"#, format("invalid \"drain\" value")),
        (r#"{"drain":null}"#, format("invalid \"drain\" value")),
        (r#"{"down":1}"#, format("invalid \"down\" value")),
        (r#"{"weight":"2"}"#, format("invalid \"weight\" value")),
        (r#"{"fail_timeout":10}"#, format("invalid \"fail_timeout\" value")),
        (r#"{"server":7}"#, format("invalid \"server\" value")),
        (r#"{"drain":{}}"#, format("nested object or list")),
        (r#"{"what":[1]}"#, format("nested object or list")),
        ("[]", format("the body is not an object")),
        ("true", format("the body is not an object")),
        (r#"{"server":""}"#, error(400, "UpstreamBadAddress", "invalid \"server\"")),
        (r#"{"weight":0}"#, error(400, "UpstreamBadWeight", "invalid \"weight\"")),
        (r#"{"weight":-1}"#, error(400, "UpstreamBadWeight", "invalid \"weight\"")),
        (r#"{"weight":1.5}"#, error(400, "UpstreamBadWeight", "invalid \"weight\"")),
        (r#"{"max_conns":-1}"#, error(400, "UpstreamBadMaxConns", "invalid \"max_conns\"")),
        (r#"{"max_fails":-1}"#, error(400, "UpstreamBadMaxFails", "invalid \"max_fails\"")),
        (r#"{"fail_timeout":"soon"}"#, error(400, "UpstreamBadFailTimeout", "invalid \"fail_timeout\"")),
        (r#"{"slow_start":""}"#, error(400, "UpstreamBadSlowStart", "invalid \"slow_start\"")),
        (r#"{"server":"10.0.0.2:3000"}"#, fixed("address")),
        (r#"{"max_conns":9}"#, fixed("max_conns")),
        (r#"{"max_fails":0}"#, fixed("max_fails")),
        (r#"{"fail_timeout":"11s"}"#, fixed("fail_timeout")),
        (r#"{"slow_start":"1m"}"#, fixed("slow_start")),
        (r#"{"route":"a"}"#, fixed("route")),
        (r#"{"service":"a"}"#, fixed("service")),
        (r#"{"backup":true}"#, fixed("backup")),
        (
            r#"{"weight":2,"drain":true}"#,
            error(
                400,
                "UpstreamServerWeightImmutable",
                "server \"0\" weight is immutable: change it in nginx.conf, and reload",
            ),
        ),
        ("", error(415, "JsonError", "json error: EOF while parsing a value at line 1 column 0")),
        ("{", error(415, "JsonError", "json error: EOF while parsing an object at line 1 column 1")),
        ("drain", error(415, "JsonError", "json error: expected value at line 1 column 1")),
    ] {
        assert_eq!(plus.patch(at, body), says, "{body}");
        assert_eq!(plus.stage.state(A), Up, "all of it or nothing");
    }
    // What nginx.conf took out stays out.
    let says = error(
        400,
        "UpstreamServerImmutable",
        "server \"1\" down is immutable: change it in nginx.conf, and reload",
    );
    assert_eq!(plus.patch("/api/9/http/upstreams/app/servers/1", r#"{"down":false}"#), says);
    assert_eq!(plus.json("/api/9/http/upstreams/app/servers/1")["down"], true);
}

/// Whatever is sent, what comes back is JSON: an error says its status twice, and nothing else does.
#[test]
fn no_path_and_no_body_is_answered_otherwise_than_in_json() {
    const PIECES: [&str; 40] = [
        "/",
        "/api",
        "9",
        "3",
        "10",
        "http",
        "upstreams",
        "app",
        "static",
        "servers",
        "0",
        "1",
        "99",
        "%",
        "%61",
        "%00",
        "%ff",
        "?",
        "fields=",
        "fields=peers,zone",
        ",",
        "&",
        "..",
        "stream",
        "workers",
        "nginx",
        "ü",
        "{",
        "}",
        "\"drain\"",
        ":",
        "true",
        "false",
        "\"down\"",
        "null",
        "[",
        "]",
        "1e999",
        "\"weight\"",
        "\\u0000",
    ];
    let plus = Plus::new();
    for seed in 0..20_000 {
        let mut dice = Dice::from_seed(seed);
        let mut some = |most: usize| -> String {
            let count = dice.below(most);
            (0..count).map(|_| *dice.pick(&PIECES)).collect()
        };
        let mut path = format!("/api/9/http/upstreams{}", some(7));
        if seed % 3 == 0 {
            path = format!("/api{}", some(9));
        }
        if seed % 7 == 0 {
            path = "/api/9/http/upstreams/app/servers/0".to_owned();
        }
        let body = some(9);
        let Ok(call) = Path::parse(path.split('?').next().unwrap()) else { continue };
        let answers = [
            plus.get(&path),
            match call.with(Method::Patch) {
                Ok(_) => plus.patch(path.split('?').next().unwrap(), &body),
                Err(error) => said(Err(error)),
            },
        ];
        for (status, text) in answers {
            let what = format!("seed {seed}, {path} {body:?}: {status} {text}");
            let answer: Value = serde_json::from_str(&text).expect(&what);
            if status == 200 {
                assert!(answer.get("error").is_none(), "{what}");
            } else {
                assert_eq!(answer["error"]["status"], status, "{what}");
                assert!(answer["error"]["code"].is_string() && answer["error"]["text"].is_string(), "{what}");
            }
        }
    }
}

#[test]
fn a_code_of_ours_is_said_as_we_say_it() {
    let refusal = handoff_wire::Code::Busy.says("try again");
    assert_eq!(said(Err(refusal.into())), error(503, "Busy", "try again"));
    assert_eq!(said(Err(Code::BodyReadError.says("x"))), error(400, "BodyReadError", "x"));
}
