//! Both ends of the control socket.

use serde_json::Value;

use super::{Source, assert_harmless};
use crate::command::status::table;
use crate::command::terminal::Look;
use crate::control::client;
use crate::control::frame::{Frames, TooLong};
use crate::control::protocol::{Answer, Asked, ControlRequest, Envelope, understand};
use crate::control::status::StatusReport;
use crate::observe::escape::single_line;

/// Small, so that its edge is found.
const LIMIT: usize = 512;

/// What a client sends: frames that come in pieces, calls inside them.
pub(super) fn requests(bytes: &[u8]) {
    let mut source = Source(bytes);
    let size = usize::from(source.byte()) + 1;
    let text = source.0;
    let (whole, pieces) = (messages(text, usize::MAX), messages(text, size));
    assert_eq!(whole, pieces, "how it arrives makes a difference");
    for message in whole.unwrap_or_default() {
        let Ok(envelope) = serde_json::from_slice::<Envelope>(&message) else { continue };
        match understand(envelope, "shop") {
            Asked::Known(answer) => assert_encodes(&answer),
            Asked::Loop(request) => assert_said_again(&request),
        }
    }
}

/// The messages of a stream that is read in pieces of this size; an error: one of them was too long.
fn messages(stream: &[u8], size: usize) -> Result<Vec<Vec<u8>>, TooLong> {
    let mut frames = Frames::new(LIMIT);
    let mut found = Vec::new();
    for piece in stream.chunks(size.min(LIMIT)) {
        frames.room().extend_from_slice(piece);
        while let Some(message) = frames.next()? {
            assert!(message.len() <= LIMIT && !message.contains(&0));
            found.push(message);
        }
        assert!(!frames.is_full(), "more is kept than one message may have");
    }
    Ok(found)
}

/// One zero byte, at the end, behind an object.
fn assert_encodes(answer: &Answer) {
    for continues in [false, true] {
        let bytes = answer.encode(continues);
        let (end, body) = bytes.split_last().expect("it has an end");
        assert!(*end == 0 && !body.contains(&0));
        let object: Value = serde_json::from_slice(body).expect("an answer is JSON");
        assert!(object.is_object());
    }
}

/// A request that was understood is one that our own client could have made.
fn assert_said_again(request: &ControlRequest) {
    let text = serde_json::to_vec(&client::envelope(request, Some("shop"))).expect("a request is JSON");
    let envelope = serde_json::from_slice(&text).expect("a request is an envelope");
    assert_eq!(understand(envelope, "shop"), Asked::Loop(*request));
}

/// What a manager answers, as far as it reaches somebody's terminal.
pub(super) fn reply(bytes: &[u8]) {
    let Ok(reply) = serde_json::from_slice::<client::Reply>(bytes) else { return };
    let parameters = reply.parameters.unwrap_or_default();
    if let Some(name) = reply.error {
        let error = client::error(&name, parameters);
        assert!((1..=3).contains(&error.exit_code()));
        error.to_string().lines().for_each(|line| assert_harmless(&single_line(line, 1 << 16)));
        return;
    }
    let _ = client::message_in(&parameters);
    let Ok(report) = serde_json::from_value::<StatusReport>(Value::Object(parameters)) else { return };
    let _ = report.every_slot_is_ready();
    for width in [None, Some(20), Some(80)] {
        let shown = table(&report, Look { colour: false, width });
        shown.lines().for_each(assert_harmless);
    }
    let again = serde_json::to_string(&report).expect("a report is JSON");
    let _: StatusReport = serde_json::from_str(&again).expect("a report is a report");
}
