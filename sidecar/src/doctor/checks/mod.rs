//! The checks, a family a file: each takes what was seen and says what is wrong with it.

mod answers;
mod app;
mod cover;
mod host;
mod pass;
mod sidecar;
mod store;
mod upgrade;
mod upstream;

use super::{
    facts::Facts,
    finding::{About, Finding},
};

/// Everything that is wrong, in an order in which it can be mended: nginx first, then the apps.
pub fn all(facts: &Facts) -> Vec<Finding> {
    let families = [
        upgrade::check,
        cover::check,
        pass::check,
        upstream::check,
        sidecar::check,
        store::check,
        answers::check,
        app::check,
        host::check,
    ];
    let mut findings: Vec<Finding> = families.iter().flat_map(|check| check(facts)).collect();
    findings.sort_by(|a, b| {
        let key = |finding: &Finding| (finding.about.clone(), std::cmp::Reverse(finding.severity));
        key(a).cmp(&key(b))
    });
    findings
}

impl Finding {
    /// About an app as a whole.
    fn of(kind: &'static super::finding::Kind, app: &str, found: impl Into<String>) -> Self {
        Self::new(kind, About::App(app.to_owned(), None), found)
    }
}

/// Words with commas.
fn list(words: impl IntoIterator<Item = impl ToString>) -> String {
    words.into_iter().map(|word| word.to_string()).collect::<Vec<_>>().join(", ")
}

/// `1.6 s`
fn seconds(time: std::time::Duration) -> String {
    format!("{} s", (time.as_secs_f64() * 10.0).round() / 10.0)
}

#[cfg(test)]
pub(super) mod stage {
    //! Facts for the tests of the checks: a configuration and an app that nothing is wrong with, to be spoiled.

    use crate::{
        doctor::{
            conf,
            facts::{
                Answer, App, Asked, Binary, Control, Daemon, Facts, Health, Host, Seen, Sidecar, User, Worker,
            },
            finding::Finding,
            nginx::Nginx,
        },
        mapping::Behind,
        peer::Peer,
        pm2::{
            PmId,
            home::Home,
            monitor::{Settings, Status},
        },
    };
    use std::{path::Path, time::Duration};

    pub(crate) const GOOD: &str = "
load_module /m/ngx_http_handoff_module.so;
events { worker_connections 1024; }
http {
    upstream shop {
        zone shop 256k;
        server 127.0.0.1:3000 max_fails=0;
        server 127.0.0.1:3001 max_fails=0;
        keepalive 32;
        keepalive_timeout 4s;
        handoff;
    }
    server {
        listen unix:/run/handoff/nginx.sock;
        location / { handoff_api write=on user=shop; }
    }
    server {
        listen 80;
        location / {
            proxy_pass http://shop;
            proxy_http_version 1.1;
            proxy_set_header Connection \"\";
        }
    }
}
";

    /// The same without Handoff.
    pub(crate) fn stock() -> String {
        let mut text = GOOD
            .replace("load_module /m/ngx_http_handoff_module.so;\n", "")
            .replace("        handoff;\n", "");
        let from = text.find("    server {\n        listen unix").unwrap();
        let to = from + text[from..].find("    }\n    server {\n        listen 80").unwrap() + 6;
        text.replace_range(from..to, "");
        text
    }

    pub(crate) fn nginx(text: &str) -> Nginx {
        let directives = conf::parse(&format!("# configuration file /n.conf:\n{text}\n")).unwrap();
        let both = vec!["127.0.0.1".parse().unwrap(), "::1".parse().unwrap()];
        Nginx::of(&directives, &[("localhost".to_owned(), both)].into())
    }

    pub(crate) fn worker(id: u32, port: u16) -> Worker {
        Worker {
            id: PmId(id),
            status: Status::Online,
            settings: Settings {
                treekill: true,
                wait_ready: true,
                kill_timeout: Some(Duration::from_secs(8)),
                autorestart: true,
                port: Some(port),
                port_var: Some("PORT".into()),
                increment_var: Some("PORT".into()),
                ..Settings::default()
            },
            listens: vec![([127, 0, 0, 1], port).into()],
            peers: [Peer::new("shop", format!("127.0.0.1:{port}"))].into(),
            unknown: None,
            speaks: Some(false),
            keep_alive: None,
        }
    }

    pub(crate) fn facts(text: &str) -> Facts {
        let home = Home::new(Path::new("/home/shop/.pm2"));
        let behind =
            |id: u32, port: u16| (Peer::new("shop", format!("127.0.0.1:{port}")), Behind::Worker(PmId(id)));
        let user = User { name: "shop".into(), uid: 1000, groups: ["shop".to_owned()].into() };
        Facts {
            nginx: Some(nginx(text)),
            binary: Some(Binary {
                path: "/usr/sbin/nginx".into(),
                version: "1.22.1".into(),
                conf: "/n.conf".into(),
                command: "nginx".into(),
                module: Some("/m/ngx_http_handoff_module.so".into()),
            }),
            daemons: vec![Daemon {
                home: home.clone(),
                seen: Seen::Running { pid: 7, uid: 1000, user: Some(user), has_no_dates: Some(false) },
                sidecar: Some(Sidecar {
                    pid: 8,
                    uid: Some(1000),
                    version: "0.1.0".into(),
                    ..Sidecar::default()
                }),
                twins: Vec::new(),
            }],
            apps: vec![App {
                name: "shop".into(),
                home: Some(home),
                uid: 1000,
                workers: vec![worker(0, 3000), worker(1, 3001)],
                ..App::default()
            }],
            behind: [behind(0, 3000), behind(1, 3001)].into(),
            control: Some(Control {
                version: Some("0.1.0".into()),
                upstreams: ["shop".to_owned()].into(),
                ..Control::default()
            }),
            host: Host { has_ps: true, is_reachable: true, ..Host::default() },
            asked: Asked {
                control: "unix:/run/handoff/nginx.sock".into(),
                version: "0.1.0".into(),
                ..Asked::default()
            },
            ..Facts::default()
        }
    }

    pub(crate) fn good() -> Facts {
        facts(GOOD)
    }

    pub(crate) fn well() -> Health {
        Health { answer: Answer::Status(200), is_constant: false, anywhere: Some(404) }
    }

    pub(crate) fn ids(findings: &[Finding]) -> Vec<&'static str> {
        findings.iter().map(|finding| finding.kind.id).collect()
    }

    /// Found in the one, and not in the other.
    #[track_caller]
    pub(crate) fn only_in(id: &str, wrong: &Facts, right: &Facts) -> Finding {
        let found = super::all(wrong);
        assert!(!ids(&super::all(right)).contains(&id), "{id} where it is not");
        let finding = found.iter().find(|finding| finding.kind.id == id);
        finding.unwrap_or_else(|| panic!("no {id} in {:?}", ids(&found))).clone()
    }

    #[test]
    fn nothing_is_wrong_where_nothing_is() {
        assert_eq!(ids(&super::all(&good())), Vec::<&str>::new());
        assert_eq!(
            ids(&super::all(&Facts { host: Host { has_ps: true, ..Host::default() }, ..Facts::default() })),
            Vec::<&str>::new()
        );
    }
}
