//! `handoff events`

use super::{Context, Exit, Failure};
use handoff_wire::Event;
use std::{
    io::{self, Write as _},
    time::Duration,
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Go on showing what happens
    #[arg(long, short)]
    follow: bool,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

const PAUSE: Duration = Duration::from_millis(500);

pub(super) async fn run(context: &Context, args: &Args) -> Result<Exit, Failure> {
    let mut control = context.control();
    let (mut instance, mut after) = (String::new(), 0);
    loop {
        let events = control.events(after).await?;
        if instance != events.instance && after != 0 {
            // A restarted nginx counts from the beginning.
            (instance, after) = (events.instance, 0);
            continue;
        }
        instance = events.instance;
        after = events.next;
        for event in &events.events {
            let line = if args.json { json(event) } else { text(event) };
            // Whoever read us has gone, as `head` does.
            if writeln!(io::stdout(), "{line}").is_err() {
                return Ok(Exit::Done);
            }
        }
        if !args.follow {
            return Ok(Exit::Done);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn json(event: &Event) -> String {
    serde_json::to_string(event).unwrap_or_default()
}

pub(super) fn text(event: &Event) -> String {
    let Event { upstream, peer, owner, in_flight, .. } = event;
    let (at, kind) = (time_of_day(event.at), event.kind.as_str());
    let what = match (event.from, event.to) {
        (Some(from), Some(to)) => format!("{peer} in {upstream}  {from} → {to}"),
        _ => upstream.clone(),
    };
    let reason = if event.reason.is_empty() { String::new() } else { format!("  {}", event.reason) };
    format!("{at}  {kind:<6}  {what}  {owner}  {in_flight} in flight{reason}")
}

/// `14:03:09.120Z`; an event is minutes old, not days.
pub(super) fn time_of_day(millis: u64) -> String {
    let (seconds, millis) = (millis / 1000 % 86_400, millis % 1000);
    format!("{:02}:{:02}:{:02}.{millis:03}Z", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line() {
        let event: Event = serde_json::from_str(
            r#"{"seq":1,"at":1795365009120,"kind":"mark","upstream":"app","peer":"127.0.0.1:1","owner":"operator",
                "from":"up","to":"draining","in_flight":3,"reason":"disk"}"#,
        )
        .unwrap();
        assert_eq!(
            text(&event),
            "16:30:09.120Z  mark    127.0.0.1:1 in app  up → draining  operator  3 in flight  disk"
        );
        let event: Event = serde_json::from_str(
            r#"{"seq":1,"at":1795365009120,"kind":"pause","upstream":"app","owner":"operator","in_flight":3,"reason":"schema"}"#,
        )
        .unwrap();
        assert_eq!(text(&event), "16:30:09.120Z  pause   app  operator  3 in flight  schema");
    }
}
