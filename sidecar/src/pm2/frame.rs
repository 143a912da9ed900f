//! The framing on both of PM2's sockets (npm: amp), read as a stream.
//!
//! ```text
//! message   1 byte: version (1) in the high nibble, number of arguments in the low one
//! argument  4 bytes: length, big endian;  then that many bytes
//! ```
//!
//! There is no outer length, so a message can only be skipped argument by argument. The decoder asks its policy before an
//! argument's first byte is stored: what is not kept costs no memory, however long its sender says it is.

use std::mem;

const VERSION: u8 = 1;

/// Decides, before it arrives, whether an argument is kept.
pub trait Policy {
    /// `before` are the arguments of the same message that came earlier.
    fn keeps(&self, before: &[Argument], len: u32) -> bool;
}

#[derive(Debug, PartialEq, Eq)]
pub enum Argument {
    Kept(Vec<u8>),
    /// Not kept; this long.
    Skipped(u32),
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("PM2's socket sends something else than PM2's messages (byte 0x{0:02x} where a message begins)")]
pub struct FrameError(u8);

/// Reads messages from a stream that may be split and merged at any byte.
#[derive(Debug)]
pub struct Decoder<P> {
    policy: P,
    state: State,
    args: Vec<Argument>,
}

#[derive(Debug)]
enum State {
    Meta,
    Length { args_left: u8, value: u32, bytes_left: u8 },
    Body { args_left: u8, kept: Option<Vec<u8>>, len: u32, bytes_left: u32 },
}

/// Writes one message.
pub fn encode(args: &[&[u8]]) -> Vec<u8> {
    let count = u8::try_from(args.len()).unwrap_or(u8::MAX).min(0x0f);
    let mut out = vec![VERSION << 4 | count];
    for arg in args.iter().take(usize::from(count)) {
        out.extend_from_slice(&u32::try_from(arg.len()).unwrap_or(u32::MAX).to_be_bytes());
        out.extend_from_slice(arg);
    }
    out
}

// === impl Argument ===

impl Argument {
    /// The text of an argument of the given type: `s` is a string, `j` is JSON.
    pub fn text(&self, kind: u8) -> Option<&[u8]> {
        match self {
            Self::Kept(bytes) => bytes.strip_prefix(&[kind, b':']),
            Self::Skipped(_) => None,
        }
    }
}

// === impl Decoder ===

impl<P: Policy> Decoder<P> {
    pub fn new(policy: P) -> Self {
        Self { policy, state: State::Meta, args: Vec::new() }
    }

    /// Takes from `input` what it needs for one message. `None`: all of the input is taken, and the message is not
    /// complete yet.
    pub fn feed(&mut self, input: &mut &[u8]) -> Result<Option<Vec<Argument>>, FrameError> {
        while let Some((&first, rest)) = input.split_first() {
            let done = match &mut self.state {
                State::Meta => {
                    *input = rest;
                    if first >> 4 != VERSION {
                        return Err(FrameError(first));
                    }
                    self.expect_argument(first & 0x0f)
                }
                State::Length { args_left, value, bytes_left } => {
                    *input = rest;
                    *value = *value << 8 | u32::from(first);
                    *bytes_left -= 1;
                    let (args_left, len, complete) = (*args_left, *value, *bytes_left == 0);
                    complete && self.begin_body(args_left, len)
                }
                State::Body { args_left, kept, len, bytes_left } => {
                    let wanted = usize::try_from(*bytes_left).unwrap_or(usize::MAX);
                    let (here, rest) = input.split_at(wanted.min(input.len()));
                    *input = rest;
                    if let Some(kept) = kept {
                        kept.extend_from_slice(here);
                    }
                    *bytes_left -= u32::try_from(here.len()).unwrap_or(*bytes_left);
                    let (args_left, kept, len, complete) = (
                        *args_left,
                        if *bytes_left == 0 { kept.take() } else { None },
                        *len,
                        *bytes_left == 0,
                    );
                    complete && self.end_body(args_left, kept, len)
                }
            };
            if done {
                return Ok(Some(mem::take(&mut self.args)));
            }
        }
        Ok(None)
    }

    /// True: there is none, the message is complete.
    fn expect_argument(&mut self, args_left: u8) -> bool {
        self.state = match args_left {
            0 => State::Meta,
            args_left => State::Length { args_left, value: 0, bytes_left: 4 },
        };
        args_left == 0
    }

    fn begin_body(&mut self, args_left: u8, len: u32) -> bool {
        // What the sender announces is not reserved: memory grows with what really arrives.
        let kept = self.policy.keeps(&self.args, len).then(Vec::new);
        if len == 0 {
            return self.end_body(args_left, kept, len);
        }
        self.state = State::Body { args_left, kept, len, bytes_left: len };
        false
    }

