//! Each nginx process counts its requests in a row of its own, and a row counts for as long as its process lives.

mod common;

use common::*;
use handoff_core::Process;
use handoff_core::table::{PROCESSES, RowId};

impl Stage {
    fn start(&mut self, process: Process) -> RowId {
        self.world.alive.insert(process);
        self.table().join(process, 1, |process| self.world.alive.contains(&process))
    }

    fn serve(&self, row: RowId, requests: usize) {
        for _ in 0..requests {
            if let Some(turnstile) = self.table().turnstile(row, self.id(A)) {
                turnstile.claim(|| false, || false);
            }
        }
    }

    fn in_flight(&self) -> u64 {
        let living = self.table().living(|process| self.world.alive.contains(&process));
        self.table().settle(self.id(A), &living)
    }
}

#[test]
fn requests_of_all_living_processes_are_summed() {
    let mut stage = Stage::new();
    let second = stage.start(process(2));
    assert_ne!(second, stage.row);
    stage.serve(stage.row, 2);
    stage.serve(second, 3);
    assert_eq!(stage.in_flight(), 5);
    stage.release(A);
    assert_eq!(stage.in_flight(), 4);
    assert_eq!([stage.row, second].map(|row| stage.table().row_in_flight(row)), [1, 3]);
}

#[test]
fn a_dead_process_does_not_count() {
    let mut stage = Stage::new();
    let second = stage.start(process(2));
    stage.serve(second, 3);
    stage.world.alive.remove(&process(2));
    assert_eq!(stage.in_flight(), 0);
}

#[test]
fn the_row_of_a_dead_process_begins_anew_with_the_next() {
    let mut stage = Stage::new();
    let second = stage.start(process(2));
    stage.serve(second, 3);
    stage.world.alive.remove(&process(2));
    assert_eq!(stage.start(process(3)), second);
    assert_eq!(stage.in_flight(), 0);
    assert_eq!(stage.table().header.deaths(), 1);
    stage.table().leave(second);
    stage.start(process(4));
    assert_eq!(stage.table().header.deaths(), 1, "who leaves its row is not one that died");
}

#[test]
fn a_pid_that_comes_again_is_another_process() {
    let mut stage = Stage::new();
    let first = Process { pid: 2, start: 10 };
    let second = stage.start(first);
    stage.serve(second, 3);
    assert_eq!(stage.in_flight(), 3);
    stage.world.alive.remove(&first);
    stage.world.alive.insert(Process { pid: 2, start: 20 });
    assert_eq!(stage.in_flight(), 0);
}

#[test]
fn a_row_is_free_once_its_process_has_left() {
    let mut stage = Stage::new();
    let second = stage.start(process(2));
    stage.table().leave(second);
    assert_eq!(stage.table().row_process(second), None);
    assert_eq!(stage.start(process(3)), second);
}

#[test]
fn whoever_finds_no_row_shares_the_last_one_which_always_counts() {
    let mut stage = Stage::new();
    for pid in 2..PROCESSES as u32 {
        let row = stage.start(process(pid));
        assert_eq!(stage.table().row_process(row), Some(process(pid)));
    }
    let [one, other] = [1_000, 1_001].map(|pid| stage.start(process(pid)));
    assert_eq!((one, stage.table().row_process(one)), (other, None));
    stage.serve(one, 1);
    stage.serve(other, 1);
    stage.table().leave(one);
    assert_eq!(stage.in_flight(), 2, "what is left of one cannot be told from the other's");
    stage.world.alive.clear();
    assert_eq!(stage.in_flight(), 2);
}

#[test]
fn whoever_is_refused_is_not_counted() {
    let stage = Stage::new();
    stage.mark("pm2:1", A, handoff_wire::State::Draining);
    stage.serve(stage.row, 5);
    assert_eq!(stage.in_flight(), 0);
}
