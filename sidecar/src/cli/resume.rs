//! `handoff resume TARGET`

use super::{Context, Exit, Failure, say, target};
use handoff_wire::{Code, Owner, Resume, ResumedUpstream, Was};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// An upstream (myapp), or an app (shop): every upstream that one of its workers is in
    target: String,
    /// Whoever paused it
    #[arg(long)]
    force: bool,
}

pub(super) async fn run(context: &Context, args: &Args) -> Result<Exit, Failure> {
    let mut control = context.control();
    let view = control.upstreams().await?;
    let upstreams = target::upstreams(&args.target, context, &view).await?;
    let resume = Resume { owner: Owner::operator(), upstreams, force: args.force };
    let ack = control.resume(&resume).await.map_err(|error| Failure::or_force(error, Code::Paused))?;
    let mut problems = Vec::new();
    for ResumedUpstream { upstream, was, held } in ack.upstreams {
        match was {
            Was::Paused => _ = say(format_args!("{upstream}: resumed, {held} waited")),
            Was::Lapsed => problems.push(Failure::new(
                Exit::Deadline,
                format!("the pause of {upstream} was over before: it has had requests since"),
            )),
            Was::Running => problems.push(Failure::new(
                Exit::Failed,
                format!("{upstream} is not paused: nobody did, somebody resumed it, or nginx was restarted"),
            )),
        }
    }
    problems.into_iter().next().map_or(Ok(Exit::Done), Err)
}
