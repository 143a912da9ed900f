//! Who comes while nobody is up waits, if somebody is expected back.

mod basics;
mod bounds;
mod clients;
mod going;
mod kinds;
mod latency;
mod pause;
mod silence;
mod stage;
mod storm;
