//! `pm2 update`: it stops every worker and the daemon as `pm2 kill` does, and then starts them all again.
//!
//! PM2 says nothing that tells one from the other. But the command runs until all are back, so as long as it is there, so is
//! hope.

use super::home::Home;
use crate::host::{Proc, Processes};
use std::{ffi::OsStr, os::unix::ffi::OsStrExt, path::Path};

/// PM2's two names for it.
const NAMES: [&[u8]; 2] = [b"update", b"updatePM2"];

/// Whether somebody runs it for this daemon, as far as we may see.
pub fn is_running(proc: &Proc, processes: &Processes, home: &Home) -> bool {
    processes.pids().any(|pid| {
        proc.command_line(pid).is_ok_and(|line| is_update(&line))
            && proc.environment(pid).is_ok_and(|environment| home_of(&environment).as_ref() == Some(home))
    })
}

/// `node /usr/bin/pm2 [OPTIONS] update`.
fn is_update(line: &[u8]) -> bool {
    let mut words = line.split(|&byte| byte == 0).skip_while(|word| !is_pm2(word));
    words.next();
    words.find(|word| !word.starts_with(b"-")).is_some_and(|word| NAMES.contains(&word))
}

fn is_pm2(word: &[u8]) -> bool {
    Path::new(OsStr::from_bytes(word)).file_name() == Some(OsStr::new("pm2"))
}

/// Where PM2 looks, given this environment. Nothing else of it is read.
fn home_of(environment: &[u8]) -> Option<Home> {
    let set = |name: &[u8]| {
        let values = environment.split(|&byte| byte == 0).filter_map(|line| line.strip_prefix(name));
        values.filter(|value| !value.is_empty()).map(|value| Path::new(OsStr::from_bytes(value))).next()
    };
    set(b"PM2_HOME=").map(Home::new).or_else(|| Some(Home::new(&set(b"HOME=")?.join(".pm2"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_is_known_by_its_words() {
        for line in ["node\0/usr/bin/pm2\0update\0", "node\0/opt/pm2/bin/pm2\0-s\0updatePM2\0"] {
            assert!(is_update(line.as_bytes()), "{line:?}");
        }
        for line in
            ["node\0/usr/bin/pm2\0kill\0", "node\0/usr/bin/pm2\0restart\0update\0", "apt\0update\0", ""]
        {
            assert!(!is_update(line.as_bytes()), "{line:?}");
        }
    }

    #[test]
    fn a_home_is_found_as_pm2_finds_it() {
        let home = |environment: &str| home_of(environment.as_bytes());
        assert_eq!(home("A=b\0PM2_HOME=/srv/pm2\0HOME=/root\0"), Some(Home::new(Path::new("/srv/pm2"))));
        assert_eq!(home("PM2_HOME=\0HOME=/root\0"), Some(Home::new(Path::new("/root/.pm2"))));
        assert_eq!(home("A=b\0"), None);
    }
}
