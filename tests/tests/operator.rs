//! What an operator drains stays drained until an operator says otherwise.

mod house;

use anyhow::{Context, Result};
use e2e::{site::PATIENCE, wait};
use handoff_wire::PeerState;
use house::House;
use hyper::Method;

async fn is(house: &House, peer: &str, state: PeerState) -> Result<()> {
    let what = format!("{peer} to be {state}");
    let is = async || (house.site.peer(peer).await.ok()?.state == state).then_some(());
    wait::until(&what, PATIENCE, is).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_outlives_a_deploy_a_reload_and_a_restart_of_nginx() -> Result<()> {
    let mut house = House::new(&[]).await?;
    house.start_sidecar().await?;
    let peer = house.app.addresses().first().context("no worker")?.to_string();

    let ended = house.handoff(&["drain", "myapp:0", "--wait", "--reason", "disk"]).await?;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.stdout.contains(&format!("{peer} in app: drained")), "{ended:?}");

    house.pm2.reload().await?;
    house.site.reload().await?;
    is(&house, &peer, PeerState::Draining).await?;

    // So does what a client of the NGINX Plus API said.
    let drain = r#"{"drain":true}"#.to_owned();
    let patched = house.site.ask(Method::PATCH, "/api/9/http/upstreams/app/servers/0", drain).await?;
    assert_eq!(patched.status, 200, "{}", patched.text());

    let remembered = house.site.file("state/operator-marks.json");
    wait::until("the sidecar to remember it", PATIENCE, async || {
        std::fs::read_to_string(&remembered).ok()?.contains("plus").then_some(())
    })
    .await?;
    house.site.kill().await?;
    house.site.start().await?;
    let owners = async || {
        let marks = house.site.peer(&peer).await.ok()?.marks;
        (marks.iter().filter(|mark| !mark.owner.kind().is_leased()).count() == 2).then_some(())
    };
    wait::until("both marks to be set again", PATIENCE, owners).await?;

    let ended = house.handoff(&["ready", &peer, "--all"]).await?;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    is(&house, &peer, PeerState::Up).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_one_is_drained_by_force_only() -> Result<()> {
    let house = House::new(&[]).await?;
    let ended = house.handoff(&["drain", "myapp"]).await?;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("--force"), "{ended:?}");
    let ended = house.handoff(&["drain", "myapp", "--force"]).await?;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let ended = house.handoff(&["ready", "myapp", "--all"]).await?;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    for peer in house.app.addresses() {
        is(&house, &peer.to_string(), PeerState::Up).await?;
    }
    Ok(())
}
