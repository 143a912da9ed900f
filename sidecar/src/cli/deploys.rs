//! `handoff deploys [APP]`

use super::{Context, Exit, Failure, say, table};
use crate::deploy::{
    ground::Ground,
    record::{Outcome, Record, Records},
};
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only of this app [default: all that are configured]
    app: Option<String>,
    /// Where its releases are, if not as configured
    #[arg(long, value_name = "DIR", requires = "app")]
    path: Option<PathBuf>,
    /// One JSON object a line: all that is recorded
    #[arg(long)]
    json: bool,
    /// So many of the last ones
    #[arg(long, short = 'n', value_name = "N", default_value = "20")]
    number: usize,
}

pub(super) fn run(context: &Context, args: &Args) -> Result<Exit, Failure> {
    let mut places: Vec<(String, Ground)> = Vec::new();
    if let (Some(app), Some(path)) = (&args.app, &args.path) {
        let path = std::path::absolute(path)
            .map_err(|error| Failure::new(Exit::Usage, format!("--path: {error}")))?;
        let is_in_place = !path.join("releases").is_dir() && path.join(".git").is_dir();
        places.push((app.clone(), Ground::of(&path, is_in_place)?));
    } else {
        let wanted =
            context.deploy.iter().filter(|(app, _)| args.app.as_ref().is_none_or(|wanted| wanted == *app));
        for (app, settings) in wanted {
            // In place by an argument is in place, too.
            let is_in_place = settings.in_place || settings.path.join(".git/handoff").is_dir();
            places.push((app.clone(), Ground::of(&settings.path, is_in_place)?));
        }
    }
    if places.is_empty() {
        let what = args.app.as_ref().map_or_else(|| "no app".to_owned(), |app| format!("no [deploy.{app}]"));
        let text = format!("{what} is configured: name the file with --config, or the place with --path DIR");
        return Err(Failure::new(Exit::UnknownTarget, text));
    }
    let mut rows =
        vec![["WHEN", "APP", "RELEASE", "BEFORE", "WHO", "TOOK", "OUTCOME", ""].map(String::from).to_vec()];
    for (app, ground) in places {
        let mut records = Records::of(ground.state())
            .read()
            .map_err(|error| Failure::new(Exit::Failed, format!("{}: {error}", ground.state().display())))?;
        records.retain(|record| record.app == app);
        for record in records.iter().skip(records.len().saturating_sub(args.number)) {
            if args.json {
                _ = say(serde_json::to_string(record).unwrap_or_default());
            } else {
                rows.push(row(record));
            }
        }
    }
    if !args.json {
        _ = say(table::render(&rows).trim_end());
    }
    Ok(Exit::Done)
}

fn row(record: &Record) -> Vec<String> {
    let Record { began, app, release, previous, who, seconds, outcome, exit, text, .. } = record;
    let why = if *outcome == Outcome::Done {
        String::new()
    } else {
        format!("{exit}: {}", text.lines().next().unwrap_or_default())
    };
    let text = |text: &str| text.chars().filter(|c| !c.is_control()).collect();
    vec![
        began.clone(),
        text(app),
        text(release),
        text(previous.as_deref().unwrap_or("-")),
        text(who),
        format!("{seconds:.1} s"),
        outcome.as_str().to_owned(),
        text(&why),
    ]
}
