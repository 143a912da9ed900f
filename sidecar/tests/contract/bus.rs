//! What PM2 publishes.

use crate::{
    pm2::{Pm2, until},
    tap::Tap,
};
use handoff::pm2::{
    PmId,
    bus::{Item, Notice, Notices, channel},
    event::Event,
};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::timeout;

const SHOP: PmId = PmId(0);

/// Starts one app and reads the bus as it is and as the sidecar does, both from a moment of silence on.
async fn listen(pm2: &Pm2, app: Value) -> (Tap, Notices) {
    let tap = Tap::new(&pm2.home().bus());
    pm2.start_apps(json!([app])).await;
    // PM2 5 and 6 look for git before they say that the app is online, and have answered by then.
    until("the app is online", || tap.events(&json!(0)).iter().any(|event| event.starts_with("online")));
    tap.forget();
    let (bus, mut notices) = channel();
    let home = pm2.home();
    tokio::spawn(async move { bus.run(&home).await });
    while !matches!(next(&mut notices).await, Item::Resync) {}
    (tap, notices)
}

async fn next(notices: &mut Notices) -> Item {
    timeout(Duration::from_secs(20), notices.next()).await.expect("PM2 says nothing").unwrap()
}

/// The next event that says what happens, and not just that something did.
async fn tells(notices: &mut Notices) -> Notice {
    loop {
        if let Item::Notice(notice) = next(notices).await
            && notice.event != Event::Changed
        {
            return notice;
        }
    }
}

pub async fn tells_of_a_stop_before_the_signal(pm2: &Pm2) {
    let shop = json!({ "name": "my shop", "wait_ready": true, "listen_timeout": 20000, "env": {} });
    let (tap, mut notices) = listen(pm2, shop).await;
    let mut rpc = pm2.rpc().await;
    rpc.reload(SHOP, None).await.unwrap();
    until("it is online", || tap.events(&json!(0)).len() == 3);
    rpc.announce(SHOP, "reload").await.unwrap();

    let stopping = tells(&mut notices).await;
    assert_eq!(stopping.event, Event::Stopping(SHOP));
    let signal = &pm2.facts("SIGINT")[0];
    assert!(stopping.at <= signal.at, "said at {}, done at {}", stopping.at, signal.at);
    for event in [Event::Exited(SHOP), Event::Starting(SHOP), Event::Ready(SHOP)] {
        assert_eq!(tells(&mut notices).await.event, event);
    }

    rpc.stop(SHOP).await.unwrap();
    rpc.announce(SHOP, "stop").await.unwrap();
    for event in [Event::Stopping(SHOP), Event::Exited(SHOP), Event::Ended(SHOP)] {
        assert_eq!(tells(&mut notices).await.event, event);
    }

    until("the stop is announced", || tap.events(&json!(0)).contains(&"stop stopped".into()));
    let ends = ["exit stopping", "exit stopped"];
    let mut events = tap.events(&json!(0));
    assert!(events.remove(2).starts_with("online "), "with one status or another");
    assert_eq!(events, [&ends[..], &["reload online"], &ends, &["stop stopped"]].concat());

    let stops = ["Stopping app:my shop id:0", "App [my shop:0] exited with code [0] via signal [SIGINT]"];
    let starts = ["App [my shop:0] starting in -fork mode-", "App [my shop:0] online"];
    assert_eq!(tap.lines("my shop"), [&stops[..], &starts, &stops].concat());
    let ready = tap.messages().into_iter().filter(|(topic, _)| topic == "process:msg");
    let ready: Vec<_> = ready.map(|(_, message)| message).collect();
    assert_eq!(
        (ready.len(), &ready[0]["raw"], &ready[0]["process"]["pm_id"]),
        (1, &json!("ready"), &json!(0))
    );
    assert!(ready[0]["at"].is_u64());
}

pub async fn names_the_old_process_otherwise_in_cluster_mode(pm2: &Pm2) {
    let shop = json!({ "name": "shop", "exec_mode": "cluster", "wait_ready": true, "listen_timeout": 20000,
                       "env": {} });
    let (tap, mut notices) = listen(pm2, shop).await;
    pm2.rpc().await.reload(SHOP, None).await.unwrap();

    for event in [Event::Starting(SHOP), Event::Ready(SHOP)] {
        assert_eq!(tells(&mut notices).await.event, event);
    }
    let old = json!("_old_0");
    until("the old process has ended", || tap.events(&old).len() == 2);
    let lines: Vec<_> =
        tap.lines("_old_0").into_iter().filter(|line| !line.contains("disconnected")).collect();
    let ended = "App [shop:_old_0] exited with code [0] via signal [SIGINT]";
    assert_eq!(lines, ["Stopping app:shop id:_old_0", ended]);
    assert!(tap.lines("-reload-").contains(&"-reload- New worker listening".to_owned()));
    assert!(pm2.list().await[0].settings.cluster);
}
