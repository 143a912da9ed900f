//! nginx itself: which one runs, what it says of its configuration, and what another one would say.

use super::{
    conf,
    facts::{Binary, Misfit, Running, Unfit, Upgrade},
    finding::Unseen,
    nginx::Nginx,
};
use crate::host::{Proc, process};
use std::{
    env, fs, io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::Duration,
};
use tokio::{process::Command, time};

/// nginx resolves every host name of its configuration.
const PATIENCE: Duration = Duration::from_secs(30);
const MODULE: &str = "ngx_http_handoff_module.so";
/// Where nginx is if it is not in PATH: distributions', nginx.org's and a `make install`.
const PLACES: [&str; 3] = ["/usr/sbin", "/usr/local/sbin", "/usr/local/nginx/sbin"];
const MASTER: &str = "nginx: master process ";

/// An nginx that runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Master {
    pub pid: u32,
    /// As it was called.
    program: PathBuf,
    conf: Option<PathBuf>,
    prefix: Option<PathBuf>,
}

/// The nginx to look at.
#[derive(Clone, Debug)]
pub struct Chosen {
    pub master: Option<Master>,
    program: PathBuf,
    conf: Option<PathBuf>,
    prefix: Option<PathBuf>,
}

/// `nginx -V`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Built {
    version: String,
    arguments: String,
}

/// `nginx -T`
#[derive(Debug)]
pub enum Dump {
    Text(String),
    /// It does not take its configuration.
    Refused(String),
}

#[derive(Debug, thiserror::Error)]
pub enum BinaryError {
    #[error("no nginx in PATH, {}: is it installed here?", PLACES.join(", "))]
    None,
    #[error("several nginx run here (pid {0}): say which one with --conf FILE")]
    Several(String),
    #[error("{}: {error}", path.display())]
    Run { path: PathBuf, error: io::Error },
    #[error("{} does not answer within {} s", .0.display(), PATIENCE.as_secs())]
    TimedOut(PathBuf),
    #[error("{} -V does not say what it is", .0.display())]
    NotNginx(PathBuf),
    #[error("{0}. It reads every file of nginx's: run handoff as root")]
    Denied(String),
}

/// The nginx that is told to read this file; without one, the one that runs.
pub fn choose(
    proc: &Proc,
    pids: impl Iterator<Item = u32>,
    conf: Option<&Path>,
) -> Result<Chosen, BinaryError> {
    let same = |one: &Path, other: &Path| {
        one == other || one.canonicalize().ok().is_some_and(|one| other.canonicalize().ok() == Some(one))
    };
    let masters: Vec<Master> = pids.filter_map(|pid| Master::find(proc, pid)).collect();
    let fits = |master: &&Master| match (conf, &master.conf) {
        (Some(wanted), Some(its)) => same(wanted, its),
        (Some(_), None) => false,
        (None, _) => true,
    };
    let mut found: Vec<&Master> = masters.iter().filter(fits).collect();
    if found.len() > 1 && conf.is_none() {
        // The host's own, beside others.
        let own: Vec<&Master> = found.iter().copied().filter(|master| master.conf.is_none()).collect();
        if own.len() != 1 {
            let pids = found.iter().map(|master| master.pid.to_string()).collect::<Vec<_>>();
            return Err(BinaryError::Several(pids.join(", ")));
        }
        found = own;
    }
    let master = found.first().copied().cloned();
    let program = match &master {
        // Another one is there by now if that was an upgrade: it is what starts next.
        Some(master) => {
            Some(master.program.clone()).filter(|path| path.is_file()).or_else(|| proc.program(master.pid))
        }
        None => None,
    };
    let program = program.or_else(installed).ok_or(BinaryError::None)?;
    let of = |master: &Master| (master.conf.clone(), master.prefix.clone());
    let (its, prefix) = master.as_ref().map(of).unwrap_or_default();
    Ok(Chosen { master, program, conf: conf.map(Path::to_owned).or(its), prefix })
}

fn installed() -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let places = env::split_paths(&path).chain(PLACES.map(PathBuf::from));
    places.map(|dir| dir.join("nginx")).find(|path| path.is_file())
}

// === impl Master ===

impl Master {
    fn find(proc: &Proc, pid: u32) -> Option<Self> {
        let title = String::from_utf8_lossy(&proc.command_line(pid).ok()?).replace('\0', " ");
        // Anybody can call a process so, and what it names is run.
        let own = rustix::process::geteuid().as_raw();
        process::user(proc, pid).filter(|user| *user == 0 || *user == own)?;
        Self::of(pid, title.trim())
    }

