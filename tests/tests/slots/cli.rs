//! `handoff peers add` and `handoff peers remove`.

use crate::stage::{Peers, app, shares};
use anyhow::{Result, ensure};
use e2e::{
    command,
    farm::Farm,
    place,
    site::{Site, VERSIONS},
};
use std::collections::BTreeMap;
use tokio::spawn;

async fn handoff(site: &Site, words: &[&str]) -> Result<(Option<i32>, String, String)> {
    let mut handoff = command::clean(place::handoff()?);
    handoff.arg("--control").arg(format!("unix:{}", site.socket().display())).arg("peers").args(words);
    let ended = handoff.output().await?;
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    Ok((ended.status.code(), text(&ended.stdout), text(&ended.stderr)))
}

#[tokio::test]
async fn an_operator_adds_peers_and_takes_them_away() -> Result<()> {
    let farm = Farm::start(3).await?;
    let [one, two, three] = farm.peers()[..] else { unreachable!() };
    for version in VERSIONS {
        let site = app(version, &format!("server {one}; handoff_slots 2;")).await?;
        let says = async |words: &[&str], code: i32, out: &str, err: &str| {
            let (ended, stdout, stderr) = handoff(&site, words).await?;
            ensure!((ended, stdout.as_str()) == (Some(code), out), "{words:?}: {ended:?} {stdout} {stderr}");
            ensure!(stderr.contains(err), "{err:?} is not in {stderr}");
            anyhow::Ok(())
        };
        let added = format!("{two} in app: added, up\n{three} in app: added, up\n");
        says(&["add", two, three, "--reason", "host 7"], 0, &added, "").await?;
        says(&["add", two, "--upstream", "app"], 0, &format!("{two} in app: there already, up\n"), "")
            .await?;
        says(&["add", "10.0.0.1:80"], 1, "", "all 2 slots of the upstream \"app\" are taken").await?;
        says(&["add", "localhost:80"], 1, "", "it is no address").await?;
        says(&["add", two, "--upstream", "no"], 1, "", "there is no upstream \"no\"").await?;
        says(&["remove", one], 1, "", "nginx.conf names the peer").await?;

        let door = site.visitors();
        let visits: Vec<_> = (0..3)
            .map(|_| {
                let door = door.clone();
                spawn(async move { door.get("/hold").await })
            })
            .collect();
        farm.holds(&[one, two, three]).await?;
        let removed = format!("{two} in app: removed, 1 in flight\n");
        let still = format!("{two} in app still has 1 in flight after 50ms. It gets no others");
        says(&["remove", two, "--wait", "--timeout", "50ms"], 3, &removed, &still).await?;
        let words = ["remove", two, "--wait"];
        let (waited, released) = tokio::join!(handoff(&site, &words), farm.release());
        released?;
        let (code, stdout, stderr) = waited?;
        // The release may have been first.
        ensure!(code == Some(0) || stderr.contains("has no peer"), "{stdout} {stderr}");
        for visit in visits {
            assert_eq!(visit.await??.status, 200);
        }
        assert_eq!(shares(&site, 8).await?, BTreeMap::from([one, three].map(|peer| (peer.to_owned(), 4))));
        says(&["remove", three], 0, &format!("{three} in app: removed, 0 in flight\n"), "").await?;
        assert_eq!(Peers::of(&site).taken().await?, (0, 0));
        site.end().await?;
    }
    Ok(())
}
