//! Ways around a peer's marks. A drain is worth nothing where the same worker is reached by one of them.
//!
//! Seen is what the http block names or resolves when it is read, whatever the protocol. Not seen: an address that a variable
//! or a resolver gives at run time, and all that is passed on outside of the http block.

use super::block::{addresses, is_block, place_of, servers};
use super::server_conf;
use crate::nginx::text;
use crate::upstream::{Upstream, listed};
use nginx_sys::ngx_http_upstream_srv_conf_t;
use std::collections::{BTreeSet, HashMap};
use std::ptr::NonNull;

/// An upstream without `handoff` that has a peer of one with it.
pub(super) struct Bypass {
    peer: String,
    /// The upstream whose marks are not seen.
    upstream: String,
    by: By,
    /// "file:line"
    at: String,
}

enum By {
    Upstream(String),
    /// A `proxy_pass` or its like, with an address or a host name.
    Location,
}

/// Every upstream is complete by now, and its balancer is initialized.
pub(super) fn find<'a>(
    ours: &[Upstream],
    all: impl Iterator<Item = &'a mut ngx_http_upstream_srv_conf_t>,
) -> Vec<Bypass> {
    let mut covered = HashMap::new();
    for upstream in ours {
        covered.extend(upstream.addresses.names().map(|name| (name, &upstream.name)));
    }
    let mut bypasses = Vec::new();
    for us in all.filter(|us| server_conf(us).is_none_or(|conf| !conf.enabled)) {
        for peer in peers(us) {
            let Some(&upstream) = covered.get(peer.as_str()) else { continue };
            bypasses.push(Bypass { peer, upstream: upstream.clone(), by: By::of(us), at: place_of(us) });
        }
    }
    bypasses
}

/// The addresses of an upstream, each once.
fn peers(us: &ngx_http_upstream_srv_conf_t) -> BTreeSet<String> {
    if is_block(us) {
        return servers(us).iter().flat_map(addresses).map(|(name, _)| name).collect();
    }
    // nginx resolved the name of a host only for the balancer, which is round robin where no block says otherwise.
    let list = NonNull::new(us.peer.data.cast());
    // SAFETY: each peer of a list has a name.
    list.into_iter().flat_map(listed).map(|peer| text(unsafe { &peer.as_ref().name }).into_owned()).collect()
}

// === impl Bypass ===

impl Bypass {
    /// For the log of whoever reads the configuration.
    pub(super) fn warning(&self) -> String {
        let Self { peer, upstream, at, .. } = self;
        match &self.by {
            By::Upstream(other) => format!(
                "upstream \"{other}\" has the peer {peer} of upstream \"{upstream}\" but no \"handoff\": marks are not \
                 seen there; add \"handoff;\" in {at}"
            ),
            By::Location => format!(
                "requests passed to {peer} directly do not see the marks of upstream \"{upstream}\": pass them to \
                 http://{upstream} in {at}"
            ),
        }
    }

    /// The peer, and who passes to it, as the API says it.
    pub(super) fn way(self) -> (String, String) {
        let by = match self.by {
            By::Upstream(name) => format!("upstream \"{name}\" in {}", self.at),
            By::Location => format!("a location in {}", self.at),
        };
        (self.peer, by)
    }
}

// === impl By ===

impl By {
    fn of(us: &ngx_http_upstream_srv_conf_t) -> Self {
        if is_block(us) { Self::Upstream(text(&us.host).into_owned()) } else { Self::Location }
    }
}
