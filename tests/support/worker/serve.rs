//! HTTP/1.1 on one connection.

use std::io::{self, BufRead as _, BufReader, Read as _};
use std::sync::Arc;
use std::time::Duration;

use super::commands;
use super::listeners::Connection;
use super::state::{State, wait_readable};

/// How long an idle connection may still send its next request once the drain has begun.
const IDLE_GRACE: Duration = Duration::from_secs(2);

/// The most that a request's head may take.
const HEAD_LIMIT: u64 = 16 << 10;

/// A request, as far as anyone here cares.
pub(super) struct Request {
    pub(super) path: String,
    pub(super) query: Vec<(String, String)>,
    wants_close: bool,
}

impl Request {
    /// A parameter of the query.
    pub(super) fn get(&self, key: &str) -> Option<&str> {
        self.query.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// A parameter that is a number.
    pub(super) fn number(&self, key: &str) -> Option<u64> {
        self.get(key)?.parse().ok()
    }
}

/// Serves a connection that is already counted as open.
pub(super) fn start(state: &Arc<State>, connection: Box<dyn Connection>) {
    let state = Arc::clone(state);
    std::thread::spawn(move || {
        let _ = serve(&state, connection);
        state.leave();
    });
}

fn serve(state: &Arc<State>, connection: Box<dyn Connection>) -> io::Result<()> {
    let mut connection = BufReader::new(connection);
    loop {
        if connection.buffer().is_empty() && !wait_for_request(state, connection.get_ref().as_ref()) {
            return Ok(());
        }
        let Some(request) = read_request(&mut connection)? else { return Ok(()) };
        let body = commands::perform(state, &request);
        let closes = request.wants_close || state.is_draining();
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: {}\r\n\r\n",
            body.len(),
            if closes { "close" } else { "keep-alive" }
        );
        let answer = [head.as_bytes(), body.as_bytes()].concat();
        connection.get_mut().write_all(&answer)?;
        state.count_request();
        if closes {
            return Ok(());
        }
    }
}

/// Until something can be read; false if the worker drains and the client has nothing more to ask.
fn wait_for_request(state: &State, connection: &dyn Connection) -> bool {
    if !state.is_draining() && wait_readable(&[connection.as_fd(), state.drain_latch()], None).first() == Some(&true) {
        return true;
    }
    wait_readable(&[connection.as_fd()], Some(IDLE_GRACE)) == [true]
}

fn read_request(connection: &mut BufReader<Box<dyn Connection>>) -> io::Result<Option<Request>> {
    let mut head = Vec::new();
    loop {
        let line_starts = head.len();
        let read = connection.by_ref().take(HEAD_LIMIT).read_until(b'\n', &mut head)?;
        if read == 0 {
            return Ok(None);
        }
        if head.get(line_starts..) == Some(b"\r\n") {
            break;
        }
    }
    Ok(parse(&String::from_utf8_lossy(&head)))
}

fn parse(head: &str) -> Option<Request> {
    let mut lines = head.lines();
    let target = lines.next()?.split(' ').nth(1)?;
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let query = query.split('&').filter_map(|pair| pair.split_once('='));
    Some(Request {
        path: path.to_owned(),
        query: query.map(|(key, value)| (key.to_owned(), percent_decode(value))).collect(),
        wants_close: lines.any(|line| line.eq_ignore_ascii_case("connection: close")),
    })
}

fn percent_decode(text: &str) -> String {
    let mut decoded = Vec::new();
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let digits = [bytes.next().unwrap_or(b'0'), bytes.next().unwrap_or(b'0')];
            let digits = String::from_utf8_lossy(&digits).into_owned();
            decoded.push(u8::from_str_radix(&digits, 16).unwrap_or(b'?'));
        } else {
            decoded.push(byte);
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}
