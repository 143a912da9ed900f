//! `handoff status` says what is, and of what is missing what to do.

mod house;

use anyhow::Result;
use e2e::{
    app::Mode,
    command,
    site::{NOBODY, can_be_anybody},
    wait,
};
use handoff_wire::PeerState;
use house::House;
use std::{
    fs,
    os::unix::{
        fs::{chown, symlink},
        net::UnixStream,
    },
    path::Path,
    time::Duration,
};

const PATIENCE: Duration = Duration::from_secs(10);

/// Whoever runs this listens on a unix socket until it is killed. Perl is on every Debian.
const LISTENS: &str =
    "my $s = IO::Socket::UNIX->new(Local => $ARGV[0], Listen => 8) or die $!; sleep 1 while 1;";

#[tokio::test(flavor = "multi_thread")]
async fn two_forks_and_a_sidecar_are_l0() -> Result<()> {
    let mut house = House::new(&[]).await?;
    let ended = house.handoff(&["status"]).await?;
    assert_eq!(ended.code, Some(8), "{ended:?}");
    assert!(ended.stderr.contains("start `handoff run`"), "{ended:?}");
    house.start_sidecar().await?;
    let ended = house.handoff(&["status"]).await?;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.stdout.contains("myapp: L0"), "{ended:?}");

    house.pm2.reload().await?;
    // The sidecar tells of itself each second.
    let both = wait::until("PM2's notice before each death", PATIENCE, async || {
        let status = house.status().await.ok()?;
        let sidecar = &status["daemons"][0]["sidecar"];
        (sidecar["notices"]["in_time"] == 2).then(|| sidecar.clone())
    });
    let sidecar = both.await?;
    assert_eq!(sidecar["notices"]["late"], 0, "{sidecar}");
    assert_eq!(sidecar["latency_us"]["count"], 2, "{sidecar}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn two_workers_in_cluster_mode_share_a_peer_and_are_l0() -> Result<()> {
    let mut house = House::of(Mode::Cluster, &[]).await?;
    house.start_sidecar().await?;
    let peer = house.app.addresses()[0].to_string();
    assert_eq!(house.peers("myapp", 2).await?, [peer.clone(), peer.clone()]);
    assert_eq!(house.app("myapp").await?["level"], "L0");

    let changing = wait::until("nginx to know that a worker changes", PATIENCE, async || {
        let peers = house.site.app().await.ok()?;
        peers.iter().find(|peer| peer.state == PeerState::Changing).cloned()
    });
    let (reloaded, changing) = tokio::join!(house.pm2.reload(), changing);
    reloaded?;
    let reasons: Vec<String> = changing?.marks.into_iter().map(|mark| mark.reason).collect();
    assert_eq!(reasons, ["myapp: a worker is being replaced"]);
    let over = wait::until("that to be over", PATIENCE, async || {
        let peers = house.site.app().await.ok()?;
        peers.iter().all(|peer| peer.state == PeerState::Up).then_some(())
    });
    over.await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_or_a_stranger_in_place_of_pm2s_socket_is_refused() -> Result<()> {
    let house = House::new(&[]).await?;
    let drain = async |home: &Path| {
        house.handoff(&["--pm2-home", &home.display().to_string(), "drain", "myapp"]).await
    };
    let false_home = house.site.file("false");
    fs::create_dir(&false_home)?;
    symlink(house.site.file("pm2/rpc.sock"), false_home.join("rpc.sock"))?;
    let ended = drain(&false_home).await?;
    assert_eq!(ended.code, Some(7), "{ended:?}");
    assert!(ended.stderr.contains("is a link"), "{ended:?}");

    if !can_be_anybody() {
        return Ok(());
    }
    let taken = house.site.file("taken");
    fs::create_dir(&taken)?;
    chown(&taken, Some(NOBODY), Some(NOBODY))?;
    let socket = taken.join("rpc.sock");
    // Nobody listens there, and the file is said to be ours.
    let mut listens = command::clean("setpriv");
    listens.args(["--reuid", &NOBODY.to_string(), "--regid", &NOBODY.to_string(), "--clear-groups"]);
    listens.args(["/usr/bin/perl", "-MIO::Socket::UNIX", "-e", LISTENS]).arg(&socket).current_dir("/");
    let _listener = listens.spawn()?;
    wait::until("somebody to listen", PATIENCE, async || UnixStream::connect(&socket).ok()).await?;
    chown(&socket, Some(0), Some(0))?;
    let ended = drain(&taken).await?;
    assert_eq!(ended.code, Some(7), "{ended:?}");
    assert!(ended.stderr.contains("it is not believed"), "{ended:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_configuration_is_refused_with_its_place() -> Result<()> {
    let house = House::new(&[]).await?;
    let file = house.site.file("handoff.toml");
    fs::write(&file, "[[worker]]\napp = \"myapp\"\nport = 3000\npeer = \"127.0.0.1:3000\"\n")?;
    let ended = house.handoff(&["--config", &file.display().to_string(), "run"]).await?;
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert!(ended.stderr.contains("handoff.toml:4:1: unknown field `peer`"), "{ended:?}");
    Ok(())
}
