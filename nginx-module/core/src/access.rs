//! Who may change marks.

/// What `handoff_api write=on` says, with names looked up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// `root`, the user of nginx's master, and `user=`.
    pub users: Vec<u32>,
    /// `group=`.
    pub groups: Vec<u32>,
    /// `tcp=allow`.
    pub tcp: bool,
}

/// Who is at the other end of the connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// On a unix socket the kernel vouches for the user and all of its groups.
    Local { user: u32, groups: Vec<u32> },
    /// Over TCP nobody does.
    Remote,
}

/// The user that stands for nobody in particular. nginx's workers run as this user unless `user` says otherwise; being
/// the same user then means nothing.
const NOBODY: u32 = 65534;

impl Access {
    /// Whether `caller` may write to a worker that runs as `worker`.
    pub fn allows(&self, caller: &Caller, worker: u32) -> bool {
        match caller {
            Caller::Remote => self.tcp,
            Caller::Local { user, groups } => {
                (*user == worker && *user != NOBODY)
                    || self.users.contains(user)
                    || groups.iter().any(|group| self.groups.contains(group))
            }
        }
    }
}

/// Whether a browser asks in the name of a page from elsewhere: it would lend that page its reader's password, and its
/// place in the network. `origin` is what it says of the page, `host` where it believes itself to be.
pub fn is_foreign(origin: &str, host: &str) -> bool {
    origin.split_once("://").is_none_or(|(_, from)| !from.eq_ignore_ascii_case(host))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const WORKER: u32 = 33;

    #[test]
    fn nobody_may_not_write() {
        let access = Access { users: vec![0], ..Access::default() };
        let local = |user, groups: &[u32]| Caller::Local { user, groups: groups.to_vec() };
        assert!(access.allows(&local(0, &[0]), WORKER));
        assert!(access.allows(&local(WORKER, &[WORKER]), WORKER));
        assert!(!access.allows(&local(NOBODY, &[NOBODY]), WORKER));
        assert!(!access.allows(&local(NOBODY, &[NOBODY]), NOBODY));
        assert!(!access.allows(&Caller::Remote, WORKER));
    }

    #[test]
    fn a_named_user_or_group_may() {
        let access = Access { users: vec![0, 1000], groups: vec![50], tcp: false };
        let local = |user, groups: &[u32]| Caller::Local { user, groups: groups.to_vec() };
        assert!(access.allows(&local(1000, &[]), WORKER));
        assert!(access.allows(&local(NOBODY, &[7, 50]), WORKER));
        assert!(!access.allows(&local(1001, &[7]), WORKER));
    }

    #[test]
    fn a_page_is_at_home_where_it_came_from_and_nowhere_else() {
        assert!(!is_foreign("http://nginx:8081", "nginx:8081"));
        assert!(!is_foreign("https://Nginx.example", "nginx.example"));
        assert!(is_foreign("http://nginx:8081", "nginx:8082"));
        assert!(is_foreign("https://nginx.example.evil", "nginx.example"));
        assert!(is_foreign("null", "null"));
        assert!(is_foreign("http://nginx", ""));
    }

    #[test]
    fn tcp_is_allowed_only_by_name() {
        assert!(Access { tcp: true, ..Access::default() }.allows(&Caller::Remote, WORKER));
    }
}
