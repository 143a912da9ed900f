//! What SELinux says below `/sys`.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// `/sys`, or what a test puts in its place.
#[derive(Clone, Debug)]
pub struct Sys(PathBuf);

const BOOLEAN: &str = "fs/selinux/booleans/httpd_can_network_connect";

impl Default for Sys {
    fn default() -> Self {
        Self("/sys".into())
    }
}

impl Sys {
    pub fn at(path: &Path) -> Self {
        Self(path.into())
    }

    /// Whether nginx may connect. None: SELinux is not there, or does not enforce.
    pub fn nginx_may_connect(&self) -> io::Result<Option<bool>> {
        let enforces = match fs::read_to_string(self.0.join("fs/selinux/enforce")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            enforces => enforces?.trim() == "1",
        };
        if !enforces {
            return Ok(None);
        }
        // What is, and what would be after a commit.
        let boolean = fs::read_to_string(self.0.join(BOOLEAN))?;
        Ok(Some(boolean.split_whitespace().next() == Some("1")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boolean_counts_where_it_is_enforced() {
        let dir = crate::scratch::Dir::new();
        let sys = Sys::at(&dir);
        assert_eq!(sys.nginx_may_connect().unwrap(), None);
        fs::create_dir_all(dir.join("fs/selinux/booleans")).unwrap();
        fs::write(dir.join("fs/selinux/enforce"), "0").unwrap();
        assert_eq!(sys.nginx_may_connect().unwrap(), None);
        fs::write(dir.join("fs/selinux/enforce"), "1").unwrap();
        assert!(sys.nginx_may_connect().is_err(), "a policy without it");
        for (text, may) in [("0 0", false), ("1 1", true), ("0 1", false)] {
            fs::write(dir.join(BOOLEAN), text).unwrap();
            assert_eq!(sys.nginx_may_connect().unwrap(), Some(may), "{text}");
        }
    }
}
