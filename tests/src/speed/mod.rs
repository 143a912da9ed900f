//! How fast Handoff is, beside what a request costs: what `make speed` measures, as the tables of docs/speed.md.
//!
//! What is compared is measured by turns, so that whatever else the machine does bothers each alike; and with each stands the
//! same again: what differs between these two is noise.

pub mod deploys;
pub mod drains;
pub mod figures;
pub mod moments;
pub mod preload;
pub mod scale;
