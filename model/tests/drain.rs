//! Every order of the steps of a deploy, held against what is promised. `make model` goes further.

#![allow(clippy::panic, reason = "a test says so by failing")]

use model::{
    ALL_SETTLES, By, Fault, Method, NOBODY_BEGINS, NOBODY_STOPPED, NOTHING_FAILS, NOTHING_TWICE, Promise,
    Scene, Without, step::Step,
};
use stateright::{Checker as _, HasDiscoveries, Model as _};
use std::collections::HashMap;

const BOTH: &[Method] = &[Method::Post, Method::Get];
const POST: &[Method] = &[Method::Post];
const GET: &[Method] = &[Method::Get];

const SIDECAR: &[Fault] = &[Fault::SidecarDies, Fault::SidecarFreezes];
const BESIDE_PM2: &[Fault] = &[
    Fault::SidecarDies,
    Fault::SidecarIsRestarted,
    Fault::SidecarFreezes,
    Fault::NoticeIsLate,
    Fault::WorkerIsKilled,
];
const BESIDE_HANDOFF: &[Fault] =
    &[Fault::RolloutDies, Fault::RolloutFreezes, Fault::NginxRestarts, Fault::NginxWorkerDies];
const ALL: &[Fault] = &[
    Fault::SidecarDies,
    Fault::SidecarIsRestarted,
    Fault::SidecarFreezes,
    Fault::RolloutDies,
    Fault::RolloutFreezes,
    Fault::NginxRestarts,
    Fault::NginxWorkerDies,
];

/// `pm2 reload` of two workers, and the sidecar runs.
const PM2: Scene = Scene {
    by: By::Pm2Reload,
    workers: 2,
    sidecar: true,
    requests: BOTH,
    faults: &[],
    most_faults: 1,
    slow_bus: false,
    fails: Promise::None,
    without: None,
};
/// Of the only one: requests wait.
const PM2_ALONE: Scene = Scene { workers: 1, ..PM2 };
/// `handoff reload`, which needs no sidecar.
const HANDOFF: Scene = Scene { by: By::HandoffReload, sidecar: false, ..PM2 };
const HANDOFF_BESIDE: Scene = Scene { sidecar: true, ..HANDOFF };
const HANDOFF_ALONE: Scene = Scene { workers: 1, ..HANDOFF_BESIDE };

/// How many worlds there are; or which promise is broken, and the way.
fn explore(scene: Scene) -> Result<usize, (&'static str, Vec<Step>)> {
    within(usize::MAX, scene)
}

fn within(steps: usize, scene: Scene) -> Result<usize, (&'static str, Vec<Step>)> {
    let checker = scene.checker().finish_when(HasDiscoveries::AnyFailures);
    let checker = checker.target_max_depth(steps.saturating_add(2)).spawn_bfs().join();
    let found = checker.discoveries().into_iter().min_by_key(|(promise, _)| *promise);
    found.map_or(Ok(checker.unique_state_count()), |(promise, path)| Err((promise, path.into_actions())))
}

/// No way is shorter: the checker does not look for the shortest.
fn shortest(scene: &Scene) -> Result<usize, (&'static str, Vec<Step>)> {
    let mut found = explore(scene.clone());
    while let Err((_, steps)) = &found
        && let shorter @ Err(_) = within(steps.len() - 1, scene.clone())
    {
        found = shorter;
    }
    found
}

fn holds(what: &str, scene: Scene) {
    match explore(scene) {
        Ok(worlds) => println!("{what}: {worlds} worlds"),
        Err((promise, steps)) => panic!("{what}: not so: {promise}\n{}", told(&steps)),
    }
}

fn told(steps: &[Step]) -> String {
    steps.iter().enumerate().map(|(at, step)| format!("{:>3}. {step}\n", at + 1)).collect()
}

#[test]
fn nothing_fails_in_a_deploy_in_which_nobody_dies() {
    holds("pm2 reload", PM2);
    holds("pm2 reload of one", PM2_ALONE);
    holds("handoff reload, no sidecar", HANDOFF);
    holds("handoff reload", Scene { requests: POST, ..HANDOFF_BESIDE });
    holds("handoff reload of one", HANDOFF_ALONE);
}

#[test]
fn who_dies_costs_no_more_than_is_said() {
    let killed = Scene { faults: &[Fault::WorkerIsKilled], fails: Promise::AsStock, ..PM2 };
    holds("pm2 reload, a worker that is killed", killed);
    for (what, requests) in [("an order", POST), ("a GET", GET)] {
        let scene = Scene { faults: SIDECAR, fails: Promise::AsKnown, requests, ..PM2 };
        holds(&format!("pm2 reload, {what}, a sidecar that dies"), scene.clone());
        let scene = Scene { faults: BESIDE_PM2, fails: Promise::AsStock, workers: 1, ..scene };
        holds(&format!("pm2 reload of one, {what}, whoever dies"), scene);
        let scene = Scene { faults: BESIDE_HANDOFF, requests, ..HANDOFF };
        holds(&format!("handoff reload, {what}, a roll-out or nginx that dies"), scene);
    }
}

