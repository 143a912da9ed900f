//! The paths, and which methods they take.

use super::{Code, Error};
use handoff_wire::path::decode;

/// Versions differ in what they may say more, so that one answer is right for all of them.
pub const VERSIONS: [u32; 7] = [3, 4, 5, 6, 7, 8, 9];

/// What a path names. Names are percent-decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Path {
    Versions,
    Root,
    Nginx,
    Processes,
    Connections,
    Http,
    Requests,
    Upstreams,
    Upstream(String),
    Servers(String),
    Server {
        upstream: String,
        id: String,
    },
    /// What that API has and nginx alone does not count, by name.
    NoZones,
    NoWorkers,
}

/// What a request wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    Read(Path),
    Patch { upstream: String, id: String },
    Post { upstream: String },
    Delete { upstream: String, id: String },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// GET or HEAD.
    Read,
    Patch,
    Post,
    Delete,
    Other,
}

// === impl Path ===

impl Path {
    /// Whether a path is one of ours to answer, with an error if need be.
    pub fn is_below(path: &str) -> bool {
        path.strip_prefix("/api").is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// Takes apart a path (without its query). A trailing slash means the same as none.
    pub fn parse(path: &str) -> Result<Self, Error> {
        let unknown = || Code::PathNotFound.says("path not found");
        let rest = path.strip_suffix('/').unwrap_or(path).strip_prefix("/api").ok_or_else(unknown)?;
        let Some(rest) = rest.strip_prefix('/') else {
            return if rest.is_empty() { Ok(Self::Versions) } else { Err(unknown()) };
        };
        let (version, rest) = rest.split_once('/').unwrap_or((rest, ""));
        if !VERSIONS.iter().any(|known| known.to_string() == version) {
            return Err(Code::UnknownVersion.says("unknown version"));
        }
        let segments = rest.split('/').filter(|_| !rest.is_empty()).map(decode);
        let segments: Vec<String> = segments.collect::<Option<_>>().ok_or_else(unknown)?;
        let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
        Ok(match *segments.as_slice() {
            [] => Self::Root,
            ["nginx"] => Self::Nginx,
            ["processes"] => Self::Processes,
            ["connections"] => Self::Connections,
            ["http"] => Self::Http,
            ["http", "requests"] => Self::Requests,
            ["http", "upstreams"] => Self::Upstreams,
            ["http", "upstreams", name] => Self::Upstream(name.to_owned()),
            ["http", "upstreams", name, "servers"] => Self::Servers(name.to_owned()),
            ["http", "upstreams", name, "servers", id] => {
                Self::Server { upstream: name.to_owned(), id: id.to_owned() }
            }
            ["slabs" | "resolvers" | "ssl"]
            | [
                "http",
                "caches" | "server_zones" | "location_zones" | "limit_conns" | "limit_reqs" | "keyvals",
            ] => Self::NoZones,
            ["workers"] => Self::NoWorkers,
            _ => return Err(unknown()),
        })
    }

    pub fn with(self, method: Method) -> Result<Call, Error> {
        match (method, self) {
            (Method::Read, path) => Ok(Call::Read(path)),
            (Method::Patch, Self::Server { upstream, id }) => Ok(Call::Patch { upstream, id }),
            (Method::Post, Self::Servers(upstream)) => Ok(Call::Post { upstream }),
            (Method::Delete, Self::Server { upstream, id }) => Ok(Call::Delete { upstream, id }),
            _ => Err(Code::MethodDisabled.says("method disabled")),
        }
    }

    /// The methods that it takes.
    pub fn allows(&self) -> &'static str {
        match self {
            Self::Servers(_) => "GET, HEAD, POST",
            Self::Server { .. } => "GET, HEAD, PATCH, DELETE",
            _ => "GET, HEAD",
        }
    }
}
