//! `handoff drain TARGET`

use super::{Context, Exit, Failure, complain, say, target::Target};
use crate::{control::Control, peer::Peer, report};
use handoff_wire::{Ack, Code, Expect, MAX_WAIT, MarkRequest, MarkSet, Owner, Span, State};
use std::time::Instant;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// An app (shop), one worker (shop:3), or a peer (127.0.0.1:3000)
    target: String,
    /// Wait until nothing is in flight any more
    #[arg(long)]
    wait: bool,
    /// How long to wait; the drain stays when it has passed
    #[arg(long, value_name = "TIME", default_value = "30s", requires = "wait")]
    timeout: Span,
    /// Why, for whoever wonders later
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
    /// Do it even if nobody is left to serve
    #[arg(long)]
    force: bool,
    /// Mark it down instead of draining
    #[arg(long)]
    down: bool,
}

pub(super) async fn run(context: &Context, args: &Args) -> Result<Exit, Failure> {
    let started = Instant::now();
    let mut control = context.control();
    let view = control.upstreams().await?;
    let peers = Target::parse(&args.target).resolve(context, &view).await?;
    let state = if args.down { State::Down } else { State::Draining };
    let marks = marks(&peers, state, &args.reason);
    let ack = control.mark(&MarkSet { force: args.force, ..marks }).await;
    let ack = ack.map_err(|error| Failure::or_force(error, Code::Floor))?;
    for mark in &ack.marks {
        _ = say(format_args!(
            "{} in {}: {}, {} in flight",
            mark.peer, mark.upstream, mark.state, mark.in_flight
        ));
    }
    if context.homes.iter().all(|home| report::live(home).next().is_none()) {
        complain("no sidecar runs here: nobody sets this mark again if nginx is restarted");
    }
    if !args.wait {
        return Ok(Exit::Done);
    }
    wait(&mut control, &ack, started, args.timeout).await
}

/// What the operator says of these peers.
pub(super) fn marks(peers: &[Peer], state: State, reason: &str) -> MarkSet {
    let mark = |peer: &Peer| MarkRequest {
        upstream: Some(peer.upstream.clone()),
        peer: peer.address.clone(),
        state,
        expect: Expect::Gone,
        reason: reason.to_owned(),
        all: false,
    };
    MarkSet { owner: Owner::operator(), lease: None, force: false, marks: peers.iter().map(mark).collect() }
}

async fn wait(control: &mut Control, ack: &Ack, started: Instant, timeout: Span) -> Result<Exit, Failure> {
    let left = || timeout.duration().saturating_sub(started.elapsed());
    for mark in &ack.marks {
        loop {
            let patience = Span::from(left()).min(MAX_WAIT);
            let seen = control.drained(&mark.upstream, &mark.peer, patience).await?;
            if seen.drained {
                _ = say(format_args!("{} in {}: drained", mark.peer, mark.upstream));
                break;
            }
            if seen.state == State::Up {
                let text =
                    format!("{} in {} was made ready again by somebody else", mark.peer, mark.upstream);
                return Err(Failure::new(Exit::Failed, text));
            }
            if left().is_zero() {
                let text = format!(
                    "{} in {} still has {} in flight after {timeout}. It stays {}: wait on with the same command, \
                     or take it back with `handoff ready`",
                    mark.peer, mark.upstream, seen.in_flight, seen.state
                );
                return Err(Failure::new(Exit::Deadline, text));
            }
        }
    }
    Ok(Exit::Done)
}
