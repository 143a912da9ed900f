//! What came of a roll-out.

use super::{Broken, Plan, Stop, replace::Replaced, stop::Role};
use crate::{cli::exit::Exit, pm2::PmId};

#[derive(Debug, Default)]
pub struct Outcome {
    pub replaced: Vec<PmId>,
    pub cut: u64,
    pub stop: Option<Stop>,
}

// === impl Outcome ===

impl Outcome {
    pub fn exit(&self) -> Exit {
        match &self.stop {
            Some(stop) => stop.exit(),
            None if self.cut > 0 => Exit::Cut,
            None => Exit::Done,
        }
    }

    pub fn add(&mut self, ended: Result<Replaced, Stop>) {
        match ended {
            Ok(Replaced { id, cut }) => {
                self.replaced.push(id);
                self.cut += cut;
            }
            // What stopped the others is the reason.
            Err(Stop::Sibling) => {}
            Err(stop) => _ = self.stop.get_or_insert(stop),
        }
    }

    /// Of one who stood in, and was taken away.
    pub fn add_cut(&mut self, left: Result<u64, Stop>) {
        match left {
            Ok(cut) => self.cut += cut,
            Err(stop) => _ = self.stop.get_or_insert(stop),
        }
    }

    pub fn text(&self, plan: &Plan) -> String {
        let (app, all) = (&plan.app, plan.turns.len());
        let new = self.replaced.len();
        match &self.stop {
            Some(stop @ Stop::Broken(Broken { role: Role::Canary | Role::StandIn, .. })) => {
                format!("{stop}. The old release serves on every worker of {app}")
            }
            Some(stop @ Stop::Broken(_)) if all == 1 => stop.to_string(),
            Some(stop @ Stop::Broken(_)) if new == 0 => {
                format!("{stop}. No other worker of {app} was touched")
            }
            Some(stop) => format!("{stop}. {new} of {} of {app} are new", workers(all)),
            None if self.cut > 0 => {
                let which = match plan.cluster {
                    None => "that took longer than the drain timeout were cut",
                    Some(_) => "were cut with their old workers",
                };
                format!("all {} of {app} are new; {} requests {which}", workers(all), self.cut)
            }
            None => format!("all {} of {app} are new, and nothing was cut", workers(all)),
        }
    }
}

fn workers(number: usize) -> String {
    if number == 1 { "1 worker".to_owned() } else { format!("{number} workers") }
}
