//! The command dies, or `handoff exec` does.

use crate::stage::{Stage, how};
use anyhow::Result;
use e2e::{process, site::VERSIONS};
use handoff_wire::{Expect, PeerState, State};
use rustix::process::Signal;
use std::time::{Duration, Instant};

#[tokio::test(flavor = "multi_thread")]
async fn one_that_died_is_down_and_the_next_one_must_stay_up() -> Result<()> {
    let stage = Stage::set(VERSIONS[0]).await?;
    let start = |worker| stage.start(stage.app(worker, true, &[])?, &format!("worker-{worker}"));
    let (mut first, _second) = (start(0)?, start(1)?);
    stage.serves(0).await?;
    stage.serves(1).await?;
    process::signal(first.command().await?, Signal::KILL);
    assert_eq!(how(first.ended().await?), (None, Some(9)), "as the command did");
    let peer = stage.peer(0).await?;
    let [mark] = peer.marks.as_slice() else { panic!("{peer:?}") };
    assert_eq!((mark.state, mark.expect, mark.reason.as_str()), (State::Down, Expect::Back, "it died"));
    assert_eq!(mark.owner.as_str(), format!("worker:{}", stage.port(0)));
    // Another one, which does not serve before it has lived for a second.
    let first = start(0)?;
    let process = first.command().await?;
    stage.is(0, PeerState::Checking).await?;
    e2e::wait::until("it to listen", Duration::from_secs(5), async || {
        e2e::http::status(e2e::ports::address(stage.port(0)), "/health").await
    })
    .await?;
    let listens = Instant::now();
    stage.is(0, PeerState::Up).await?;
    let stayed = listens.elapsed();
    assert!(stayed > Duration::from_millis(700), "after {stayed:?}");
    assert!(process::is_alive(process));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_itself_it_leaves_nobody_behind_and_nothing_shut() -> Result<()> {
    let stage = Stage::set(VERSIONS[1]).await?;
    let mut worker = stage.start(stage.app(0, true, &[])?, "worker")?;
    stage.serves(0).await?;
    let command = worker.command().await?;
    worker.signal(Signal::KILL);
    assert_eq!(how(worker.ended().await?), (None, Some(9)));
    process::death(command).await?;
    assert_eq!(stage.peer(0).await?.marks, []);
    // In the middle of a drain: the mark runs out by itself.
    let mut worker = stage.start(stage.app(0, true, &[])?, "worker")?;
    stage.serves(0).await?;
    let slow = tokio::spawn(e2e::crowd::one(e2e::ports::address(stage.site.port()), "/slow?ms=60000"));
    stage.site.has_in_flight(&stage.peer_name(0), 1).await?;
    worker.signal(Signal::TERM);
    stage.is(0, PeerState::Draining).await?;
    worker.signal(Signal::KILL);
    worker.ended().await?;
    stage.is_unmarked(0).await?;
    assert!(
        stage.site.told().iter().any(|line| line.starts_with("lapse of worker:")),
        "{:?}",
        stage.site.told()
    );
    slow.abort();
    Ok(())
}
