//! The values of the directives, read once into what cannot be wrong. The shell adds the place and "in …".

use crate::hold::Queue;
use crate::retry::Budget;
use crate::reuse::Reuse;
use crate::table::Plan;
use handoff_wire::Span;
use std::fmt;

/// `handoff_zone size;` if nobody says otherwise: about a thousand peers.
pub const DEFAULT_ZONE: usize = 4 * 1024 * 1024;
/// The smallest zone: a few dozen peers.
pub const MIN_ZONE: usize = 512 * 1024;

/// The most slots that `handoff_slots` gives an upstream: its balancer walks over all of them.
pub const MAX_SLOTS: usize = 512;

/// `handoff_api [write=on|off] [user=name] [group=name] [tcp=allow];`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Api {
    pub write: bool,
    pub user: Option<String>,
    pub group: Option<String>,
    pub tcp: bool,
}

/// A refusal in nginx's style, with the mend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Invalid {
    Parameter(String),
    Twice(&'static str),
    Pointless(&'static str),
    NoSuch(&'static str, String),
    ZoneTooSmall(usize),
    Reuse(String),
    NoIdle(String),
    Queue(String),
    NoQueue(String),
    Retry(String),
    NoRetry,
    SlowStart(String),
    NoSlowStart(String),
    Slots(String),
}

impl Api {
    pub fn parse<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Result<Self, Invalid> {
        let mut write = None;
        let mut api = Self::default();
        for argument in arguments {
            match argument.split_once('=') {
                Some(("write", "on")) => once(&mut write, true, "write")?,
                Some(("write", "off")) => once(&mut write, false, "write")?,
                Some(("user", name)) if !name.is_empty() => once(&mut api.user, name.to_owned(), "user")?,
                Some(("group", name)) if !name.is_empty() => once(&mut api.group, name.to_owned(), "group")?,
                Some(("tcp", "allow")) => api.tcp = true,
                _ => return Err(Invalid::Parameter(argument.to_owned())),
            }
        }
        api.write = write.unwrap_or(false);
        if !api.write && (api.user.is_some() || api.group.is_some()) {
            return Err(Invalid::Pointless("\"user\" and \"group\" say who may write"));
        }
        if !api.write && api.tcp {
            return Err(Invalid::Pointless("\"tcp=allow\" lets clients write over TCP"));
        }
        Ok(api)
    }
}

fn once<T>(place: &mut Option<T>, value: T, name: &'static str) -> Result<(), Invalid> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(Invalid::Twice(name)),
    }
}

/// Checks the size of `handoff_zone`.
pub fn zone(bytes: usize) -> Result<Plan, Invalid> {
    Plan::for_bytes(bytes).filter(|_| bytes >= MIN_ZONE).ok_or(Invalid::ZoneTooSmall(bytes))
}

/// Reads the value of `handoff_reuse`; `time` reads a time as nginx does, into milliseconds.
pub fn reuse(value: &str, time: impl FnOnce(&str) -> Option<u64>) -> Result<Reuse, Invalid> {
    if value == "always" {
        return Ok(Reuse::Always);
    }
    match value.strip_prefix("idle=").and_then(time) {
        Some(0) => Err(Invalid::NoIdle(value.to_owned())),
        Some(limit) => Ok(Reuse::Idle(limit)),
        None => Err(Invalid::Reuse(value.to_owned())),
    }
}

/// Reads `handoff_queue number [bytes=size] [timeout=time] | off;` — `None` is `off`. `size` and `time` read as nginx does, into
/// bytes and milliseconds.
pub fn queue<'a>(
    arguments: impl IntoIterator<Item = &'a str>,
    size: impl Fn(&str) -> Option<u64>,
    time: impl Fn(&str) -> Option<u64>,
) -> Result<Option<Queue>, Invalid> {
    let mut arguments = arguments.into_iter();
    let invalid = |text: &str| Invalid::Queue(text.to_owned());
    let Some(first) = arguments.next() else { return Err(invalid("")) };
    if first == "off" {
        return arguments.next().map_or(Ok(None), |more| Err(invalid(more)));
    }
    let requests = amount(first, first.parse().ok())?;
    let (mut bytes, mut timeout) = (None, None);
    for argument in arguments {
        match argument.split_once('=') {
            Some(("bytes", value)) => once(&mut bytes, amount(argument, size(value))?, "bytes")?,
            Some(("timeout", value)) => once(&mut timeout, amount(argument, time(value))?, "timeout")?,
            _ => return Err(invalid(argument)),
        }
    }
    let default = Queue::default();
    Ok(Some(Queue {
        requests: u32::try_from(requests).map_err(|_| invalid(first))?,
        bytes: bytes.unwrap_or(default.bytes),
        timeout: timeout.unwrap_or(default.timeout),
    }))
}