    /// `nginx: master process /usr/sbin/nginx -c /etc/nginx/nginx.conf -g daemon off;`
    fn of(pid: u32, title: &str) -> Option<Self> {
        let words: Vec<&str> = title.strip_prefix(MASTER)?.split_whitespace().collect();
        let after = |option: &str| {
            let at = words.iter().position(|word| *word == option)?;
            words.get(at + 1).map(PathBuf::from)
        };
        Some(Self { pid, program: words.first()?.into(), conf: after("-c"), prefix: after("-p") })
    }

    /// What only the running process shows.
    pub fn running(&self, proc: &Proc, mut children: impl Iterator<Item = u32>) -> Running {
        let worker = children.find(|&pid| is_worker(proc, pid));
        let limit = |pid: u32| {
            let limits = proc.read(pid, "limits").ok()?;
            let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
            line.split_whitespace().next()?.parse().ok()
        };
        Running {
            pid: self.pid,
            user: process::user(proc, self.pid),
            stale_module: proc.read(self.pid, "maps").ok().and_then(|maps| stale(&maps)),
            open_files: limit(worker.unwrap_or(self.pid)),
            label: proc
                .read(self.pid, "attr/current")
                .ok()
                .map(|label| label.trim_matches(['\0', '\n']).to_owned()),
        }
    }
}

fn is_worker(proc: &Proc, pid: u32) -> bool {
    proc.command_line(pid).is_ok_and(|title| title.starts_with(b"nginx: worker process"))
}

fn stale(maps: &str) -> Option<String> {
    let mut files = maps.lines().filter_map(|line| line.split_once('/').map(|(_, path)| path));
    let gone =
        files.find_map(|path| path.strip_suffix(" (deleted)").filter(|path| path.ends_with(MODULE)))?;
    Some(format!("/{gone}"))
}

// === impl Chosen ===

impl Chosen {
    pub fn command(&self) -> String {
        let option = |name: &str, path: &Option<PathBuf>| {
            path.as_ref().map(|path| format!(" {name} {}", path.display())).unwrap_or_default()
        };
        format!("{}{}{}", self.program.display(), option("-p", &self.prefix), option("-c", &self.conf))
    }

    fn options(&self) -> Vec<PathBuf> {
        let option = |name: &str, path: &Option<PathBuf>| path.clone().map(|path| [name.into(), path]);
        [option("-p", &self.prefix), option("-c", &self.conf)].into_iter().flatten().flatten().collect()
    }

    pub async fn dump(&self) -> Result<Dump, BinaryError> {
        let mut command = Command::new(&self.program);
        let output = run(command.arg("-T").args(self.options()), &self.program).await?;
        if output.status.success() {
            return Ok(Dump::Text(String::from_utf8_lossy(&output.stdout).into_owned()));
        }
        let says = complaint(&output);
        // Whoever may not read a file is told nothing of the configuration.
        let own = rustix::process::geteuid();
        if says.contains("(13: Permission denied)") && !own.is_root() {
            return Err(BinaryError::Denied(says));
        }
        Ok(Dump::Refused(says))
    }

    pub async fn describe(&self, conf: Option<&Path>) -> Result<Binary, BinaryError> {
        let built = Built::of(&self.program).await?;
        Ok(Binary {
            module: built.module(),
            version: built.version,
            conf: conf.map(Path::to_owned).or_else(|| self.conf.clone()).unwrap_or_default(),
            command: self.command(),
            path: self.program.clone(),
        })
    }
}

// === impl Built ===

impl Built {
    async fn of(program: &Path) -> Result<Self, BinaryError> {
        let output = run(Command::new(program).arg("-V"), program).await?;
        let text = String::from_utf8_lossy(&output.stderr);
        Self::parse(&text).ok_or_else(|| BinaryError::NotNginx(program.into()))
    }

    fn parse(text: &str) -> Option<Self> {
        let version = text.lines().find_map(|line| line.strip_prefix("nginx version: "))?;
        let version = version.split_once('/')?.1.split_whitespace().next()?;
        let arguments = text.lines().find_map(|line| line.strip_prefix("configure arguments: "));
        Some(Self { version: version.to_owned(), arguments: arguments.unwrap_or_default().to_owned() })
    }

    fn argument(&self, name: &str) -> Option<&str> {
        self.arguments.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
    }

    /// Where the module for this version would be: with nginx's others, or as `make build` leaves it.
    fn module(&self) -> Option<PathBuf> {
        let modules = self.argument("--modules-path").map(PathBuf::from);
        let prefix = self.argument("--prefix").map(|prefix| Path::new(prefix).join("modules"));
        let own = env::current_exe().ok();
        let dist = own.as_deref().and_then(|own| own.parent()?.parent());
        let dist = dist.map(|dist| dist.join(format!("modules/nginx-{}", self.version)));
        let places = [modules, prefix, dist].into_iter().flatten();
        places.map(|place| place.join(MODULE)).find(|file| file.is_file())
    }
}

