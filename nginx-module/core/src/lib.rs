//! What Handoff decides, without a pointer.
//!
//! The shell (`ngx_http_handoff_module`) maps one shared zone into every nginx process and casts it to a [`Table`]; from
//! there on everything is safe Rust over plain atomics, the same code in nginx and in a unit test. An all-zero zone is a
//! valid empty table. Time, liveness of processes and nginx's configuration are arguments, so that a simulation can
//! replay any order of events from a seed.
//!
//! Two kinds of code share the zone, and they never wait for each other:
//!
//! - **The request path** ([`admission`]): claims a place in its own process's row of the ledger, then looks at the peer's
//!   gate. No lock, two atomic operations.
//! - **The control path** ([`control`]): changes marks and derives the gates from them. Writers exclude each other by a
//!   lock that the shell owns (nginx's slab mutex, which the master releases if its holder dies); a write that was cut
//!   short by such a death is completed by the next one ([`table::Header::begin`]).
//!
//! Between the two stand the hold ([`hold`]), requests that wait for a peer that is expected back or for the end of a
//! [`pause`], and [`retry`]: which of those that a peer failed are given to one again.
//!
//! The life of a peer, with its picture: `LIFECYCLE.md`.

#![forbid(unsafe_code)]

pub mod absence;
pub mod access;
pub mod admission;
pub mod answers;
pub mod control;
pub mod directive;
pub mod ending;
pub mod endpoint;
pub mod event;
pub mod floor;
pub mod hold;
pub mod line;
pub mod mark;
pub mod metrics;
pub mod orphan;
pub mod outage;
pub mod pause;
pub mod plus;
pub mod retry;
pub mod reuse;
pub mod room;
pub mod slot;
pub mod slow_start;
pub mod sync;
pub mod table;
pub mod tenancy;
pub mod text;
pub mod timeline;
pub mod timing;
pub mod trial;
pub mod view;

pub use admission::{Admission, Gate, InFlight};
pub use control::{Applied, Moment, Slots, Standing, World};
pub use table::{Plan, Process, Table, Turnstile};
