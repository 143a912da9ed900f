//! Where things are: what the build left, what the system has, and the directory of one stage.

use anyhow::{Context, Result, bail};
use std::{
    env, fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};
use tempfile::TempDir;

/// The longest path of a unix socket.
const SOCKET_PATH_MAX: usize = 107;

/// With this in the environment, logs and all stay where they are.
const KEEP: &str = "HANDOFF_KEEP";

/// Where another build is than the one in dist/.
const DIST: &str = "HANDOFF_DIST";

pub fn root() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests).to_path_buf()
}

pub fn server_js() -> Result<PathBuf> {
    express()?;
    Ok(root().join("tests/apps/server.js"))
}

/// The package, as the sample application has it.
pub fn express() -> Result<PathBuf> {
    installed("tests/apps", "node_modules/express")
}

/// PM2's command line of a package in tests/pm2: `pm2` (the newest), `pm2-6` or `pm2-5`.
pub fn pm2_cli(package: &str) -> Result<PathBuf> {
    Ok(installed("tests/pm2", &format!("node_modules/{package}"))?.join("bin/pm2"))
}

pub fn module(nginx_version: &str) -> Result<PathBuf> {
    built(&format!("modules/nginx-{nginx_version}/ngx_http_handoff_module.so"))
}

pub fn handoff() -> Result<PathBuf> {
    built("bin/handoff")
}

pub fn target(name: &str) -> PathBuf {
    root().join("target").join(name)
}

fn installed(folder: &str, package: &str) -> Result<PathBuf> {
    let path = root().join(folder).join(package);
    if !path.exists() {
        bail!("{} is missing: run `npm ci` in {folder}", path.display());
    }
    Ok(path)
}

fn built(name: &str) -> Result<PathBuf> {
    let dist = env::var_os(DIST).map_or_else(|| root().join("dist"), PathBuf::from);
    let path = dist.join(name);
    if !path.exists() {
        bail!("{} is missing: run `make build`", path.display());
    }
    Ok(path)
}

/// The directory of one stage; gone when the value is, unless it is to be kept.
#[derive(Debug)]
pub struct Place {
    directory: TempDir,
}

impl Place {
    pub fn new() -> Result<Self> {
        let mut directory = TempDir::with_prefix("handoff-").context("no temporary directory")?;
        if env::var_os(KEEP).is_some() {
            directory.disable_cleanup(true);
            eprintln!("keeping {}", directory.path().display());
        }
        // Workers of an nginx that root started are another user.
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755))?;
        let place = Self { directory };
        let longest = place.pm2_home().join("rpc.sock");
        if longest.as_os_str().len() > SOCKET_PATH_MAX {
            bail!("{} is too long for a unix socket: set TMPDIR to something shorter", longest.display());
        }
        Ok(place)
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    pub fn pm2_home(&self) -> PathBuf {
        self.path().join("pm2")
    }

    pub fn nginx_prefix(&self) -> PathBuf {
        self.path().join("nginx")
    }

    /// In a directory of its own, which the module makes.
    pub fn control_socket(&self) -> PathBuf {
        self.path().join("control/nginx.sock")
    }

    pub fn haproxy_prefix(&self) -> PathBuf {
        self.path().join("haproxy")
    }

    pub fn caddy_prefix(&self) -> PathBuf {
        self.path().join("caddy")
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }
}
