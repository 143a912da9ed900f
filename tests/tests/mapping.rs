//! `handoff` finds by itself which worker is which peer, and claims nothing that is not certain.

mod house;

use anyhow::Result;
use e2e::ports;
use house::House;
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_is_found_however_it_listens() -> Result<()> {
    let [npm, any, local] = [ports::row(1)?, ports::row(1)?, ports::row(1)?];
    let servers = [
        format!("127.0.0.1:{npm}"),
        // Every address of this host, and one that is not: same port, another machine.
        format!("127.0.0.1:{any}"),
        format!("[::1]:{any}"),
        format!("192.0.2.99:{any}"),
        format!("localhost:{local}"),
    ];
    let house = House::new(&servers).await?;
    house.beside("grandchild", true, json!({"PORT": npm, "HOST": "127.0.0.1"})).await?;
    house.beside("wildcard", false, json!({"PORT": any, "HOST": "::"})).await?;
    house.beside("loopback", false, json!({"PORT": local, "HOST": "127.0.0.1"})).await?;

    assert_eq!(house.peers("grandchild", 1).await?, [format!("127.0.0.1:{npm}")]);
    let mut found = house.peers("wildcard", 2).await?;
    found.sort();
    assert_eq!(found, [format!("127.0.0.1:{any}"), format!("[::1]:{any}")]);
    assert_eq!(house.peers("loopback", 1).await?, [format!("127.0.0.1:{local}")]);
    let own: Vec<String> = house.app.addresses().iter().map(ToString::to_string).collect();
    assert_eq!(house.peers("myapp", 2).await?, own);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_no_upstream_has_is_told_where_it_listens() -> Result<()> {
    let port = ports::row(1)?;
    let house = House::new(&[format!("192.0.2.99:{port}")]).await?;
    house.beside("elsewhere", false, json!({"PORT": port, "HOST": "0.0.0.0"})).await?;
    let wanted = format!("it listens on 0.0.0.0:{port}, and no upstream with `handoff` has that address");
    e2e::wait::until("status to say why", e2e::site::PATIENCE, async || {
        let app = house.app("elsewhere").await.ok()?;
        app["why_not"].as_str()?.eq(&wanted).then_some(())
    })
    .await?;
    let app = house.app("elsewhere").await?;
    assert_eq!(app["workers"][0]["peers"], json!([]));
    Ok(())
}
