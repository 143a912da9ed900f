//! The nginx.conf of a setup: the article's block, the same tuned, or the same with Handoff.

use std::{fmt::Write as _, net::SocketAddr, path::PathBuf};

const TEMPLATE: &str = include_str!("nginx.conf");

#[derive(Clone, Debug)]
pub struct Conf {
    pub port: u16,
    pub servers: Vec<SocketAddr>,
    pub tuning: Tuning,
    /// A POST may be sent again, whatever became of it.
    pub non_idempotent: bool,
}

#[derive(Clone, Debug)]
pub enum Tuning {
    /// The article's block.
    Stock,
    /// What an operator can do about it without Handoff.
    Tuned,
    /// The article's block, with Handoff.
    Handoff { module: PathBuf, control: PathBuf },
}

impl Conf {
    pub fn text(&self, prefix: &str) -> String {
        let (tries, tries_timeout) = match self.tuning {
            Tuning::Tuned => ("0", "10s"),
            Tuning::Stock | Tuning::Handoff { .. } => ("2", "5s"),
        };
        TEMPLATE
            .replace("@load_module@", &self.load_module())
            .replace("@upstream@", &self.upstream())
            .replace("@held@", if self.has_handoff() { "|$handoff_held|$handoff_retry" } else { "" })
            .replace("@control@", &self.control())
            .replace("@non_idempotent@", if self.non_idempotent { " non_idempotent" } else { "" })
            .replace("@tries@", tries)
            .replace("@tries_timeout@", tries_timeout)
            .replace("@port@", &self.port.to_string())
            .replace("@prefix@", prefix)
    }

    fn has_handoff(&self) -> bool {
        matches!(self.tuning, Tuning::Handoff { .. })
    }

    fn load_module(&self) -> String {
        match &self.tuning {
            Tuning::Handoff { module, .. } => format!("load_module {};", module.display()),
            Tuning::Stock | Tuning::Tuned => String::new(),
        }
    }

    fn upstream(&self) -> String {
        let mut lines = vec!["least_conn;".to_owned()];
        if !matches!(self.tuning, Tuning::Stock) {
            lines.push("zone myapp 256k;".to_owned());
        }
        let parameters = if matches!(self.tuning, Tuning::Tuned) { " max_fails=0" } else { "" };
        lines.extend(self.servers.iter().map(|server| format!("server {server}{parameters};")));
        lines.push("keepalive 32;".to_owned());
        if self.has_handoff() {
            lines.push("handoff;".to_owned());
        }
        indented(&lines, 8)
    }

    fn control(&self) -> String {
        match &self.tuning {
            Tuning::Handoff { control, .. } => indented(
                &[
                    String::new(),
                    "server {".to_owned(),
                    format!("    listen unix:{};", control.display()),
                    "    access_log off;".to_owned(),
                    "    location / { handoff_api write=on; }".to_owned(),
                    "}".to_owned(),
                ],
                4,
            ),
            Tuning::Stock | Tuning::Tuned => String::new(),
        }
    }
}

fn indented(lines: &[String], by: usize) -> String {
    let mut text = lines.iter().fold(String::new(), |mut text, line| {
        // Writing to a String cannot fail.
        _ = writeln!(text, "{:by$}{line}", "");
        text
    });
    text.pop();
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports;

    fn conf(tuning: Tuning) -> String {
        Conf {
            port: 80,
            servers: vec![ports::address(3000), ports::address(3001)],
            tuning,
            non_idempotent: false,
        }
        .text("/p")
    }

    #[test]
    fn nothing_in_the_template_is_left_open() {
        let handoff = Tuning::Handoff { module: "/m.so".into(), control: "/c.sock".into() };
        for text in [conf(Tuning::Stock), conf(Tuning::Tuned), conf(handoff)] {
            assert!(!text.contains('@'), "{text}");
        }
    }

    #[test]
    fn stock_nginx_is_given_nothing_but_the_articles_block() {
        let text = conf(Tuning::Stock);
        for absent in ["non_idempotent", "zone", "max_fails", "handoff", "load_module"] {
            assert!(!text.contains(absent), "{absent} in {text}");
        }
        assert!(text.contains("proxy_next_upstream_tries 2;"));
    }

    #[test]
    fn tuned_nginx_is_given_a_zone_no_bans_and_every_try() {
        let text = conf(Tuning::Tuned);
        for present in [
            "zone myapp 256k;",
            "server 127.0.0.1:3001 max_fails=0;",
            "proxy_next_upstream_tries 0;",
            "proxy_next_upstream_timeout 10s;",
        ] {
            assert!(text.contains(present), "no {present} in {text}");
        }
        assert!(!text.contains("handoff"));
    }
}
