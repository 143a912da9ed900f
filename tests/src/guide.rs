//! A page of the documentation, as somebody follows it who does exactly what it says.
//!
//! What stands in a fenced block is done: `sh` is typed by root, `sh USER` by that user in a new login; `nginx FILE` and
//! `js FILE` take the place of what is in that file; `text` is what the last command has answered, but for numbers.

use anyhow::{Context, Result, bail, ensure};

/// A fenced block, and the line on which it begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    pub line: usize,
    pub does: Does,
    pub text: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Does {
    Type { user: Option<String> },
    Edit { file: String },
    Answers,
}

/// Every block of a page, in order.
pub fn blocks(page: &str) -> Result<Vec<Block>> {
    let mut blocks = Vec::new();
    let mut open: Option<Block> = None;
    for (number, line) in (1..).zip(page.lines()) {
        match (line.strip_prefix("```"), &mut open) {
            (Some(""), Some(_)) => blocks.extend(open.take()),
            (Some(info), None) => {
                let does =
                    does(info).with_context(|| format!("line {number}: nobody knows what {info:?} is"))?;
                open = Some(Block { line: number, does, text: String::new() });
            }
            (Some(_), Some(block)) => bail!("line {number}: the block of line {} is still open", block.line),
            (None, Some(block)) => {
                block.text.push_str(line);
                block.text.push('\n');
            }
            (None, None) => {}
        }
    }
    ensure!(open.is_none(), "the last block does not end");
    Ok(blocks)
}

fn does(info: &str) -> Option<Does> {
    let mut words = info.split(' ');
    let does = match (words.next()?, words.next()) {
        ("sh", user) => Does::Type { user: user.map(str::to_owned) },
        ("nginx" | "js", Some(file)) => Does::Edit { file: file.to_owned() },
        ("text", None) => Does::Answers,
        _ => return None,
    };
    words.next().is_none().then_some(does)
}

/// A file in which a block has taken its place: that of the lines from the first to the last that it has in common with
/// the file, by their beginnings; what the file has just before and is not in the block any more, an `include`, goes too.
pub fn edited(file: &str, block: &str) -> Result<String> {
    let lines: Vec<&str> = file.lines().collect();
    let new: Vec<&str> = block.lines().collect();
    let known = |line: &str| !line.trim().is_empty() && lines.iter().any(|other| bare(other) == bare(line));
    let first = new.iter().find(|line| known(line)).context("nothing of the block is in the file")?;
    let last = new.iter().rfind(|line| known(line)).unwrap_or(first);
    let begin = lines.iter().position(|line| bare(line) == bare(first)).unwrap_or(0);
    let rest = lines.get(begin..).unwrap_or_default();
    let end = begin + rest.iter().position(|line| bare(line) == bare(last)).unwrap_or(0) + 1;
    let before = lines.get(..begin).unwrap_or_default();
    let kept = before.iter().filter(|line| !line.contains("# new"));
    // A line below it that was put there by an earlier block.
    let after = lines.get(end..).unwrap_or_default().iter().filter(|line| !line.contains("// new"));
    let all: Vec<&str> = kept.chain(&new).chain(after).copied().collect();
    Ok(all.join("\n") + "\n")
}

/// A line without its comment.
fn bare(line: &str) -> &str {
    let end = ["  # ", " // "].iter().filter_map(|mark| line.find(mark)).min().unwrap_or(line.len());
    line.get(..end).unwrap_or(line).trim()
}

/// The lines of a `text` block that are not in the answer, whatever the numbers.
pub fn missing<'a>(block: &'a str, answer: &str) -> Vec<&'a str> {
    let answered: Vec<String> = answer.lines().map(without_numbers).collect();
    block.lines().filter(|line| !answered.contains(&without_numbers(line))).collect()
}

fn without_numbers(line: &str) -> String {
    let words = line.split_whitespace();
    let words = words.map(|word| if word.chars().any(|c| c.is_ascii_digit()) { "#" } else { word });
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SITE: &str =
        "# ours\nupstream a {\n    least_conn;\n    server 127.0.0.1:3000;\n}\n\nserver {\n}\n";
    const WITH: &str =
        "include x;  # new\nupstream a {\n    zone a 1m;  # new\n    server 127.0.0.1:3000;\n}\n";

    #[test]
    fn every_block_says_what_it_does() {
        let page = "# A\n```sh\nls\n```\n```sh me\nid\n```\n```nginx /f\nuser a;\n```\n```text\nb\n```\n";
        let found = blocks(page).unwrap();
        let all: Vec<_> = found.iter().map(|block| (block.line, &block.does)).collect();
        let typed = |user: Option<&str>| Does::Type { user: user.map(str::to_owned) };
        let expected = [
            (2, &typed(None)),
            (5, &typed(Some("me"))),
            (8, &Does::Edit { file: "/f".into() }),
            (11, &Does::Answers),
        ];
        assert_eq!(all, expected);
        assert!(blocks("```sh\nls\n").is_err() && blocks("```ruby\n```\n").is_err());
    }

    #[test]
    fn a_block_takes_the_place_of_what_it_shows() {
        let with = edited(SITE, WITH).unwrap();
        assert_eq!(with, format!("# ours\n{WITH}\nserver {{\n}}\n"));
        let without = "upstream a {\n    least_conn;\n    server 127.0.0.1:3000;\n}\n";
        assert_eq!(edited(&with, without).unwrap(), SITE, "and back");
        assert!(edited(SITE, "location / {\n").is_err());
    }

    #[test]
    fn an_answer_is_compared_but_for_its_numbers() {
        assert_eq!(missing("a  12 b\nc 1.5 s\n", "a 3 b\nx\nc 22 s\n"), [""; 0]);
        assert_eq!(missing("a 12 b\n", "a 12 c\n"), ["a 12 b"]);
    }
}