/// Reads `handoff_retry [budget=percent%] [min=number] | off;` — `None` is `off`.
pub fn retry<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Result<Option<Budget>, Invalid> {
    let mut arguments = arguments.into_iter().peekable();
    let invalid = |text: &str| Invalid::Retry(text.to_owned());
    if arguments.next_if_eq(&"off").is_some() {
        return arguments.next().map_or(Ok(None), |more| Err(invalid(more)));
    }
    let (mut percent, mut min) = (None, None);
    for argument in arguments {
        let (place, name, value) = match argument.split_once('=') {
            Some(("budget", value)) => (&mut percent, "budget", value.strip_suffix('%').and_then(number)),
            Some(("min", value)) => (&mut min, "min", number(value)),
            _ => return Err(invalid(argument)),
        };
        let is_share = |&value: &u32| name == "min" || value <= 100;
        once(place, value.filter(is_share).ok_or_else(|| invalid(argument))?, name)?;
    }
    let default = Budget::default();
    match (percent.unwrap_or(default.percent), min.unwrap_or(default.min)) {
        (0, 0) => Err(Invalid::NoRetry),
        (percent, min) => Ok(Some(Budget { percent, min })),
    }
}

/// Reads `handoff_slow_start time | off;` — `None` is `off`. `time` reads as nginx does, into milliseconds.
pub fn slow_start(value: &str, time: impl FnOnce(&str) -> Option<u64>) -> Result<Option<Span>, Invalid> {
    if value == "off" {
        return Ok(None);
    }
    match time(value) {
        Some(0) => Err(Invalid::NoSlowStart(value.to_owned())),
        Some(length) => Ok(Some(Span::from_millis(length))),
        None => Err(Invalid::SlowStart(value.to_owned())),
    }
}

/// Reads `handoff_slots number;`.
pub fn slots(value: &str) -> Result<usize, Invalid> {
    let count = number(value).map(|count| count as usize);
    count.filter(|count| (1..=MAX_SLOTS).contains(count)).ok_or_else(|| Invalid::Slots(value.to_owned()))
}

/// Digits and nothing else.
fn number(text: &str) -> Option<u32> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

