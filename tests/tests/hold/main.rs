//! Who comes while nobody is up waits, if somebody is expected back.

mod basics;
mod stage;
