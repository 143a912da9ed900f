//! Streams that last: `handoff reload` waits for them, or cuts them and says how many.

use anyhow::Result;
use e2e::{
    alone,
    nginx::Binary,
    runner::{Plan, Run},
    scenario::{Level, Pace, S8B, S8B_CUT, Scenario, Setup, Streaming},
    streams::{Ending, Kind},
    verdict,
};
use std::time::Duration;

/// One deploy of fewer workers, under streams of four seconds.
const SHORT: Scenario = Scenario {
    level: Level::L1,
    workers: 3,
    streaming: Some(Streaming { each: 10, pulses: 20 }),
    pace: Pace {
        actions: &[Duration::from_secs(4)],
        gap: Duration::ZERO,
        at_least: Duration::ZERO,
        after: Duration::from_secs(1),
    },
    ..S8B
};

/// None of them is over at the deadline but those that were about to end.
const SHORT_CUT: Scenario = Scenario {
    behaviour: S8B_CUT.behaviour,
    wait_ready: S8B_CUT.wait_ready,
    options: &["--drain-timeout", "1s", "--on-deadline", "cut"],
    exit: S8B_CUT.exit,
    ..SHORT
};

async fn one_deploy(scenario: Scenario, setup: Setup) -> Result<Run> {
    let nginx = Binary::find(None).await?;
    Plan { scenario, setup, nginx, control: false }.play().await
}

/// Enough of both kinds to say anything, whichever worker has how many of them when it is replaced, and as promised.
fn is_as_promised(run: &Run) {
    for kind in [Kind::Events, Kind::Echo] {
        let all = run.streams.iter().filter(|stream| stream.kind == kind);
        let whole = all.clone().filter(|stream| stream.ending == Ending::Complete).count();
        assert!(whole >= 10, "{whole} of {} {kind} whole", all.count());
    }
    let broken = verdict::broken_promises(run);
    assert!(broken.is_empty(), "{broken:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_shorter_than_the_drain_timeout_are_never_cut() {
    let _alone = alone::take().unwrap();
    let run = one_deploy(SHORT, Setup::Handoff).await.unwrap();
    is_as_promised(&run);
    assert_eq!((run.cut().count(), run.said_cut()), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn as_many_streams_are_cut_as_handoff_reload_says() {
    let _alone = alone::take().unwrap();
    let run = one_deploy(SHORT_CUT, Setup::Handoff).await.unwrap();
    is_as_promised(&run);
    assert!(run.cut().count() > 0, "nothing was cut: {:?}", run.streams);
}

/// What the others are measured against: the stage sees each stream that breaks.
#[tokio::test(flavor = "multi_thread")]
async fn a_pm2_reload_cuts_streams() {
    let _alone = alone::take().unwrap();
    let run = one_deploy(SHORT_CUT, Setup::Tuned).await.unwrap();
    for kind in [Kind::Events, Kind::Echo] {
        assert!(run.cut().any(|stream| stream.kind == kind), "no {kind} was cut: {:?}", run.streams);
    }
}
