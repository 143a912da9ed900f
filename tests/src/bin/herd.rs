//! 1 000 app hosts and 50 edges come back to a store that was away, in a time of its own: who waits how long, and what is
//! done in vain. Each line is a hundred herds.

use clap::Parser;
use e2e::herd::{Cost, Herd, PATIENCE, PAUSES, Pauses, World};
use std::time::Duration;

#[derive(Parser)]
#[command(about = "Simulates how a fleet comes back to a store that was away")]
struct Arguments {
    #[arg(long, default_value_t = 1_000)]
    hosts: usize,
    #[arg(long, default_value_t = 50)]
    edges: usize,
    /// What etcd takes for a connection, for a call, and for a kilobyte written and read, in microseconds
    #[arg(long, value_delimiter = ',', num_args = 4, default_values_t = [400, 150, 40, 8])]
    cost: Vec<u64>,
    /// What an edge says of one host, in bytes
    #[arg(long, default_value_t = 4_500)]
    ack: u64,
    #[arg(long, default_value_t = 100)]
    herds: u64,
}

fn main() {
    let arguments = Arguments::parse();
    let micros = |place: usize| Duration::from_micros(arguments.cost.get(place).copied().unwrap_or_default());
    let usual = World {
        hosts: arguments.hosts,
        edges: arguments.edges,
        down: Duration::from_secs(5),
        pauses: PAUSES,
        patience: PATIENCE,
        cost: Cost { connection: micros(0), call: micros(1), written_kb: micros(2), read_kb: micros(3) },
        ack: arguments.ack,
        says_all: true,
        network: Duration::from_micros(250),
    };
    let alike = Pauses { differ: false, ..PAUSES };
    let at_once = Pauses { longest: PAUSES.first, ..alike };
    let slow = Cost {
        connection: usual.cost.connection * 10,
        call: usual.cost.call * 10,
        written_kb: usual.cost.written_kb * 10,
        read_kb: usual.cost.read_kb * 10,
    };
    println!("{} app hosts, {} edges, {} herds a line", arguments.hosts, arguments.edges, arguments.herds);
    println!(
        "{:50} {:>9} {:>9} {:>9} {:>12} {:>10} {:>9}",
        "", "half", "99 %", "all", "a tenth s", "waited", "in vain"
    );
    for (title, world) in [
        ("away for 5 s", usual.clone()),
        ("away for 0.5 s", World { down: Duration::from_millis(500), ..usual.clone() }),
        ("away for 60 s", World { down: Duration::from_secs(60), ..usual.clone() }),
        ("pauses that do not differ", World { pauses: alike, ..usual.clone() }),
        ("every 0.1 s, all alike", World { pauses: at_once, ..usual.clone() }),
        ("an edge says only what was asked", World { says_all: false, ..usual.clone() }),
        ("100 ms between them", World { network: Duration::from_millis(50), ..usual.clone() }),
        ("a store ten times slower", World { cost: slow, ..usual.clone() }),
        (
            "the same, an edge says only what was asked",
            World { cost: slow, says_all: false, ..usual.clone() },
        ),
        (
            "the same, no pause longer than 0.1 s",
            World { cost: slow, says_all: false, pauses: at_once, ..usual },
        ),
    ] {
        let herds: Vec<Herd> = (0..arguments.herds).map(|seed| world.play(seed)).collect();
        let worst =
            |of: &dyn Fn(&Herd) -> Duration| herds.iter().map(of).max().unwrap_or_default().as_secs_f64();
        let most = |of: &dyn Fn(&Herd) -> usize| herds.iter().map(of).max().unwrap_or_default();
        let everybody = arguments.hosts + arguments.edges;
        let all = if herds.iter().all(|herd| herd.back.len() == everybody) {
            format!("{:.1} s", worst(&|herd| herd.back_by(1.0)))
        } else {
            "never".to_owned()
        };
        println!(
            "{title:50} {:>7.1} s {:>7.1} s {all:>9} {:>12} {:>8.2} s {:>9}",
            worst(&|herd| herd.back_by(0.5)),
            worst(&|herd| herd.back_by(0.99)),
            most(&|herd| herd.busiest),
            worst(&|herd| herd.longest_wait),
            most(&|herd| herd.in_vain),
        );
    }
}
