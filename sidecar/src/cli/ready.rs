//! `handoff ready TARGET`

use super::{Context, Exit, Failure, drain, say, target::Target};
use crate::peer::Peer;
use handoff_wire::{MarkSet, State, Upstreams};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// An app (shop), one worker (shop:3), or a peer (127.0.0.1:3000)
    target: String,
    /// Take away the marks of every owner, not only the operator's
    #[arg(long)]
    all: bool,
}

pub(super) async fn run(context: &Context, args: &Args) -> Result<Exit, Failure> {
    let mut control = context.control();
    let view = control.upstreams().await?;
    let peers = Target::parse(&args.target).resolve(context, &view).await?;
    let set = drain::marks(&peers, State::Up, "");
    let marks = set.marks.iter().cloned().map(|mark| handoff_wire::MarkRequest { all: args.all, ..mark });
    let ack = control.mark(&MarkSet { marks: marks.collect(), ..set.clone() }).await?;
    let view = control.upstreams().await?;
    for mark in &ack.marks {
        let peer = Peer::new(&mark.upstream, &mark.peer);
        _ = say(format_args!("{peer}: {}{}", mark.state, held_back(&view, &peer)));
    }
    Ok(Exit::Done)
}

/// Who else keeps a peer from serving.
fn held_back(view: &Upstreams, peer: &Peer) -> String {
    let upstreams = view.upstreams.iter().filter(|up| up.name == peer.upstream);
    let mut peers = upstreams.flat_map(|up| &up.peers).filter(|seen| seen.address == peer.address);
    let marks = peers.next().map(|peer| peer.marks.as_slice()).unwrap_or_default();
    marks.iter().map(|mark| format!(", {} by {}: {}", mark.state, mark.owner, mark.reason)).collect()
}
