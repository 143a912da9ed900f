//! The paths of the API, made and taken apart in one place.

use std::fmt::Write as _;

pub const PAGE: &str = "/";
pub const OVERVIEW: &str = "/v1";
pub const UPSTREAMS: &str = "/v1/upstreams";
pub const MARKS: &str = "/v1/marks";
pub const RENEW: &str = "/v1/renew";
pub const ORPHANS: &str = "/v1/orphans";
pub const PAUSE: &str = "/v1/pause";
pub const RESUME: &str = "/v1/resume";
pub const EVENTS: &str = "/v1/events";
pub const TIMELINE: &str = "/v1/timeline";
pub const METRICS: &str = "/metrics";

/// What a path names. Names are percent-decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Path {
    /// The dashboard.
    Page,
    Metrics,
    Overview,
    Upstreams,
    Upstream(String),
    Quiet(String),
    Peer {
        upstream: String,
        peer: String,
    },
    Drained {
        upstream: String,
        peer: String,
    },
    Marks,
    Renew,
    Orphans,
    Pause,
    Resume,
    Events,
    Timeline,
}

/// Every path, as documentation writes it.
pub const TEMPLATES: [&str; 15] = [
    PAGE,
    METRICS,
    OVERVIEW,
    UPSTREAMS,
    "/v1/upstreams/{upstream}",
    "/v1/upstreams/{upstream}/quiet",
    "/v1/upstreams/{upstream}/peers/{peer}",
    "/v1/upstreams/{upstream}/peers/{peer}/drained",
    MARKS,
    RENEW,
    ORPHANS,
    PAUSE,
    RESUME,
    EVENTS,
    TIMELINE,
];

impl Path {
    /// Which of [`TEMPLATES`] it is.
    pub fn template(&self) -> &'static str {
        let [
            page,
            metrics,
            overview,
            upstreams,
            upstream,
            quiet,
            peer,
            drained,
            marks,
            renew,
            orphans,
            pause,
            resume,
            events,
            timeline,
        ] = TEMPLATES;
        match self {
            Self::Page => page,
            Self::Metrics => metrics,
            Self::Overview => overview,
            Self::Upstreams => upstreams,
            Self::Upstream(_) => upstream,
            Self::Quiet(_) => quiet,
            Self::Peer { .. } => peer,
            Self::Drained { .. } => drained,
            Self::Marks => marks,
            Self::Renew => renew,
            Self::Orphans => orphans,
            Self::Pause => pause,
            Self::Resume => resume,
            Self::Events => events,
            Self::Timeline => timeline,
        }
    }

    /// Takes apart a request path (without its query). A trailing slash means the same as none.
    pub fn parse(path: &str) -> Option<Self> {
        let path = path.strip_suffix('/').unwrap_or(path);
        match path {
            "" => return Some(Self::Page),
            METRICS => return Some(Self::Metrics),
            _ => {}
        }
        let mut segments = path.strip_prefix("/v1")?.split('/');
        // What stands before the first slash: nothing, or this is /v1something.
        if !segments.next()?.is_empty() {
            return None;
        }
        let segments: Vec<String> = segments.map(decode).collect::<Option<_>>()?;
        let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
        Some(match *segments.as_slice() {
            [] => Self::Overview,
            ["upstreams"] => Self::Upstreams,
            ["upstreams", name] => Self::Upstream(name.to_owned()),
            ["upstreams", name, "quiet"] => Self::Quiet(name.to_owned()),
            ["upstreams", upstream, "peers", peer] => {
                Self::Peer { upstream: upstream.to_owned(), peer: peer.to_owned() }
            }
            ["upstreams", upstream, "peers", peer, "drained"] => {
                Self::Drained { upstream: upstream.to_owned(), peer: peer.to_owned() }
            }
            ["marks"] => Self::Marks,
            ["renew"] => Self::Renew,
            ["orphans"] => Self::Orphans,
            ["pause"] => Self::Pause,
            ["resume"] => Self::Resume,
            ["events"] => Self::Events,
            ["timeline"] => Self::Timeline,
            _ => return None,
        })
    }
}

pub fn upstream(upstream: &str) -> String {
    format!("{UPSTREAMS}/{}", encode(upstream))
}

pub fn quiet(upstream: &str) -> String {
    format!("{UPSTREAMS}/{}/quiet", encode(upstream))
}

pub fn peer(upstream: &str, peer: &str) -> String {
    format!("{UPSTREAMS}/{}/peers/{}", encode(upstream), encode(peer))
}

pub fn drained(upstream: &str, peer: &str) -> String {
    format!("{UPSTREAMS}/{}/peers/{}/drained", encode(upstream), encode(peer))
}

/// Percent-encodes everything but unreserved characters and the colon and brackets of addresses.
pub(crate) fn encode(text: &str) -> String {
    text.bytes().fold(String::with_capacity(text.len()), |mut out, byte| {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b':' | b'[' | b']' => {
                out.push(char::from(byte));
            }
            // Writing to a String cannot fail.
            _ => _ = write!(out, "%{byte:02X}"),
        }
        out
    })
}

/// Of one segment; `None` if that is no text.
pub fn decode(segment: &str) -> Option<String> {
    let mut out = Vec::with_capacity(segment.len());
    let mut bytes = segment.bytes();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'%' => {
                let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
                let value = digit(bytes.next())? * 16 + digit(bytes.next())?;
                u8::try_from(value).ok()?
            }
            byte => byte,
        });
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_is_made_is_the_path_that_is_read() {
        for address in ["127.0.0.1:3000", "[::1]:3000", "unix:/run/app/1.sock"] {
            let made = drained("my app", address);
            let read = Path::parse(&made);
            assert_eq!(
                read,
                Some(Path::Drained { upstream: "my app".into(), peer: address.into() }),
                "{made}"
            );
        }
    }

    #[test]
    fn the_path_of_an_upstream_may_ask_whether_it_is_quiet() {
        assert_eq!(Path::parse(&quiet("my app")), Some(Path::Quiet("my app".into())));
        assert_eq!(Path::parse("/v1/upstreams/app/quite"), None);
    }

    #[test]
    fn every_path_is_what_documentation_calls_it() {
        for template in TEMPLATES {
            assert_eq!(Path::parse(template).map(|path| path.template()), Some(template));
        }
    }

    #[test]
    fn a_trailing_slash_changes_nothing() {
        assert_eq!(Path::parse("/v1/"), Some(Path::Overview));
        assert_eq!(Path::parse("/v1"), Some(Path::Overview));
        assert_eq!(Path::parse("/v1/upstreams/"), Some(Path::Upstreams));
        assert_eq!([Path::parse("/"), Path::parse("")], [Some(Path::Page), Some(Path::Page)]);
        assert_eq!(Path::parse("/metrics/"), Some(Path::Metrics));
    }

    #[test]
    fn what_is_not_a_path_names_nothing() {
        for path in [
            "//",
            "/metrics/1",
            "/v2",
            "/v1x",
            "/v1/upstreams//x/y",
            "/v1/marks/1",
            "/v1/upstreams/%zz",
            "/v1/upstreams/%ff",
        ] {
            assert_eq!(Path::parse(path), None, "{path}");
        }
    }
}
