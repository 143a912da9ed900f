//! Hands the module what nginx-sys learnt from the configured nginx tree: its version and its features, as cfgs.

use std::{env, fs, path::Path};

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

    println!("cargo::rerun-if-changed=build.rs");
    Ok(())
}

/// What nginx-sys says about the nginx it made bindings for.
fn metadata(name: &str) -> Result<String, String> {
    println!("cargo::rerun-if-env-changed={name}");
    env::var(name).map_err(|_| {
        format!("{name} is not set: the module is built for one nginx at a time, by `make module` (README, Building)")
    })
}
