//! What `make speed` measures can be measured; how fast it is, nobody judges here.

use anyhow::Result;
use e2e::{
    alone,
    speed::{drains, moments, scale},
};
use std::time::Duration;

const NGINX: &str = "1.22.1";

#[tokio::test(flavor = "multi_thread")]
async fn each_drain_of_the_table_is_timed_and_a_barrier() -> Result<()> {
    let _alone = alone::take()?;
    let plan = drains::Plan { nginx: NGINX.to_owned(), drains: 4, rate: 100, haproxy: false };
    let report = plan.play().await?;
    for outcome in &report.0 {
        let timed = outcome.calls().len();
        assert_eq!((timed, outcome.uncounted(), outcome.too_late()), (4, Some(0), 0), "{}", outcome.proxy);
    }
    assert_eq!(report.to_string().lines().count(), 4, "a head, and two rows:\n{report}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_death_and_each_wait_is_timed() -> Result<()> {
    let _alone = alone::take()?;
    let plan = moments::Plan { nginx: NGINX.to_owned(), deaths: 2, waits: 2, rate: 50 };
    let report = plan.play().await?;
    assert_eq!(report.marked.each_ref().map(|sample| sample.len()), [1, 1]);
    assert_eq!(report.first_request.each_ref().map(|sample| sample.len()), [1, 1]);
    assert_eq!(report.sent_on.each_ref().map(|sample| sample.len()), [10, 10]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_many_peers_marks_and_waiting_requests_need_is_counted() -> Result<()> {
    let _alone = alone::take()?;
    let plan = scale::Plan {
        nginx: NGINX.to_owned(),
        processes: 2,
        upstreams: 3,
        peers: 10,
        asks: 2,
        time: Duration::from_millis(200),
        parked: 40,
        rounds: 1,
    };
    let rows =
        plan.play().await?.0.iter().map(|table| table.to_string().lines().count() - 2).collect::<Vec<_>>();
    assert_eq!(rows, [4, 5, 4, 2]);
    Ok(())
}
