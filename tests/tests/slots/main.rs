//! Peers that come and go while nginx runs: `handoff_slots`, `POST` and `DELETE` of a peer.

mod churn;
mod cli;
mod life;
mod reload;
mod shares;
mod stage;