    fn end_body(&mut self, args_left: u8, kept: Option<Vec<u8>>, len: u32) -> bool {
        self.args.push(kept.map_or(Argument::Skipped(len), Argument::Kept));
        self.expect_argument(args_left - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keeps what is at most this long.
    #[derive(Debug)]
    struct UpTo(u32);

    impl Policy for UpTo {
        fn keeps(&self, _: &[Argument], len: u32) -> bool {
            len <= self.0
        }
    }

    fn kept(text: &str) -> Argument {
        Argument::Kept(text.into())
    }

    fn read(pieces: impl IntoIterator<Item = Vec<u8>>) -> Vec<Vec<Argument>> {
        let mut decoder = Decoder::new(UpTo(16));
        let mut messages = Vec::new();
        for piece in pieces {
            let mut input = piece.as_slice();
            while let Some(message) = decoder.feed(&mut input).unwrap() {
                messages.push(message);
            }
            assert!(input.is_empty());
        }
        messages
    }

    fn stream() -> (Vec<u8>, Vec<Vec<Argument>>) {
        let long = "x".repeat(300);
        let bytes = [
            encode(&[b"s:log:PM2", b"j:{}"]),
            encode(&[]),
            encode(&[b""]),
            encode(&[b"s:log:out", long.as_bytes(), b"more"]),
            encode(&[b"s:end"]),
        ]
        .concat();
        let messages = vec![
            vec![kept("s:log:PM2"), kept("j:{}")],
            vec![],
            vec![kept("")],
            vec![kept("s:log:out"), Argument::Skipped(300), kept("more")],
            vec![kept("s:end")],
        ];
        (bytes, messages)
    }

    #[test]
    fn a_real_request_is_written_byte_for_byte() {
        let call = br#"j:{"type":"call","method":"reloadProcessId","args":[{"id":0}]}"#;
        let bytes = encode(&[call, b"s:cli:0"]);
        assert_eq!(bytes.first(), Some(&0x12));
        assert_eq!(&bytes[1..5], &0x3e_u32.to_be_bytes());
        assert_eq!(&bytes[5..67], call);
        assert_eq!(&bytes[67..], b"\x00\x00\x00\x07s:cli:0");
    }

    #[test]
    fn messages_may_be_split_at_every_byte() {
        let (bytes, messages) = stream();
        for split in 0..=bytes.len() {
            let (left, right) = bytes.split_at(split);
            assert_eq!(read([left.to_vec(), right.to_vec()]), messages, "split at {split}");
        }
        assert_eq!(read(bytes.iter().map(|&byte| vec![byte])), messages);
    }

    #[test]
    fn an_argument_of_four_gigabytes_is_skipped_and_never_stored() {
        let mut decoder = Decoder::new(UpTo(1024));
        let mut head: &[u8] = &[0x11, 0xff, 0xff, 0xff, 0xff];
        assert_eq!(decoder.feed(&mut head), Ok(None));
        let chunk = vec![0; 1 << 20];
        for _ in 0..4095 {
            assert_eq!(decoder.feed(&mut chunk.as_slice()), Ok(None));
            assert!(matches!(&decoder.state, State::Body { kept: None, .. }));
        }
        let mut last = &chunk[1..];
        assert_eq!(decoder.feed(&mut last), Ok(Some(vec![Argument::Skipped(u32::MAX)])));
    }

    #[test]
    fn an_announced_length_reserves_nothing() {
        let mut decoder = Decoder::new(UpTo(u32::MAX));
        assert_eq!(decoder.feed(&mut [0x11, 0x40, 0, 0, 0, b'x'].as_slice()), Ok(None));
        let State::Body { kept: Some(kept), .. } = &decoder.state else { panic!("{decoder:?}") };
        assert!(kept.capacity() < 1024);
    }

    #[test]
    fn another_protocol_is_refused_at_its_first_byte() {
        let mut decoder = Decoder::new(UpTo(16));
        let error = decoder.feed(&mut b"HTTP/1.1 400".as_slice()).unwrap_err();
        assert!(error.to_string().contains("0x48"), "{error}");
    }

    #[test]
    fn an_argument_has_a_type() {
        assert_eq!(kept("s:ready").text(b's'), Some(b"ready".as_slice()));
        assert_eq!(kept("s:ready").text(b'j'), None);
        assert_eq!(kept("s").text(b's'), None);
        assert_eq!(Argument::Skipped(5).text(b's'), None);
    }
}
