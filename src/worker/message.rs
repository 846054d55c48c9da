//! A notify datagram's text: `sd_notify(3)` and paddock's extensions. Hostile: anything may come.

use std::time::Duration;

use crate::observe::escape::single_line_bytes;
use crate::supervisor::event::Message;

/// The longest `STATUS=` that is kept, in bytes.
const STATUS_MAX: usize = 256;

/// What a datagram asks for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Datagram {
    /// For the supervisor, in the order in which the lines stood.
    pub messages: Vec<Message>,
    /// `BARRIER=1`: the sender waits for its descriptor to be closed.
    pub barrier: bool,
}

/// Read a datagram. Unknown keys and values that make no sense are passed over, as systemd does.
pub fn parse(bytes: &[u8]) -> Datagram {
    let mut datagram = Datagram::default();
    for line in bytes.split(|byte| *byte == b'\n') {
        let Some(equals) = line.iter().position(|byte| *byte == b'=') else { continue };
        let (key, value) = line.split_at(equals);
        let value = value.get(1..).unwrap_or_default();
        match key {
            b"READY" if value == b"1" => datagram.messages.push(Message::Ready),
            b"STOPPING" if value == b"1" => datagram.messages.push(Message::Stopping),
            b"STATUS" => datagram.messages.push(Message::Status(single_line_bytes(value, STATUS_MAX))),
            b"WATCHDOG" if value == b"1" => datagram.messages.push(Message::Watchdog),
            b"WATCHDOG" if value == b"trigger" => datagram.messages.push(Message::WatchdogTrigger),
            b"EXTEND_TIMEOUT_USEC" => {
                datagram.messages.extend(number(value).map(Duration::from_micros).map(Message::ExtendTimeout));
            }
            b"X_PADDOCK_REQUESTS" => datagram.messages.extend(number(value).map(Message::Requests)),
            b"X_PADDOCK_RECYCLE" if value == b"1" => datagram.messages.push(Message::Recycle),
            b"BARRIER" if value == b"1" => datagram.barrier = true,
            _ => {}
        }
    }
    datagram
}

fn number(value: &[u8]) -> Option<u64> {
    std::str::from_utf8(value).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_is_known() {
        let datagram = parse(
            b"READY=1\nSTATUS=busy\nWATCHDOG=1\nWATCHDOG=trigger\nEXTEND_TIMEOUT_USEC=1500000\n\
              X_PADDOCK_REQUESTS=17\nX_PADDOCK_RECYCLE=1\nSTOPPING=1\nBARRIER=1\n",
        );
        assert_eq!(
            datagram.messages,
            [
                Message::Ready,
                Message::Status("busy".into()),
                Message::Watchdog,
                Message::WatchdogTrigger,
                Message::ExtendTimeout(Duration::from_millis(1500)),
                Message::Requests(17),
                Message::Recycle,
                Message::Stopping,
            ]
        );
        assert!(datagram.barrier);
    }

    #[test]
    fn nonsense_is_passed_over() {
        for text in [
            &b""[..],
            b"READY",
            b"READY=0",
            b"READY=yes",
            b"X_PADDOCK_REQUESTS=",
            b"X_PADDOCK_REQUESTS=-1",
            b"X_PADDOCK_REQUESTS=+1",
            b"X_PADDOCK_REQUESTS=99999999999999999999999",
            b"EXTEND_TIMEOUT_USEC=soon",
            b"\xff\xfe=\x00",
            b"=",
            b"MAINPID=1",
        ] {
            assert_eq!(parse(text), Datagram::default(), "{:?}", String::from_utf8_lossy(text));
        }
    }
}
