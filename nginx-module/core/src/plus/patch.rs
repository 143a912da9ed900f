//! `PATCH …/servers/{id}`: takes a server out, or gives it back.
//!
//! What is absent stays as it is. A server is what nginx.conf says, but for `drain` and `down`: whoever sends another
//! parameter as it is has changed nothing, and may; whoever wants it otherwise is told where to say so.

use super::server::Server;
use super::{Code, Error};
use handoff_wire::{Span, State};
use serde_json::{Map, Value};

/// What a client wants of a server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    drain: Option<bool>,
    down: Option<bool>,
}

// === impl Wish ===

impl Wish {
    pub(super) fn read(body: &[u8], server: &Server) -> Result<Self, Error> {
        let mut wish = Self::default();
        for (name, value) in &object(body)? {
            match name.as_str() {
                "drain" => wish.drain = Some(boolean(name, value)?),
                "down" => wish.down = Some(boolean(name, value)?),
                _ => stays(name, value, server)?,
            }
        }
        if wish.down == Some(false) && server.down {
            return Err(immutable(server, "down"));
        }
        Ok(wish)
    }

    /// The mark that follows from the one that is there. One holds one of both: who is down is not also draining.
    pub(super) fn state(self, mark: Option<State>) -> State {
        let down = self.down.unwrap_or(mark == Some(State::Down));
        let drain = self.drain.unwrap_or(mark == Some(State::Draining));
        match (down, drain) {
            (true, _) => State::Down,
            (false, true) => State::Draining,
            (false, false) => State::Up,
        }
    }
}

/// The parameters of a body.
pub(super) fn object(body: &[u8]) -> Result<Map<String, Value>, Error> {
    let value: Value =
        serde_json::from_slice(body).map_err(|error| Code::JsonError.says(format!("json error: {error}")))?;
    let Value::Object(parameters) = value else {
        return Err(Code::UpstreamConfFormatError.says("the body is not an object"));
    };
    if parameters.values().any(|value| value.is_object() || value.is_array()) {
        return Err(Code::UpstreamConfFormatError.says("nested object or list"));
    }
    Ok(parameters)
}

/// A parameter that cannot be changed is as it was.
fn stays(name: &str, value: &Value, server: &Server) -> Result<(), Error> {
    let invalid = |code: Code| code.says(format!("invalid \"{name}\""));
    let is_same = match name {
        "server" => {
            let address = value.as_str().ok_or_else(|| malformed(name))?;
            if address.is_empty() {
                return Err(invalid(Code::UpstreamBadAddress));
            }
            address == server.address || address == server.name || format!("{address}:80") == server.address
        }
        "weight" => number(name, value, 1, Code::UpstreamBadWeight)? == u64::from(server.weight),
        "max_conns" => number(name, value, 0, Code::UpstreamBadMaxConns)? == server.max_conns,
        "max_fails" => number(name, value, 0, Code::UpstreamBadMaxFails)? == server.max_fails,
        "fail_timeout" => time(name, value, Code::UpstreamBadFailTimeout)? == server.fail_timeout,
        "slow_start" => time(name, value, Code::UpstreamBadSlowStart)? == server.slow_start,
        "backup" => boolean(name, value)? == server.backup,
        "route" | "service" => value.as_str().ok_or_else(|| malformed(name))?.is_empty(),
        _ => return Err(Code::UpstreamConfFormatError.says(format!("unknown parameter \"{name}\""))),
    };
    if is_same { Ok(()) } else { Err(immutable(server, name)) }
}

pub(super) fn boolean(name: &str, value: &Value) -> Result<bool, Error> {
    value.as_bool().ok_or_else(|| malformed(name))
}

pub(super) fn number(name: &str, value: &Value, least: u64, code: Code) -> Result<u64, Error> {
    if !value.is_number() {
        return Err(malformed(name));
    }
    value.as_u64().filter(|&number| number >= least).ok_or_else(|| code.says(format!("invalid \"{name}\"")))
}

/// As nginx writes times; without a unit they are seconds.
pub(super) fn time(name: &str, value: &Value, code: Code) -> Result<Span, Error> {
    let text = value.as_str().ok_or_else(|| malformed(name))?;
    let seconds = text.parse().ok().map(|seconds: u32| Span::from_secs(seconds.into()));
    seconds.or_else(|| text.parse().ok()).ok_or_else(|| code.says(format!("invalid \"{name}\"")))
}

pub(super) fn malformed(name: &str) -> Error {
    Code::UpstreamConfFormatError.says(format!("invalid \"{name}\" value"))
}

fn immutable(server: &Server, name: &str) -> Error {
    let (code, what) = match name {
        "weight" => (Code::UpstreamServerWeightImmutable, "weight"),
        "server" => (Code::UpstreamServerImmutable, "address"),
        name => (Code::UpstreamServerImmutable, name),
    };
    code.says(format!("server \"{}\" {what} is immutable: change it in nginx.conf, and reload", server.id))
}
