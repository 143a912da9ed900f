//! Writes what a package lays beside `handoff`, from the definitions that `handoff` itself parses with: man pages, one for each
//! command, and completions for bash, zsh and fish. A program of its own, so that whoever runs `handoff` does not carry it.

#![forbid(unsafe_code)]

use clap::{Command, ValueEnum as _};
use clap_complete::Shell;
use clap_mangen::Man;
use std::{
    env, fs,
    io::{self, Write as _},
    path::Path,
    process::ExitCode,
};

const SHELLS: [Shell; 3] = [Shell::Bash, Shell::Zsh, Shell::Fish];

fn main() -> ExitCode {
    let Some(dir) = env::args_os().nth(1) else {
        eprintln!("handoff-papers: where to? handoff-papers DIR writes DIR/man and DIR/completions");
        return ExitCode::from(2);
    };
    match write_all(Path::new(&dir)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("handoff-papers: {}: {error}", dir.display());
            ExitCode::FAILURE
        }
    }
}

fn write_all(dir: &Path) -> io::Result<()> {
    let man = dir.join("man");
    fs::create_dir_all(&man)?;
    let mut command = handoff::cli::command().disable_help_subcommand(true);
    command.build();
    write_pages(&command, &man)?;
    for shell in SHELLS {
        let name = shell.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
        let completions = dir.join("completions").join(name);
        fs::create_dir_all(&completions)?;
        clap_complete::generate_to(shell, &mut handoff::cli::command(), "handoff", completions)?;
    }
    Ok(())
}

/// One for the command, and one for each below it.
fn write_pages(command: &Command, dir: &Path) -> io::Result<()> {
    for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
        write_pages(below, dir)?;
    }
    // As it stands for `--help`, it would be filled like prose here.
    let exit_codes = command.get_after_help().map(ToString::to_string);
    let page = Man::new(command.clone().after_help("")).manual("Handoff");
    let mut file = fs::File::create(dir.join(page.get_filename()))?;
    page.render_title(&mut file)?;
    page.render_name_section(&mut file)?;
    page.render_synopsis_section(&mut file)?;
    page.render_description_section(&mut file)?;
    page.render_options_section(&mut file)?;
    if command.has_subcommands() {
        page.render_subcommands_section(&mut file)?;
    }
    if let Some(codes) = exit_codes {
        let (_, codes) = codes.split_once('\n').unwrap_or_default();
        write!(file, ".SH \"EXIT STATUS\"\n.nf\n{codes}\n.fi\n")?;
    }
    file.write_all(SEE_ALSO.as_bytes())
}

const SEE_ALSO: &str = ".SH \"SEE ALSO\"\n.BR handoff (1),\n.BR nginx (8),\n/usr/share/doc/handoff/\n";
