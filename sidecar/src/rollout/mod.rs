//! The safe reload: every worker is replaced, one after the other, and nobody notices.

pub mod event;
