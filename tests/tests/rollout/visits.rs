//! Visitors who come all the while, and what became of each of them.

#![allow(unreachable_pub, reason = "a module of a test is nobody else's")]

use anyhow::{Result, ensure};
use e2e::{
    load::{Answer, Load, Visit},
    orders::Orders,
    ports,
};
use std::path::{Path, PathBuf};

#[derive(Debug)]
pub struct Visits {
    load: Load,
    orders: PathBuf,
}

/// What they came to.
#[derive(Debug)]
pub struct Account {
    pub visits: Vec<Visit>,
    pub orders: Orders,
}

// === impl Visits ===

impl Visits {
    pub fn begin(port: u16, rate: u32, orders: &Path) -> Self {
        Self { load: Load::start(ports::address(port), rate), orders: orders.to_path_buf() }
    }

    pub async fn end(self) -> Result<Account> {
        let visits = self.load.stop().await;
        Ok(Account { visits, orders: Orders::read(&self.orders)? })
    }

    /// Nobody noticed anything.
    pub async fn end_well(self) -> Result<()> {
        let account = self.end().await?;
        account.print();
        let failed: Vec<&Visit> = account.failed().collect();
        ensure!(failed.is_empty(), "{} of {} failed: {failed:#?}", failed.len(), account.visits.len());
        account.every_order_once()
    }
}

// === impl Account ===

impl Account {
    pub fn failed(&self) -> impl Iterator<Item = &Visit> {
        self.visits.iter().filter(|visit| visit.failed())
    }

    pub fn hung(&self) -> usize {
        self.visits.iter().filter(|visit| visit.answer == Answer::Hung).count()
    }

    /// Who was told that the order is taken finds it executed, and nobody's was executed twice.
    pub fn every_order_once(&self) -> Result<()> {
        ensure!(self.orders.executed_twice() == 0, "{} were executed twice", self.orders.executed_twice());
        for visit in self.visits.iter().filter(|visit| !visit.failed()) {
            let Some(order) = visit.order() else { continue };
            ensure!(self.orders.executions(&order).len() == 1, "{order} was not executed: {visit:?}");
        }
        Ok(())
    }

    /// For the person at the terminal.
    pub fn print(&self) {
        let (all, failed, hung) = (self.visits.len(), self.failed().count(), self.hung());
        let twice = self.orders.executed_twice();
        eprintln!("{all} visits, {failed} failed, {hung} hung, {twice} executed twice");
    }
}
