//! What strangers may send us, tried at random. A target is a function of any bytes: it must come back, and it checks what
//! must hold whatever they are.
//!
//! `make fuzz` drives the targets with coverage (cargo-fuzz); the corpora that it found are kept in `corpus/`, and a test
//! plays them, and mutations of them, on the stable toolchain. An input that broke something is kept there, too.

#![forbid(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a target says so by failing"
)]

mod api;
mod bus;

#[path = "../../nginx-module/core/tests/common/mod.rs"]
mod common;

pub use api::api;
pub use bus::{bus, listing, preload};

use handoff::{config::File, doctor};
use handoff_core::directive;
use std::path::Path;

/// A target, and what it is called in `corpus/`.
pub type Target = (&'static str, fn(&[u8]));

pub const TARGETS: [Target; 7] = [
    ("api", api),
    ("bus", bus),
    ("config", config),
    ("directives", directives),
    ("listing", listing),
    ("nginx_conf", nginx_conf),
    ("preload", preload),
];

/// A configuration file. A refusal names a place that is in it.
pub fn config(input: &[u8]) {
    let Ok(text) = str::from_utf8(input) else { return };
    let Err(error) = File::parse(Path::new("handoff.toml"), text) else { return };
    let said = error.to_string();
    let mut place = said.strip_prefix("handoff.toml:").expect("it says where").splitn(3, ':');
    let line: usize = place.next().unwrap().parse().expect("a line");
    let column: usize = place.next().unwrap().parse().expect("a column");
    assert!(line <= text.matches('\n').count() + 1, "{said}");
    assert!(column <= text.len() + 1, "{said}");
}

/// What `nginx -T` prints.
pub fn nginx_conf(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    _ = doctor::conf::parse(&text);
}

/// The values of a directive, as nginx hands them over: its name first, on a line.
pub fn directives(input: &[u8]) {
    let Ok(text) = str::from_utf8(input) else { return };
    let (name, values) = text.split_once('\n').unwrap_or((text, ""));
    let values = || values.split('\n');
    let number = |text: &str| text.parse().ok();
    match name {
        "api" => {
            if let Ok(api) = directive::Api::parse(values()) {
                assert!(api.write || (api.user.is_none() && api.group.is_none() && !api.tcp), "{api:?}");
            }
        }
        "queue" => {
            if let Ok(Some(queue)) = directive::queue(values(), number, number) {
                assert!(queue.requests > 0 && queue.bytes > 0 && queue.timeout > 0, "{queue:?}");
            }
        }
        "retry" => {
            if let Ok(Some(budget)) = directive::retry(values()) {
                assert!(budget.percent <= 100 && (budget.percent, budget.min) != (0, 0), "{budget:?}");
            }
        }
        "reuse" => values().for_each(|value| _ = directive::reuse(value, number)),
        "zone" => values().filter_map(|value| value.parse().ok()).for_each(|size| {
            assert!(directive::zone(size).is_err() || size >= directive::MIN_ZONE);
        }),
        _ => {}
    }
}