/// What a queue has of something, which is not nothing.
fn amount(argument: &str, value: Option<u64>) -> Result<u64, Invalid> {
    match value {
        Some(0) => Err(Invalid::NoQueue(argument.to_owned())),
        Some(value) => Ok(value),
        None => Err(Invalid::Queue(argument.to_owned())),
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Parameter(text) => write!(
                f,
                "invalid parameter \"{text}\": use write=on, write=off, user=name, group=name or tcp=allow"
            ),
            Self::Twice(name) => write!(f, "duplicate parameter \"{name}\""),
            Self::Pointless(why) => write!(f, "{why}: add write=on, or leave it out"),
            Self::NoSuch(what, name) => {
                write!(f, "there is no {what} \"{name}\" on this machine: create it, or name another")
            }
            Self::ZoneTooSmall(bytes) => {
                write!(f, "a zone of {bytes} bytes is too small: use at least {}k", MIN_ZONE / 1024)
            }
            Self::Reuse(text) => {
                write!(f, "invalid parameter \"{text}\": use idle=1s, idle=500ms or always")
            }
            Self::Queue(text) => write!(
                f,
                "invalid parameter \"{text}\": use off, or a number of requests with bytes=64m or timeout=30s after it"
            ),
            Self::NoQueue(text) => {
                write!(f, "\"{text}\" would let nobody wait: say off if that is what you want")
            }
            Self::Retry(text) => {
                write!(f, "invalid parameter \"{text}\": use off, budget=20% (at most 100%) or min=10")
            }
            Self::NoRetry => {
                write!(f, "\"budget=0% min=0\" would repeat nothing: say off if that is what you want")
            }
            Self::SlowStart(text) => {
                write!(f, "invalid parameter \"{text}\": use a time, such as 30s, or off")
            }
            Self::NoSlowStart(text) => {
                write!(f, "\"{text}\" is no time at all: say off if that is what you want")
            }
            Self::Slots(text) => {
                write!(f, "invalid number \"{text}\": use 1 to {MAX_SLOTS}")
            }
            Self::NoIdle(text) => {
                write!(f, "\"{text}\" would open a connection for every POST: use at least idle=1ms")
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn an_api_is_read_only_unless_it_says_otherwise() {
        assert_eq!(Api::parse([]), Ok(Api::default()));
        assert!(!Api::parse(["write=off"]).unwrap().write);
        let api = Api::parse(["write=on", "user=deploy", "group=ops", "tcp=allow"]).unwrap();
        assert!(api.write && api.tcp);
        assert_eq!((api.user.as_deref(), api.group.as_deref()), (Some("deploy"), Some("ops")));
    }

    #[test]
    fn what_an_api_cannot_be_is_refused_with_the_mend() {
        for (arguments, says) in [
            (&["writes=on"][..], "invalid parameter \"writes=on\": use write=on"),
            (&["write=yes"], "invalid parameter \"write=yes\""),
            (&["write"], "invalid parameter \"write\""),
            (&["user="], "invalid parameter \"user=\""),
            (&["write=on", "write=off"], "duplicate parameter \"write\""),
            (&["user=deploy"], "add write=on, or leave it out"),
            (&["write=off", "tcp=allow"], "add write=on, or leave it out"),
        ] {
            let text = Api::parse(arguments.iter().copied()).unwrap_err().to_string();
            assert!(text.contains(says), "{arguments:?}: {text}");
        }
    }

    #[test]
    fn the_default_zone_holds_a_thousand_peers() {
        assert!(zone(DEFAULT_ZONE).unwrap().slots >= 1000);
        assert!(zone(MIN_ZONE).unwrap().slots >= 32);
        assert_eq!(zone(MIN_ZONE - 1), Err(Invalid::ZoneTooSmall(MIN_ZONE - 1)));
    }

    #[test]
    fn a_connection_is_reused_always_or_while_it_was_used_just_now() {
        let seconds = |text: &str| Some(text.strip_suffix('s')?.parse::<u64>().ok()? * 1000);
        assert_eq!(reuse("always", |_| unreachable!()), Ok(Reuse::Always));
        assert_eq!(reuse("idle=3s", seconds), Ok(Reuse::Idle(3000)));
        for (value, says) in [
            ("never", "invalid parameter \"never\": use idle=1s, idle=500ms or always"),
            ("idle", "invalid parameter \"idle\""),
            ("idle=", "invalid parameter \"idle=\""),
            ("idle=soon", "invalid parameter \"idle=soon\""),
            ("always=1s", "invalid parameter \"always=1s\""),
            ("idle=0s", "\"idle=0s\" would open a connection for every POST: use at least idle=1ms"),
        ] {
            let text = reuse(value, seconds).unwrap_err().to_string();
            assert!(text.contains(says), "{value}: {text}");
        }
    }

    #[test]
    fn a_queue_has_a_length_and_may_have_a_size_and_a_time() {
        let size = |text: &str| Some(text.strip_suffix('m')?.parse::<u64>().ok()? << 20);
        let time = |text: &str| Some(text.strip_suffix('s')?.parse::<u64>().ok()? * 1000);
        let read = |text: &str| queue(text.split_whitespace(), size, time);
        assert_eq!(read("off"), Ok(None));
        assert_eq!(read("9"), Ok(Some(Queue { requests: 9, ..Queue::default() })));
        let whole = Queue { requests: 9, bytes: 64 << 20, timeout: 5000 };
        assert_eq!(read("9 bytes=64m timeout=5s"), Ok(Some(whole)));
        assert_eq!(read("9 timeout=5s bytes=64m"), Ok(Some(whole)));
        for (value, says) in [
            ("on", "invalid parameter \"on\": use off, or a number of requests"),
            ("-1", "invalid parameter \"-1\""),
            ("9999999999", "invalid parameter \"9999999999\""),
            ("timeout=5s", "invalid parameter \"timeout=5s\""),
            ("off 9", "invalid parameter \"9\""),
            ("9 timeout", "invalid parameter \"timeout\""),
            ("9 timeout=soon", "invalid parameter \"timeout=soon\""),
            ("9 bytes=", "invalid parameter \"bytes=\""),
            ("9 size=64m", "invalid parameter \"size=64m\""),
            ("9 bytes=1m bytes=2m", "duplicate parameter \"bytes\""),
            ("0", "\"0\" would let nobody wait: say off if that is what you want"),
            ("9 timeout=0s", "\"timeout=0s\" would let nobody wait"),
        ] {
            let text = read(value).unwrap_err().to_string();
            assert!(text.contains(says), "{value}: {text}");
        }
    }

    #[test]
    fn a_slow_start_takes_a_time_or_is_off() {
        let seconds = |text: &str| Some(text.strip_suffix('s')?.parse::<u64>().ok()? * 1000);
        assert_eq!(slow_start("off", |_| unreachable!()), Ok(None));
        assert_eq!(slow_start("30s", seconds), Ok(Some(Span::from_secs(30))));
        for (value, says) in [
            ("soon", "invalid parameter \"soon\": use a time, such as 30s, or off"),
            ("time=30s", "invalid parameter \"time=30s\""),
            ("", "invalid parameter \"\""),
            ("0s", "\"0s\" is no time at all: say off"),
        ] {
            let text = slow_start(value, seconds).unwrap_err().to_string();
            assert!(text.contains(says), "{value}: {text}");
        }
    }

    #[test]
    fn a_budget_is_a_share_and_a_number_in_any_case() {
        let read = |text: &str| retry(text.split_whitespace());
        assert_eq!(read("off"), Ok(None));
        assert_eq!(read("budget=20% min=10"), Ok(Some(Budget::default())));
        assert_eq!(read("min=4"), Ok(Some(Budget { percent: 20, min: 4 })));
        assert_eq!(read("budget=100%"), Ok(Some(Budget { percent: 100, min: 10 })));
        assert_eq!(read("min=1 budget=0%"), Ok(Some(Budget { percent: 0, min: 1 })));
        for (value, says) in [
            ("on", "invalid parameter \"on\": use off, budget=20% (at most 100%) or min=10"),
            ("budget=20", "invalid parameter \"budget=20\""),
            ("budget=%", "invalid parameter \"budget=%\""),
            ("budget=101%", "invalid parameter \"budget=101%\""),
            ("budget=+5%", "invalid parameter \"budget=+5%\""),
            ("min=", "invalid parameter \"min=\""),
            ("min=-1", "invalid parameter \"min=-1\""),
            ("min=9999999999", "invalid parameter \"min=9999999999\""),
            ("off min=3", "invalid parameter \"min=3\""),
            ("min=3 off", "invalid parameter \"off\""),
            ("min=3 min=4", "duplicate parameter \"min\""),
            ("budget=0% min=0", "\"budget=0% min=0\" would repeat nothing: say off"),
        ] {
            let text = read(value).unwrap_err().to_string();
            assert!(text.contains(says), "{value}: {text}");
        }
    }

    #[test]
    fn an_upstream_has_some_slots_and_not_too_many() {
        assert_eq!((slots("1"), slots("512")), (Ok(1), Ok(MAX_SLOTS)));
        for value in ["0", "513", "-1", "+8", "8k", "", "many"] {
            let text = slots(value).unwrap_err().to_string();
            assert_eq!(text, format!("invalid number \"{value}\": use 1 to 512"));
        }
    }
}
