//! The words on the socket: one JSON object a line.

use super::Answer;
use crate::host::Process;
use serde::{Deserialize, Serialize, de::IgnoredAny};
use std::{io, time::Duration};
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _};

/// In bytes, with its end.
const LONGEST_LINE: u64 = 4096;

/// Whoever does not know a type or a member passes it over.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Said {
    Hello {
        #[serde(default)]
        listens: Vec<IgnoredAny>,
    },
    Listening {
        #[serde(default)]
        listens: Vec<IgnoredAny>,
    },
    /// It was told to go, and waits for an answer.
    Stopping {},
    /// It has so many requests left.
    InFlight { n: u64 },
    /// A roll-out says this of a worker.
    Drain {
        #[serde(flatten)]
        worker: Process,
        deadline_ms: u64,
    },
    #[serde(other)]
    Unknown,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Told {
    /// nginx sends it nothing from now on.
    Ack,
    /// nginx cannot be told: there is nothing to wait for.
    Nack,
    /// Nobody else serves yet: it goes on, and is answered within this time.
    Wait { ms: u64 },
    Drain {
        /// Of a roll-out, which says it to us: whom it means.
        #[serde(flatten)]
        worker: Option<Process>,
        deadline_ms: u64,
    },
    /// What PM2 calls it.
    Name { name: String },
    /// To a roll-out: so many are left.
    InFlight { n: u64 },
}

// === impl Said ===

impl Said {
    /// None: the end, or a line that nobody of ours would write.
    pub async fn read(reader: &mut (impl AsyncBufRead + Unpin)) -> io::Result<Option<Self>> {
        let mut line = Vec::new();
        reader.take(LONGEST_LINE).read_until(b'\n', &mut line).await?;
        match line.strip_suffix(b"\n") {
            Some(line) => Ok(serde_json::from_slice(line).ok()),
            None => Ok(None),
        }
    }
}

// === impl Told ===

impl Told {
    pub fn wait(long: Duration) -> Self {
        Self::Wait { ms: millis(long) }
    }

    pub fn drain(worker: Process, deadline: Duration) -> Self {
        Self::Drain { worker: Some(worker), deadline_ms: millis(deadline) }
    }

    pub fn line(&self) -> Vec<u8> {
        let mut line = serde_json::to_vec(self).unwrap_or_default();
        line.push(b'\n');
        line
    }
}

fn millis(long: Duration) -> u64 {
    u64::try_from(long.as_millis()).unwrap_or(u64::MAX)
}

impl From<Answer> for Told {
    fn from(answer: Answer) -> Self {
        match answer {
            Answer::Ack => Self::Ack,
            Answer::Nack => Self::Nack,
            Answer::Wait(long) => Self::wait(long),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(text: &str) -> Vec<String> {
        let (mut reader, mut read) = (text.as_bytes(), Vec::new());
        while let Ok(Some(said)) = Said::read(&mut reader).await {
            read.push(format!("{said:?}"));
        }
        read
    }

    #[tokio::test]
    async fn what_is_not_known_is_passed_over() {
        let text = r#"{"type":"hello","v":1,"pid":7,"listens":[{"path":"/a"}],"more":{}}
{"type":"sings","loud":true}
{"type":"stopping","signal":"SIGINT","in_flight":2,"wait_ms":400}
"#;
        let read = read(text).await;
        assert!(read[0].starts_with("Hello") && read[0].contains('['), "{read:?}");
        assert_eq!(read[1..], ["Unknown", "Stopping"]);
    }

    #[tokio::test]
    async fn a_line_that_is_cut_too_long_or_none_of_ours_is_the_end() {
        assert_eq!(read("{\"type\":\"stopping\"}").await, [""; 0]);
        assert_eq!(read("nonsense\n{\"type\":\"stopping\"}\n").await, [""; 0]);
        let long = format!("{{\"type\":\"stopping\",\"a\":\"{}\"}}\n", "a".repeat(4096));
        assert_eq!(read(&long).await, [""; 0]);
    }

    #[test]
    fn what_is_told_is_one_line() {
        assert_eq!(Told::Ack.line(), b"{\"type\":\"ack\"}\n");
        assert_eq!(Told::wait(Duration::from_secs(1)).line(), b"{\"type\":\"wait\",\"ms\":1000}\n");
        let name = Told::Name { name: "a\n\"b\":0".to_owned() };
        assert_eq!(name.line(), b"{\"type\":\"name\",\"name\":\"a\\n\\\"b\\\":0\"}\n");
    }
}
