//! What one image of the process hands to the next: the state as the state file has it, and what is more than a file can
//! hold: open descriptors, by number, and what was heard but not yet used.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::os::fd::{OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::control::server::HandedClient;
use crate::supervisor::id::WorkerId;
use crate::supervisor::time::Time;
use crate::sys;
use crate::worker::output::Heard;

use super::super::state::{self, State};
use super::super::worker::InJournal;

/// The variable that names the descriptor: `PID:NUMBER`. For the process of that pid only, as `LISTEN_PID` is.
pub const VARIABLE: &str = "PADDOCK_TAKE_OVER";

/// The form of this page; an image that knows another one refuses when it is asked.
pub const FORM: u32 = 1;

/// More than ten thousand workers need.
const LONGEST: u64 = 128 << 20;

/// Everything.
#[derive(Debug, Serialize, Deserialize)]
pub struct Handover {
    /// The form of this page: [`FORM`].
    pub form: u32,
    /// To be said by an image that agrees to take over.
    pub password: String,
    /// The command line.
    pub arguments: Vec<OsString>,
    /// Where the program was started from.
    pub image: Option<PathBuf>,
    /// The app's runtime directory.
    pub directory: PathBuf,
    /// When the first image began.
    pub started: Time,
    /// As in the state file.
    pub state: String,
    /// The app's lock.
    pub lock: RawFd,
    /// The control socket.
    pub control: RawFd,
    /// The app's sockets.
    pub listeners: HandedListeners,
    /// Clients of the control socket that wait for an answer.
    pub clients: Vec<HandedClient>,
    /// What is more than the state says of each worker.
    pub workers: Vec<HandedWorker>,
}

/// The app's sockets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandedListeners {
    /// Names and descriptors, in the order in which workers see them.
    pub sockets: Vec<(String, RawFd)>,
    /// How many of them had been passed in.
    pub passed_in: usize,
    /// Paths that we bound ourselves, with device and inode.
    pub own_paths: Vec<(PathBuf, (u64, u64))>,
}

/// One worker.
#[derive(Debug, Serialize, Deserialize)]
pub struct HandedWorker {
    /// Which.
    pub worker: WorkerId,
    /// Its first process and its pidfd; none: it is over, and that is known.
    pub process: Option<(i32, RawFd)>,
    /// Its notify socket.
    pub notify: RawFd,
    /// Its pressure socket.
    pub pressure: RawFd,
    /// Who is connected there.
    pub connections: Vec<RawFd>,
    /// Its output.
    pub output: RawFd,
    /// What was read of it.
    pub heard: Heard,
    /// Where its lines are if they go to the journal directly.
    pub journal: Option<InJournal>,
    /// Whether what it left is being killed and its fence removed.
    pub swept: bool,
    /// Whether a message from outside it has been logged.
    pub stranger_logged: bool,
    /// Its fence.
    pub fence: HandedFence,
}

/// A worker's fence.
#[derive(Debug, Serialize, Deserialize)]
pub struct HandedFence {
    /// For the mode that made it.
    pub data: serde_json::Value,
    /// An open file of it.
    pub fd: Option<RawFd>,
}

/// Why this program cannot take over what it was handed.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    /// The variable is not ours.
    #[error("{VARIABLE}={0:?} is not a process and a descriptor")]
    Variable(OsString),
    /// It could not be read.
    #[error("reading what was handed over: {0}")]
    Read(#[from] std::io::Error),
    /// It makes no sense.
    #[error("what was handed over is damaged: {0}")]
    Damaged(#[from] serde_json::Error),
    /// Another version of paddock wrote it.
    #[error("what was handed over has form {0}, and this paddock knows form {FORM}")]
    Form(u32),
    /// The state itself.
    #[error(transparent)]
    State(#[from] state::StateError),
    /// Another boot's.
    #[error("the state is of another boot")]
    Boot,
    /// It promises a descriptor that is not there, or the same one twice.
    #[error("descriptor {number} was promised: {error}")]
    Descriptor {
        /// Which.
        number: RawFd,
        /// What is wrong with it.
        error: std::io::Error,
    },
}

impl Handover {
    /// Read one, and the state in it. No descriptor is touched.
    ///
    /// # Errors
    /// See [`HandoverError`].
    pub fn parse(text: &[u8]) -> Result<(Self, State), HandoverError> {
        #[derive(Deserialize)]
        struct Head {
            form: u32,
        }
        let Head { form } = serde_json::from_slice(text)?;
        if form != FORM {
            return Err(HandoverError::Form(form));
        }
        let handover: Self = serde_json::from_slice(text)?;
        let state = state::parse(handover.state.as_bytes(), Path::new("the state"))?;
        if !state.is_of_this_boot() {
            return Err(HandoverError::Boot);
        }
        Ok((handover, state))
    }

    /// What an earlier image of this process left for this one; call it first in the life of the process, while nothing
    /// else can have opened a descriptor.
    ///
    /// # Errors
    /// See [`HandoverError`].
    pub fn take(environment: impl Fn(&str) -> Option<OsString>) -> Result<Option<(Self, State)>, HandoverError> {
        let Some(value) = environment(VARIABLE) else { return Ok(None) };
        let wrong = || HandoverError::Variable(value.clone());
        let (pid, number) = value.to_str().and_then(|value| value.split_once(':')).ok_or_else(wrong)?;
        let pid: u32 = pid.parse().map_err(|_| wrong())?;
        if pid != std::process::id() {
            return Ok(None);
        }
        let number: RawFd = number.parse().map_err(|_| wrong())?;
        let memory = sys::adopt_fd(number).map_err(|error| HandoverError::Descriptor { number, error })?;
        let text = read(memory)?;
        Self::parse(&text).map(Some)
    }

    /// Every descriptor that is named, in no order.
    pub fn descriptors(&self) -> Vec<RawFd> {
        let workers = self.workers.iter().flat_map(|worker| {
            [worker.notify, worker.pressure, worker.output]
                .into_iter()
                .chain(worker.connections.iter().copied())
                .chain(worker.process.map(|(_, pidfd)| pidfd))
                .chain(worker.fence.fd)
        });
        let sockets = self.listeners.sockets.iter().map(|(_, fd)| *fd);
        let clients = self.clients.iter().map(|client| client.fd);
        [self.lock, self.control].into_iter().chain(sockets).chain(clients).chain(workers).collect()
    }
}

/// All that there is to read, up to a bound.
///
/// # Errors
/// What `read(2)` says.
pub fn read(from: OwnedFd) -> std::io::Result<Vec<u8>> {
    let mut text = Vec::new();
    File::from(from).take(LONGEST).read_to_end(&mut text)?;
    Ok(text)
}

/// Descriptors that this process was handed, each to be taken once.
#[derive(Debug, Default)]
pub struct Descriptors {
    taken: std::collections::BTreeSet<RawFd>,
}

impl Descriptors {
    /// Own this one, closed at the next exec.
    ///
    /// # Errors
    /// It is not open, is one of the standard ones, or was taken before.
    pub fn take(&mut self, number: RawFd) -> Result<OwnedFd, HandoverError> {
        let failed = |error| HandoverError::Descriptor { number, error };
        if number < 3 || !self.taken.insert(number) {
            return Err(failed(std::io::Error::other("it belongs to something else")));
        }
        let fd = sys::adopt_fd(number).map_err(failed)?;
        sys::set_close_on_exec(number, true).map_err(failed)?;
        Ok(fd)
    }
}
