//! What a message on PM2's bus tells us.
//!
//! PM2 announces a stop nowhere but in a line of its own log (`Stopping app:NAME id:N`), a few milliseconds before the
//! signal. Everything else only says that something changed, and that it is time to look. Payloads carry the whole
//! environment of an app: only the fields named here are read, everything else is passed over unseen.

use super::PmId;
use serde::{Deserialize, Deserializer, de};
use std::fmt;

/// What an operator or PM2 itself is doing to a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// PM2 is about to send the signal.
    Stopping(PmId),
    /// The same, of a process that PM2 has replaced already: a reload in cluster mode.
    StoppingOld(PmId),
    /// PM2 is about to start a process.
    Starting(PmId),
    /// A process ended.
    Exited(PmId),
    /// The app says that it can serve.
    Ready(PmId),
    /// An app in cluster mode ends by an exception, which PM2 mostly does not write into its log files any more.
    Threw(PmId, Thrown),
    /// The worker was stopped or deleted, or PM2 gave it up: it does not come back by itself.
    Ended(PmId),
    /// Something happened: look.
    Changed,
}

/// Where an exception was thrown, for people. It may quote secrets, and is shown where the app's log would be.
#[derive(Clone, PartialEq, Eq)]
pub struct Thrown(String);

/// The topics worth their payload. Apps' output (`log:out`, `log:err`) is most of the traffic, and is not among them.
pub(super) fn is_wanted(topic: &[u8]) -> bool {
    matches!(topic, b"log:PM2" | b"process:event" | b"process:msg" | b"process:exception")
}

/// Reads the payload of a wanted topic. The number is PM2's own time of the event, in milliseconds since 1970.
pub(super) fn parse(topic: &[u8], payload: &[u8]) -> Option<(Event, u64)> {
    match topic {
        b"log:PM2" => serde_json::from_slice::<Log>(payload).ok()?.event(),
        b"process:event" => serde_json::from_slice::<Change>(payload).ok()?.event(),
        b"process:msg" => serde_json::from_slice::<Message>(payload).ok()?.event(),
        b"process:exception" => serde_json::from_slice::<Exception>(payload).ok()?.event(),
        _ => None,
    }
}

#[derive(Deserialize)]
struct Log {
    at: u64,
    data: String,
}

#[derive(Deserialize)]
struct Change {
    at: u64,
    event: String,
    process: Subject,
}

#[derive(Deserialize)]
struct Message {
    at: u64,
    #[serde(default)]
    raw: Raw,
    process: Subject,
}

#[derive(Deserialize)]
struct Exception {
    at: u64,
    data: Trace,
    process: Subject,
}

#[derive(Deserialize)]
struct Trace {
    stack: String,
}

#[derive(Deserialize)]
struct Subject {
    pm_id: AnyId,
}

/// `pm_id` is a number, or a text such as `_old_0` for a worker that a reload in cluster mode has replaced.
struct AnyId(Option<PmId>);

/// What an app sent with `process.send`: anything at all, of which one word matters.
#[derive(Default)]
struct Raw {
    ready: bool,
}

// === impl Log ===

impl Log {
    fn event(&self) -> Option<(Event, u64)> {
        let line = self.data.trim_end_matches('\n');
        Some((line_event(line)?, self.at))
    }
}

/// PM2's log lines, the same in its versions 5, 6 and 7. Names may hold anything, so they are read from the right.
fn line_event(line: &str) -> Option<Event> {
    if let Some(rest) = line.strip_prefix("Stopping app:") {
        let subject = rest.rsplit_once(" id:")?.1;
        return match subject.strip_prefix("_old_") {
            Some(old) => id(old).map(Event::StoppingOld),
            None => id(subject).map(Event::Stopping),
        };
    }
    let rest = line.strip_prefix("App [")?;
    if let Some((subject, _)) = rest.rsplit_once("] starting in -") {
        return id(subject.rsplit_once(':')?.1).map(Event::Starting);
    }
    let (subject, _) = rest.rsplit_once("] exited with code [")?;
    id(subject.rsplit_once(':')?.1).map(Event::Exited)
}

fn id(text: &str) -> Option<PmId> {
    text.parse().ok().map(PmId)
}

// === impl Change ===

impl Change {
    fn event(self) -> Option<(Event, u64)> {
        let event = match (self.event.as_str(), self.process.pm_id.0) {
            ("stop" | "delete" | "restart overlimit", Some(id)) => Event::Ended(id),
            _ => Event::Changed,
        };
        Some((event, self.at))
    }
}

// === impl Message ===

impl Message {
    fn event(self) -> Option<(Event, u64)> {
        let id = self.process.pm_id.0?;
        self.raw.ready.then_some((Event::Ready(id), self.at))
    }
}

// === impl Exception ===

impl Exception {
    fn event(self) -> Option<(Event, u64)> {
        let id = self.process.pm_id.0?;
        Some((Event::Threw(id, Thrown(self.data.stack)), self.at))
    }
}

// === impl Thrown ===

impl Thrown {
    pub fn lines(&self) -> impl Iterator<Item = &str> {
        self.0.lines().filter(|line| !line.trim().is_empty())
    }
}

impl fmt::Debug for Thrown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

// === impl AnyId ===

impl<'de> Deserialize<'de> for AnyId {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = AnyId;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a pm_id")
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<AnyId, E> {
                Ok(AnyId(u32::try_from(value).ok().map(PmId)))
            }

