//! Which peers are also reached where their marks are not seen: the overview says what `nginx -t` warns of.

use anyhow::Result;
use e2e::site::{Site, VERSIONS};
use handoff_wire::UncoveredView;

/// Nobody needs to listen there.
const APP: &str = "upstream app { zone app 64k; handoff;
    server 127.0.0.1:1; server 127.0.0.1:2 backup; server [::1]:3 down; server unix:/nobody.sock; }";

/// What the overview says of a site with this, once it runs it.
async fn uncovered(site: &mut Site, http: &str) -> Result<Vec<UncoveredView>> {
    site.write(&format!("{APP}\n{http}\n{}", site.api("")))?;
    if site.master() == 0 {
        site.start().await?;
    } else {
        site.reload().await?;
    }
    Ok(site.overview().await?.uncovered)
}

fn way(site: &Site, peer: &str, by: &str, words: &str, more: u32) -> Result<UncoveredView> {
    let by = format!("{by} in {}:{}", site.conf().display(), site.line_of(words)?);
    Ok(UncoveredView { peer: peer.into(), by, more })
}

#[tokio::test]
async fn each_protocol_and_each_way_to_name_a_peer_is_seen() -> Result<()> {
    for version in VERSIONS {
        let mut site = Site::new(version).await?;
        for pass in [
            "proxy_pass http://127.0.0.1:1",
            "proxy_pass https://127.0.0.1:1/below",
            "fastcgi_pass 127.0.0.1:1",
            "uwsgi_pass 127.0.0.1:1",
            "scgi_pass 127.0.0.1:1",
            "grpc_pass grpc://127.0.0.1:1",
            "set $memcached_key a; memcached_pass 127.0.0.1:1",
            // A name is resolved by nginx when it reads the configuration.
            "proxy_pass http://localhost:1",
            "fastcgi_pass localhost:1",
        ] {
            let http = format!("server {{ listen 127.0.0.1:{};\nlocation / {{ {pass}; }} }}", site.port());
            let seen = uncovered(&mut site, &http).await?;
            assert_eq!(seen, [way(&site, "127.0.0.1:1", "a location", pass, 0)?], "{pass}");
        }
        for (server, peer) in [
            ("127.0.0.1:2", "127.0.0.1:2"),
            ("localhost:1", "127.0.0.1:1"),
            ("[::1]:3", "[::1]:3"),
            ("unix:/nobody.sock", "unix:/nobody.sock"),
        ] {
            let http = format!("\nupstream other {{ least_conn; server 127.0.0.1:9; server {server}; }}");
            let seen = uncovered(&mut site, &http).await?;
            assert_eq!(seen, [way(&site, peer, "upstream \"other\"", "upstream other", 0)?], "{server}");
        }
        site.end().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_peer_is_named_once_and_the_other_ways_are_counted() -> Result<()> {
    for version in VERSIONS {
        let mut site = Site::new(version).await?;
        let http = format!(
            "upstream one {{ server 127.0.0.1:2; server 127.0.0.1:1; server 127.0.0.1:1 backup; }}
             upstream two {{ server 127.0.0.1:1; }}
             server {{ listen 127.0.0.1:{}; location / {{ proxy_pass http://127.0.0.1:1; }} }}",
            site.port()
        );
        let seen = uncovered(&mut site, &http).await?;
        let by = "upstream \"one\"";
        let one = way(&site, "127.0.0.1:1", by, "upstream one", 2)?;
        assert_eq!(seen, [one, way(&site, "127.0.0.1:2", by, "upstream one", 0)?]);
        site.end().await?;
    }
    Ok(())
}

#[tokio::test]
async fn nothing_is_said_of_peers_that_are_reached_with_their_marks_only() -> Result<()> {
    for version in VERSIONS {
        let mut site = Site::new(version).await?;
        let around = "upstream other { server 127.0.0.1:1; }";
        assert_eq!(uncovered(&mut site, around).await?.len(), 1);
        // The mend is a reload away.
        for fine in [
            "upstream other { zone other 64k; server 127.0.0.1:1; handoff; }".to_owned(),
            "upstream other { server 127.0.0.1:9; }".to_owned(),
            format!("server {{ listen 127.0.0.1:{}; location / {{ proxy_pass http://app; }} }}", site.port()),
        ] {
            assert_eq!(uncovered(&mut site, &fine).await?, [], "{fine}");
        }
        // One that fails changes nothing.
        assert_eq!(uncovered(&mut site, around).await?.len(), 1);
        site.write("upstream other { }")?;
        site.reload_in_vain("no servers are inside upstream").await?;
        assert_eq!(site.overview().await?.uncovered.len(), 1);
        site.end_but_for(&["no servers are inside upstream"]).await?;
    }
    Ok(())
}
