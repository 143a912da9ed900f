use model::{By, Fault, Method, Promise, Scene, Without};
use stateright::{Checker as _, HasDiscoveries, Model as _};
use std::time::Instant;

const TWO: &[Method] = &[Method::Post, Method::Get];

const PM2: Scene = Scene { by: By::Pm2Reload, workers: 2, sidecar: true, requests: TWO, faults: &[], most_faults: 1, fails: Promise::None, without: None };

fn run(name: &str, scene: Scene) {
    let began = Instant::now();
    let checker = scene.checker().finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    println!("{name}: {} worlds, {} deep, {:?}", checker.unique_state_count(), checker.max_depth(), began.elapsed());
    for (what, path) in checker.discoveries() {
        println!("  BROKEN {what}");
        for step in path.into_actions() { println!("    {step}"); }
    }
}

#[test]
fn explore() {
    const S: &[Fault] = &[Fault::SidecarDies, Fault::SidecarIsRestarted, Fault::SidecarFreezes];
    const L: &[Fault] = &[Fault::NoticeIsLate, Fault::SidecarDies, Fault::SidecarIsRestarted, Fault::SidecarFreezes, Fault::NginxWorkerDies];
    const R: &[Fault] = &[Fault::RolloutDies, Fault::RolloutFreezes, Fault::SidecarDies, Fault::SidecarIsRestarted, Fault::SidecarFreezes, Fault::NginxRestarts, Fault::NginxWorkerDies];
    let h = Scene { by: By::HandoffReload, ..PM2 };
    run("L0 2", PM2);
    run("L0 1", Scene { workers: 1, ..PM2 });
    run("L1 2 alone", Scene { sidecar: false, ..h.clone() });
    run("L1 2", h.clone());
    run("L1 1", Scene { workers: 1, ..h.clone() });
    _ = (S, L, R);
    run("L0 2 faults", Scene { faults: L, fails: Promise::AsStock, ..PM2 });
    run("L0 1 faults", Scene { workers: 1, faults: S, fails: Promise::AsStock, ..PM2 });
    run("L1 2 alone faults", Scene { sidecar: false, faults: R, ..h.clone() });
    run("L1 2 faults", Scene { faults: R, ..h.clone() });
    _ = Without::Ack;
}
