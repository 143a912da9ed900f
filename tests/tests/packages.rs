//! What `make packages` made: where things are, what systemd thinks of the units, and that manuals and completions can be read.
//! What becomes of it on a machine: `packages_clean.rs`.

use anyhow::{Context, Result};
use e2e::{command, guide, place};
use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
};
use tempfile::TempDir;

const SIDECAR: &str = "handoff_";
const MODULE: &str = "libnginx-mod-http-handoff_";

/// Every test looks at the same packages.
fn package(prefix: &str) -> Result<PathBuf> {
    let folder = place::root().join("dist/packages");
    let files =
        fs::read_dir(&folder).with_context(|| format!("{}: run `make packages`", folder.display()))?;
    let is_one =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix));
    files.flatten().map(|file| file.path()).find(is_one).with_context(|| format!("no {prefix}*.deb"))
}

async fn says(program: &str, arguments: &[&OsStr]) -> Result<String> {
    command::succeed(command::clean(program).args(arguments)).await
}

/// A package laid out in a directory.
async fn unpacked(prefix: &str) -> Result<TempDir> {
    let directory = TempDir::with_prefix("handoff-")?;
    says("dpkg-deb", &["--extract".as_ref(), package(prefix)?.as_ref(), directory.path().as_ref()]).await?;
    Ok(directory)
}

async fn field(prefix: &str, name: &str) -> Result<String> {
    Ok(says("dpkg-deb", &["--field".as_ref(), package(prefix)?.as_ref(), name.as_ref()])
        .await?
        .trim()
        .to_owned())
}

#[tokio::test]
async fn everything_is_in_its_place() -> Result<()> {
    let (sidecar, module) = (unpacked(SIDECAR).await?, unpacked(MODULE).await?);
    for file in [
        "usr/bin/handoff",
        "usr/share/handoff/handoff.cjs",
        "lib/systemd/system/handoff.service",
        "lib/systemd/system/handoff@.service",
        "usr/lib/sysusers.d/handoff.conf",
        "usr/lib/tmpfiles.d/handoff.conf",
        "etc/handoff/handoff.toml",
        "usr/share/man/man1/handoff.1.gz",
        "usr/share/man/man1/handoff-reload.1.gz",
        "usr/share/bash-completion/completions/handoff",
        "usr/share/zsh/vendor-completions/_handoff",
        "usr/share/fish/vendor_completions.d/handoff.fish",
        "usr/share/doc/handoff/operations/ten-minutes.md.gz",
        "usr/share/doc/handoff/examples/control.conf",
    ] {
        assert!(sidecar.path().join(file).is_file(), "{file}");
    }
    for file in [
        "usr/lib/nginx/modules/ngx_http_handoff_module.so",
        "usr/share/nginx/modules-available/mod-http-handoff.conf",
        "usr/lib/sysusers.d/libnginx-mod-http-handoff.conf",
        "etc/nginx/snippets/handoff-control.conf",
    ] {
        assert!(module.path().join(file).is_file(), "{file}");
    }
    // Nothing of nginx's is switched on by files alone: a package that is removed leaves its configuration files behind.
    assert!(!module.path().join("etc/nginx/conf.d").exists());
    let load =
        fs::read_to_string(module.path().join("usr/share/nginx/modules-available/mod-http-handoff.conf"))?;
    assert_eq!(load, "load_module modules/ngx_http_handoff_module.so;\n");
    Ok(())
}

#[tokio::test]
async fn the_module_depends_on_the_abi_of_its_nginx() -> Result<()> {
    let abi = fs::read_to_string("/usr/share/nginx/src/debian/libnginx-mod.abisubstvars")?;
    let abi =
        abi.lines().find_map(|line| line.strip_prefix("nginx:abi=")).context("nginx-dev names no ABI")?;
    let depends = field(MODULE, "Depends").await?;
    assert!(depends.split(", ").any(|one| one == abi), "{abi} is not in {depends}");
    let version = field(SIDECAR, "Version").await?;
    assert_eq!(version, field(MODULE, "Version").await?);
    assert_eq!(version, format!("{}-1", env!("CARGO_PKG_VERSION")));
    Ok(())
}