/// Whether another nginx would start with what is configured.
pub async fn upgrade(
    program: &Path,
    chosen: Option<&Chosen>,
    present: Option<&Nginx>,
    conf: Option<&Path>,
    unseen: &mut Vec<Unseen>,
) -> Result<Upgrade, BinaryError> {
    let built = Built::of(program).await?;
    let mut upgrade = Upgrade { path: program.into(), version: built.version, ..Upgrade::default() };
    let modules: Vec<String> =
        present.iter().flat_map(|nginx| &nginx.modules).map(|(_, file)| file.clone()).collect();
    upgrade.misfits = misfits(program, chosen.and_then(|chosen| chosen.prefix.as_deref()), modules).await?;
    if !upgrade.misfits.is_empty() {
        unseen.push(Unseen::new(
            format!("whether {} takes the configuration", program.display()),
            "it does not load a module; look again when that is mended",
        ));
        return Ok(upgrade);
    }
    let mut command = Command::new(program);
    command.arg("-t");
    if let Some(prefix) = chosen.and_then(|chosen| chosen.prefix.as_ref()) {
        command.arg("-p").arg(prefix);
    }
    if let Some(conf) = conf {
        command.arg("-c").arg(conf);
    }
    let output = run(&mut command, program).await?;
    if !output.status.success() {
        let says = complaint(&output);
        // A module that the present nginx does not load, either.
        match Misfit::of(&says) {
            Some(misfit) => upgrade.misfits.push(misfit),
            None if says.contains("(13: Permission denied)") && !rustix::process::geteuid().is_root() => {
                return Err(BinaryError::Denied(says));
            }
            None => upgrade.refused = Some(says),
        }
    }
    Ok(upgrade)
}

/// nginx stops at the first module that does not fit: that one is left out, until all do. Together, because some modules
/// need others.
async fn misfits(
    program: &Path,
    prefix: Option<&Path>,
    mut modules: Vec<String>,
) -> Result<Vec<Misfit>, BinaryError> {
    let mut misfits = Vec::new();
    let failed = |error| BinaryError::Run { path: program.into(), error };
    let scratch = Scratch::new().map_err(failed)?;
    let conf = scratch.0.join("nginx.conf");
    while !modules.is_empty() {
        let loads: String = modules.iter().map(|module| format!("load_module \"{module}\";\n")).collect();
        let pid = scratch.0.join("nginx.pid");
        let text = format!("{loads}pid {};\nerror_log stderr;\nevents {{}}\n", pid.display());
        fs::write(&conf, text).map_err(failed)?;
        let mut command = Command::new(program);
        command.arg("-t").arg("-c").arg(&conf);
        if let Some(prefix) = prefix {
            command.arg("-p").arg(prefix);
        }
        let output = run(&mut command, program).await?;
        let Some(misfit) = Misfit::of(&complaint(&output)).filter(|_| !output.status.success()) else {
            break;
        };
        let before = modules.len();
        modules.retain(|module| !misfit.module.ends_with(module.as_str()));
        misfits.push(misfit);
        if modules.len() == before {
            break;
        }
    }
    Ok(misfits)
}

// === impl Misfit ===

impl Misfit {
    /// What `ngx_load_module` says.
    fn of(says: &str) -> Option<Self> {
        if let Some((module, rest)) = quoted(says, "module \"") {
            if let Some(versions) = rest.strip_prefix(" version ") {
                let made = versions.split_whitespace().next()?;
                return Some(Self { module, why: Unfit::Version(dotted(made)) });
            }
            if rest.starts_with(" is not binary compatible") {
                return Some(Self { module, why: Unfit::Signature });
            }
        }
        let (module, rest) = quoted(says, "dlopen() \"")?;
        let why = rest.trim_start_matches(" failed (").split(") in ").next().unwrap_or(rest);
        Some(Self { module, why: Unfit::Unloadable(why.to_owned()) })
    }
}

fn quoted<'a>(text: &'a str, before: &str) -> Option<(String, &'a str)> {
    let (_, rest) = text.split_once(before)?;
    let (name, rest) = rest.split_once('"')?;
    Some((name.to_owned(), rest))
}

/// 1022001 is 1.22.1.
fn dotted(number: &str) -> String {
    match number.parse::<u32>() {
        Ok(number) => format!("{}.{}.{}", number / 1_000_000, number / 1000 % 1000, number % 1000),
        Err(_) => number.to_owned(),
    }
}

async fn run(command: &mut Command, program: &Path) -> Result<Output, BinaryError> {
    command.stdin(Stdio::null()).kill_on_drop(true).env("LC_ALL", "C");
    let output = time::timeout(PATIENCE, command.output()).await;
    let output = output.map_err(|_| BinaryError::TimedOut(program.into()))?;
    output.map_err(|error| BinaryError::Run { path: program.into(), error })
}

