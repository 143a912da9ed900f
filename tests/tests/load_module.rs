//! The module is loaded by the nginx that it was built for, and by no other.

use anyhow::Result;
use e2e::{
    nginx::Binary,
    place::{self, Place},
};
use std::{fs, path::Path};

const VERSIONS: [&str; 2] = ["1.22.1", "1.28.3"];

async fn check(nginx: &Binary, module: &Path) -> Result<(bool, String)> {
    let place = Place::new()?;
    let conf = place.file("nginx.conf");
    let directory = place.path().display();
    let text = format!(
        "load_module {};\npid {directory}/nginx.pid;\nerror_log stderr notice;\nevents {{}}\n",
        module.display()
    );
    fs::write(&conf, text)?;
    nginx.check(&conf).await
}

#[tokio::test]
async fn each_pinned_nginx_loads_the_module_that_was_built_for_it() {
    for version in VERSIONS {
        let nginx = Binary::find(Some(version)).await.unwrap();
        let (fine, said) = check(&nginx, &place::module(version).unwrap()).await.unwrap();
        assert!(fine, "nginx {version}: {said}");
        assert!(!said.contains("[warn]") && !said.contains("[error]"), "nginx {version}: {said}");
    }
}

#[tokio::test]
async fn nginx_refuses_a_module_for_another_version_in_its_own_words() {
    for (version, other) in [(VERSIONS[0], VERSIONS[1]), (VERSIONS[1], VERSIONS[0])] {
        let nginx = Binary::find(Some(version)).await.unwrap();
        let (fine, said) = check(&nginx, &place::module(other).unwrap()).await.unwrap();
        assert!(!fine, "nginx {version} took a module for {other}");
        assert!(said.contains("version 10") && said.contains("instead of 10"), "nginx {version}: {said}");
    }
}
