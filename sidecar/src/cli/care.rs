//! How carefully a roll-out goes: what `handoff reload` and `handoff deploy` have in common.

use crate::rollout::{OnDeadline, Options, health};
use handoff_wire::Span;

#[derive(Clone, Debug, clap::Args)]
pub(super) struct Care {
    /// How long requests may take to finish before their worker is stopped
    #[arg(long, value_name = "TIME", default_value = "30s")]
    pub(super) drain_timeout: Span,
    /// What becomes of those that take longer
    #[arg(long, value_name = "WHAT", default_value = "stop")]
    pub(super) on_deadline: OnDeadline,
    /// How long a worker may take until it listens and is ready
    #[arg(long, value_name = "TIME", default_value = "30s")]
    start_timeout: Span,
    /// What a worker is asked, at its own address, before it serves; 2xx and 3xx are well
    #[arg(long, value_name = "PATH")]
    pub(super) health: Option<health::Path>,
    /// How often it must be well in a row
    #[arg(long, value_name = "N", default_value = "3", value_parser = clap::value_parser!(u32).range(1..=1000))]
    health_passes: u32,
    /// How long it may take until it is well
    #[arg(long, value_name = "TIME", default_value = "10s")]
    health_timeout: Span,
    /// How long to watch how it answers users [default: until that is clear, at most 1s]
    #[arg(long, value_name = "TIME")]
    pub(super) watch: Option<Span>,
    /// So many workers at once; the first one is always alone
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u16).range(1..=1000))]
    parallel: u16,
    /// Do it even if nobody is left to serve
    #[arg(long)]
    force: bool,
    /// Do it even if requests reach a worker past Handoff
    #[arg(long)]
    uncovered_ok: bool,
}

// === impl Care ===

impl Care {
    pub(super) fn options(&self) -> Options {
        Options {
            drain_timeout: self.drain_timeout,
            on_deadline: self.on_deadline,
            start_timeout: self.start_timeout,
            health: self.health.clone(),
            health_passes: self.health_passes,
            health_timeout: self.health_timeout,
            watch: self.watch,
            parallel: self.parallel.into(),
            force: self.force,
            uncovered_ok: self.uncovered_ok,
        }
    }
}
