//! Thousands of lives of a zone, each from a seed, each step held against a model that is too simple to be wrong.
//!
//! A seed that fails is printed; `HANDOFF_SEED=<seed> cargo test -p handoff-core --test simulation` lives it again and tells
//! each step.
//!
//! To see that it notices: let the mildest mark decide, let `up` remove every mark, give every mark the same epoch, drop the
//! floor or let it bind facts, let a lease last a millisecond longer, accept old epochs, skip the recovery, reclaim slots
//! by the committed configuration alone, keep connections while a worker changes, use those that were opened before, move the
//! end of a pause when it is said again, or let anybody end it. Each
//! of these, and a dozen more, failed within the first hundred seeds.

#![allow(unreachable_pub, reason = "a binary of tests exports nothing")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test says so by failing"
)]

#[path = "../common/mod.rs"]
mod common;
mod model;
mod run;

use run::Run;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;

const SEEDS: u64 = 2_000;
const STEPS: usize = 120;

/// What nobody in the model does.
type Meddler = &'static dyn Fn(&mut Run);

/// Lives one life; false if a rule was broken.
fn live(seed: u64, tells: bool, meddle: impl Fn(&mut Run)) -> bool {
    let life = || {
        let mut run = Run::from_seed(seed, tells);
        for _ in 0..STEPS {
            run.step();
            meddle(&mut run);
        }
        run.end();
    };
    catch_unwind(AssertUnwindSafe(life)).is_ok()
}

#[test]
fn whatever_happens_the_rules_hold() {
    if let Ok(seed) = std::env::var("HANDOFF_SEED") {
        assert!(live(seed.parse().expect("HANDOFF_SEED is a number"), true, |_| ()), "HANDOFF_SEED={seed}");
        return;
    }
    let seeds = AtomicU64::new(0);
    let live_some = || {
        while let seed @ 0..SEEDS = seeds.fetch_add(1, Relaxed) {
            assert!(live(seed, false, |_| ()), "a rule was broken: HANDOFF_SEED={seed} tells how");
        }
    };
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(live_some);
        }
    });
}

#[test]
fn a_broken_rule_does_not_go_unnoticed() {
    use common::{all_ready, moment, of};
    use handoff_core::control::Control;
    use handoff_wire::{DEFAULT_PAUSE, Pause, Renew, State};
    fn closed(run: &Run) -> Option<model::Key> {
        let mut peers = run.model.peers.iter();
        peers.find(|(_, peer)| peer.state() != State::Up).map(|(key, _)| key.clone())
    }
    let meddlers: [(&str, Meddler); 5] = [
        ("a gate opens by itself", &|run| {
            if let Some((upstream, peer)) = closed(run) {
                let id = run.zone.table().find(&upstream, &peer).unwrap();
                run.zone.table().slot(id).unwrap().gate.set(State::Up);
            }
        }),
        ("a request is released twice", &|run| {
            let (table, id) = (run.zone.table(), run.zone.table().ids().next().unwrap());
            if let Some(&row) = table.living(|_| true).first() {
                table.turnstile(row, id).unwrap().release();
            }
        }),
        ("a mark goes without its owner", &|run| {
            if let Some((upstream, peer)) = closed(run) {
                let mut set = all_ready("operator", &peer);
                set.marks[0].upstream = Some(upstream);
                Control::begin(run.zone.table(), &run.world, moment(run.now)).mark(&set).unwrap();
            }
        }),
        ("a pause begins that nobody ordered", &|run| {
            let (owner, upstreams) = (of("operator"), vec!["blue".to_owned()]);
            let pause = Pause { owner, upstreams, max: DEFAULT_PAUSE, reason: "x".into(), force: true };
            _ = Control::begin(run.zone.table(), &run.world, moment(run.now)).pause(&pause);
        }),
        ("a dead owner renews", &|run| {
            let renew = Renew { owner: of("pm2:1"), lease: None, marks: None };
            Control::begin(run.zone.table(), &run.world, moment(run.now)).renew(&renew).unwrap();
        }),
    ];
    for (name, meddle) in meddlers {
        assert!((0..20).any(|seed| !live(seed, false, meddle)), "{name}, and nobody noticed");
    }
}
