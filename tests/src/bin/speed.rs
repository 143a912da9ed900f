//! How fast Handoff is, as the tables of docs/speed.md: drains, what a user may wait for, deploys, scale, and the preload.

use anyhow::{Result, ensure};
use clap::{Parser, ValueEnum};
use e2e::{
    alone, caddy,
    clock::Moment,
    haproxy,
    speed::{deploys, drains, moments, preload, scale},
    stage,
};
use std::{process::ExitCode, time::Duration};

#[derive(Debug, Parser)]
#[command(about)]
struct Options {
    /// Which tables; all of them if absent
    #[arg(value_enum)]
    tables: Vec<Table>,
    /// nginx's version
    #[arg(long, default_value = "1.22.1")]
    nginx: String,
    /// A tenth of everything: whether it runs, not how fast it is
    #[arg(long)]
    short: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Table {
    Drains,
    Moments,
    Deploys,
    Scale,
    Preload,
}

fn main() -> ExitCode {
    stage::enter(play(Options::parse()))
}

async fn play(options: Options) -> Result<()> {
    let _alone = alone::take()?;
    let tables = if options.tables.is_empty() { Table::value_variants() } else { &options.tables };
    for &table in tables {
        let began = Moment::now();
        let text = options.measure(table).await?;
        println!("{text}\n");
        eprintln!("{table:?}: {:.0} s", Moment::now().since(began).as_secs_f64());
    }
    Ok(())
}

// === impl Options ===

impl Options {
    async fn measure(&self, table: Table) -> Result<String> {
        let nginx = self.nginx.clone();
        Ok(match table {
            Table::Drains => {
                let (drains, haproxy) = (self.of(300), haproxy::binary().is_ok());
                let report = drains::Plan { nginx, drains, rate: 200, haproxy }.play().await?;
                for outcome in &report.0 {
                    let sent = outcome.uncounted().unwrap_or(0);
                    ensure!(sent == 0, "{}: {sent} were sent after the acknowledgement", outcome.proxy);
                }
                report.to_string()
            }
            Table::Moments => {
                let plan = moments::Plan { nginx, deaths: self.of(30), waits: self.of(200), rate: 200 };
                plan.play().await?.to_string()
            }
            Table::Deploys => {
                let others = haproxy::binary().and_then(|_| caddy::binary());
                if let Err(error) = &others {
                    eprintln!("without HAProxy and Caddy: {error:#}");
                }
                let rounds = if self.short { 1 } else { 2 };
                let report = deploys::Plan { nginx, rounds, others: others.is_ok() }.play().await?;
                ensure!(report.failed() == 0, "{report}\nsomebody failed with Handoff");
                report.to_string()
            }
            Table::Scale => {
                let plan = scale::Plan {
                    nginx,
                    processes: if self.short { 4 } else { 32 },
                    upstreams: self.of(100),
                    peers: 100,
                    asks: self.of(30),
                    time: Duration::from_secs(if self.short { 1 } else { 10 }),
                    parked: self.of(10_000),
                    rounds: if self.short { 1 } else { 3 },
                };
                plan.play().await?.to_string()
            }
            Table::Preload => {
                let plan = preload::Plan {
                    rounds: self.of(24),
                    round: Duration::from_millis(500),
                    starts: self.of(30),
                };
                plan.play().await?.to_string()
            }
        })
    }

    /// So many, or a tenth.
    fn of(&self, many: usize) -> usize {
        if self.short { many / 10 } else { many }
    }
}
