//! Where nginx listens for us.

use handoff_wire::DEFAULT_CONTROL;
use serde::{Deserialize, Deserializer, de};
use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

/// `unix:/path/to/nginx.sock`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address(PathBuf);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a control address: write it as in nginx's listen directive, {DEFAULT_CONTROL}")]
pub struct AddressError(String);

impl Address {
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        match text.strip_prefix("unix:").map(Path::new) {
            Some(path) if path.is_absolute() && !text.ends_with('/') => Ok(Self(path.into())),
            _ => Err(AddressError(text.into())),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unix:{}", self.0.display())
    }
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_control_address_is_a_unix_socket() {
        assert_eq!(DEFAULT_CONTROL.parse::<Address>().unwrap().to_string(), DEFAULT_CONTROL);
        for wrong in ["", "/run/nginx.sock", "unix:", "unix:nginx.sock", "unix:/run/", "http://127.0.0.1:80"]
        {
            let error = wrong.parse::<Address>().unwrap_err().to_string();
            assert!(error.contains(DEFAULT_CONTROL), "{error}");
        }
    }
}
