//! What the documents say of the program is there, and what the program says is in them.

use anyhow::{Context, Result, ensure};
use e2e::place;
use std::{
    fs,
    path::{Path, PathBuf},
};

/// What begins a line of a log in the sources. The text is the next literal.
const SPEAKERS: [&str; 6] =
    ["ngx_log_error!(", "tracing::error!(", "tracing::warn!(", "tracing::info!(", "log.warn(", "log.info("];

/// Every file below a folder of the project with this ending.
fn files(folder: &str, ending: &str) -> Result<Vec<PathBuf>> {
    fn visit(folder: &Path, ending: &str, found: &mut Vec<PathBuf>) -> Result<()> {
        for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
            let path = entry?.path();
            if path.is_dir() && !path.ends_with("node_modules") {
                visit(&path, ending, found)?;
            } else if path.extension().is_some_and(|extension| extension == ending) {
                found.push(path);
            }
        }
        Ok(())
    }
    let mut found = Vec::new();
    visit(&place::root().join(folder), ending, &mut found)?;
    Ok(found)
}

/// The text of the first literal in a call, with `…` for what differs. None: the call has no text of its own.
fn said(call: &str) -> Option<String> {
    let end = call.find(';').unwrap_or(call.len());
    let literal = call.get(..end)?.split_once('"')?.1;
    let mut text = String::new();
    let mut characters = literal.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '"' => break,
            '\\' => match characters.next()? {
                '\n' => while characters.next_if(|next| next.is_whitespace()).is_some() {},
                escaped => text.push(escaped),
            },
            '{' => {
                characters.by_ref().find(|&next| next == '}')?;
                text.push('…');
            }
            other => text.push(other),
        }
    }
    // "{text}" passes on what somebody else says.
    text.chars().any(char::is_alphabetic).then_some(text)
}

#[test]
fn every_line_of_the_logs_is_explained() {
    let page = fs::read_to_string(place::root().join("docs/operations/logs.md")).unwrap();
    let mut lines = 0;
    let mut unexplained = Vec::new();
    for folder in ["nginx-module/src", "sidecar/src"] {
        for file in files(folder, "rs").unwrap() {
            let source = fs::read_to_string(&file).unwrap();
            for speaker in SPEAKERS {
                for text in source.split(speaker).skip(1).filter_map(said) {
                    lines += 1;
                    if !page.contains(&text) {
                        unexplained.push(format!("{}: {text}", file.display()));
                    }
                }
            }
        }
    }
    assert!(lines > 30, "{lines} lines: are the logs written in another way now?");
    assert!(unexplained.is_empty(), "docs/operations/logs.md lacks:\n{}", unexplained.join("\n"));
}

/// Where the links of a page lead, without those that leave the project.
fn links(page: &str) -> impl Iterator<Item = &str> {
    let targets = page.split("](").skip(1).filter_map(|rest| Some(rest.split_once(')')?.0));
    targets.filter(|target| !target.contains("://") && !target.starts_with("mailto:"))
}

/// The anchors that a page has, as the usual renderers make them from its headings.
fn anchors(page: &str) -> Vec<String> {
    let headings = page.lines().filter(|line| line.starts_with('#'));
    let anchor = |heading: &str| {
        let heading = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = heading.chars().filter(|&one| one.is_alphanumeric() || matches!(one, ' ' | '-' | '_'));
        kept.map(|one| if one == ' ' { '-' } else { one }).collect()
    };
    headings.map(anchor).collect()
}

#[test]
fn every_link_leads_somewhere() {
    let mut pages = files("docs", "md").unwrap();
    pages.extend(["README.md", "tests/README.md", "CHANGELOG.md"].map(|name| place::root().join(name)));
    let mut broken = Vec::new();
    for page in pages {
        let text = fs::read_to_string(&page).unwrap();
        for link in links(&text) {
            if let Err(error) = follow(&page, &text, link) {
                broken.push(format!("{}: ({link}) {error}", page.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

fn follow(page: &Path, text: &str, link: &str) -> Result<()> {
    let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
    let target = page.with_file_name(path);
    ensure!(path.is_empty() || target.exists(), "there is no such file");
    if !anchor.is_empty() {
        let there = if path.is_empty() { text.to_owned() } else { fs::read_to_string(&target)? };
        ensure!(anchors(&there).iter().any(|one| one == anchor), "there is no such heading");
    }
    Ok(())
}
