//! How a session stands: whether it is in the store, since when, and what the store says of itself.

use super::StoreError;
use serde::{Deserialize, Serialize};
use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Instant, SystemTime},
};

/// What the session tells, and others look at.
#[derive(Debug)]
pub struct Standing(Mutex<State>);

#[derive(Debug)]
struct State {
    is_in: bool,
    since: SystemTime,
    problem: Option<String>,
    member: Option<String>,
    until: Option<Instant>,
    lost: u64,
    revision: i64,
    database: Option<Database>,
}

/// At one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Stand {
    pub connected: bool,
    /// Since when that is so, in milliseconds since 1970.
    pub since: u64,
    /// What is wrong, or was when it was last tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Of etcd, to which it speaks, or spoke last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub member: Option<String>,
    /// How much is left of the lease.
    pub lease_ms: u64,
    /// How often a lease was over before it was given up.
    pub leases_lost: u64,
    /// Of the store: all up to it was heard (edge), or was said (host).
    pub revision: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database: Option<Database>,
}

/// A member's, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Database {
    pub size: u64,
    /// The rest is free since a compaction, and is used again.
    pub in_use: u64,
    /// None: this version (before 3.6) does not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota: Option<u64>,
}

// === impl Standing ===

impl Default for Standing {
    fn default() -> Self {
        Self(Mutex::new(State {
            is_in: false,
            since: SystemTime::now(),
            problem: None,
            member: None,
            until: None,
            lost: 0,
            revision: 0,
            database: None,
        }))
    }
}

impl Standing {
    pub fn enters(&self) {
        let mut state = self.state();
        state.problem = None;
        if !state.is_in {
            (state.is_in, state.since) = (true, SystemTime::now());
        }
    }

    pub fn leaves(&self, error: &StoreError) {
        let mut state = self.state();
        (state.problem, state.until) = (Some(error.to_string()), None);
        if state.is_in {
            state.lost += u64::from(matches!(error, StoreError::Lost));
            (state.is_in, state.since) = (false, SystemTime::now());
        }
    }

    /// Something does not work, and the lease is still ours.
    pub fn suffers(&self, problem: String) {
        self.state().problem = Some(problem);
    }

    pub fn speaks_to(&self, member: &str) {
        self.state().member = Some(member.to_owned());
    }

    pub fn renewed(&self, until: Instant) {
        self.state().until = Some(until);
    }

    pub fn reaches(&self, revision: i64) {
        self.state().revision = revision;
    }

    pub fn measured(&self, database: Database) {
        self.state().database = Some(database);
    }

    pub fn stand(&self) -> Stand {
        let state = self.state();
        let left = state.until.map_or(0, |until| until.saturating_duration_since(Instant::now()).as_millis());
        Stand {
            connected: state.is_in,
            since: millis(state.since),
            problem: state.problem.clone(),
            member: state.member.clone(),
            lease_ms: u64::try_from(left).unwrap_or(0),
            leases_lost: state.lost,
            revision: state.revision,
            database: state.database,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Since 1970.
pub fn millis(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

// === impl Database ===

impl From<&etcd_client::StatusResponse> for Database {
    fn from(status: &etcd_client::StatusResponse) -> Self {
        let bytes = |number: i64| u64::try_from(number).unwrap_or(0);
        Self {
            size: bytes(status.db_size()),
            in_use: bytes(status.raft_used_db_size()),
            quota: Some(bytes(status.db_size_quota())).filter(|quota| *quota > 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_is_when_it_changed_and_a_lost_lease_is_counted_once() {
        let standing = Standing::default();
        standing.leaves(&StoreError::Silent);
        standing.enters();
        let first = standing.stand();
        standing.enters();
        standing.suffers("no watch".into());
        let still = standing.stand();
        assert!(first.connected && first.problem.is_none());
        assert_eq!((still.since, still.problem.as_deref()), (first.since, Some("no watch")));
        standing.leaves(&StoreError::Lost);
        standing.leaves(&StoreError::Lost);
        let out = standing.stand();
        assert_eq!((out.connected, out.leases_lost, out.lease_ms), (false, 1, 0));
        assert!(out.problem.unwrap().contains("lease"));
    }
}
