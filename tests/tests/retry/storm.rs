//! Everything fails in every way, and no order is executed twice.

use crate::stage::{Ask, Stage};
use anyhow::{Context, Result, ensure};
use e2e::{
    clock::Moment,
    site::{PATIENCE, VERSIONS},
};
use handoff_wire::{GrantedView, RetryView};
use std::{collections::BTreeMap, time::Duration};
use tokio::time::{sleep, timeout};

const LASTS: Duration = Duration::from_secs(5);
const LINES: &str = "keepalive 8; handoff_queue 200 timeout=300ms;";
const LOCATIONS: &str = "
    location /off { proxy_next_upstream off; proxy_pass http://app; }
    location /two { proxy_next_upstream_tries 2; proxy_pass http://app; }
    location /unbuffered { proxy_request_buffering off; proxy_pass http://app; }";

/// splitmix64
struct Chance(u64);

impl Chance {
    fn pick<T: Clone>(&mut self, from: &[T]) -> Result<T> {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let at = (z ^ (z >> 31)) % from.len() as u64;
        from.get(at as usize).cloned().context("nothing to choose from")
    }

    fn ask(&mut self) -> Result<Ask> {
        let location = self.pick(&["", "", "", "/off", "/two", "/unbuffered"])?;
        let ask = self.pick(&[
            Ask::get(location),
            Ask::post(location),
            Ask::post(location).body(vec![b'x'; 40_000]),
        ])?;
        let times = self.pick(&["1", "1", "2", "9"])?;
        let status = self.pick(&["429", "502", "503", "504", "500"])?;
        let refused = ask.clone().refused(status, times);
        self.pick(&[
            ask.clone(),
            ask.clone(),
            ask.clone().dies(times),
            ask.dies(times),
            refused.clone(),
            refused.clone().later("0"),
            refused.clone().later("1"),
            refused.later("60"),
        ])
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_storm_no_order_is_executed_twice() -> Result<()> {
    for version in VERSIONS {
        for peers in [1, 3] {
            let stage = Stage::new(version, peers, LINES, LOCATIONS).await?;
            let mut chance = Chance(u64::from(peers));
            let end = Moment::now() + LASTS;
            let (mut visits, mut orders) = (Vec::new(), Vec::new());
            while Moment::now() < end {
                for _ in 0..8 {
                    let ask = chance.ask()?;
                    let visit = stage.begin(ask.clone())?;
                    if ask.is_order() {
                        orders.push(visit.path().to_owned());
                    }
                    visits.push(visit);
                }
                let state = chance.pick(&["changing", "changing", "draining", "down", "up", "up", "up"])?;
                let all = stage.farm.peers();
                let one = chance.pick(&all)?;
                let some = chance.pick(&[vec![one], all])?;
                stage.says(state, &some).await?;
                if chance.pick(&[false, false, false, true])? {
                    stage.farm.disconnect(one).await?;
                }
                sleep(Duration::from_millis(chance.pick(&[5, 20, 60])?)).await;
            }
            stage.says("up", &stage.farm.peers()).await?;
            let mut statuses = BTreeMap::<u16, usize>::new();
            for visit in visits {
                let reply = timeout(PATIENCE, visit.reply()).await.context("a visit hangs")??;
                *statuses.entry(reply.status).or_default() += 1;
            }
            let mut arrivals = BTreeMap::<String, usize>::new();
            for arrival in stage.farm.all_arrivals().await? {
                *arrivals.entry(arrival.path).or_default() += 1;
            }
            let twice: Vec<_> = orders.iter().filter(|path| arrivals.get(*path) > Some(&1)).collect();
            let retry = stage.retry().await?;
            eprintln!("{peers} peers, {} orders: {statuses:?} {retry:?}", orders.len());
            ensure!(twice.is_empty(), "executed twice: {twice:?}");
            ensure!(statuses.get(&200) > Some(&100), "{statuses:?}");
            is_complete(&retry, peers)?;
            stage.end().await?;
        }
    }
    Ok(())
}

/// The storm has met all that it is about.
fn is_complete(retry: &RetryView, peers: u16) -> Result<()> {
    let GrantedView { next, replaced, retry_after, held, .. } = retry.granted;
    let met = if peers == 1 { [replaced, retry_after, held, 1] } else { [next, held, 1, 1] };
    ensure!(met.iter().all(|&count| count > 0) && retry.refused.sent > 0, "{retry:?}");
    Ok(())
}
