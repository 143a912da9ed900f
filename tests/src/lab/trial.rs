//! One deploy of all hosts, one after the other, what befell them meanwhile, and what became of it.

use super::{Lab, Plan, Seen, fault::Fault, host::AppHost};
use crate::{clock::Moment, reload::Reload, stand::How};
use anyhow::Result;
use std::time::Duration;
use tokio::{time::sleep, try_join};

#[derive(Clone, Debug)]
pub struct Trial {
    pub plan: Plan,
    pub how: How,
    pub fault: Fault,
    /// Visits a second.
    pub rate: u32,
}

/// On one host.
#[derive(Clone, Debug)]
pub struct Deploy {
    pub began: Moment,
    pub ended: Moment,
    /// None: PM2 did it.
    pub reload: Option<Reload>,
}

#[derive(Debug)]
pub struct Outcome {
    pub trial: Trial,
    pub seen: Seen,
    /// The first of each host, in order.
    pub deploys: Vec<Deploy>,
    /// Those of the hosts whose first did not end well.
    pub again: Vec<Deploy>,
    /// From when to when it befell them.
    pub fault: Option<(Moment, Moment)>,
    /// From the end of the deploys, or of what befell them, until all was as ever.
    pub recovered: Duration,
}

const CALM: Duration = Duration::from_secs(1);

impl Trial {
    pub async fn play(self) -> Result<Outcome> {
        let mut lab = Lab::set(&self.plan).await?;
        if self.plan.members > 0 {
            lab.start_sidecars().await?;
        }
        let visitors = lab.visit(self.rate).await?;
        sleep(CALM).await;
        let (hosts, parts) = lab.parts(&self.plan)?;
        let (deploys, fault) = try_join!(roll(hosts, self.how), self.fault.befall(parts))?;
        let over = Moment::now();
        let mut again = Vec::new();
        if self.plan.members > 0 {
            lab.is_as_ever(self.fault.edges_after(self.plan.edges)).await?;
        }
        let recovered = Moment::now().since(over);
        for (host, deploy) in lab.hosts.iter().zip(&deploys) {
            if !deploy.is_done() {
                again.push(roll_one(host, self.how).await?);
            }
        }
        sleep(CALM).await;
        let seen = lab.strike(visitors).await?;
        Ok(Outcome { trial: self, seen, deploys, again, fault, recovered })
    }
}

impl Deploy {
    /// Every worker is new, and nothing was cut.
    pub fn is_done(&self) -> bool {
        self.reload.as_ref().is_none_or(|reload| reload.exit == 0)
    }

    pub fn seconds(&self) -> f64 {
        self.ended.since(self.began).as_secs_f64()
    }
}

async fn roll(hosts: &[AppHost], how: How) -> Result<Vec<Deploy>> {
    let mut deploys = Vec::new();
    for host in hosts {
        deploys.push(roll_one(host, how).await?);
    }
    Ok(deploys)
}

async fn roll_one(host: &AppHost, how: How) -> Result<Deploy> {
    let began = Moment::now();
    let reload = match how {
        How::Pm2 => {
            host.pm2_reload().await?;
            None
        }
        How::Handoff => Some(host.reload(&[]).await?),
    };
    Ok(Deploy { began, ended: Moment::now(), reload })
}