#[tokio::test]
async fn lintian_has_nothing_to_say() -> Result<()> {
    let (sidecar, module) = (package(SIDECAR)?, package(MODULE)?);
    let arguments: [&OsStr; 4] =
        ["--fail-on=error,warning".as_ref(), "--allow-root".as_ref(), sidecar.as_ref(), module.as_ref()];
    let said = says("lintian", &arguments).await?;
    assert_eq!(said, "", "lintian");
    Ok(())
}

/// The units, as systemd reads them: with the program where they say, and a user that exists.
fn units(root: &Path) -> Result<[PathBuf; 2]> {
    let folder = root.join("lib/systemd/system");
    let text = |name: &str| fs::read_to_string(folder.join(name));
    let program = root.join("usr/bin/handoff").display().to_string();
    let [plain, user] = [folder.join("handoff.service"), folder.join("handoff@games.service")];
    let manual = "Documentation=man:handoff-run(1) ";
    for (unit, text) in [(&plain, text("handoff.service")?), (&user, text("handoff@.service")?)] {
        assert!(text.contains("ExecStart=/usr/bin/handoff run\n") && text.contains(manual), "{text}");
        let text = text.replace("/usr/bin/handoff", &program).replace(manual, "Documentation=");
        fs::write(unit, text)?;
    }
    Ok([plain, user])
}

#[tokio::test]
async fn systemd_takes_the_units_and_finds_them_well_locked_in() -> Result<()> {
    let root = unpacked(SIDECAR).await?;
    for (unit, limit) in units(root.path())?.iter().zip(["25", "16"]) {
        let verified = command::clean("systemd-analyze").arg("verify").arg(unit).output().await?;
        let said = String::from_utf8_lossy(&verified.stderr);
        let about = unit.file_name().context("a name")?.to_string_lossy();
        assert!(verified.status.success() && !said.contains(&*about), "{said}");
        // Ends with an error above the limit, in tenths.
        let threshold = format!("--threshold={limit}");
        let arguments: [&OsStr; 4] =
            ["security".as_ref(), "--offline=yes".as_ref(), threshold.as_ref(), unit.as_ref()];
        let said = says("systemd-analyze", &arguments).await?;
        println!("{}", said.lines().last().unwrap_or_default());
    }
    Ok(())
}

/// What a terminal shows: bold is a letter, a step back, and the letter again.
fn without_overstrikes(text: &str) -> String {
    let mut shown = String::new();
    for letter in text.chars() {
        match letter {
            '\u{8}' => _ = shown.pop(),
            letter => shown.push(letter),
        }
    }
    shown
}

#[tokio::test]
async fn manuals_and_completions_can_be_read() -> Result<()> {
    let dist = place::root().join("dist");
    let mut pages = Vec::new();
    for page in fs::read_dir(dist.join("man"))?.flatten() {
        // Its warnings are about the style of what clap writes; an error is a page that does not show as it is meant.
        says("mandoc", &["-Tlint".as_ref(), "-Werror".as_ref(), page.path().as_ref()]).await?;
        pages.push(page.file_name().to_string_lossy().into_owned());
    }
    let shown = async |page: &str| {
        let page = dist.join("man").join(format!("{page}.1"));
        let text = says("mandoc", &["-Tascii".as_ref(), page.as_ref()]).await?;
        anyhow::Ok(without_overstrikes(&text))
    };
    // Each is named by the page above it: handoff-peers-add by handoff-peers, that by handoff.
    for page in pages.iter().filter_map(|page| page.strip_suffix(".1")) {
        let Some((above, _)) = page.rsplit_once('-') else { continue };
        assert!(shown(above).await?.contains(&format!("{page}(1)")), "{page} is not in {above}(1)");
    }
    let text = shown("handoff").await?;
    assert!(text.contains("EXIT STATUS") && text.contains(" 14  another roll-out"), "{text}");

    let completions = dist.join("completions");
    says("zsh", &["-n".as_ref(), completions.join("zsh/_handoff").as_ref()]).await?;
    says("fish", &["-n".as_ref(), completions.join("fish/handoff.fish").as_ref()]).await?;
    // bash not only reads it, but is asked.
    let script = "source \"$1\"; COMP_WORDS=(handoff rel); COMP_CWORD=1; _handoff handoff rel handoff; echo \"${COMPREPLY[@]}\"";
    let bash = completions.join("bash/handoff.bash");
    let said = says("bash", &["-c".as_ref(), script.as_ref(), "bash".as_ref(), bash.as_ref()]).await?;
    assert_eq!(said.trim(), "reload");
    Ok(())
}