/// The line in which nginx says why it does not go on, without the time and its number.
fn complaint(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    let emerg = text.lines().find_map(|line| line.split_once("[emerg] ").map(|(_, says)| says));
    let says = emerg.or_else(|| text.lines().last()).unwrap_or_default().trim();
    let is_number = |word: &str| word.ends_with(':') && word.contains('#');
    match says.split_once(' ') {
        Some((number, says)) if is_number(number) => says.to_owned(),
        _ => says.to_owned(),
    }
}

/// A directory for a file that nginx is to read.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> io::Result<Self> {
        let mut random = [0; 8];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
        let dir = env::temp_dir().join(format!("handoff-doctor-{:016x}", u64::from_ne_bytes(random)));
        fs::DirBuilder::new().mode(0o700).create(&dir)?;
        Ok(Self(dir))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        _ = fs::remove_dir_all(&self.0);
    }
}

/// The main file of a dump, as a path.
pub fn main_file(dump: &str) -> PathBuf {
    conf::main_file(dump).to_path_buf()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_master_says_what_it_was_told() {
        let of = |title: &str| Master::of(7, title).unwrap();
        let bare = of("nginx: master process /usr/sbin/nginx -g daemon on; master_process on;");
        assert_eq!((bare.program, bare.conf), (PathBuf::from("/usr/sbin/nginx"), None));
        let told = of("nginx: master process nginx -e stderr -p /p -c /c.conf -g daemon off;");
        assert_eq!((told.conf, told.prefix), (Some("/c.conf".into()), Some("/p".into())));
        assert_eq!(Master::of(7, "nginx: worker process"), None);
    }

    #[test]
    fn what_another_user_calls_nginx_is_not_run() {
        let dir = crate::scratch::Dir::new();
        let master = |user: u32| {
            let process = dir.join("7");
            fs::create_dir_all(&process).unwrap();
            fs::write(process.join("cmdline"), "nginx: master process /tmp/x/nginx\0").unwrap();
            fs::write(process.join("status"), format!("Name:\tx\nUid:\t{user}\t0\t0\t0\n")).unwrap();
            Master::find(&Proc::at(&dir), 7)
        };
        let own = rustix::process::geteuid().as_raw();
        assert!(master(0).is_some() && master(own).is_some());
        assert_eq!(master(own + 1), None);
    }

    #[test]
    fn a_version_is_read_whoever_built_it() {
        let text = "nginx version: nginx/1.22.1 (Debian)\nbuilt with OpenSSL\nconfigure arguments: --prefix=/usr/share/nginx --modules-path=/usr/lib/nginx/modules";
        let built = Built::parse(text).unwrap();
        assert_eq!(
            (built.version.as_str(), built.argument("--prefix")),
            ("1.22.1", Some("/usr/share/nginx"))
        );
        assert_eq!(Built::parse("nginx version: openresty/1.25.3.1").unwrap().version, "1.25.3.1");
        assert_eq!(Built::parse("usage: cat"), None);
    }

    #[test]
    fn why_a_module_does_not_fit_is_understood() {
        let of = |says: &str| Misfit::of(says).map(|misfit| (misfit.module, misfit.why));
        let m = || "/m/x.so".to_owned();
        assert_eq!(
            of("module \"/m/x.so\" version 1022001 instead of 1028003 in /n.conf:1"),
            Some((m(), Unfit::Version("1.22.1".into())))
        );
        assert_eq!(
            of("module \"/m/x.so\" is not binary compatible in /n.conf:1"),
            Some((m(), Unfit::Signature))
        );
        assert_eq!(
            of("dlopen() \"/m/x.so\" failed (/m/x.so: cannot open shared object file) in /n.conf:1"),
            Some((m(), Unfit::Unloadable("/m/x.so: cannot open shared object file".into())))
        );
        assert_eq!(of("unknown directive \"x\" in /n.conf:1"), None);
    }

    #[test]
    fn nginx_says_why_it_does_not_go_on() {
        let of = |text: &str| {
            complaint(&Output { status: Default::default(), stdout: Vec::new(), stderr: text.into() })
        };
        assert_eq!(
            of("nginx: [warn] a\nnginx: [emerg] b in /n.conf:1\nnginx: test failed\n"),
            "b in /n.conf:1"
        );
        assert_eq!(of("2026/11/27 10:51:34 [emerg] 7#7: open() \"/x\" failed\n"), "open() \"/x\" failed");
        assert_eq!(of("Segmentation fault\n"), "Segmentation fault");
    }

    #[test]
    fn a_module_that_was_replaced_is_still_mapped() {
        let maps = "7f00-7f01 r-xp 0 08:01 7  /m/ngx_http_handoff_module.so (deleted)\n";
        assert_eq!(stale(maps).as_deref(), Some("/m/ngx_http_handoff_module.so"));
        assert_eq!(stale(&maps.replace(" (deleted)", "")), None);
    }
}
