//! Who says something of a peer. A peer holds at most one mark per owner.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::{fmt, str::FromStr};

/// `operator`, `plus`, `health`, `pm2:<daemon>`, `worker:<pid>` or `rollout:<id>`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Owner {
    kind: OwnerKind,
    text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum OwnerKind {
    /// A person, by `handoff drain` or by hand.
    Operator,
    /// A client of the NGINX Plus compatible API.
    Plus,
    /// A roll-out that replaces workers one by one.
    Rollout,
    /// A sidecar that repeats what a PM2 daemon does.
    Pm2,
    /// A worker that speaks for itself.
    Worker,
    /// A health check.
    Health,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OwnerError {
    Empty,
    TooLong,
    Character(char),
    Unknown,
    NoName(&'static str),
}

/// The longest owner that a mark can hold, in bytes.
const MAX: usize = 63;

impl OwnerKind {
    /// A choice could have been made otherwise; a fact is so whether we like it or not. The floor binds choices only.
    pub fn is_choice(self) -> bool {
        match self {
            Self::Operator | Self::Plus | Self::Rollout | Self::Health => true,
            Self::Pm2 | Self::Worker => false,
        }
    }

    /// Whether a mark of this owner lives only as long as it is renewed, unless it is asked for otherwise.
    pub fn is_leased(self) -> bool {
        !matches!(self, Self::Operator | Self::Plus)
    }
}

impl Owner {
    /// Of what a person says by hand.
    pub fn operator() -> Self {
        Self { kind: OwnerKind::Operator, text: "operator".to_owned() }
    }

    /// Of what a client of the NGINX Plus compatible API says.
    pub fn plus() -> Self {
        Self { kind: OwnerKind::Plus, text: "plus".to_owned() }
    }

    pub fn kind(&self) -> OwnerKind {
        self.kind
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl FromStr for Owner {
    type Err = OwnerError;

    fn from_str(text: &str) -> Result<Self, OwnerError> {
        if text.is_empty() {
            return Err(OwnerError::Empty);
        }
        if text.len() > MAX {
            return Err(OwnerError::TooLong);
        }
        if let Some(c) = text.chars().find(|c| !c.is_ascii_graphic()) {
            return Err(OwnerError::Character(c));
        }
        let (word, name) = text.split_once(':').map_or((text, None), |(word, name)| (word, Some(name)));
        let kind = match (word, name) {
            ("operator", None) => OwnerKind::Operator,
            ("plus", None) => OwnerKind::Plus,
            ("health", None) => OwnerKind::Health,
            ("pm2", Some(name)) if !name.is_empty() => OwnerKind::Pm2,
            ("worker", Some(name)) if !name.is_empty() => OwnerKind::Worker,
            ("rollout", Some(name)) if !name.is_empty() => OwnerKind::Rollout,
            ("pm2", _) => return Err(OwnerError::NoName("pm2:<daemon>")),
            ("worker", _) => return Err(OwnerError::NoName("worker:<pid>")),
            ("rollout", _) => return Err(OwnerError::NoName("rollout:<id>")),
            _ => return Err(OwnerError::Unknown),
        };
        Ok(Self { kind, text: text.to_owned() })
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Serialize for Owner {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Owner {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(de::Error::custom)
    }
}

impl fmt::Display for OwnerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => write!(f, "the owner is empty"),
            Self::TooLong => write!(f, "the owner is longer than {MAX} bytes"),
            Self::Character(c) => {
                write!(f, "the owner has the character {c:?}: use printable ASCII without spaces")
            }
            Self::NoName(form) => write!(f, "the owner needs a name: {form}"),
            Self::Unknown => write!(
                f,
                "unknown owner: use operator, plus, health, pm2:<daemon>, worker:<pid> or rollout:<id>"
            ),
        }
    }
}

impl std::error::Error for OwnerError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_known_by_its_word() {
        for (text, kind) in [
            ("operator", OwnerKind::Operator),
            ("plus", OwnerKind::Plus),
            ("health", OwnerKind::Health),
            ("pm2:1234", OwnerKind::Pm2),
            ("worker:77", OwnerKind::Worker),
            ("rollout:a1", OwnerKind::Rollout),
        ] {
            assert_eq!(text.parse::<Owner>().unwrap().kind(), kind);
        }
        assert_eq!("plus".parse(), Ok(Owner::plus()));
    }

    #[test]
    fn what_is_not_an_owner_is_refused_in_words() {
        let long = format!("pm2:{}", "x".repeat(80));
        for (text, says) in [
            ("", "empty"),
            ("root", "unknown owner"),
            ("operator:me", "unknown owner"),
            ("pm2", "pm2:<daemon>"),
            ("worker:", "worker:<pid>"),
            ("pm2:a b", "' '"),
            ("pm2:ü", "'ü'"),
            (long.as_str(), "longer than 63"),
        ] {
            let error = text.parse::<Owner>().unwrap_err().to_string();
            assert!(error.contains(says), "{text:?}: {error}");
        }
    }
}
