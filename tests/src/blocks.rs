//! Upstream blocks, as many as a test wants side by side in one nginx, each reached under a path of its own.

use crate::site::Site;
use anyhow::Result;

/// What is asked for below `/<name>/` is passed to the upstream `<name>`.
#[derive(Clone, Debug)]
pub struct Block {
    name: String,
    lines: String,
    zone: &'static str,
    scheme: &'static str,
    location: String,
}

impl Block {
    /// An upstream with a zone and these lines.
    pub fn new(name: impl Into<String>, lines: impl Into<String>) -> Self {
        Self { name: name.into(), lines: lines.into(), zone: "64k", scheme: "http", location: String::new() }
    }

    /// Has a zone of this size, for many peers.
    pub fn in_zone(self, zone: &'static str) -> Self {
        Self { zone, ..self }
    }

    /// Passes over TLS.
    pub fn tls(self) -> Self {
        Self { scheme: "https", ..self }
    }

    /// Says more in the location that passes to it.
    pub fn passed_with(self, location: impl Into<String>) -> Self {
        Self { location: location.into(), ..self }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    fn upstream(&self) -> String {
        format!("upstream {name} {{ zone {name} {}; {} }}", self.zone, self.lines, name = self.name)
    }

    fn location(&self) -> String {
        let Self { name, scheme, location, .. } = self;
        format!("    location /{name}/ {{ proxy_pass {scheme}://{name}; {location} }}")
    }
}

/// An nginx with these upstreams and the control socket.
pub async fn site(version: &str, blocks: &[Block]) -> Result<Site> {
    let mut site = Site::new(version).await?;
    site.write(&format!("{}\n{}", http(site.port(), blocks), site.api("write=on")))?;
    site.start().await?;
    Ok(site)
}

/// All of them, and the server through which they are reached.
pub fn http(port: u16, blocks: &[Block]) -> String {
    let lines = |line: fn(&Block) -> String| blocks.iter().map(line).collect::<Vec<_>>().join("\n");
    format!(
        "{}\nserver {{\n    listen 127.0.0.1:{port};\n    keepalive_requests 100000;\n    proxy_http_version 1.1;\n    \
         proxy_set_header Connection \"\";\n{}\n}}",
        lines(Block::upstream),
        lines(Block::location)
    )
}

/// `server` lines, with these parameters each.
pub fn servers<'a>(peers: impl IntoIterator<Item = &'a str>, parameters: &str) -> String {
    peers.into_iter().map(|peer| format!("server {peer} {parameters};")).collect::<Vec<_>>().join(" ")
}
