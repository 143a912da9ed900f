//! An order that a certain worker works on for as long as a test needs it to.

#![allow(unreachable_pub, reason = "a module of a test is nobody else's")]

use crate::stage::{PATIENCE, Stage};
use anyhow::{Context, Result, ensure};
use e2e::{door::Reply, orders::Orders, wait};
use hyper::Method;
use std::time::Duration;
use tokio::task::JoinHandle;

#[derive(Debug)]
pub struct Held {
    id: String,
    answer: JoinHandle<Result<Reply>>,
    /// Those that came to other workers.
    others: Vec<JoinHandle<Result<Reply>>>,
}

impl Held {
    /// Comes back when this process works on it.
    pub async fn by(stage: &Stage, pid: u32, long: Duration) -> Result<Self> {
        let mut others = Vec::new();
        loop {
            let id = stage.new_name("held");
            let (door, body) = (stage.site.visitors(), format!("{{\"id\":\"{id}\"}}"));
            let path = format!("/orders?ms={}", long.as_millis());
            let answer = tokio::spawn(async move { door.ask(Method::POST, &path, body).await });
            let worker = wait::until("an order to begin", PATIENCE, async || {
                // A line that is half written is read the next time.
                Some(Orders::read(&stage.orders()).ok()?.executions(&id).first()?.worker)
            });
            if worker.await? == pid {
                return Ok(Self { id, answer, others });
            }
            others.push(answer);
        }
    }

    /// With those that came to other workers.
    pub fn count(&self) -> usize {
        1 + self.others.len()
    }

    /// It was executed once, and answered.
    #[expect(clippy::wrong_self_convention, reason = "an answer is awaited once")]
    pub async fn is_served(self, stage: &Stage) -> Result<()> {
        for answer in self.others.into_iter().chain([self.answer]) {
            let status = answer.await??.status;
            ensure!(status == 200, "a held order was answered {status}");
        }
        once(stage, &self.id)
    }

    /// It was executed once, and the user saw it fail.
    #[expect(clippy::wrong_self_convention, reason = "an answer is awaited once")]
    pub async fn is_cut(self, stage: &Stage) -> Result<()> {
        let reply = self.answer.await?.context("nginx answers all the same")?;
        ensure!(reply.status == 502, "a cut order was answered {}", reply.status);
        once(stage, &self.id)
    }
}

fn once(stage: &Stage, id: &str) -> Result<()> {
    let executions = Orders::read(&stage.orders())?.executions(id).len();
    ensure!(executions == 1, "{id} was executed {executions} times");
    Ok(())
}
