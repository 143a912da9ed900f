//! The sidecar: it sees what a process manager does to its workers, and tells nginx in time.
//!
//! A PM2 daemon announces on its bus that it is about to stop a worker ([`pm2`]). The [`roster`] knows which worker that
//! is and which peers of nginx are behind it ([`mapping`]), so it is known what each peer should be; [`reconcile`]
//! compares that with what nginx says, and [`control`] asks for the difference. Events only make it fast: everything is
//! found out again by looking ([`scout`]), so a lost event, a restarted nginx and a restarted sidecar are one and the
//! same case, and the order of events matters to nobody.
//!
//! If this process dies, its marks run out and nginx serves as without it.

#![forbid(unsafe_code)]

pub mod agent;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod control;
pub mod danger;
pub mod deploy;
pub mod doctor;
pub mod exec;
pub mod harmless;
pub mod host;
pub mod level;
pub mod look;
pub mod manager;
pub mod mapping;
pub mod memory;
pub mod nginx;
pub mod orphans;
pub mod peer;
pub mod pm2;
pub mod preload;
pub mod reconcile;
pub mod report;
pub mod rollout;
pub mod roster;
pub mod scout;
pub mod service;
pub mod settle;
pub mod shared;
pub mod shutdown;
pub mod sidecar;
pub mod spares;
pub mod store;
pub mod survey;
pub mod telemetry;
pub mod worker;

#[cfg(test)]
mod scratch;
#[cfg(test)]
mod simulation;