            fn visit_str<E: de::Error>(self, value: &str) -> Result<AnyId, E> {
                Ok(AnyId(id(value)))
            }
        }
        d.deserialize_any(Visitor)
    }
}

// === impl Raw ===

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        // An app may send a tree of any size: only a bare text is looked at, the rest is parsed into nothing.
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Raw;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("anything")
            }

            fn visit_str<E: de::Error>(self, value: &str) -> Result<Raw, E> {
                Ok(Raw { ready: value == "ready" })
            }

            fn visit_bool<E: de::Error>(self, _: bool) -> Result<Raw, E> {
                Ok(Raw::default())
            }

            fn visit_i64<E: de::Error>(self, _: i64) -> Result<Raw, E> {
                Ok(Raw::default())
            }

            fn visit_u64<E: de::Error>(self, _: u64) -> Result<Raw, E> {
                Ok(Raw::default())
            }

            fn visit_f64<E: de::Error>(self, _: f64) -> Result<Raw, E> {
                Ok(Raw::default())
            }

            fn visit_unit<E: de::Error>(self) -> Result<Raw, E> {
                Ok(Raw::default())
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<Raw, A::Error> {
                while seq.next_element::<de::IgnoredAny>()?.is_some() {}
                Ok(Raw::default())
            }

            fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Raw, A::Error> {
                while map.next_entry::<de::IgnoredAny, de::IgnoredAny>()?.is_some() {}
                Ok(Raw::default())
            }
        }
        d.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(line: &str) -> Option<Event> {
        let payload = serde_json::json!({"process": {"pm_id": "PM2", "name": "PM2", "rev": null}, "at": 7, "data": line});
        let (event, at) = parse(b"log:PM2", payload.to_string().as_bytes())?;
        assert_eq!(at, 7);
        Some(event)
    }

    fn event(payload: &str) -> Option<Event> {
        parse(b"process:event", payload.as_bytes()).map(|(event, _)| event)
    }

    fn message(payload: &str) -> Option<Event> {
        parse(b"process:msg", payload.as_bytes()).map(|(event, _)| event)
    }

    #[test]
    fn pm2_announces_a_stop_in_its_log() {
        assert_eq!(log("Stopping app:myapp id:3\n"), Some(Event::Stopping(PmId(3))));
        assert_eq!(log("Stopping app:an id:7 app id:3\n"), Some(Event::Stopping(PmId(3))));
        assert_eq!(log("Stopping app:myapp id:_old_3\n"), Some(Event::StoppingOld(PmId(3))));
        assert_eq!(log("App [my:app:12] starting in -fork mode-\n"), Some(Event::Starting(PmId(12))));
        assert_eq!(
            log("App [myapp:0] exited with code [0] via signal [SIGINT]\n"),
            Some(Event::Exited(PmId(0)))
        );
    }

    #[test]
    fn other_lines_say_nothing() {
        for line in [
            "",
            "\n",
            "Stopping app:myapp id:_old_\n",
            "Stopping app:myapp",
            "Stopping app:myapp id:-1",
            "Stopping app:myapp id:99999999999",
            "App [myapp:0] online\n",
            "App [",
            "App [] starting in -fork mode-",
            "pid=12 msg=process killed\n",
        ] {
            assert_eq!(log(line), None, "{line:?}");
        }
    }

    #[test]
    fn an_event_names_its_worker_by_number_or_by_text() {
        let stop = r#"{"event":"stop","manually":true,"process":{"pm_id":2,"env":{"SECRET":"x"}},"at":1}"#;
        assert_eq!(event(stop), Some(Event::Ended(PmId(2))));
        let given_up = r#"{"event":"restart overlimit","manually":false,"process":{"pm_id":2,"status":"errored"},"at":1}"#;
        assert_eq!(event(given_up), Some(Event::Ended(PmId(2))));
        let old =
            r#"{"event":"exit","manually":false,"process":{"pm_id":"_old_0","status":"stopping"},"at":1}"#;
        assert_eq!(event(old), Some(Event::Changed));
        assert_eq!(event(r#"{"event":"exit"}"#), None);
        assert_eq!(event("not json"), None);
    }

    #[test]
    fn an_exception_is_heard_and_not_shown() {
        let payload =
            br#"{"at":7,"data":{"message":"x","stack":"Error: x\n\n    at start"},"process":{"pm_id":4}}"#;
        let Some((Event::Threw(PmId(4), thrown), 7)) = parse(b"process:exception", payload) else {
            panic!("not heard")
        };
        assert_eq!(thrown.lines().collect::<Vec<_>>(), ["Error: x", "    at start"]);
        assert_eq!(format!("{thrown:?}"), "22 bytes");
        assert_eq!(
            parse(b"process:exception", br#"{"at":7,"data":{"message":"x"},"process":{"pm_id":4}}"#),
            None
        );
    }

    #[test]
    fn only_the_word_ready_means_ready() {
        assert_eq!(
            message(r#"{"at":1,"raw":"ready","process":{"pm_id":1,"name":"myapp"}}"#),
            Some(Event::Ready(PmId(1)))
        );
        for raw in ["\"done\"", "{\"ready\":[1,{}]}", "[\"ready\"]", "true", "null", "-1", "1", "1.5"] {
            let text = format!(r#"{{"at":1,"raw":{raw},"process":{{"pm_id":1}}}}"#);
            assert_eq!(message(&text), None, "{raw}");
        }
        assert_eq!(message(r#"{"at":1,"data":{"x":1},"process":{"pm_id":1}}"#), None);
    }
}
