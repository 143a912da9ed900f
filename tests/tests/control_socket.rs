//! The control socket never keeps nginx down, and nginx never takes what is somebody else's.

use anyhow::{Result, ensure};
use e2e::{
    process,
    site::{NOBODY, PATIENCE, Site, VERSIONS, can_be_anybody},
    wait,
};
use rustix::process::Signal;
use std::{
    collections::BTreeSet,
    fs,
    os::unix::{
        fs::{FileTypeExt, MetadataExt},
        net::UnixListener,
    },
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio::spawn;

async fn site(version: &str) -> Result<Site> {
    let site = Site::new(version).await?;
    site.write(&site.api("write=on"))?;
    Ok(site)
}

/// For each version as we are, and as nobody if we can.
async fn sites() -> Result<Vec<Site>> {
    let mut sites = Vec::new();
    for version in VERSIONS {
        sites.push(site(version).await?);
        if can_be_anybody() {
            let other = Site::new(version).await?.run_as(NOBODY)?;
            other.write(&other.api("write=on"))?;
            sites.push(other);
        }
    }
    Ok(sites)
}

fn mode(path: &Path) -> Result<u32> {
    Ok(fs::metadata(path)?.mode() & 0o7777)
}

fn directory(site: &Site) -> Result<&'static Path> {
    // The path of a test lives as long as the test.
    let socket: &'static Path = Box::leak(site.socket().into_boxed_path());
    socket.parent().ok_or_else(|| anyhow::anyhow!("{}", socket.display()))
}

