//! What nginx.conf may not say is refused at `nginx -t`: in nginx's style, with the place, and with the mend.

use anyhow::Result;
use e2e::site::{Site, VERSIONS};

/// What `nginx -t` says of an http block, with `$sock` for the control socket and `$port` for a free port.
async fn check(site: &Site, http: &str) -> Result<(bool, String)> {
    let socket = site.socket().display().to_string();
    site.write(&http.replace("$sock", &socket).replace("$port", &site.port().to_string()))?;
    site.check().await
}

/// What nginx says, without its time and pid.
fn said(all: &str, level: &str) -> Vec<String> {
    let level = format!("[{level}] ");
    let texts = all.lines().filter_map(|line| line.split_once(&level)?.1.split_once(": "));
    texts.map(|(_pid, text)| text.to_owned()).collect()
}

/// Each is refused with exactly this, in the line that holds the last text.
#[tokio::test]
async fn what_cannot_be_is_refused_with_its_line_and_its_mend() -> Result<()> {
    let long = "u".repeat(129);
    let long_upstream = format!("upstream {long} {{ zone z 64k; server 127.0.0.1:1; handoff; }}");
    let long_says = format!("\"{long}\" is longer than the 128 bytes that \"handoff\" takes");
    let over_tcp = "\"handoff_api write=on\" can be reached over TCP by \"listen 127.0.0.1:$port\", where nobody knows \
                    who writes: listen on a unix socket, or say \"tcp=allow\" and guard it";
    let api = |parameters: &str| {
        format!("server {{ listen unix:$sock;\nlocation / {{ handoff_api {parameters}; }} }}")
    };
    let reuse = |parameters: &str| {
        format!("upstream app {{ zone app 64k; server 127.0.0.1:1; handoff;\nhandoff_reuse {parameters}; }}")
    };
    let queue = |parameters: &str| {
        format!("upstream app {{ zone app 64k; server 127.0.0.1:1; handoff;\nhandoff_queue {parameters}; }}")
    };
    let slots = |parameters: &str| {
        format!("upstream app {{ zone app 64k; server 127.0.0.1:1; handoff;\nhandoff_slots {parameters}; }}")
    };
    let retry = |parameters: &str| {
        format!("upstream app {{ zone app 64k; server 127.0.0.1:1; handoff;\nhandoff_retry {parameters}; }}")
    };
    let retry_says = |word: &str| {
        format!(
            "\"handoff_retry\": invalid parameter \"{word}\": use off, budget=20% (at most 100%) or min=10"
        )
    };
    let [never, share, percent] = ["never", "budget=20", "budget=101%"].map(retry_says);
    let slow =
        |lines: &str| format!("upstream app {{ zone app 64k; server 127.0.0.1:1; handoff;\n{lines}; }}");
    let slow_says = |word: &str| {
        format!("\"handoff_slow_start\": invalid parameter \"{word}\": use a time, such as 30s, or off")
    };
    let [soon_slow, negative] = ["soon", "-1s"].map(slow_says);
    let fixed = |balancer: &str| {
        format!(
            "\nupstream app {{ {balancer}; zone app 64k; server 127.0.0.1:1; handoff;\nhandoff_slow_start 30s; }}"
        )
    };
    let fixed_says = "upstream \"app\" has \"handoff_slow_start\", and its balancing method (hash, ip_hash, random) gives \
        every peer its share once and for all: use round robin or least_conn, or leave \"handoff_slow_start\" out";
    let mend = "use off, or a number of requests with bytes=64m or timeout=30s after it";
    let queue_says = |word: &str| format!("\"handoff_queue\": invalid parameter \"{word}\": {mend}");
    let [on, soon, size] = ["on", "timeout=soon", "size=64m"].map(queue_says);
    let cases: &[(String, &str, &str)] = &[
        (
            "\nupstream app { server 127.0.0.1:1;\nhandoff; }".into(),
            "upstream \"app\" has \"handoff\" but no \"zone\": add \"zone app 256k;\"",
            "upstream app",
        ),
        ("upstream app { zone app 64k; server 127.0.0.1:1; handoff;\nhandoff; }".into(),
            "\"handoff\" directive is duplicate", "\nhandoff; }"),
        ("upstream app { zone app 64k; server 127.0.0.1:1;\nhandoff on; }".into(),
            "invalid number of arguments in \"handoff\" directive", "handoff on"),
        (reuse("idle=1s;\nhandoff_reuse always"), "\"handoff_reuse\" directive is duplicate", "handoff_reuse always"),
        (reuse(""), "invalid number of arguments in \"handoff_reuse\" directive", "handoff_reuse"),
        (reuse("never"), "\"handoff_reuse\": invalid parameter \"never\": use idle=1s, idle=500ms or always",
            "handoff_reuse never"),
        (reuse("idle=soon"), "\"handoff_reuse\": invalid parameter \"idle=soon\": use idle=1s, idle=500ms or always",
            "handoff_reuse idle"),
        (reuse("idle=-1s"), "\"handoff_reuse\": invalid parameter \"idle=-1s\": use idle=1s, idle=500ms or always",
            "handoff_reuse idle"),
        (reuse("idle=99999999999999999999s"), "\"handoff_reuse\": invalid parameter \"idle=99999999999999999999s\": \
            use idle=1s, idle=500ms or always", "handoff_reuse idle"),
        (reuse("idle=0"), "\"handoff_reuse\": \"idle=0\" would open a connection for every POST: use at least idle=1ms",
            "handoff_reuse idle"),
        ("\nupstream app { server 127.0.0.1:1;\nhandoff_reuse always; }".into(),
            "upstream \"app\" has \"handoff_reuse\" but no \"handoff\": add \"handoff;\"", "upstream app"),
        (slots("8;\nhandoff_slots 9"), "\"handoff_slots\" directive is duplicate", "handoff_slots 9"),
        (slots(""), "invalid number of arguments in \"handoff_slots\" directive", "handoff_slots"),
        (slots("0"), "\"handoff_slots\": invalid number \"0\": use 1 to 512", "handoff_slots 0"),
        (slots("many"), "\"handoff_slots\": invalid number \"many\": use 1 to 512", "handoff_slots many"),
        ("\nupstream app { zone app 64k; server 127.0.0.1:1;\nhandoff_slots 8; }".into(),
            "upstream \"app\" has \"handoff_slots\" but no \"handoff\": add \"handoff;\"", "upstream app"),
        (queue("9;\nhandoff_queue off"), "\"handoff_queue\" directive is duplicate", "handoff_queue off"),
        (queue(""), "invalid number of arguments in \"handoff_queue\" directive", "handoff_queue"),
        (queue("on"), &on, "handoff_queue on"),
        (queue("9 timeout=soon"), &soon, "handoff_queue 9"),
        (queue("9 size=64m"), &size, "handoff_queue 9"),
        (queue("9 bytes=1m bytes=2m"), "\"handoff_queue\": duplicate parameter \"bytes\"", "handoff_queue 9"),
        (queue("0"), "\"handoff_queue\": \"0\" would let nobody wait: say off if that is what you want",
            "handoff_queue 0"),
        ("\nupstream app { server 127.0.0.1:1;\nhandoff_queue off; }".into(),
            "upstream \"app\" has \"handoff_queue\" but no \"handoff\": add \"handoff;\"", "upstream app"),
        ("server {\nhandoff_queue off; }".into(), "\"handoff_queue\" directive is not allowed here", "handoff_queue"),
        (retry("off;\nhandoff_retry min=3"), "\"handoff_retry\" directive is duplicate", "handoff_retry min"),
        (retry(""), "invalid number of arguments in \"handoff_retry\" directive", "handoff_retry"),
        (retry("never"), &never, "handoff_retry never"),
        (retry("budget=20"), &share, "handoff_retry budget"),
        (retry("budget=101%"), &percent, "handoff_retry budget"),
        (retry("min=3 min=4"), "\"handoff_retry\": duplicate parameter \"min\"", "handoff_retry min"),
        (retry("budget=0% min=0"), "\"handoff_retry\": \"budget=0% min=0\" would repeat nothing: say off if that is \
            what you want", "handoff_retry budget"),
        ("\nupstream app { server 127.0.0.1:1;\nhandoff_retry off; }".into(),
            "upstream \"app\" has \"handoff_retry\" but no \"handoff\": add \"handoff;\"", "upstream app"),
        (slow("handoff_slow_start 1s;\nhandoff_slow_start off"), "\"handoff_slow_start\" directive is duplicate",
            "handoff_slow_start off"),
        (slow("handoff_slow_start"), "invalid number of arguments in \"handoff_slow_start\" directive",
            "handoff_slow_start"),
        (slow("handoff_slow_start soon"), &soon_slow, "handoff_slow_start soon"),
        (slow("handoff_slow_start -1s"), &negative, "handoff_slow_start -1s"),
        (slow("handoff_slow_start 0"), "\"handoff_slow_start\": \"0\" is no time at all: say off if that is what you want",
            "handoff_slow_start 0"),
        (fixed("hash $uri"), fixed_says, "upstream app"),
        (fixed("hash $uri consistent"), fixed_says, "upstream app"),
        (fixed("ip_hash"), fixed_says, "upstream app"),
        (fixed("random"), fixed_says, "upstream app"),
        (fixed("random two least_conn"), fixed_says, "upstream app"),
        ("\nupstream app { server 127.0.0.1:1;\nhandoff_slow_start 30s; }".into(),
            "upstream \"app\" has \"handoff_slow_start\" but no \"handoff\": add \"handoff;\"", "upstream app"),
        ("server {\nhandoff_slow_start 30s; }".into(), "\"handoff_slow_start\" directive is not allowed here",
            "handoff_slow_start"),
        ("handoff_zone 1m;\nhandoff_zone 2m;".into(), "\"handoff_zone\" directive is duplicate", "handoff_zone 2m"),
        ("handoff_zone;".into(), "invalid number of arguments in \"handoff_zone\" directive", "handoff_zone"),
        ("handoff_zone much;".into(), "\"handoff_zone\": invalid size \"much\": write 4m or 512k", "handoff_zone"),
        ("handoff_zone 511k;".into(),
            "\"handoff_zone\": a zone of 523264 bytes is too small: use at least 512k", "handoff_zone"),
        ("handoff_zone 0;".into(), "\"handoff_zone\": a zone of 0 bytes is too small: use at least 512k", "handoff_zone"),
        ("handoff_zone -1;".into(), "\"handoff_zone\": invalid size \"-1\": write 4m or 512k", "handoff_zone"),
        (api("write=on;\nhandoff_api"), "\"handoff_api\" directive is duplicate", "handoff_api; }"),
        (api("writes=on"), "\"handoff_api\": invalid parameter \"writes=on\": use write=on, write=off, user=name, \
            group=name or tcp=allow", "handoff_api"),
        (api("write"), "\"handoff_api\": invalid parameter \"write\": use write=on, write=off, user=name, \
            group=name or tcp=allow", "handoff_api"),
        (api("write=on write=on"), "\"handoff_api\": duplicate parameter \"write\"", "handoff_api"),
        (api("write=on user=a user=b"), "\"handoff_api\": duplicate parameter \"user\"", "handoff_api"),
        (api("user=root"), "\"handoff_api\": \"user\" and \"group\" say who may write: add write=on, or leave it out",
            "handoff_api"),
        (api("tcp=allow"), "\"handoff_api\": \"tcp=allow\" lets clients write over TCP: add write=on, or leave it out",
            "handoff_api"),
        (api("write=on user=no-such-user"), "\"handoff_api\": there is no user \"no-such-user\" on this machine: \
            create it, or name another", "handoff_api"),
        (api("write=on group=no-such-group"), "\"handoff_api\": there is no group \"no-such-group\" on this machine: \
            create it, or name another", "handoff_api"),
        ("server { listen 127.0.0.1:$port;\nlocation / { handoff_api write=on; } }".into(), over_tcp, "handoff_api"),
        // One of two sockets is enough, in whatever order they stand.
        ("server { location / { location /in { handoff_api write=on; } }\nlisten unix:$sock; listen 127.0.0.1:$port; }"
            .into(), over_tcp, "handoff_api"),
        (long_upstream, &long_says, "upstream u"),
        // Where a directive may stand is nginx's own matter.
        ("server {\nhandoff; }".into(), "\"handoff\" directive is not allowed here", "handoff; }"),
        ("server { location / {\nhandoff; } }".into(), "\"handoff\" directive is not allowed here", "handoff; }"),
        ("server {\nhandoff_reuse always; }".into(), "\"handoff_reuse\" directive is not allowed here", "handoff_reuse"),
        ("server {\nhandoff_zone 4m; }".into(), "\"handoff_zone\" directive is not allowed here", "handoff_zone"),
        ("server {\nhandoff_api; }".into(), "\"handoff_api\" directive is not allowed here", "handoff_api"),
    ];
    for version in VERSIONS {
        let site = Site::new(version).await?;
        for (http, says, line) in cases {
            let (fine, all) = check(&site, http).await?;
            let wanted = format!(
                "{} in {}:{}",
                says.replace("$port", &site.port().to_string()),
                site.conf().display(),
                site.line_of(line)?
            );
            assert!(!fine, "nginx took {http}: {all}");
            assert_eq!(said(&all, "emerg"), [wanted], "{http}");
        }
    }
    Ok(())
}