#[test]
fn every_step_is_needed() {
    let [pm2, alone, handoff] = [PM2, PM2_ALONE, HANDOFF].map(|scene| Scene { requests: POST, ..scene });
    let frail = Scene { faults: BESIDE_HANDOFF, ..handoff.clone() };
    let killed = Scene { faults: &[Fault::WorkerIsKilled], ..pm2.clone() };
    let silent = Scene { faults: SIDECAR, fails: Promise::AsKnown, requests: GET, ..PM2 };
    let restarted = Scene { faults: &[Fault::SidecarIsRestarted], requests: &[], ..pm2.clone() };
    for (without, scene, broken) in [
        (Without::Lead, pm2.clone(), NOTHING_FAILS),
        (Without::Claim, handoff.clone(), NOBODY_BEGINS),
        (Without::Retire, pm2, NOTHING_FAILS),
        (Without::Hold, alone.clone(), NOTHING_FAILS),
        (Without::Expect, alone.clone(), NOTHING_FAILS),
        (Without::Listens, alone, NOTHING_FAILS),
        (Without::Ack, handoff.clone(), NOBODY_STOPPED),
        (Without::Idle, handoff, NOBODY_STOPPED),
        (Without::Fence, frail.clone(), NOBODY_STOPPED),
        (Without::Rows, frail.clone(), ALL_SETTLES),
        (Without::Lapse, frail.clone(), ALL_SETTLES),
        (Without::Looks, restarted, ALL_SETTLES),
        (Without::Absence, silent, NOTHING_FAILS),
        (Without::Next, frail, NOTHING_FAILS),
        (Without::Unsent, killed, NOTHING_TWICE),
    ] {
        let scene = Scene { without: Some(without), ..scene };
        match shortest(&scene) {
            Ok(worlds) => panic!("{without:?} is missed by nobody in {worlds} worlds"),
            Err((promise, steps)) => {
                println!(
                    "without {without:?}, in {} steps, not so: {promise}\n{}",
                    steps.len(),
                    told(&steps)
                );
                assert_eq!(promise, broken, "without {without:?}");
            }
        }
    }
}

/// So each ends, and what holds where no step is left comes true in each.
#[test]
fn no_run_goes_round_in_a_circle() {
    for scene in [PM2_ALONE, HANDOFF, Scene { faults: BESIDE_HANDOFF, requests: POST, ..HANDOFF }] {
        let (mut done, mut way) =
            (HashMap::new(), scene.init_states().into_iter().map(|world| (world, false)).collect::<Vec<_>>());
        while let Some((world, is_left)) = way.pop() {
            if is_left {
                done.insert(world, true);
                continue;
            }
            match done.get(&world) {
                Some(true) => continue,
                Some(false) => panic!("a circle: {world:#?}"),
                None => {}
            }
            done.insert(world.clone(), false);
            let next = scene.next_states(&world);
            way.push((world, true));
            way.extend(
                next.into_iter().filter(|world| done.get(world) != Some(&true)).map(|world| (world, false)),
            );
        }
    }
}

#[test]
#[ignore = "minutes: make model"]
fn and_so_it_is_further_out() {
    holds("pm2 reload, a slow bus", Scene { slow_bus: true, ..PM2 });
    let late = Scene { faults: BESIDE_PM2, fails: Promise::AsKnown, ..PM2 };
    for (what, requests) in [("an order", POST), ("a GET", GET)] {
        holds(&format!("pm2 reload, {what}, whoever dies"), Scene { requests, ..late.clone() });
    }
    holds("pm2 reload, both, a sidecar that dies", Scene { faults: SIDECAR, ..late });
    holds("handoff reload, both", HANDOFF_BESIDE);
    holds("handoff reload, an order, a slow bus", Scene { slow_bus: true, requests: POST, ..HANDOFF_BESIDE });
    holds(
        "handoff reload, no sidecar, both, two that die",
        Scene { faults: BESIDE_HANDOFF, most_faults: 2, ..HANDOFF },
    );
    holds(
        "handoff reload, no sidecar, three requests",
        Scene { requests: &[Method::Post, Method::Get, Method::Post], ..HANDOFF },
    );
    for fault in ALL {
        let scene = Scene { faults: std::slice::from_ref(fault), requests: POST, ..HANDOFF_BESIDE };
        holds(&format!("handoff reload, an order, {fault}"), scene);
    }
}

/// What is worse than with stock nginx, and known: the shortest way to it, or that there is none any more.
#[test]
#[ignore = "it proves nothing: make model tells it"]
fn what_is_known_is_told() {
    for (what, faults) in
        [("a sidecar that dies", SIDECAR), ("a sidecar that is restarted", &[Fault::SidecarIsRestarted])]
    {
        let scene = Scene { faults, fails: Promise::AsStock, requests: GET, ..PM2 };
        match shortest(&scene) {
            Ok(worlds) => println!("{what}: as with stock nginx, in {worlds} worlds"),
            Err((promise, steps)) => {
                println!("{what}, in {} steps, not so: {promise}\n{}", steps.len(), told(&steps))
            }
        }
    }
}