#[tokio::test]
async fn a_missing_directory_is_made_for_its_owner_and_group_only() -> Result<()> {
    for mut site in sites().await? {
        site.start().await?;
        assert_eq!(mode(directory(&site)?)?, 0o750);
        site.overview().await?;
        site.end().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_directory_that_is_there_stays_as_it_is() -> Result<()> {
    for version in VERSIONS {
        let mut site = site(version).await?;
        fs::create_dir(directory(&site)?)?;
        let before = mode(directory(&site)?)?;
        site.start().await?;
        assert_eq!(mode(directory(&site)?)?, before);
        site.end().await?;
    }
    Ok(())
}

#[tokio::test]
async fn the_group_that_may_write_may_enter_the_directory_that_is_made() -> Result<()> {
    if !can_be_anybody() {
        return Ok(());
    }
    for version in VERSIONS {
        let mut site = Site::new(version).await?;
        site.write(&site.api("write=on group=games"))?;
        site.start().await?;
        // Group `games` of every Debian.
        assert_eq!(fs::metadata(directory(&site)?)?.gid(), 60);
        site.end().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_socket_that_a_killed_master_left_is_replaced() -> Result<()> {
    for mut site in sites().await? {
        site.start().await?;
        site.kill().await?;
        assert!(
            fs::symlink_metadata(site.socket())?.file_type().is_socket(),
            "nginx cleaned up though killed"
        );
        site.start().await?;
        site.overview().await?;
        site.end().await?;
    }
    Ok(())
}

#[tokio::test]
async fn an_empty_run_after_a_boot_is_no_obstacle() -> Result<()> {
    for mut site in sites().await? {
        site.start().await?;
        site.kill().await?;
        fs::remove_dir_all(directory(&site)?)?;
        site.start().await?;
        site.overview().await?;
        site.end().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_socket_goes_with_an_nginx_that_quits() -> Result<()> {
    for version in VERSIONS {
        let mut site = site(version).await?;
        let socket = site.socket();
        site.start().await?;
        assert!(socket.exists());
        let directory = directory(&site)?;
        site.signal(Signal::QUIT);
        process::death(site.master()).await?;
        assert!(directory.exists() && !socket.exists());
    }
    Ok(())
}

/// Asks for the overview again and again, until it is told to stop: how often, and no question went unanswered.
async fn questioned(site: &Site, deed: impl AsyncFnOnce() -> Result<()>) -> Result<usize> {
    let stop = Arc::new(AtomicBool::new(false));
    let (door, until) = (site.control(), Arc::clone(&stop));
    let questions = spawn(async move {
        let mut answers = 0;
        while !until.load(Ordering::Relaxed) {
            let reply = door.get("/v1").await?;
            ensure!(reply.status == 200, "{}: {}", reply.status, reply.text());
            answers += 1;
        }
        Ok(answers)
    });
    deed().await?;
    stop.store(true, Ordering::Relaxed);
    questions.await?
}

#[tokio::test]
async fn a_configuration_test_beside_a_running_nginx_takes_nothing_from_it() -> Result<()> {
    for mut site in sites().await? {
        site.start().await?;
        let before = fs::symlink_metadata(site.socket())?.ino();
        let answers = questioned(&site, async || {
            for _ in 0..5 {
                let (fine, said) = site.check().await?;
                assert!(fine, "{said}");
            }
            Ok(())
        });
        assert!(answers.await? > 5);
        assert_eq!(fs::symlink_metadata(site.socket())?.ino(), before, "the socket is another one");
        site.end().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_configuration_test_beside_an_nginx_that_hangs_comes_to_an_end() -> Result<()> {
    for version in VERSIONS {
        let mut site = site(version).await?;
        site.start().await?;
        let workers = site.serving(&[]).await?;
        workers.iter().for_each(|&pid| process::signal(pid, Signal::STOP));
        // Until the queue of connections that nobody accepts is full.
        let waiting = fill(&site.socket())?;
        let checked = site.check().await;
        workers.iter().for_each(|&pid| process::signal(pid, Signal::CONT));
        drop(waiting);
        let (fine, said) = checked?;
        assert!(fine, "{said}");
        site.overview().await?;
        site.end().await?;
    }
    Ok(())
}

fn fill(socket: &Path) -> Result<Vec<std::os::fd::OwnedFd>> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
    let mut waiting = Vec::new();
    loop {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let fd = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        match connect(&fd, &SocketAddrUnix::new(socket)?) {
            Ok(()) => waiting.push(fd),
            Err(rustix::io::Errno::AGAIN) => return Ok(waiting),
            Err(error) => return Err(error.into()),
        }
        ensure!(waiting.len() < 900, "the queue does not end");
    }
}

#[tokio::test]
async fn reloads_and_their_failures_leave_the_socket_answering() -> Result<()> {
    for version in VERSIONS {
        let mut site = site(version).await?;
        site.start().await?;
        let before = fs::symlink_metadata(site.socket())?.ino();
        let answers = questioned(&site, async || {
            for _ in 0..3 {
                site.reload().await?;
            }
            site.write("this is not a directive;")?;
            site.reload_in_vain("unknown directive \"this\"").await
        });
        assert!(answers.await? > 3);
        assert_eq!(fs::symlink_metadata(site.socket())?.ino(), before, "the socket is another one");
        site.end_but_for(&["unknown directive \"this\""]).await?;
    }
    Ok(())
}

/// nginx itself listens on, where nobody can come any more, until it is restarted.
#[tokio::test]
async fn a_reload_brings_back_a_socket_that_was_removed() -> Result<()> {
    for version in VERSIONS {
        let mut site = site(version).await?;
        site.start_daemon().await?;
        for removed in [site.socket(), directory(&site)?.to_path_buf()] {
            let is_file = fs::symlink_metadata(&removed)?.file_type().is_socket();
            if is_file {
                fs::remove_file(&removed)?
            } else {
                fs::remove_dir_all(&removed)?
            }
            ensure!(site.control().get("/v1/").await.is_err(), "it answers on a socket that is not there");
            site.reload().await?;
            site.overview().await?;
            ensure!(mode(&site.socket())? & 0o777 == 0o666, "not as nginx makes it");
        }
        // It is nginx's as the first one was: kept by an upgrade, and gone with the last master.
        let old = site.master();
        let new = site.upgraded().await?;
        site.signal(Signal::QUIT);
        process::death(old).await?;
        site.follow(new);
        site.overview().await?;
        let socket = site.socket();
        site.end().await?;
        ensure!(!socket.exists(), "it stays behind");
    }
    Ok(())
}

/// Whichever of the two nginx answers, it says that the other one lives.
async fn says_both(site: &Site, old_instance: &str, old_master: u32) -> Result<()> {
    let mut of_old = BTreeSet::new();
    wait::until("both to answer", PATIENCE, async || {
        let overview = site.overview().await.ok()?;
        if overview.old_master != Some(old_master) {
            return Some(Err(overview));
        }
        of_old.insert(overview.instance == old_instance);
        (of_old.len() == 2).then_some(Ok(()))
    })
    .await?
    .map_err(|overview| anyhow::anyhow!("{overview:?}"))
}

#[tokio::test]
async fn a_binary_upgrade_keeps_the_socket_through_the_end_of_the_old_master() -> Result<()> {
    for version in VERSIONS {
        let mut site = site(version).await?;
        site.start_daemon().await?;
        let old = site.master();
        let before = site.overview().await?.instance;
        let mut new = 0;
        let answers = questioned(&site, async || {
            new = site.upgraded().await?;
            says_both(&site, &before, old).await?;
            site.signal(Signal::QUIT);
            process::death(old).await?;
            Ok(())
        });
        assert!(answers.await? > 0);
        site.follow(new);
        let overview = site.overview().await?;
        assert_ne!(overview.instance, before, "a new binary has a zone of its own");
        assert_eq!(overview.old_master, None);
        // The new master is able to reload, and to be killed and started again.
        site.reload().await?;
        site.overview().await?;
        site.kill().await?;
        site.start().await?;
        site.overview().await?;
        site.end().await?;
    }
    Ok(())
}

#[tokio::test]
async fn an_upgrade_that_is_taken_back_keeps_the_socket_of_the_old_master() -> Result<()> {
    for version in VERSIONS {
        let mut site = site(version).await?;
        site.start_daemon().await?;
        let before = site.overview().await?.instance;
        let answers = questioned(&site, async || {
            let new = site.upgraded().await?;
            says_both(&site, &before, site.master()).await?;
            process::signal(new, Signal::QUIT);
            process::death(new).await?;
            Ok(())
        });
        assert!(answers.await? > 0);
        // The master gives its file the old name back when it hears of that.
        wait::until("one master", PATIENCE, async || {
            let overview = site.overview().await.ok()?;
            (overview.instance == before && overview.old_master.is_none()).then_some(())
        })
        .await?;
        site.end().await?;
    }
    Ok(())
}

#[tokio::test]
async fn what_is_not_a_stale_socket_is_left_alone() -> Result<()> {
    // nginx tries five times, half a second apart: all of them at once.
    let of = async |version| {
        tokio::try_join!(
            left_alone(version, "a file"),
            left_alone(version, "a listener"),
            left_alone(version, "a link")
        )
    };
    let [one, other] = VERSIONS;
    tokio::try_join!(of(one), of(other))?;
    Ok(())
}

async fn left_alone(version: &str, what: &str) -> Result<()> {
    let mut site = site(version).await?;
    let socket = site.socket();
    fs::create_dir(directory(&site)?)?;
    let elsewhere = site.file("elsewhere");
    let listener = match what {
        "a file" => fs::write(&socket, "precious").map(|()| None)?,
        "a listener" => Some(UnixListener::bind(&socket)?),
        _ => {
            // To a socket on which nobody listens.
            drop(UnixListener::bind(&elsewhere)?);
            std::os::unix::fs::symlink(&elsewhere, &socket).map(|()| None)?
        }
    };
    let before = fs::symlink_metadata(&socket)?.ino();
    let error = site.start().await.err().map(|error| format!("{error:#}")).unwrap_or_default();
    let says = format!("bind() to unix:{} failed (98: Address already in use)", socket.display());
    assert!(error.contains(&says), "{what}: {error}");
    assert_eq!(fs::symlink_metadata(&socket)?.ino(), before, "{what} was replaced");
    if what == "a file" {
        assert_eq!(fs::read_to_string(&socket)?, "precious");
    }
    drop(listener);
    Ok(())
}

#[tokio::test]
async fn where_the_directory_cannot_be_made_nginx_says_why() -> Result<()> {
    if !can_be_anybody() {
        return Ok(());
    }
    for version in VERSIONS {
        let mut site = Site::new(version).await?.run_as(NOBODY)?;
        let locked = site.file("locked");
        fs::create_dir(&locked)?;
        let socket = locked.join("handoff/nginx.sock");
        site.write(&format!(
            "server {{ listen unix:{}; location / {{ handoff_api write=on; }} }}",
            socket.display()
        ))?;
        let error = site.start().await.err().map(|error| format!("{error:#}")).unwrap_or_default();
        for says in [
            format!("[warn] handoff: cannot make the directory of {}: Permission denied", socket.display()),
            format!("bind() to unix:{} failed (2: No such file or directory)", socket.display()),
        ] {
            let plain = error
                .split_once("handoff: ")
                .map_or(error.clone(), |(_, text)| format!("[warn] handoff: {text}"));
            assert!(plain.contains(&says), "{error}");
        }
    }
    Ok(())
}
