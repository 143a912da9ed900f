//! What is asked of git. It never asks a question of its own: who may fetch is settled before.

use std::{
    ffi::OsStr,
    io,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};
use tokio::{process::Command, time};

#[derive(Clone, Debug)]
pub struct Git {
    directory: PathBuf,
    /// Its branches are those of the repository, and not somebody's own.
    is_mirror: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum GitError {
    #[error("git cannot be run: {0}. Install it (apt-get install git)")]
    Absent(io::Error),
    #[error("git {what} failed: {text}")]
    Failed { what: String, text: String },
    #[error("git {what} took longer than {} s", PATIENCE.as_secs())]
    TimedOut { what: String },
    #[error("{repository} has no branch, tag or commit {reference:?}")]
    Unknown { repository: String, reference: String },
}

const PATIENCE: Duration = Duration::from_secs(10 * 60);

// === impl Git ===

impl Git {
    /// In a working tree.
    pub fn at(directory: &Path) -> Self {
        Self { directory: directory.to_owned(), is_mirror: false }
    }

    /// A copy of the whole repository, brought up to date.
    pub async fn mirror(directory: &Path, repository: &str) -> Result<Self, GitError> {
        let git = Self { is_mirror: true, ..Self::at(directory) };
        if directory.join("HEAD").exists() {
            git.run(["remote", "set-url", "origin", repository]).await?;
            git.run(["fetch", "--quiet", "--prune", "--prune-tags", "origin", "+refs/*:refs/*"]).await?;
            return Ok(git);
        }
        // A clone that was cut short is none.
        let part = directory.with_extension("part");
        _ = tokio::fs::remove_dir_all(&part).await;
        let failed =
            |error: io::Error| GitError::Failed { what: "clone".to_owned(), text: error.to_string() };
        let parent = Self::at(directory.parent().unwrap_or(directory));
        parent
            .run([
                OsStr::new("clone"),
                "--quiet".as_ref(),
                "--mirror".as_ref(),
                "--".as_ref(),
                repository.as_ref(),
                part.as_ref(),
            ])
            .await?;
        tokio::fs::rename(&part, directory).await.map_err(failed)?;
        Ok(git)
    }

