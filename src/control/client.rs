//! A client's end of the control socket: plain blocking calls. SIGINT just ends the client, which cancels nothing.

use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::sockopt::Timeout;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{Pid, PidfdFlags};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::directory::{DirectoryError, Surroundings, socket_address};
use super::frame::Frames;
use super::protocol::{ControlRequest, Envelope, INTERFACE, MAX_REPLY};
use super::status::StatusReport;

/// How long a manager may take to let a client in, to take a request, and to answer one that needs no waiting.
const PATIENCE: Duration = Duration::from_secs(10);

/// A connection to an app's manager.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    frames: Frames,
    app: Option<String>,
    path: PathBuf,
}

impl Connection {
    /// Connect to the manager of `app`, wherever its runtime directory may be.
    pub fn open(surroundings: &Surroundings, app: &str) -> Result<Self, ClientError> {
        let candidates = surroundings.of_client(app)?;
        for path in &candidates {
            match Self::open_directory(path) {
                Ok(mut connection) => {
                    connection.app = Some(app.to_owned());
                    return Ok(connection);
                }
                Err(ClientError::NotRunning { .. }) => {}
                Err(other) => return Err(other),
            }
        }
        Err(ClientError::NotRunning { app: Some(app.to_owned()), tried: candidates })
    }

    /// Connect to whoever serves this runtime directory.
    pub fn open_directory(path: &Path) -> Result<Self, ClientError> {
        let stream = connect(path).map_err(|errno| match errno {
            // There is no directory, no socket in it, or nobody behind it.
            Errno::NOENT | Errno::NOTDIR | Errno::CONNREFUSED => {
                ClientError::NotRunning { app: None, tried: vec![path.to_path_buf()] }
            }
            // The queue of its listener is full and stays so.
            Errno::AGAIN => ClientError::Silent { path: path.to_path_buf() },
            Errno::ACCESS | Errno::PERM => ClientError::Denied { path: path.to_path_buf() },
            other => ClientError::Io { path: path.to_path_buf(), source: other.into() },
        })?;
        let frames = Frames::new(MAX_REPLY);
        Ok(Self { stream: stream.into(), frames, app: None, path: path.to_path_buf() })
    }

    /// The whole state; the only request that is answered at once by every manager that lives.
    pub fn status(&mut self) -> Result<StatusReport, ClientError> {
        self.stream.set_read_timeout(Some(PATIENCE)).map_err(|source| self.io(source))?;
        let parameters = self.call(&ControlRequest::Status, |_| {})?;
        serde_json::from_value(Value::Object(parameters)).map_err(|_| ClientError::Garbled)
    }

    /// Have something done, however long it takes; returns the sentence that says so. `progress` hears of a reload's steps.
    pub fn perform(&mut self, request: &ControlRequest, progress: impl FnMut(&str)) -> Result<String, ClientError> {
        self.stream.set_read_timeout(None).map_err(|source| self.io(source))?;
        Ok(message_in(&self.call(request, progress)?).to_owned())
    }

    /// The manager's process, to wait for its end; none: it is of another pid namespace, or too old a kernel.
    pub fn manager(&self) -> Option<OwnedFd> {
        let pid = Pid::from_raw(rustix::net::sockopt::socket_peercred(&self.stream).ok()?.pid.as_raw_pid())?;
        rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok()
    }

    fn call(
        &mut self,
        request: &ControlRequest,
        mut progress: impl FnMut(&str),
    ) -> Result<Map<String, Value>, ClientError> {
        let envelope = envelope(request, self.app.as_deref());
        let mut bytes = serde_json::to_vec(&envelope).map_err(|_| ClientError::Garbled)?;
        bytes.push(0);
        // A manager that is full answers and closes at once: what it said counts, not that writing failed.
        let written = self.stream.write_all(&bytes);
        loop {
            let reply = match (self.read(), &written) {
                (Err(_), Err(source)) => {
                    return Err(if hung_up(source) { ClientError::Ended } else { self.io(source.kind().into()) });
                }
                (reply, _) => reply?,
            };
            let parameters = reply.parameters.unwrap_or_default();
            match reply.error {
                Some(name) => return Err(error(&name, parameters)),
                None if reply.continues => progress(message_in(&parameters)),
                None => return Ok(parameters),
            }
        }
    }

    fn read(&mut self) -> Result<Reply, ClientError> {
        loop {
            if let Some(message) = self.frames.next().map_err(|_| ClientError::Garbled)? {
                return serde_json::from_slice(&message).map_err(|_| ClientError::Garbled);
            }
            let mut chunk = [0; 16 * 1024];
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(ClientError::Ended),
                Ok(length) => {
                    self.frames.room().extend_from_slice(chunk.get(..length).unwrap_or_default());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if hung_up(&error) => return Err(ClientError::Ended),
                Err(error) => return Err(self.io(error)),
            }
        }
    }

    fn io(&self, source: io::Error) -> ClientError {
        if source.kind() == io::ErrorKind::WouldBlock {
            return ClientError::Silent { path: self.path.clone() };
        }
        ClientError::Io { path: self.path.clone(), source }
    }
}