/// Since 1.27.3 nginx itself takes `resolve`.
#[tokio::test]
async fn a_slow_start_is_not_for_peers_that_a_resolver_finds() -> Result<()> {
    let site = Site::new("1.28.3").await?;
    let http = |rest: &str| {
        format!(
            "resolver 127.0.0.1;\nupstream app {{ zone app 64k; server localhost:1 resolve; handoff; {rest} }}"
        )
    };
    let (fine, all) = check(&site, &http("handoff_slow_start 30s;")).await?;
    let wanted = format!(
        "upstream \"app\" has \"handoff_slow_start\", and a \"server … resolve\", of whose peers nobody can say when they \
         came: leave one of the two out in {}:{}",
        site.conf().display(),
        site.line_of("upstream app")?
    );
    assert!(!fine);
    assert_eq!(said(&all, "emerg"), [wanted]);
    for rest in ["", "handoff_slow_start off;"] {
        let (fine, all) = check(&site, &http(rest)).await?;
        assert!(fine, "{rest}: {all}");
    }
    Ok(())
}

#[tokio::test]
async fn the_order_of_directives_does_not_matter() -> Result<()> {
    let peers = "server 127.0.0.1:1; server 127.0.0.1:2;";
    let upstreams = [
        format!(
            "upstream app {{ handoff_reuse idle=1m; handoff; least_conn; {peers} keepalive 4; zone app 64k; }}"
        ),
        format!(
            "upstream app {{ zone app 64k; least_conn; {peers} keepalive 4; handoff; handoff_reuse idle=500ms; }}"
        ),
        format!(
            "upstream app {{ handoff_reuse always; keepalive 4; handoff; {peers} zone app 64k; ip_hash; }}"
        ),
    ];
    let zone = "handoff_zone 1m;";
    let front = "server { listen 127.0.0.1:$port; location / { proxy_pass http://app; } }";
    let api = "server { location / { handoff_api write=on; } listen unix:$sock; }";
    for version in VERSIONS {
        let site = Site::new(version).await?;
        for upstream in &upstreams {
            for order in
                [[zone, front, api, upstream], [upstream, api, front, zone], [api, upstream, zone, front]]
            {
                let (fine, all) = check(&site, &order.join("\n")).await?;
                assert!(fine, "{order:?}: {all}");
                // "load balancing method redefined" and the like are nginx's; ours has nothing to warn of.
                assert!(!all.contains("handoff\"") && !all.contains("[error]"), "{order:?}: {all}");
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn ways_around_the_marks_are_warned_of_and_allowed() -> Result<()> {
    let app = "upstream app { zone app 64k; server 127.0.0.1:1; server 127.0.0.1:2; handoff; }";
    let block = |what: &str| {
        format!(
            "upstream \"other\" has the peer {what} of upstream \"app\" but no \"handoff\": marks are not seen there; \
             add \"handoff;\""
        )
    };
    let direct = |what: &str| {
        format!(
            "requests passed to {what} directly do not see the marks of upstream \"app\": pass them to http://app"
        )
    };
    let cases: [(&str, &[String], &str); 8] = [
        ("upstream other { server 127.0.0.1:2; }", &[block("127.0.0.1:2")], "upstream other"),
        (
            "upstream other { server 127.0.0.1:2 backup; server 127.0.0.1:9; }",
            &[block("127.0.0.1:2")],
            "upstream other",
        ),
        ("server { location / { proxy_pass http://127.0.0.1:1; } }", &[direct("127.0.0.1:1")], "proxy_pass"),
        ("server { location / { fastcgi_pass 127.0.0.1:1; } }", &[direct("127.0.0.1:1")], "fastcgi_pass"),
        ("server { location / { grpc_pass grpc://localhost:1; } }", &[direct("127.0.0.1:1")], "grpc_pass"),
        // None of these goes around.
        ("upstream other { server 127.0.0.1:9; }", &[], "upstream other"),
        ("upstream other { zone other 64k; server 127.0.0.1:1; handoff; }", &[], "upstream other"),
        ("server { location / { proxy_pass http://app; } }", &[], "proxy_pass"),
    ];
    for version in VERSIONS {
        let site = Site::new(version).await?;
        for (other, says, line) in &cases {
            for order in [[*other, app], [app, *other]] {
                let (fine, all) = check(&site, &order.join("\n")).await?;
                let place = format!(" in {}:{}", site.conf().display(), site.line_of(line)?);
                let wanted: Vec<String> = says.iter().map(|says| says.clone() + &place).collect();
                assert!(fine, "{order:?}: {all}");
                assert_eq!(said(&all, "warn"), wanted, "{order:?}");
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_control_api_can_be_read_over_tcp_and_written_where_that_is_said() -> Result<()> {
    for version in VERSIONS {
        let site = Site::new(version).await?;
        for api in ["", "write=off", "write=on tcp=allow", "tcp=allow write=on user=root group=root"] {
            let http = format!("server {{ listen 127.0.0.1:$port; location / {{ handoff_api {api}; }} }}");
            let (fine, all) = check(&site, &http).await?;
            assert!(fine && !all.contains("[warn]"), "{api}: {all}");
        }
    }
    Ok(())
}
