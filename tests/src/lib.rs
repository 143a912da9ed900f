//! The stage: real nginx, real PM2, real Node apps, and a load that accounts for every request.
//!
//! A [`runner`] takes one [`scenario`] and one setup, and goes through it in this order: a directory of its own
//! ([`place`]), the [`app`] under [`pm2`], [`nginx`], [`haproxy`] or [`caddy`] in [`front`] of it, with Handoff the
//! [`sidecar`], and then the [`load`] and the [`streams`].
//! While it runs, [`lives`] sees each worker boot, listen, close and die, and [`peers`] what nginx holds of each of them.
//! What comes out, a [`runner::Run`], is raw: every visit, every order, every life. [`report`] counts it, [`timeline`]
//! and [`picture`] draw it, [`verdict`] judges it.
//!
//! Whatever was started ends with the value that stands for it, also when a test panics. Nothing here waits for a time
//! to pass where it could wait for a thing to happen; the pauses that a scenario prescribes are the exception.
//!
//! The crate links none of the code under test but the words of the control API.

#![forbid(unsafe_code)]

pub mod access_log;
pub mod alone;
pub mod app;
pub mod backend;
pub mod blocks;
pub mod browser;
pub mod caddy;
pub mod callgrind;
pub mod chaos;
pub mod clock;
pub mod command;
pub mod conf;
pub mod container;
pub mod control;
pub mod crowd;
pub mod dice;
pub mod door;
pub mod drain_script;
pub mod etcd;
pub mod families;
pub mod farm;
pub mod fleet;
pub mod front;
pub mod guide;
pub mod haproxy;
pub mod herd;
pub mod http;
pub mod lab;
pub mod lives;
pub mod load;
pub mod machine;
pub mod marker;
pub mod namespace;
pub mod net;
pub mod nginx;
pub mod orders;
pub mod parrot;
pub mod peers;
pub mod picture;
pub mod place;
pub mod pm2;
pub mod ports;
pub mod process;
pub mod prometheus;
pub mod reload;
pub mod report;
pub mod runner;
pub mod scenario;
pub mod sidecar;
pub mod site;
pub mod soak;
pub mod speed;
pub mod spread;
pub mod stage;
pub mod stand;
pub mod streams;
pub mod table;
pub mod terminal;
pub mod timeline;
pub mod verdict;
pub mod wait;
