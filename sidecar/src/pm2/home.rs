//! A PM2 daemon is known by its home directory.

use handoff_wire::Owner;
use std::{
    env,
    fmt::{self, Write as _},
    fs,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

/// `PM2_HOME` of one daemon, absolute.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Home(PathBuf);

impl Home {
    /// Takes a path as PM2 would: relative to where we are.
    pub fn new(path: &Path) -> Self {
        // A home that does not exist yet keeps its name; one behind a link is the same daemon under either name.
        let path = path.canonicalize().or_else(|_| std::path::absolute(path)).unwrap_or_else(|_| path.into());
        Self(path)
    }

    /// Where PM2 itself looks: `PM2_HOME`, else `.pm2` in the user's home.
    pub fn from_env() -> Self {
        let set = |name| env::var_os(name).filter(|value| !value.is_empty());
        let path = set("PM2_HOME")
            .map(PathBuf::from)
            .or_else(|| set("HOME").map(|home| Path::new(&home).join(".pm2")))
            .unwrap_or_else(|| "/etc/.pm2".into());
        Self::new(&path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn bus(&self) -> PathBuf {
        self.0.join("pub.sock")
    }

    pub fn rpc(&self) -> PathBuf {
        self.0.join("rpc.sock")
    }

    /// The owner of this daemon's marks: the same after every restart of the sidecar, so that it finds its own again. And no
    /// other's: containers of one image all have their daemon at the same path.
    pub fn owner(&self) -> Option<Owner> {
        self.owner_in(container().as_deref().unwrap_or_default())
    }

    fn owner_in(&self, container: &str) -> Option<Owner> {
        let name = [container.as_bytes(), self.0.as_os_str().as_bytes()].concat();
        let bytes = name.as_slice();
        let plain = bytes.iter().fold(String::new(), |mut out, &byte| {
            match byte {
                b'%' | 0..=b' ' | 0x7f.. => _ = write!(out, "%{byte:02x}"),
                byte => out.push(char::from(byte)),
            }
            out
        });
        format!("pm2:{plain}").parse().or_else(|_| format!("pm2:{:016x}", digest(bytes)).parse()).ok()
    }
}

/// The name of the container that we are in, if we are in one.
fn container() -> Option<String> {
    let namespace = fs::read_link("/proc/self/ns/pid").ok()?;
    if namespace == Path::new(FIRST_NAMESPACE) {
        return None;
    }
    let name = fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    Some(name.trim().to_owned()).filter(|name| !name.is_empty())
}

/// The PID namespace that the kernel begins with: PROC_PID_INIT_INO.
const FIRST_NAMESPACE: &str = "pid:[4026531836]";

/// Stable across versions of the standard library, unlike its own hasher: FNV-1a.
fn digest(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

impl fmt::Display for Home {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.display().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(path: &str) -> String {
        Home(path.into()).owner_in("").unwrap().to_string()
    }

    #[test]
    fn in_a_container_its_name_is_part_of_it() {
        let owner = |container: &str| Home("/root/.pm2".into()).owner_in(container).unwrap().to_string();
        assert_eq!([owner("app1"), owner("app2")], ["pm2:app1/root/.pm2", "pm2:app2/root/.pm2"]);
        let [long, other] = ["a", "b"].map(|letter| owner(&letter.repeat(60)));
        assert!(long.len() == "pm2:".len() + 16 && long != other);
    }

    #[test]
    fn an_owner_says_whose_daemon_it_is() {
        assert_eq!(owner("/home/shop/.pm2"), "pm2:/home/shop/.pm2");
        assert_eq!(owner("/srv/my app/ü"), "pm2:/srv/my%20app/%c3%bc");
        assert_ne!(owner("/srv/a%20b"), owner("/srv/a b"));
    }

    #[test]
    fn a_long_home_has_a_short_and_stable_owner() {
        let long = format!("/{}", "a".repeat(100));
        assert_eq!(owner(&long).len(), "pm2:".len() + 16);
        assert_eq!(owner(&long), owner(&long));
        assert_ne!(owner(&long), owner(&format!("{long}b")));
    }

    #[test]
    fn a_home_is_absolute() {
        assert!(Home::new(Path::new("no/such/home")).path().is_absolute());
    }
}
