//! What became of each order where it was executed, as the workers wrote it down.

use crate::clock::Moment;
use anyhow::{Context, Result};
use std::{collections::HashMap, fs, path::Path};

pub const FILE: &str = "orders";

/// Every execution of every order, by its id.
#[derive(Clone, Debug, Default)]
pub struct Orders(HashMap<String, Vec<Execution>>);

#[derive(Clone, Copy, Debug)]
pub struct Execution {
    pub worker: u32,
    pub started: Moment,
    pub done: Option<Moment>,
}

impl Orders {
    /// A file that is not there means that nothing was ordered.
    pub fn read(path: &Path) -> Result<Self> {
        if !path.exists() {
            return Ok(Self::default());
        }
        Self::parse(&fs::read_to_string(path)?)
    }

    pub fn parse(text: &str) -> Result<Self> {
        let mut orders = Self::default();
        for line in text.lines() {
            orders.take(line).with_context(|| format!("not a line about an order: {line}"))?;
        }
        Ok(orders)
    }

    /// Those that were executed on another machine, too.
    pub fn add(&mut self, other: Self) {
        for (id, executions) in other.0 {
            self.0.entry(id).or_default().extend(executions);
        }
    }

    pub fn executions(&self, id: &str) -> &[Execution] {
        self.0.get(id).map(Vec::as_slice).unwrap_or_default()
    }

    pub fn executed_twice(&self) -> usize {
        self.twice().count()
    }

    /// Those that were executed more than once, and how.
    pub fn twice(&self) -> impl Iterator<Item = (&str, &[Execution])> {
        let all = self.0.iter().map(|(id, executions)| (id.as_str(), executions.as_slice()));
        all.filter(|(_, executions)| executions.len() > 1)
    }

    fn take(&mut self, line: &str) -> Option<()> {
        let mut words = line.split(' ');
        let (what, id) = (words.next()?, words.next()?);
        let worker = words.next()?.parse().ok()?;
        let at = Moment::from_nanos(words.next()?.parse().ok()?);
        let executions = self.0.entry(id.to_owned()).or_default();
        match what {
            "start" => executions.push(Execution { worker, started: at, done: None }),
            "done" => executions.iter_mut().rfind(|execution| execution.worker == worker)?.done = Some(at),
            _ => return None,
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_that_starts_in_two_workers_was_executed_twice() {
        let orders =
            Orders::parse("start a 1 10\nstart b 1 20\nstart a 2 30\ndone a 2 40\ndone b 1 50\n").unwrap();
        assert_eq!(orders.executed_twice(), 1);
        assert_eq!(orders.executions("a").len(), 2);
        assert!(orders.executions("a")[0].done.is_none());
        assert!(orders.executions("a")[1].done.is_some());
        assert!(orders.executions("c").is_empty());
    }

    #[test]
    fn a_line_that_was_cut_is_an_error_and_not_an_order() {
        assert!(Orders::parse("start a 1 10\nstart b").is_err());
    }
}
