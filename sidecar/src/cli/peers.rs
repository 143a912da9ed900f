//! `handoff peers add PEER…`, `handoff peers remove PEER…` and, on an app host of many, `handoff peers leave`

use super::{Context, Exit, Failure, complain, say};
use crate::control::Control;
use handoff_wire::{
    Ack, Code, Expect, MAX_WAIT, MarkRequest, MarkSet, Owner, PeerAdd, PeerRemove, Renew, Span, State,
    Upstreams,
    store::{AmissView, LeftMember, MemberView},
};
use std::time::{Duration, Instant};

/// Who takes the host's peers out of service before it leaves: its marks end with this command.
const LEAVES: &str = "rollout:leave";
const RENEWAL: Duration = Duration::from_secs(2);

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
    /// Take leave: no nginx in the store has the peers of this host any more, once they are drained
    Leave(Leave),
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
struct Leave {
    /// How long to wait until nothing is in flight any more; they are gone when it has passed, too
    #[arg(long, value_name = "TIME", default_value = "30s")]
    timeout: Span,
    /// Why, for whoever wonders later
    #[arg(long, value_name = "TEXT", default_value = "this host leaves")]
    reason: String,
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
        Command::Leave(args) => leave(&mut control, args).await,
    }
}

/// Nobody begins a request on them; nothing is in flight; every nginx lets go. In this order.
async fn leave(control: &mut Control, args: &Leave) -> Result<Exit, Failure> {
    let started = Instant::now();
    let Some(store) = control.store().await? else {
        let text = "this host is not in a store, so no nginx has its peers from it: take them out of nginx.conf, or `handoff \
                    peers remove` them on the nginx host";
        return Err(Failure::new(Exit::Failed, text));
    };
    if store.members.is_empty() {
        let text = "this host brings no peers: its configuration has no [[store.peer]]";
        return Err(Failure::new(Exit::Failed, text));
    }
    let somewhere = store.members.iter().filter(|member| !member.edges.is_empty());
    let mark = |member: &MemberView| MarkRequest {
        upstream: Some(member.upstream.clone()),
        peer: member.address.clone(),
        state: State::Draining,
        expect: Expect::Gone,
        reason: args.reason.clone(),
        all: false,
    };
    let marks: Vec<MarkRequest> = somewhere.map(mark).collect();
    let owner: Owner = LEAVES.parse().map_err(|error| Failure::new(Exit::Failed, format!("{error}")))?;
    let mut drain = MarkSet { owner, lease: None, force: args.force, marks };
    let mut in_flight = 0;
    if !drain.marks.is_empty() {
        let ack = control.mark(&drain).await.map_err(|error| Failure::or_force(error, Code::Floor))?;
        in_flight = drained(control, &drain.owner, &ack, started, args.timeout).await?;
    }
    let left = control.leave().await?;
    drain.marks.iter_mut().for_each(|mark| mark.state = State::Up);
    if !drain.marks.is_empty() {
        // On a peer that nginx.conf names, too: it is as it was before.
        control.mark(&drain).await?;
    }
    let mut exit = Exit::Done;
    for LeftMember { upstream, address, stays } in &left.members {
        for AmissView { edge, text } in stays {
            complain(format_args!("{address} in {upstream} stays at {edge}: {text}"));
            exit = Exit::Failed;
        }
        if stays.is_empty() {
            _ = say(format_args!("{address} in {upstream}: gone"));
        }
    }
    if in_flight > 0 {
        let text =
            format!("{in_flight} requests were still in flight after {}. They get no others", args.timeout);
        return Err(Failure::new(Exit::Deadline, text));
    }
    Ok(exit)
}

/// Waits until nothing is in flight, or the time has passed. What was in flight then.
async fn drained(
    control: &mut Control,
    owner: &Owner,
    ack: &Ack,
    started: Instant,
    timeout: Span,
) -> Result<u64, Failure> {
    let mut in_flight = 0;
    for mark in &ack.marks {
        loop {
            let left = timeout.duration().saturating_sub(started.elapsed());
            let patience = Span::from(left.min(RENEWAL));
            let seen = control.drained(&mark.upstream, &mark.peer, patience).await?;
            control.renew(&Renew { owner: owner.clone(), lease: None, marks: None }).await?;
            if seen.drained || left.is_zero() {
                in_flight += seen.in_flight;
                break;
            }
        }
    }
    Ok(in_flight)
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
