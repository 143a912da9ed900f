//! Hands the module what nginx-sys learnt from the configured nginx tree, its version and its features, as cfgs; and the hashes
//! of the dashboard's style and script, by which a browser knows that they are ours.

use sha2::{Digest as _, Sha256};
use std::{env, fs, path::Path};

const PAGE: &str = "src/page/index.html";

/// Versions in which something changed that the module has to know: `#[cfg(nginx1_27_3)]` is "1.27.3 or newer".
const VERSIONS: &[(u64, &str)] = &[
    (1_023_000, "nginx1_23_0"), // request headers are linked lists, not arrays of pointers
    (1_027_003, "nginx1_27_3"), // peers that a resolver may add and remove
];

fn main() -> Result<(), String> {
    let version = metadata("DEP_NGINX_VERSION_NUMBER")?;
    let version: u64 = version.parse().map_err(|_| format!("not a version number of nginx: {version}"))?;
    for (since, cfg) in VERSIONS {
        println!("cargo::rustc-check-cfg=cfg({cfg})");
        if version >= *since {
            println!("cargo::rustc-cfg={cfg}");
        }
    }

    println!("cargo::rustc-check-cfg=cfg(ngx_feature, values({}))", metadata("DEP_NGINX_FEATURES_CHECK")?);
    for feature in metadata("DEP_NGINX_FEATURES")?.split(',') {
        println!("cargo::rustc-cfg=ngx_feature=\"{feature}\"");
    }

    // nginx counts its visitors for a module that it may have been built without.
    println!("cargo::rustc-check-cfg=cfg(nginx_stat_stub)");
    let config = Path::new(&metadata("DEP_NGINX_BUILD_DIR")?).join("ngx_auto_config.h");
    println!("cargo::rerun-if-changed={}", config.display());
    let text = fs::read_to_string(&config).map_err(|error| format!("{}: {error}", config.display()))?;
    if text.lines().any(|line| line.starts_with("#define NGX_STAT_STUB")) {
        println!("cargo::rustc-cfg=nginx_stat_stub");
    }

    let page = fs::read_to_string(PAGE).map_err(|error| format!("{PAGE}: {error}"))?;
    for (element, variable) in [("style", "HANDOFF_STYLE_HASH"), ("script", "HANDOFF_SCRIPT_HASH")] {
        println!("cargo::rustc-env={variable}=sha256-{}", base64(&Sha256::digest(content(&page, element)?)));
    }

    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed={PAGE}");
    Ok(())
}

/// What stands in the one element of its kind.
fn content<'a>(page: &'a str, element: &str) -> Result<&'a str, String> {
    let (begin, end) = (format!("<{element}>"), format!("</{element}>"));
    let parts: Vec<&str> = page.split(&begin).collect();
    let [_, rest] = parts.as_slice() else { return Err(format!("{PAGE} has not one {begin}")) };
    rest.split_once(&end).map(|(content, _)| content).ok_or_else(|| format!("{PAGE} has no {end}"))
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digits = bytes.chunks(3).flat_map(|chunk| {
        let at = |place: usize| u32::from(chunk.get(place).copied().unwrap_or(0));
        let group = at(0) << 16 | at(1) << 8 | at(2);
        [18, 12, 6, 0].into_iter().enumerate().map(move |(place, shift)| {
            match DIGITS.get((group >> shift) as usize % 64) {
                Some(digit) if place <= chunk.len() => char::from(*digit),
                _ => '=',
            }
        })
    });
    digits.collect()
}

/// What nginx-sys says about the nginx it made bindings for.
fn metadata(name: &str) -> Result<String, String> {
    println!("cargo::rerun-if-env-changed={name}");
    env::var(name).map_err(|_| {
        format!("{name} is not set: the module is built for one nginx at a time, by `make module` (README, Building)")
    })
}
