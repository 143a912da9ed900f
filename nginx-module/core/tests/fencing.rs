//! A mark has an epoch for as long as it holds. Whoever wants to stop a worker renews with the epoch first: if it was
//! refused, nginx may have used the peer meanwhile.

mod common;

use common::*;
use handoff_wire::{Code, State::*};

#[test]
fn an_epoch_stays_while_the_mark_holds() {
    let mut stage = Stage::new();
    let epoch = stage.mark("pm2:1", A, Draining);
    stage.now += 9_000;
    stage.renew("pm2:1");
    stage.sweep_after(9_000);
    assert_eq!(stage.mark("pm2:1", A, Down), epoch);
    assert_eq!(stage.mark("pm2:1", A, Checking), epoch);
    assert!(stage.fence("pm2:1", &[(A, epoch)]).is_ok());
}

#[test]
fn no_epoch_comes_twice() {
    let mut stage = Stage::new();
    let mut last = 0;
    for end in 0..6 {
        let epoch = stage.mark("pm2:1", A, Draining);
        assert!(epoch > last, "{epoch} after {last}");
        last = epoch;
        match end % 3 {
            0 => drop(stage.sweep_after(10_000)),
            1 => drop(stage.mark("pm2:1", A, Up)),
            _ => drop(stage.put(&all_ready("operator", A))),
        }
    }
}

#[test]
fn a_mark_that_lapsed_or_was_removed_is_fenced() {
    for end in ["lapsed", "was removed", "was removed with all", "lapsed and was set again"] {
        let mut stage = Stage::new();
        let epoch = stage.mark("rollout:1", A, Draining);
        match end {
            "was removed" => drop(stage.mark("rollout:1", A, Up)),
            "was removed with all" => drop(stage.put(&all_ready("operator", A))),
            _ => drop(stage.sweep_after(10_000)),
        }
        if end == "lapsed and was set again" {
            stage.mark("rollout:1", A, Draining);
        }
        let refusal = stage.fence("rollout:1", &[(A, epoch)]).expect_err(end);
        assert_eq!((refusal.code, refusal.status), (Code::Lapsed, 409), "{end}");
        assert!(refusal.text.contains("drain it again before you stop its worker"), "{}", refusal.text);
    }
}

#[test]
fn an_epoch_is_its_owners_alone() {
    let stage = Stage::new();
    let epoch = stage.mark("pm2:1", A, Draining);
    stage.mark("pm2:2", A, Draining);
    assert_eq!(stage.fence("pm2:2", &[(A, epoch)]).unwrap_err().code, Code::Lapsed);
}

#[test]
fn a_refused_renewal_renews_nothing() {
    let mut stage = Stage::new();
    let [a, b] = [A, B].map(|peer| stage.mark("pm2:1", peer, Draining));
    stage.mark("pm2:1", B, Up);
    stage.now += 6_000;
    assert_eq!(stage.fence("pm2:1", &[(A, a), (B, b)]).unwrap_err().code, Code::Lapsed);
    assert_eq!(stage.sweep_after(4_000).len(), 1, "the lease of the first still ran from its beginning");
}

#[test]
fn a_fenced_renewal_renews_what_it_names_and_a_plain_one_everything() {
    let mut stage = Stage::new();
    let a = stage.mark("pm2:1", A, Draining);
    stage.mark("pm2:1", B, Draining);
    stage.mark("pm2:2", B, Draining);
    stage.now += 6_000;
    assert_eq!(stage.renew("pm2:1").ack.marks.len(), 2);
    stage.now += 6_000;
    stage.fence("pm2:1", &[(A, a)]).unwrap();
    stage.sweep_after(4_000);
    assert_eq!((stage.owners(A), stage.owners(B)), (vec!["pm2:1".to_owned()], vec![]));
}

#[test]
fn a_lease_that_ran_out_unnoticed_can_be_renewed_because_the_gate_never_opened() {
    let mut stage = Stage::new();
    let epoch = stage.mark("pm2:1", A, Draining);
    stage.now += 60_000;
    assert!(stage.fence("pm2:1", &[(A, epoch)]).is_ok());
    assert_eq!(stage.sweep_after(0), []);
}
