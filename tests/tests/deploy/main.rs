//! `handoff deploy` against the real things: git, PM2, nginx and users. Each step is made to fail, and what stands afterwards is
//! looked at.

mod fails;
mod forms;
mod good;
mod killed;
#[path = "../rollout/listing.rs"]
mod listing;
mod stage;
#[path = "../rollout/visits.rs"]
mod visits;
