//! How the program is linked.

use std::env;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // The loader goes through every relocation when the program starts, and then they stay in memory: 0.6 MB of 24 bytes each,
    // or 9 kB packed, which glibc 2.36 and newer reads. See docs/decisions/sidecar-footprint.md.
    if env::var("CARGO_CFG_TARGET_ENV").as_deref() == Ok("gnu") {
        println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}
