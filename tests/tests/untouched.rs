//! Who does not use Handoff does not notice it: an upstream without `handoff` behaves as if the module were not there,
//! and one with `handoff` as long as nobody is marked and no connection is old.

use anyhow::Result;
use e2e::{
    blocks::{self, Block, servers},
    crowd::{self, Answer, Ask},
    farm::{self, Farm},
    ports,
    site::{Site, VERSIONS},
};
use std::fs;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Setup {
    /// The module is not there.
    Stock,
    /// It is there, and works for another upstream.
    Beside,
    /// It works for every upstream, and no connection is too old.
    Within,
    /// It works for every upstream, and does not ask how old a connection is.
    Always,
}

/// So long that a slow machine does not change the sequence.
const STRICT: &str = "max_fails=1 fail_timeout=1h";

/// Upstreams of three peers and an address at which nobody listens, and what the location says.
fn upstreams([a, b, c, gone]: [&str; 4]) -> Vec<(String, &'static str)> {
    let three = servers([a, b, c], STRICT);
    let broken = servers([gone, a, b], STRICT);
    vec![
        (three.clone(), ""),
        (format!("server {a} weight=3 {STRICT}; {}", servers([b, c], STRICT)), ""),
        (format!("least_conn; {three}"), ""),
        (format!("hash $arg_key; {three}"), ""),
        (format!("hash $arg_key consistent; {three}"), ""),
        (format!("ip_hash; {three}"), ""),
        (format!("{three} keepalive 1;"), ""),
        (format!("{three} keepalive 8;"), ""),
        (broken.clone(), ""),
        (format!("least_conn; {broken}"), ""),
        (servers([gone, a, b], "max_fails=0"), ""),
        (servers([gone, a, b], "max_fails=0"), "proxy_next_upstream off;"),
        (servers([gone, a, b], "max_fails=0"), "proxy_next_upstream_tries 1;"),
        (three.clone(), "proxy_next_upstream error http_503;"),
        (three.clone(), "proxy_next_upstream error http_503 non_idempotent;"),
        (format!("{} {}", servers([gone], STRICT), servers([a, b], "backup")), ""),
        (format!("server {a} down; {}", servers([b, c], STRICT)), ""),
        (servers([a, b, c], "down"), ""),
        (servers([a], STRICT), ""),
        (servers([gone], STRICT), ""),
    ]
}

/// What is asked of each, one after the other.
fn questions(upstream: usize, [a, b, _, _]: [&str; 4]) -> Vec<Ask> {
    let path = |key: usize| format!("/u{upstream}/?key={key}");
    let calm = (0..7).map(|key| Ask::get(path(key)));
    let troubled = [
        Ask::get(path(7)).with("x-refuse", a),
        Ask::post(path(8)).with("x-refuse", b),
        Ask::get(path(9)).with("x-refuse", "*"),
        Ask::post(path(10)),
        Ask::post(path(11)).with("x-die", b),
        Ask::get(path(12)).with("x-die", a),
        Ask::get(path(13)).with("x-die", "*"),
    ];
    let after = (14..18).map(|key| Ask::get(path(key)));
    calm.chain(troubled).chain(after).collect()
}

async fn answers(
    version: &str,
    setup: Setup,
    farm: &Farm,
    peers: [&str; 4],
) -> Result<Vec<(String, Answer)>> {
    let handoff = match setup {
        Setup::Stock | Setup::Beside => "",
        // As above: a slow machine does not change the sequence.
        Setup::Within => "handoff; handoff_reuse idle=1h;",
        Setup::Always => "handoff; handoff_reuse always;",
    };
    let mut blocks: Vec<Block> = (0..)
        .zip(upstreams(peers))
        .map(|(number, (lines, location))| {
            let tells = "add_header X-Tried \"$upstream_addr $upstream_status\" always;";
            Block::new(format!("u{number}"), format!("{lines} {handoff}"))
                .passed_with(format!("{location} {tells}"))
        })
        .collect();
    let count = blocks.len();
    if setup == Setup::Beside {
        let other = farm::addresses(1)?;
        blocks
            .push(Block::new("other", format!("{} handoff;", servers(other.iter().map(String::as_str), ""))));
    }
    let mut site = Site::new(version).await?.workers(1);
    let api = if setup == Setup::Stock { String::new() } else { site.api("write=on") };
    site.write(&format!("{}\n{api}", blocks::http(site.port(), &blocks)))?;
    if setup == Setup::Stock {
        let conf = fs::read_to_string(site.conf())?;
        let without: Vec<&str> = conf.lines().filter(|line| !line.starts_with("load_module")).collect();
        fs::write(site.conf(), without.join("\n"))?;
    }
    site.start().await?;

    let before = farm.connections().await?;
    let mut answers = Vec::new();
    for ask in (0..count).flat_map(|number| questions(number, peers)) {
        let what = format!("{} {} {:?}", ask.method, ask.path, ask.headers);
        for mut answer in crowd::ask(ports::address(site.port()), [ask]).await? {
            // Counted from here: so whether a connection was used again is compared, too.
            answer.connection = answer.connection.map(|number| number - before);
            answers.push((what.clone(), answer));
        }
    }
    site.end().await?;
    Ok(answers)
}

#[tokio::test(flavor = "multi_thread")]
async fn without_handoff_or_without_marks_nginx_does_what_it_always_did() {
    for version in VERSIONS {
        let farm = Farm::start(3).await.unwrap();
        let gone = farm::addresses(1).unwrap();
        let peers: [&str; 4] = [farm.peers(), vec![gone[0].as_str()]].concat().try_into().unwrap();
        let stock = answers(version, Setup::Stock, &farm, peers).await.unwrap();
        let tried = |words: &str| {
            stock.iter().any(|(_, answer)| answer.tried.as_deref().is_some_and(|tried| tried.contains(words)))
        };
        assert!(tried(", ") && tried("502, 200"), "nobody was ever tried twice: {stock:?}");
        for setup in [Setup::Beside, Setup::Within, Setup::Always] {
            let ours = answers(version, setup, &farm, peers).await.unwrap();
            assert_eq!(ours.len(), stock.len());
            for ((question, ours), (_, stock)) in ours.iter().zip(&stock) {
                assert_eq!(ours, stock, "nginx {version}, {setup:?}: {question}");
            }
        }
    }
}
