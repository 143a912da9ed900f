//! The life of each worker: it boots, listens, begins to close, and dies.
//!
//! The first three it writes down itself. Its death is seen through a pidfd, so that a killed worker has one too.

use crate::{clock::Moment, process};
use anyhow::{Context, Result};
use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{
    task::{JoinHandle, JoinSet},
    time::interval,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Life {
    pub worker: u32,
    pub port: u16,
    /// `NODE_APP_INSTANCE`
    pub instance: u32,
    pub booted: Moment,
    pub listened: Option<Moment>,
    pub closed: Option<Moment>,
    pub died: Option<Moment>,
}

impl Life {
    /// When it stopped to listen.
    pub fn ended(&self) -> Option<Moment> {
        self.closed.into_iter().chain(self.died).min()
    }
}

/// From when to when none of these listened, after the first had begun to.
pub fn gaps(lives: &[Life]) -> Vec<(Moment, Moment)> {
    let mut steps: Vec<(Moment, i32)> = Vec::new();
    for life in lives {
        let Some(listened) = life.listened else { continue };
        steps.push((listened, 1));
        steps.extend(life.ended().map(|ended| (ended, -1)));
    }
    steps.sort_unstable();
    let (mut serving, mut since, mut gaps) = (0, None, Vec::new());
    for (at, step) in steps {
        serving += step;
        match since {
            None if serving == 0 => since = Some(at),
            Some(from) if serving > 0 => {
                gaps.push((from, at));
                since = None;
            }
            _ => {}
        }
    }
    gaps
}

/// All lives written down so far. Nobody has died yet.
pub fn read(path: &Path) -> Result<Vec<Life>> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    parse(&fs::read_to_string(path)?)
}

/// Watches for deaths until it is dropped or asked what it saw.
#[derive(Debug)]
pub struct Watch {
    path: PathBuf,
    deaths: JoinHandle<HashMap<u32, Moment>>,
    stop: tokio::sync::watch::Sender<()>,
}

impl Watch {
    pub fn new(path: &Path) -> Self {
        let (stop, stopped) = tokio::sync::watch::channel(());
        let deaths = tokio::spawn(deaths(path.to_path_buf(), stopped));
        Self { path: path.to_path_buf(), deaths, stop }
    }

    pub async fn finish(self) -> Result<Vec<Life>> {
        drop(self.stop);
        let deaths = self.deaths.await?;
        let mut lives = read(&self.path)?;
        for life in &mut lives {
            life.died = deaths.get(&life.worker).copied();
        }
        Ok(lives)
    }
}

async fn deaths(path: PathBuf, mut stopped: tokio::sync::watch::Receiver<()>) -> HashMap<u32, Moment> {
    let mut watched = HashMap::new();
    let mut deaths = JoinSet::new();
    let mut look = interval(Duration::from_millis(20));
    loop {
        tokio::select! {
            _ = stopped.changed() => break,
            Some(Ok((worker, Ok(moment)))) = deaths.join_next() => {
                watched.insert(worker, Some(moment));
            }
            _ = look.tick() => {
                // A line that is half written is read the next time.
                for life in read(&path).unwrap_or_default() {
                    watched.entry(life.worker).or_insert_with(|| {
                        deaths.spawn(async move { (life.worker, process::death(life.worker).await) });
                        None
                    });
                }
            }
        }
    }
    watched.into_iter().filter_map(|(worker, death)| Some((worker, death?))).collect()
}

fn parse(text: &str) -> Result<Vec<Life>> {
    let mut lives = Vec::new();
    for line in text.lines() {
        take(&mut lives, line).with_context(|| format!("not a line of a life: {line}"))?;
    }
    Ok(lives)
}

fn take(lives: &mut Vec<Life>, line: &str) -> Option<()> {
    let mut words = line.split(' ');
    let (what, port) = (words.next()?, words.next()?.parse().ok()?);
    let instance = words.next()?.parse().ok()?;
    let worker = words.next()?.parse().ok()?;
    let at = Moment::from_nanos(words.next()?.parse().ok()?);
    if what == "boot" {
        lives.push(Life { worker, port, instance, booted: at, listened: None, closed: None, died: None });
        return Some(());
    }
    let life = lives.iter_mut().rfind(|life| life.worker == worker)?;
    match what {
        "listen" => life.listened = Some(at),
        "close" => life.closed = Some(at),
        _ => return None,
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_life_is_put_together_from_its_lines() {
        let lives =
            parse("boot 3000 0 7 10\nboot 3001 1 8 11\nlisten 3000 0 7 20\nclose 3000 0 7 30\n").unwrap();
        let at = |nanos| Some(Moment::from_nanos(nanos));
        assert_eq!(lives.len(), 2);
        assert_eq!((lives[1].worker, lives[1].port, lives[1].instance), (8, 3001, 1));
        assert_eq!((lives[0].listened, lives[0].closed, lives[0].died), (at(20), at(30), None));
        assert_eq!(lives[1].listened, None);
    }

    #[test]
    fn a_life_that_never_booted_is_an_error() {
        assert!(parse("listen 3000 0 7 20\n").is_err());
    }
}
