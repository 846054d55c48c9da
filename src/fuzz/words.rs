//! Text lines of workers and of whoever starts paddock.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;

use super::{Source, assert_harmless};
use crate::observe::escape::{single_line, single_line_bytes};
use crate::observe::log::{self, OutputSource, Record};
use crate::supervisor::event::Message;
use crate::systemd::{activation, journal, notify};
use crate::worker::{message, output};

/// A worker's notify datagram.
pub(super) fn message(bytes: &[u8]) {
    let datagram = message::parse(bytes);
    let lines = bytes.split(|byte| *byte == b'\n').count();
    assert!(datagram.messages.len() <= lines, "more messages than lines");
    for said in &datagram.messages {
        if let Message::Status(text) = said {
            assert!(text.len() <= 256, "STATUS of {} bytes", text.len());
            assert_harmless(text);
        }
    }
    // Lines stand for themselves: cut at any line's end, both halves say together what the whole says.
    for (at, _) in bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n').take(8) {
        let (first, second) = (message::parse(&bytes[..at]), message::parse(&bytes[at + 1..]));
        assert_eq!([first.messages, second.messages].concat(), datagram.messages);
        assert_eq!(first.barrier || second.barrier, datagram.barrier);
    }
}

/// What a worker writes to its standard output, as it reaches the log in each of its forms.
pub(super) fn output(bytes: &[u8]) {
    let mut source = Source(bytes);
    let sizes = [source.byte(), source.byte(), source.byte()];
    let text = source.0;
    let whole = lines(&[text]);
    let mut pieces = Vec::new();
    let mut rest = text;
    for size in sizes.iter().cycle() {
        let (piece, after) = rest.split_at(rest.len().min(usize::from(*size) + 1));
        pieces.push(piece);
        rest = after;
        if rest.is_empty() {
            break;
        }
    }
    assert_eq!(lines(&pieces), whole, "how it arrives makes a difference");
    for line in &whole {
        assert!(line.len() <= output::LINE_MAX);
        let most = usize::from(sizes[0]).max(3);
        let shown = single_line_bytes(line, most);
        assert!(shown.len() <= most, "{shown:?} is longer than {most}");
        assert_harmless(&shown);
        let shown = single_line_bytes(line, 4 * output::LINE_MAX);
        assert_eq!(single_line(&shown, 4 * output::LINE_MAX), shown, "escaping is not stable");
        logged(&shown);
    }
    let field = String::from_utf8_lossy(text);
    entry(&field);
    let _ = journal::read::parse(&field).map(|line| assert_harmless(&line));
}

fn lines(pieces: &[&[u8]]) -> Vec<Vec<u8>> {
    let lines = RefCell::new(Vec::new());
    let mut state = output::Heard::default();
    for piece in pieces {
        state.take(piece, &|line: &[u8]| lines.borrow_mut().push(line.to_vec()));
    }
    lines.into_inner()
}

/// One record is one line, whatever is in it.
fn logged(line: &str) {
    let source = OutputSource { slot: 1, worker: 2, generation: 3, pid: 4 };
    let mut record = Record::of_output(&source, line);
    record.fields.push(("field".to_owned(), line.to_owned()));
    let text = log::as_text("shop", &record);
    assert_harmless(text.strip_suffix('\n').expect("a line has an end"));
    let json = log::as_json("shop", &record);
    assert_eq!(json.matches('\n').count(), 1);
    let value: serde_json::Value = serde_json::from_str(&json).expect("a line is an object");
    assert_eq!(value["message"], line);
}

/// A journal entry's fields are what they were made from: no value can smuggle in a field of its own.
fn entry(text: &str) {
    let entry = journal::Entry::default().field("A", text).field(text, "name").field("B", "end");
    let mut rest = entry.as_bytes();
    let mut names = Vec::new();
    while !rest.is_empty() {
        let end = rest.iter().position(|byte| matches!(byte, b'=' | b'\n')).expect("a field has a name");
        names.push(String::from_utf8_lossy(&rest[..end]).into_owned());
        let value_at = end + 1;
        let length = if rest[end] == b'=' {
            rest[value_at..].iter().position(|byte| *byte == b'\n').expect("a field has an end")
        } else {
            let (count, _) = rest[value_at..].split_at(8);
            rest = &rest[8..];
            usize::try_from(u64::from_le_bytes(count.try_into().expect("eight bytes"))).expect("a length")
        };
        rest = &rest[value_at + length + 1..];
    }
    assert!(names.len() <= 3 && names.first().is_some_and(|name| name == "A"), "{names:?}");
    assert!(names.iter().all(|name| name == "A" || name == "B" || name == text), "{names:?}");
}

/// Variables of the service manager: a byte each says whether one is there, a NUL ends its value.
pub(super) fn activation(bytes: &[u8]) {
    let mut source = Source(bytes);
    let there = source.byte();
    let mut values = source.0.split(|byte| *byte == 0);
    let names = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "NOTIFY_SOCKET"];
    let variables: Vec<(&str, &OsStr)> = names
        .iter()
        .enumerate()
        .filter(|(bit, _)| there >> bit & 1 == 1)
        .map(|(_, name)| (*name, OsStr::from_bytes(values.next().unwrap_or_default())))
        .collect();
    let variable =
        |name: &str| variables.iter().find(|(other, _)| *other == name).map(|(_, value)| (*value).to_owned());
    match activation::announced(variable, 42) {
        Ok(activation::Announced::Ours(names)) => assert!(!names.is_empty() && names.len() <= 4096),
        Ok(activation::Announced::ForAnother(pid)) => assert_ne!(pid, 42),
        Ok(activation::Announced::Nothing) => {}
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    if let Some(name) = variable("NOTIFY_SOCKET")
        && let Some(address) = notify::parse_address(&name)
    {
        assert!(address.path_bytes().is_some() || address.abstract_name().is_some());
    }
}
