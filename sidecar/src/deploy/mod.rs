//! A deploy: a release is made beside the one that serves, the workers are moved to it one after the other, and back if it
//! serves users worse.
//!
//! ```text
//!   fetch ──► release ──► install ──► build ──► measure ──► switch ──► reload ──► bake ──► done
//!     │          │           │          │          │           │          │         │
//!     └──────────┴───────────┴──────────┴──────────┘           └──────────┴─────────┴──► back
//!     nothing was changed: what was made is removed            the link, then the workers
//! ```
//!
//! Nothing is built where something runs: a release has a directory of its own ([`ground`]), and `current` is a link to the
//! one that serves. The course of it is in the command ([`crate::cli`]); here are its parts: what is [set](settings) for an
//! app, where it [lies](ground), what is [fetched](git), the [hooks](hook) that are run, what a killed one left in its
//! [journal], what [users meet](traffic) and how that is [summed up](tally), and the [record] of past ones.

pub mod event;
pub mod git;
pub mod ground;
pub mod hook;
pub mod journal;
pub mod lock;
pub mod record;
pub mod settings;
pub mod tally;
pub mod traffic;
