//! Deaths that are no deploys: what each of them costs the visitors when the user has added Handoff and nothing else.

mod all_at_once;
mod cluster;
mod crashes;
mod files;
mod ordered;
mod sidecar;
mod single;
mod trial;
