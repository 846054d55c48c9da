//! A client of a few lines that says exactly how a request failed.

use std::fmt;
use std::io::{self, BufRead as _, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use super::pace;

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// How a request was lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The connection was refused.
    Refused,
    /// The connection was reset.
    Reset,
    /// The connection ended before the answer was whole.
    Short,
    /// No answer within the client's patience.
    Timeout,
    /// An answer, but not 200.
    Status(u16),
    /// Anything else.
    Other(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        #[expect(clippy::wildcard_enum_match_arm, reason = "all other kinds are alike here")]
        match error.kind() {
            io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => Self::Refused,
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionAborted => {
                Self::Reset
            }
            io::ErrorKind::UnexpectedEof => Self::Short,
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Self::Timeout,
            _ => Self::Other(error.to_string()),
        }
    }
}

/// An answer.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    pub(crate) body: Value,
    /// The server will close the connection.
    pub(crate) closes: bool,
}

impl Reply {
    /// A number in the body.
    pub(crate) fn number(&self, key: &str) -> u64 {
        self.body[key].as_u64().unwrap_or_else(|| panic!("no number {key} in {}", self.body))
    }

    /// The answering worker's pid.
    pub(crate) fn pid(&self) -> u32 {
        u32::try_from(self.number("pid")).expect("a pid")
    }
}

trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

/// One connection.
pub(crate) struct Client {
    stream: BufReader<Box<dyn Stream>>,
}

impl Client {
    /// Connects; `patience`, stretched for slow machines, bounds each read and write.
    pub(crate) fn connect(target: &Target, patience: Duration) -> Result<Self, Failure> {
        let patience = pace::patient(patience);
        let stream: Box<dyn Stream> = match target {
            Target::Tcp(address) => {
                let stream = TcpStream::connect_timeout(address, patience)?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(patience))?;
                stream.set_write_timeout(Some(patience))?;
                Box::new(stream)
            }
            Target::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(Some(patience))?;
                stream.set_write_timeout(Some(patience))?;
                Box::new(stream)
            }
        };
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Asks and waits for the whole answer.
    pub(crate) fn get(&mut self, path: &str, close: bool) -> Result<Reply, Failure> {
        self.send(path, close)?;
        self.receive()
    }

    /// Asks only.
    pub(crate) fn send(&mut self, path: &str, close: bool) -> Result<(), Failure> {
        let connection = if close { "close" } else { "keep-alive" };
        let request = format!("GET {path} HTTP/1.1\r\nHost: paddock.test\r\nConnection: {connection}\r\n\r\n");
        Ok(self.stream.get_mut().write_all(request.as_bytes())?)
    }

    /// Waits for the answer to what was sent.
    pub(crate) fn receive(&mut self) -> Result<Reply, Failure> {
        let mut status = None;
        let mut length = 0;
        let mut closes = false;
        loop {
            let mut line = String::new();
            if self.stream.read_line(&mut line)? == 0 {
                return Err(Failure::Short);
            }
            let line = line.trim_end();
            if line.is_empty() {
                break;
            }
            if status.is_none() {
                status = line.split(' ').nth(1).and_then(|code| code.parse::<u16>().ok());
            }
            let (name, value) = line.split_once(':').unwrap_or((line, ""));
            match name.to_ascii_lowercase().as_str() {
                "content-length" => length = value.trim().parse().unwrap_or(0),
                "connection" => closes = value.trim().eq_ignore_ascii_case("close"),
                _ => {}
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        match status {
            Some(200) => Ok(Reply { body: serde_json::from_slice(&body).unwrap_or(Value::Null), closes }),
            Some(code) => Err(Failure::Status(code)),
            None => Err(Failure::Other("no status line".to_owned())),
        }
    }
}

/// One request on a connection of its own.
pub(crate) fn get(target: &Target, path: &str) -> Result<Reply, Failure> {
    get_within(target, path, Duration::from_secs(30))
}

/// As [`get`], with a bound.
pub(crate) fn get_within(target: &Target, path: &str, patience: Duration) -> Result<Reply, Failure> {
    Client::connect(target, patience)?.get(path, true)
}

/// A request under way in a thread of its own.
pub(crate) struct InFlight(std::thread::JoinHandle<Result<Reply, Failure>>);

impl InFlight {
    /// Sends the request before it returns.
    pub(crate) fn send(target: &Target, path: &str, patience: Duration) -> Self {
        let mut client = Client::connect(target, patience).expect("a connection");
        client.send(path, true).expect("the request is sent");
        Self(std::thread::spawn(move || client.receive()))
    }

    /// Waits for the answer.
    pub(crate) fn answer(self) -> Result<Reply, Failure> {
        self.0.join().expect("the client's thread")
    }

    /// Whether the answer has come, or will not.
    pub(crate) fn is_over(&self) -> bool {
        self.0.is_finished()
    }
}
