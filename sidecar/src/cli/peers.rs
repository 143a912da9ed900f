//! `handoff peers add PEER…` and `handoff peers remove PEER…`

use super::{Context, Exit, Failure, say};
use crate::control::Control;
use handoff_wire::{Code, MAX_WAIT, Owner, PeerAdd, PeerRemove, Span, Upstreams};
use std::time::Instant;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Let an upstream with `handoff_slots` have these peers, from now on and until nginx ends
    Add(Add),
    /// Take peers away that were added: what they have they finish
    Remove(Remove),
}

#[derive(Debug, clap::Args)]
struct Add {
    /// Where they listen (10.0.0.7:3000, unix:/run/app.sock)
    #[arg(required = true)]
    peers: Vec<String>,
    #[command(flatten)]
    of: Of,
    /// The share of each, as `weight` of nginx's `server`
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    weight: u32,
    /// After how many failures nginx leaves one out
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    max_fails: u32,
    /// For how long it does, and within which time it counts
    #[arg(long, value_name = "TIME", default_value = "10s")]
    fail_timeout: Span,
    /// How many connections each has at most; 0 is no limit
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    max_conns: u32,
}

#[derive(Debug, clap::Args)]
struct Remove {
    /// Where they listen
    #[arg(required = true)]
    peers: Vec<String>,
    #[command(flatten)]
    of: Of,
    /// Wait until nothing is in flight any more
    #[arg(long)]
    wait: bool,
    /// How long to wait for all of them; they are gone when it has passed, too
    #[arg(long, value_name = "TIME", default_value = "30s", requires = "wait")]
    timeout: Span,
    /// Do it even if nobody is left to serve
    #[arg(long)]
    force: bool,
}

#[derive(Debug, clap::Args)]
struct Of {
    /// The upstream; may be left out where only one has `handoff_slots`
    #[arg(long, value_name = "NAME")]
    upstream: Option<String>,
    /// Why, for whoever wonders later
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
}

pub(super) async fn run(context: &Context, args: &Args) -> Result<Exit, Failure> {
    let mut control = context.control();
    match &args.command {
        Command::Add(args) => add(&mut control, args).await,
        Command::Remove(args) => remove(&mut control, args).await,
    }
}

async fn add(control: &mut Control, args: &Add) -> Result<Exit, Failure> {
    let upstream = args.of.upstream(control).await?;
    for peer in &args.peers {
        let add = PeerAdd {
            weight: args.weight,
            max_fails: args.max_fails,
            fail_timeout: args.fail_timeout,
            max_conns: args.max_conns,
            reason: args.of.reason.clone(),
            ..PeerAdd::new(Owner::operator(), peer)
        };
        let ack = control.add(&upstream, &add).await?;
        let news = if ack.changed { "added" } else { "there already" };
        _ = say(format_args!("{} in {upstream}: {news}, {}", ack.peer, ack.state));
    }
    Ok(Exit::Done)
}

async fn remove(control: &mut Control, args: &Remove) -> Result<Exit, Failure> {
    let started = Instant::now();
    let upstream = args.of.upstream(control).await?;
    let remove = PeerRemove { owner: Owner::operator(), reason: args.of.reason.clone(), force: args.force };
    let mut left = Vec::new();
    for peer in &args.peers {
        let ack = control.remove(&upstream, peer, &remove, Span::default()).await;
        let ack = ack.map_err(|error| Failure::or_force(error, Code::Floor))?;
        _ = say(format_args!("{} in {upstream}: removed, {} in flight", ack.peer, ack.in_flight));
        left.extend((ack.in_flight > 0).then_some(ack.peer));
    }
    if !args.wait {
        return Ok(Exit::Done);
    }
    for peer in &left {
        finish(control, &upstream, peer, &remove, started, args.timeout).await?;
        _ = say(format_args!("{peer} in {upstream}: gone"));
    }
    Ok(Exit::Done)
}

/// Until its last request is over.
async fn finish(
    control: &mut Control,
    upstream: &str,
    peer: &str,
    remove: &PeerRemove,
    started: Instant,
    timeout: Span,
) -> Result<(), Failure> {
    loop {
        let left = timeout.duration().saturating_sub(started.elapsed());
        let in_flight = match control.remove(upstream, peer, remove, Span::from(left).min(MAX_WAIT)).await {
            Ok(ack) => ack.in_flight,
            // Its slot is somebody else's by now.
            Err(error) if error.code() == Some(Code::PeerNotFound) => 0,
            Err(error) => return Err(error.into()),
        };
        if in_flight == 0 {
            return Ok(());
        }
        if left.is_zero() {
            let text = format!(
                "{peer} in {upstream} still has {in_flight} in flight after {timeout}. It gets no others: wait on with the same \
                 command"
            );
            return Err(Failure::new(Exit::Deadline, text));
        }
    }
}

// === impl Of ===

impl Of {
    async fn upstream(&self, control: &mut Control) -> Result<String, Failure> {
        if let Some(name) = &self.upstream {
            return Ok(name.clone());
        }
        let Upstreams { upstreams, .. } = control.upstreams().await?;
        let with_slots: Vec<String> =
            upstreams.into_iter().filter(|upstream| upstream.slots.is_some()).map(|it| it.name).collect();
        match with_slots.as_slice() {
            [name] => Ok(name.clone()),
            [] => Err(Failure::new(
                Exit::Failed,
                "no upstream has room for peers that are added: say \"handoff_slots 8;\" in one, and reload nginx",
            )),
            names => Err(Failure::new(Exit::Usage, format!("say --upstream, one of {}", names.join(", ")))),
        }
    }
}
