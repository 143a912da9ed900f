//! What an app's settings will do to it one day, whatever it is protected against.

use crate::{pm2::monitor::Settings, worker::Worker};
use std::{collections::BTreeSet, fmt};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Danger {
    Cron,
    Watch,
    /// With so few workers, none is left.
    WatchAll,
    SamePort,
}

/// PM2 restarts so many at a time when a file changed.
const AT_A_TIME: usize = 2;

/// The dangers of one app.
pub fn dangers(workers: &[&Worker]) -> Vec<Danger> {
    of_settings(&workers.iter().map(|worker| worker.settings()).collect::<Vec<_>>())
}

/// The same, of what each of its workers was told.
pub fn of_settings(workers: &[&Settings]) -> Vec<Danger> {
    let any = |is: fn(&Settings) -> bool| workers.iter().any(|settings| is(settings));
    let watch = if workers.len() <= AT_A_TIME { Danger::WatchAll } else { Danger::Watch };
    let mut dangers = Vec::new();
    dangers.extend(any(|settings| settings.cron_restart).then_some(Danger::Cron));
    dangers.extend(any(|settings| settings.watch).then_some(watch));
    dangers.extend(have_the_same_port(workers).then_some(Danger::SamePort));
    dangers
}

/// PM2 counts PORT up when it starts them, and gives all of them the first one when it reloads their file.
fn have_the_same_port(workers: &[&Settings]) -> bool {
    let is_counted =
        |settings: &&&Settings| !settings.cluster && settings.increment_var.as_deref() == Some("PORT");
    let ports: Vec<u16> = workers.iter().filter(is_counted).filter_map(|settings| settings.port).collect();
    ports.iter().collect::<BTreeSet<_>>().len() < ports.len()
}

impl fmt::Display for Danger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cron => {
                "cron_restart restarts all its workers in the same second, and nobody serves meanwhile; let cron run \
                 `handoff reload` instead"
            }
            Self::Watch => "watch restarts it whenever a file changes; turn it off where users are",
            Self::WatchAll => {
                "watch restarts both workers at once when a file changes, and nobody serves meanwhile; turn it off \
                 where users are"
            }
            Self::SamePort => {
                "several workers have the same PORT, as a reload of the file leaves them; give each its own again: \
                 PORT=… pm2 restart ID --update-env"
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pm2::monitor::Settings;
    use std::time::Instant;

    fn of(settings: &[Settings]) -> Vec<Danger> {
        let worker = |settings: &Settings| {
            let mut worker = Worker::new(Instant::now());
            worker.describe("shop", settings);
            worker
        };
        let workers: Vec<Worker> = settings.iter().map(worker).collect();
        dangers(&workers.iter().collect::<Vec<_>>())
    }

    #[test]
    fn each_danger_is_told() {
        let calm = Settings::default();
        assert_eq!(of(&[calm.clone(), calm.clone()]), []);
        let cron = Settings { cron_restart: true, ..Settings::default() };
        assert_eq!(of(&[cron]), [Danger::Cron]);
        let watch = Settings { watch: true, ..Settings::default() };
        assert_eq!(of(&[watch.clone(), watch.clone()]), [Danger::WatchAll]);
        assert_eq!(of(&[watch.clone(), watch.clone(), watch]), [Danger::Watch]);
    }

    #[test]
    fn the_same_port_is_a_danger_only_where_pm2_counts_it_up() {
        let with = |port, increment_var: Option<&str>| Settings {
            port: Some(port),
            increment_var: increment_var.map(str::to_owned),
            ..Settings::default()
        };
        let counted = |port| with(port, Some("PORT"));
        assert_eq!(of(&[counted(3000), counted(3001)]), []);
        assert_eq!(of(&[counted(3000), counted(3000)]), [Danger::SamePort]);
        assert_eq!(of(&[with(3000, None), with(3000, None)]), []);
    }
}
