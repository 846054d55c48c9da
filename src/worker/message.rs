//! A notify datagram's text: `sd_notify(3)` and paddock's extensions. Hostile: anything may come.

use std::time::Duration;

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
            b"STATUS" => datagram.messages.push(Message::Status(escape(value, STATUS_MAX))),
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

/// Text from outside, made harmless for a terminal: control characters (C0, DEL, C1) and invalid UTF-8 become `\xNN`,
/// other unprintable or text-reordering characters `\u{…}`; at most about `limit` bytes of it.
pub fn escape(bytes: &[u8], limit: usize) -> String {
    let mut text = String::new();
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            if text.len() >= limit {
                text.push('…');
                return text;
            }
            match character {
                '\t' => text.push(' '),
                '\0'..='\x1f' | '\x7f'..='\u{9f}' => push_hex(&mut text, u32::from(character)),
                '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' => {
                    text.extend(character.escape_unicode());
                }
                _ => text.push(character),
            }
        }
        for byte in chunk.invalid() {
            push_hex(&mut text, u32::from(*byte));
        }
    }
    text
}

fn push_hex(text: &mut String, value: u32) {
    text.push_str("\\x");
    for shift in [4, 0] {
        text.extend(char::from_digit((value >> shift) & 0xf, 16));
    }
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

    #[test]
    fn text_cannot_drive_a_terminal() {
        assert_eq!(escape(b"\x1b[2Jx\x07\xc2\x9by\xff", 100), "\\x1b[2Jx\\x07\\x9by\\xff");
        assert_eq!(escape("a\u{202e}b".as_bytes(), 100), "a\\u{202e}b");
        assert_eq!(escape(&[b'x'; 1000], 10), "xxxxxxxxxx…");
    }
}
