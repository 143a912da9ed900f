//! Where a peer that is added listens: an address and a port, or a unix socket. Never a name: nginx resolves names when it reads
//! its configuration, and who comes at run time is an address by then.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// The longest path of a unix socket, in bytes.
pub const MAX_PATH: usize = 107;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    Inet(SocketAddr),
    /// The path, which is absolute.
    Unix(String),
}

/// Why a text is no endpoint, in an operator's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Invalid {
    Empty,
    NoPort,
    Port,
    Name,
    Nowhere,
    Scope,
    RelativePath,
    LongPath,
    Path,
}

// === impl Endpoint ===

impl Endpoint {
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        if text.is_empty() {
            return Err(Invalid::Empty);
        }
        if let Some(path) = text.strip_prefix("unix:") {
            return unix(path);
        }
        if let Ok(address) = text.parse::<SocketAddr>() {
            return inet(address, text);
        }
        if text.parse::<IpAddr>().is_ok() || unbracketed(text).is_some_and(|ip| ip.parse::<IpAddr>().is_ok())
        {
            return Err(Invalid::NoPort);
        }
        let host = text.rsplit_once(':').map_or(text, |(host, _)| host);
        let is_address = host.parse::<IpAddr>().is_ok()
            || unbracketed(host).is_some_and(|ip| ip.parse::<IpAddr>().is_ok());
        Err(if is_address { Invalid::Port } else { Invalid::Name })
    }
}

fn unbracketed(text: &str) -> Option<&str> {
    text.strip_prefix('[')?.strip_suffix(']')
}

fn inet(address: SocketAddr, text: &str) -> Result<Endpoint, Invalid> {
    if address.port() == 0 {
        return Err(Invalid::Port);
    }
    if address.ip().is_unspecified() || address.ip().is_multicast() {
        return Err(Invalid::Nowhere);
    }
    // nginx's addresses have neither a scope nor flow information.
    if text.contains('%') {
        return Err(Invalid::Scope);
    }
    Ok(Endpoint::Inet(address))
}

fn unix(path: &str) -> Result<Endpoint, Invalid> {
    if !path.starts_with('/') {
        return Err(Invalid::RelativePath);
    }
    if path.len() > MAX_PATH {
        return Err(Invalid::LongPath);
    }
    if path.chars().any(char::is_control) {
        return Err(Invalid::Path);
    }
    Ok(Endpoint::Unix(path.to_owned()))
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inet(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{path}"),
        }
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "it is empty: write 10.0.0.1:3000, [fd00::1]:3000 or unix:/run/app.sock",
            Self::NoPort => "it has no port: write 10.0.0.1:3000 or [fd00::1]:3000",
            Self::Port => "its port is not between 1 and 65535",
            Self::Name => {
                "it is no address: write 10.0.0.1:3000, [fd00::1]:3000 or unix:/run/app.sock; names are resolved only where \
                 nginx.conf has them"
            }
            Self::Nowhere => "nobody can be reached at that address: name the one that the peer listens on",
            Self::Scope => "nginx takes no scope: write the address without the part from % on",
            Self::RelativePath => "the path of a unix socket begins with a slash: write unix:/run/app.sock",
            Self::LongPath => "the path of a unix socket has at most 107 bytes",
            Self::Path => "the path has control characters",
        })
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_an_address_with_a_port_or_a_path() {
        for (text, is) in [
            ("10.0.0.1:3000", "10.0.0.1:3000"),
            ("[::1]:3000", "[::1]:3000"),
            ("[0:0:0:0:0:0:0:1]:80", "[::1]:80"),
            ("unix:/run/app/1.sock", "unix:/run/app/1.sock"),
        ] {
            assert_eq!(Endpoint::parse(text).map(|at| at.to_string()).as_deref(), Ok(is));
        }
        // nginx shortens a single group of zeros, too.
        let spellings = ["[2001:db8::1:1:1:1:1]:80", "[2001:db8:0:1:1:1:1:1]:80"].map(Endpoint::parse);
        assert_eq!(spellings[0], spellings[1]);
        let longest = format!("unix:/{}", "x".repeat(MAX_PATH - 1));
        assert_eq!(Endpoint::parse(&longest).map(|at| at.to_string()), Ok(longest));
    }

    #[test]
    fn what_is_no_endpoint_is_refused_with_the_mend() {
        for (text, why) in [
            ("", Invalid::Empty),
            ("10.0.0.1", Invalid::NoPort),
            ("::1", Invalid::NoPort),
            ("[::1]", Invalid::NoPort),
            ("10.0.0.1:0", Invalid::Port),
            ("10.0.0.1:65536", Invalid::Port),
            ("10.0.0.1:http", Invalid::Port),
            ("[::1]:", Invalid::Port),
            ("app.internal:3000", Invalid::Name),
            ("http://10.0.0.1:3000", Invalid::Name),
            ("010.0.0.1:80", Invalid::Name),
            (" 10.0.0.1:80", Invalid::Name),
            ("0.0.0.0:80", Invalid::Nowhere),
            ("[::]:80", Invalid::Nowhere),
            ("224.0.0.1:80", Invalid::Nowhere),
            ("[fe80::1%2]:80", Invalid::Scope),
            ("unix:run/app.sock", Invalid::RelativePath),
            ("unix:", Invalid::RelativePath),
            ("unix:/a\nb", Invalid::Path),
        ] {
            assert_eq!(Endpoint::parse(text), Err(why), "{text}");
        }
        let long = format!("unix:/{}", "x".repeat(MAX_PATH));
        assert_eq!(Endpoint::parse(&long), Err(Invalid::LongPath));
    }
}
