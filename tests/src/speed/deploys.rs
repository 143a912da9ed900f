//! A deploy beside what one could have chosen instead: tuned nginx, HAProxy and a drain script, Caddy, and Handoff, by turns.

use super::figures::{Table, range};
use crate::{
    nginx::Binary,
    report::Tally,
    runner::{Plan as Play, Run},
    scenario::{Level, Pace, S4, S4N, S5, S5N, SETTLING, Scenario, Setup},
};
use anyhow::Result;
use std::{fmt, time::Duration};

#[derive(Clone, Debug)]
pub struct Plan {
    pub nginx: String,
    pub rounds: usize,
    /// Whether HAProxy and Caddy take part.
    pub others: bool,
}

pub struct Report(Vec<Group>);

/// One scenario, and what came of it with each contender.
struct Group {
    title: &'static str,
    rows: Vec<(&'static str, Tally)>,
}

struct Contender {
    name: &'static str,
    setup: Setup,
}

/// Handoff twice: what differs between these two is noise.
const CONTENDERS: [Contender; 5] = [
    Contender { name: "tuned nginx, `pm2 reload`", setup: Setup::Tuned },
    Contender { name: "HAProxy and a drain script", setup: Setup::Haproxy },
    Contender { name: "Caddy, `pm2 reload`", setup: Setup::Caddy },
    Contender { name: "Handoff, `handoff reload`", setup: Setup::Handoff },
    Contender { name: "– the same again", setup: Setup::Handoff },
];

const TITLES: [(Scenario, &str); 4] = [
    (S4, "four workers that close their server"),
    (S4N, "four workers that handle no signal"),
    (S5, "the only worker, which closes its server"),
    (S5N, "the only worker, which handles no signal"),
];

/// Twice in a run, as soon as the first is over.
const PACE: Pace = Pace {
    actions: &[Duration::from_secs(3), Duration::from_secs(6)],
    gap: Duration::from_millis(2_500),
    at_least: Duration::from_secs(6),
    after: SETTLING,
};

// === impl Plan ===

impl Plan {
    pub async fn play(&self) -> Result<Report> {
        let nginx = Binary::find(Some(&self.nginx)).await?;
        let plays =
            |contender: &&Contender| self.others || !matches!(contender.setup, Setup::Haproxy | Setup::Caddy);
        let contenders: Vec<&Contender> = CONTENDERS.iter().filter(plays).collect();
        let mut groups = Vec::new();
        for (scenario, title) in TITLES {
            let scenario = Scenario { pace: PACE, level: Level::L1, ..scenario };
            let mut runs: Vec<Vec<Run>> = contenders.iter().map(|_| Vec::new()).collect();
            for round in 0..self.rounds {
                let mut order: Vec<_> = contenders.iter().zip(&mut runs).collect();
                let turn = round % order.len();
                order.rotate_left(turn);
                for (contender, runs) in order {
                    let Contender { name, setup } = contender;
                    eprintln!("{title}, {name}, {} of {}", round + 1, self.rounds);
                    let play = Play { scenario, setup: *setup, nginx: nginx.clone(), control: false };
                    runs.push(play.play().await?);
                }
            }
            let row = |(contender, runs): (&&Contender, &Vec<Run>)| {
                (contender.name, Tally::of(contender.setup, &runs.iter().collect::<Vec<_>>()))
            };
            groups.push(Group { title, rows: contenders.iter().zip(&runs).map(row).collect() });
        }
        Ok(Report(groups))
    }
}

// === impl Report ===

impl Report {
    /// Of all who were served through Handoff.
    pub fn failed(&self) -> usize {
        let rows = self.0.iter().flat_map(|group| &group.rows);
        let ours = rows.filter(|(_, tally)| tally.setup == Setup::Handoff);
        ours.map(|(_, tally)| tally.failed + tally.executed_twice).sum()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new(&[
            "deployed",
            "failed",
            "orders run twice",
            "seconds a deploy",
            "p99 calm, ms",
            "p99 deploying, ms",
            "longest, ms",
        ]);
        let number = |value: Option<f64>| value.map_or("–".to_owned(), |value| format!("{value:.0}"));
        for Group { title, rows } in &self.0 {
            table.row([format!("**{title}**")]);
            for (name, tally) in rows {
                table.row([
                    (*name).to_owned(),
                    format!("{} of {}", tally.failed, tally.requests),
                    tally.executed_twice.to_string(),
                    range(&tally.deploy_seconds, 1),
                    number(tally.ms.calm.p99),
                    number(tally.ms.deploying.p99),
                    number(tally.ms.deploying.max),
                ]);
            }
        }
        table.fmt(f)
    }
}
