//! `handoff reload` against the real things: every way it can end, and what stands afterwards for PM2, nginx and users.

mod all_as_before;
mod broken;
mod cluster;
mod deadline;
mod dry_run;
mod exit_codes;
mod files;
mod foreign;
mod forgotten;
mod held;
mod killed;
mod listing;
mod locks;
mod reload;
mod single;
mod slow_start;
mod soak;
mod stage;
mod visits;