#[tokio::test]
async fn the_rules_for_apparmor_are_rules() -> Result<()> {
    let page = fs::read_to_string(place::root().join("docs/operations/install.md"))?;
    let (_, rules) = page.split_once("```apparmor\n").context("no rules")?;
    let (rules, _) = rules.split_once("```").context("the rules do not end")?;
    let directory = TempDir::with_prefix("handoff-")?;
    let profile = directory.path().join("nginx");
    fs::write(&profile, format!("include <tunables/global>\n/usr/sbin/nginx {{\n{rules}}}\n"))?;
    let arguments: [&OsStr; 3] = ["--skip-kernel-load".as_ref(), "--skip-cache".as_ref(), profile.as_ref()];
    says("/usr/sbin/apparmor_parser", &arguments).await?;
    Ok(())
}

/// What the removal of the module says, of a configuration as `nginx -T` prints it.
async fn in_use(configuration: &str) -> Result<Vec<String>> {
    let directory = TempDir::with_prefix("handoff-")?;
    let file = directory.path().join("conf");
    fs::write(&file, configuration)?;
    let program = place::root().join("build/debian/in-use.awk");
    let said = says("awk", &["-f".as_ref(), program.as_ref(), file.as_ref()]).await?;
    Ok(said.lines().map(|line| line.trim().to_owned()).collect())
}

#[tokio::test]
async fn what_needs_the_module_is_found_and_nothing_else() -> Result<()> {
    let nothing = "# configuration file /a:\nupstream handoff { server handoff:1; } # handoff;\nset $handoffs 1;\n\
                   return 200 ';\n handoff;';\nlog_format a \"handoff; \\\" handoff_api\";\n\
                   include modules-enabled/50-mod-http-handoff.conf;\n\
                   # configuration file /etc/nginx/modules-enabled/50-mod-http-handoff.conf:\n\
                   load_module modules/ngx_http_handoff_module.so;\n";
    assert_eq!(in_use(nothing).await?, [""; 0]);
    let all = "# configuration file /a:\nload_module /opt/ngx_http_handoff_module.so;\nhttp{upstream a{zone a 1m;handoff\n;}}\n\
               # configuration file /b:\n\n\thandoff_queue off; handoff_retry off;\nmap \"x$handoff_held\" $a {\n  default ${handoff_state}; }\n\
               'handoff_zone' 1m;\nlocation / {\nhandoff_api\n;}\n";
    let expected = [
        "/a:1: load_module /opt/ngx_http_handoff_module.so",
        "/a:2: handoff",
        "/b:2: handoff_queue",
        "/b:3: $handoff_…",
        "/b:4: $handoff_…",
        "/b:5: handoff_zone",
        "/b:7: handoff_api",
    ];
    assert_eq!(in_use(all).await?, expected);
    Ok(())
}

#[test]
fn the_guide_can_be_followed() -> Result<()> {
    let guide = fs::read_to_string(place::root().join("docs/operations/ten-minutes.md"))?;
    assert!(guide::blocks(&guide)?.len() > 15);
    Ok(())
}