/// The other end closed, before or after it had read all that was sent.
fn hung_up(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

/// Wait for the end of a process.
pub fn wait_for_end(pidfd: &OwnedFd) -> io::Result<()> {
    loop {
        let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
        match rustix::event::poll(&mut fds, None) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn connect(path: &Path) -> Result<OwnedFd, Errno> {
    // The group of [control] may enter the directory (0711), not read it.
    let directory = rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    rustix::net::sockopt::set_socket_timeout(&socket, Timeout::Send, Some(PATIENCE))?;
    let address = socket_address(path, directory.as_fd())?;
    rustix::net::connect(&socket, &address)?;
    Ok(socket)
}

#[derive(Deserialize)]
pub(crate) struct Reply {
    #[serde(default)]
    pub(crate) parameters: Option<Map<String, Value>>,
    #[serde(default)]
    pub(crate) error: Option<String>,
    #[serde(default)]
    continues: bool,
}

pub(crate) fn envelope(request: &ControlRequest, app: Option<&str>) -> Envelope {
    let mut parameters = Map::new();
    let mut put = |name: &str, value: Value| {
        parameters.insert(name.to_owned(), value);
    };
    if let Some(app) = app {
        put("app", app.into());
    }
    let mut more = false;
    let name = match request {
        ControlRequest::Status => "Status",
        ControlRequest::Reload { wait } => {
            put("wait", (*wait).into());
            more = *wait;
            "Reload"
        }
        ControlRequest::Recycle { slot } => {
            put("slot", (*slot).into());
            "Recycle"
        }
        ControlRequest::Scale { workers } => {
            put("workers", (*workers).into());
            "Scale"
        }
        ControlRequest::Signal { signal, slot } => {
            put("signal", signal.0.into());
            put("slot", (*slot).into());
            "Signal"
        }
        ControlRequest::Stop { fast } => {
            put("fast", (*fast).into());
            "Stop"
        }
    };
    Envelope {
        method: format!("{INTERFACE}.{name}"),
        parameters: Some(parameters),
        more,
        oneway: false,
        upgrade: false,
    }
}

pub(crate) fn message_in(parameters: &Map<String, Value>) -> &str {
    parameters.get("message").and_then(Value::as_str).unwrap_or_default()
}

pub(crate) fn error(name: &str, mut parameters: Map<String, Value>) -> ClientError {
    let mut text = |key: &str| match parameters.remove(key) {
        Some(Value::String(text)) => text,
        _ => String::new(),
    };
    match name.strip_prefix(INTERFACE).and_then(|rest| rest.strip_prefix('.')) {
        Some("Failed") => {
            let reason = text("reason");
            let last_words = parameters
                .remove("last_words")
                .and_then(|lines| serde_json::from_value(lines).ok())
                .unwrap_or_default();
            ClientError::Failed { reason, last_words }
        }
        Some("Invalid") => ClientError::Invalid { reason: text("reason") },
        Some("WrongApp") => ClientError::WrongApp { app: text("app") },
        _ => ClientError::Refused { error: name.to_owned(), parameters },
    }
}

/// Why a request was not done.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No runtime directory.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// Nobody answers at the control socket.
    #[error(
        "no manager{} is running (looked in {})",
        app.as_ref().map(|app| format!(" of {app}")).unwrap_or_default(),
        tried.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
    )]
    NotRunning {
        /// Of which app; none: any.
        app: Option<String>,
        /// Where a socket was looked for.
        tried: Vec<PathBuf>,
    },
    /// Another app's manager answered.
    #[error("this runtime directory is of {app}")]
    WrongApp {
        /// Whose.
        app: String,
    },
    /// The socket's mode says no.
    #[error(
        "no permission for the control socket in {}: it is for root, the manager's user and the members of [control] group",
        path.display()
    )]
    Denied {
        /// Where.
        path: PathBuf,
    },
    /// The manager lives and does nothing.
    #[error("the manager at {} has not answered for {} s: it is stopped, or busy beyond measure", path.display(), PATIENCE.as_secs())]
    Silent {
        /// Where.
        path: PathBuf,
    },
    /// The manager said no.
    #[error("{reason}")]
    Failed {
        /// A sentence that says why.
        reason: String,
        /// Last lines of the worker that is to blame, oldest first.
        last_words: Vec<String>,
    },
    /// The request or the configuration file is wrong.
    #[error("{reason}")]
    Invalid {
        /// The whole diagnostic.
        reason: String,
    },
    /// The manager does not know what was asked: it is of another version.
    #[error("the manager does not understand: {error} {}", Value::Object(parameters.clone()))]
    Refused {
        /// The error's name.
        error: String,
        /// What it is about.
        parameters: Map<String, Value>,
    },
    /// The connection ended before the answer.
    #[error("the manager ended, or dropped the connection, before it answered")]
    Ended,
    /// The answer is no answer.
    #[error("the manager's answer makes no sense")]
    Garbled,
    /// The kernel refused.
    #[error("control socket in {}: {source}", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

impl ClientError {
    /// The client's exit code: 1 it failed, 2 what was asked is wrong, 3 no such app is running.
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::NotRunning { .. } | Self::WrongApp { .. } => 3,
            Self::Invalid { .. } | Self::Directory(DirectoryError::Name(_)) => 2,
            Self::Directory(_)
            | Self::Denied { .. }
            | Self::Silent { .. }
            | Self::Failed { .. }
            | Self::Refused { .. }
            | Self::Ended
            | Self::Garbled
            | Self::Io { .. } => 1,
        }
    }
}
