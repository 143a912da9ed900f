//! The words that both sides of the control socket speak, and nothing else.
//!
//! nginx serves this API from whichever worker took the connection; the sidecar and any operator with `curl` are its
//! clients. Everything here is data: a request says what an owner wants of a peer, a view says what is, a refusal says
//! why not. Requests are strict (an unknown field is refused, so that a misspelt one is not silently ignored); views are
//! lenient when read (a newer module may say more).

#![forbid(unsafe_code)]

mod event;
mod owner;
pub mod path;
mod refusal;
mod request;
mod span;
mod state;
pub mod store;
mod timeline;
mod view;

pub use event::{Event, EventCounts, EventKind, Events};
pub use owner::{Owner, OwnerError, OwnerKind};
pub use refusal::{Code, ErrorBody, Refusal};
pub use request::{MarkRequest, MarkSet, OrphanRequest, OrphanSet, Pause, Renew, RenewMark, Resume};
pub use span::{Span, SpanError};
pub use state::{Expect, PeerState, State};
pub use timeline::{Deploy, Step, Timeline, Track};
pub use view::{
    Ack, AckedMark, Drained, GrantedView, HEADER_BOUNDS, HeaderTimes, MarkView, OutageView, Overview,
    PauseAck, PauseView, PausedUpstream, PeerView, ProcessView, QueueView, Quiet, RefusedView, Responses,
    ResumeAck, ResumedUpstream, RetryView, TimingView, UncoveredView, UpstreamView, Upstreams, Was, ZoneView,
};

/// The version in every path. It changes only when an old client could misunderstand the new server.
pub const API_VERSION: u32 = 1;

/// A request body longer than this is refused with 413.
pub const MAX_BODY: usize = 64 * 1024;

/// The default lease of a mark: its owner renews it each second, so ten renewals must be lost before it lapses.
pub const DEFAULT_LEASE: Span = Span::from_secs(10);
/// The shortest lease that can be asked for.
pub const MIN_LEASE: Span = Span::from_secs(1);
/// The longest lease that can be asked for.
pub const MAX_LEASE: Span = Span::from_secs(600);

/// How long an upstream is paused at most, unless it is asked for otherwise.
pub const DEFAULT_PAUSE: Span = Span::from_secs(30);

/// The longest time that one `drained` or `quiet` call waits before it answers what it sees.
pub const MAX_WAIT: Span = Span::from_secs(30);

/// Where nginx listens when nobody says otherwise.
pub const DEFAULT_CONTROL: &str = "unix:/run/handoff/nginx.sock";