    /// The commit that a branch, a tag or a (shortened) hash stands for; of none, the one that the repository shows first.
    pub async fn commit(&self, repository: &str, reference: Option<&str>) -> Result<String, GitError> {
        let (branches, head) = if self.is_mirror {
            ("refs/heads/", "HEAD")
        } else {
            ("refs/remotes/origin/", "refs/remotes/origin/HEAD")
        };
        let names = match reference {
            None => vec![head.to_owned()],
            Some(name) => [branches, "refs/tags/", ""].map(|kind| format!("{kind}{name}")).to_vec(),
        };
        for name in names {
            let wanted = format!("{name}^{{commit}}");
            let found = self.run(["rev-parse", "--quiet", "--verify", "--end-of-options", &wanted]).await;
            match found {
                Ok(commit) => return Ok(commit),
                Err(GitError::Failed { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let reference = reference.unwrap_or("HEAD").to_owned();
        Err(GitError::Unknown { repository: repository.to_owned(), reference })
    }

    /// The files of a commit, and nothing of git, in this empty directory.
    pub async fn export(&self, commit: &str, to: &Path) -> Result<(), GitError> {
        let index = to.with_extension("index");
        let mut command = self.command();
        command
            .env("GIT_INDEX_FILE", &index)
            .arg("--git-dir")
            .arg(&self.directory)
            .arg("--work-tree")
            .arg(to);
        command.args(["checkout", "--quiet", "--force", commit, "--", "."]);
        let done = output(command, "checkout").await;
        _ = tokio::fs::remove_file(index).await;
        done.map(drop)
    }

    pub async fn run<T: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = T>,
    ) -> Result<String, GitError> {
        let mut command = self.command();
        let mut what = String::new();
        for argument in arguments {
            if what.is_empty() {
                what = argument.as_ref().to_string_lossy().into_owned();
            }
            command.arg(argument);
        }
        output(command, &what).await
    }

    fn command(&self) -> Command {
        let mut command = Command::new("git");
        command.current_dir(&self.directory).env("GIT_TERMINAL_PROMPT", "0").env("LC_ALL", "C");
        command.env(
            "GIT_SSH_COMMAND",
            std::env::var_os("GIT_SSH_COMMAND").unwrap_or("ssh -oBatchMode=yes".into()),
        );
        // Whoever calls us from a hook of git has told it where it is.
        for name in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"] {
            command.env_remove(name);
        }
        // So that Ctrl-C reaches us, and we end it.
        command.stdin(Stdio::null()).process_group(0).kill_on_drop(true);
        command
    }
}

async fn output(mut command: Command, what: &str) -> Result<String, GitError> {
    let output = match time::timeout(PATIENCE, command.output()).await {
        Ok(output) => output.map_err(GitError::Absent)?,
        Err(_) => return Err(GitError::TimedOut { what: what.to_owned() }),
    };
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let text = lines.join("; ");
    let text = if text.is_empty() { output.status.to_string() } else { text };
    Err(GitError::Failed { what: what.to_owned(), text: without_passwords(&text) })
}

/// An address may have one: https://user:password@host.
fn without_passwords(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for (number, part) in text.split("://").enumerate() {
        if number == 0 {
            out.push_str(part);
            continue;
        }
        out.push_str("://");
        let end = part.find(|c: char| c == '/' || c.is_whitespace() || c == '\'').unwrap_or(part.len());
        let (host, rest) = part.split_at(end);
        out.push_str(host.rsplit_once('@').map_or(host, |(_, host)| host));
        out.push_str(rest);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    async fn repository(dir: &Path) -> Git {
        let git = Git::at(dir);
        git.run(["init", "--quiet", "--initial-branch=main"]).await.unwrap();
        commit(&git, "one").await;
        git
    }

    async fn commit(git: &Git, text: &str) -> String {
        fs::write(git.directory.join("file"), text).unwrap();
        git.run(["add", "."]).await.unwrap();
        git.run(["-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "-m", text])
            .await
            .unwrap();
        git.run(["rev-parse", "HEAD"]).await.unwrap()
    }

    #[tokio::test]
    async fn a_commit_is_found_by_every_name_and_exported_without_gits_own_files() {
        let (theirs, ours) = (crate::scratch::Dir::new(), crate::scratch::Dir::new());
        let source = repository(&theirs).await;
        let address = theirs.display().to_string();
        let git = Git::mirror(&ours.join("repo"), &address).await.unwrap();
        let first = git.commit(&address, None).await.unwrap();
        let second = commit(&source, "two").await;
        source.run(["tag", "v2"]).await.unwrap();
        assert_eq!(git.commit(&address, Some("main")).await.unwrap(), first, "it was not fetched yet");
        let git = Git::mirror(&ours.join("repo"), &address).await.unwrap();
        for name in [None, Some("main"), Some("v2"), Some(&second[..9]), Some(&second)] {
            assert_eq!(git.commit(&address, name).await.unwrap(), second, "{name:?}");
        }
        for name in ["nobody", "--help", &"f".repeat(40)] {
            let unknown = git.commit(&address, Some(name)).await.unwrap_err().to_string();
            assert!(unknown.contains("no branch, tag or commit"), "{unknown}");
        }
        let release = ours.join("release");
        fs::create_dir(&release).unwrap();
        git.export(&first, &release).await.unwrap();
        let names: Vec<_> = fs::read_dir(&release).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(
            (names, fs::read_to_string(release.join("file")).unwrap()),
            (vec!["file".into()], "one".to_owned())
        );
    }

    #[tokio::test]
    async fn in_a_working_tree_a_branch_is_that_of_the_repository() {
        let (theirs, ours) = (crate::scratch::Dir::new(), crate::scratch::Dir::new());
        let source = repository(&theirs).await;
        let tree = ours.join("tree");
        Git::at(&ours).run(["clone", "--quiet", &theirs.display().to_string(), "tree"]).await.unwrap();
        let second = commit(&source, "two").await;
        let git = Git::at(&tree);
        git.run(["fetch", "--quiet", "origin"]).await.unwrap();
        for name in [None, Some("main")] {
            assert_eq!(git.commit("origin", name).await.unwrap(), second, "{name:?}");
        }
    }

    #[tokio::test]
    async fn a_clone_that_fails_leaves_nothing_that_looks_like_one() {
        let dir = crate::scratch::Dir::new();
        let error = Git::mirror(&dir.join("repo"), "/nowhere/at/all").await.unwrap_err().to_string();
        assert!(error.contains("git clone failed") && error.contains("/nowhere/at/all"), "{error}");
        assert!(!dir.join("repo").exists());
    }

    #[test]
    fn a_password_is_not_told() {
        assert_eq!(
            without_passwords("fatal: 'https://me:secret@host/a.git/' not found at https://b@c"),
            "fatal: 'https://host/a.git/' not found at https://c"
        );
        assert_eq!(without_passwords("git@host:a.git: no"), "git@host:a.git: no");
    }
}
