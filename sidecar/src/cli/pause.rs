//! `handoff pause TARGET`

use super::{Context, Exit, Failure, brake_on_signals, say, target};
use crate::{control::Control, rollout::Stop};
use handoff_wire::{Code, MAX_WAIT, Owner, Pause, PauseAck, Resume, Span};
use std::time::Instant;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// An upstream (myapp), or an app (shop): every upstream that one of its workers is in
    target: String,
    /// How long it lasts at most, from its beginning
    #[arg(long, value_name = "TIME", default_value = "30s")]
    max: Span,
    /// Wait until nothing is in flight any more
    #[arg(long)]
    wait: bool,
    /// How long to wait; when it has passed everything goes on as before
    #[arg(long, value_name = "TIME", default_value = "10s", requires = "wait")]
    timeout: Span,
    /// Why, for whoever wonders later
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
    /// Even if it lasts longer than requests wait: who comes first is answered 503
    #[arg(long)]
    force: bool,
}

pub(super) async fn run(context: &Context, args: &Args) -> Result<Exit, Failure> {
    let started = Instant::now();
    // From here on a signal ends no pause halfway.
    let brake = brake_on_signals()?;
    let mut control = context.control();
    let view = control.upstreams().await?;
    let pause = Pause {
        owner: Owner::operator(),
        upstreams: target::upstreams(&args.target, context, &view).await?,
        max: args.max,
        reason: args.reason.clone(),
        force: args.force,
    };
    let ack = control.pause(&pause).await.map_err(|error| Failure::or_force(error, Code::TooLong))?;
    for paused in &ack.upstreams {
        _ = say(format_args!(
            "{}: paused for {} at most, {} in flight",
            paused.upstream, paused.left, paused.in_flight
        ));
    }
    if !args.wait {
        return Ok(Exit::Done);
    }
    let waited = tokio::select! {
        waited = wait(&mut control, &ack, started, args.timeout) => waited,
        halt = brake.wait() => Err(Stop::from(halt).into()),
    };
    if let Err(failure) = waited {
        // What it was for cannot begin, and users wait.
        let Pause { owner, upstreams, .. } = pause;
        context.control().resume(&Resume { owner, upstreams, force: false }).await?;
        return Err(failure);
    }
    Ok(Exit::Done)
}

async fn wait(control: &mut Control, ack: &PauseAck, started: Instant, timeout: Span) -> Result<(), Failure> {
    let left = || timeout.duration().saturating_sub(started.elapsed());
    for upstream in ack.upstreams.iter().map(|paused| &paused.upstream) {
        loop {
            let seen = control.quiet(upstream, Span::from(left()).min(MAX_WAIT)).await?;
            let in_flight = seen.in_flight;
            let Some(paused) = seen.left else {
                let text = format!("the pause of {upstream} was over before the {in_flight} in flight were");
                return Err(Failure::new(Exit::Deadline, text));
            };
            if seen.quiet {
                _ = say(format_args!("{upstream}: quiet, paused for {paused} more at most"));
                break;
            }
            if left().is_zero() {
                let text = format!(
                    "{upstream} still has {in_flight} in flight after {timeout}. Nothing is paused any more: give them more \
                     time with --timeout"
                );
                return Err(Failure::new(Exit::Deadline, text));
            }
        }
    }
    Ok(())
}
