//! One worker as the runtime holds it: its process, its fence, its sockets and its output.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;

use serde::{Deserialize, Serialize};
use tokio::task::AbortHandle;

use crate::config::model::Signal;
use crate::isolation::{Fence, FenceError};
use crate::supervisor::action::Start;
use crate::supervisor::time::Time;
use crate::worker::files::Files;
use crate::worker::notify::NotifySocket;
use crate::worker::output::Output;
use crate::worker::pressure::PressureSocket;
use crate::worker::process::Process;

use super::state::{Record, RecordView};

/// A worker from the moment its start was asked for until nothing is left of it.
pub struct Worker {
    /// What it was started as.
    pub start: Start,
    /// When that was asked for.
    pub begun: Time,
    /// What makes its fence's name unlike every other.
    pub unique: String,
    /// Where it speaks.
    pub notify: NotifySocket,
    /// Where it hears of pressure.
    pub pressure: PressureSocket,
    /// What it writes, unless that goes to the journal directly.
    pub output: Output,
    /// Where its lines are when they do.
    pub journal: RefCell<Option<InJournal>>,
    /// Its first process, from the gate on.
    pub process: RefCell<Option<Rc<Process>>>,
    /// Its fence, once it is inside.
    pub fence: RefCell<Option<Rc<dyn Fence>>>,
    /// Whether its command has been exec'd.
    pub started: Cell<bool>,
    /// Whether what it left is being killed and its fence removed.
    pub swept: Cell<bool>,
    /// Whether a message from outside the worker has been ignored and logged.
    pub stranger_logged: Cell<bool>,
    /// Whether it stands in the queue of those to be heard: once, however much it says.
    pub queued: Cell<bool>,
    /// Whether it is not heard because what it sent is still being closed.
    pub held_back: Cell<bool>,
    cancelled: Cell<bool>,
    tasks: RefCell<Vec<AbortHandle>>,
}

/// A worker whose stdout and stderr are a stream into the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InJournal {
    /// The unit that its lines carry.
    pub unit: String,
    /// A death until then may be a failed start, whose last words are to be read back before anybody decides. Later its
    /// replacement does not wait for them.
    pub words_until: Time,
}

impl Worker {
    /// Make the sockets for a worker that is to be started.
    ///
    /// # Errors
    /// What making one of them says, as a sentence.
    pub fn prepare(
        start: Start,
        begun: Time,
        unique: String,
        files: Files,
        owner: Option<(u32, u32)>,
    ) -> Result<Self, String> {
        let failed = |what: &str, path: &Path, error: io::Error| {
            let hint = if error.raw_os_error() == Some(nix::libc::ENAMETOOLONG) {
                "; the runtime directory's path may be too long for a socket, choose a shorter one with --runtime-directory"
            } else {
                ""
            };
            format!("making {what} {}: {error}{hint}", path.display())
        };
        let Files { notify, pressure, output } = files;
        Ok(Self {
            notify: NotifySocket::bind(notify.clone(), owner)
                .map_err(|error| failed("its notify socket", &notify, error))?,
            pressure: PressureSocket::bind(pressure.clone(), owner)
                .map_err(|error| failed("its pressure socket", &pressure, error))?,
            output: Output::create(output.clone(), owner).map_err(|error| failed("its output", &output, error))?,
            journal: RefCell::default(),
            start,
            begun,
            unique,
            process: RefCell::default(),
            fence: RefCell::default(),
            started: Cell::default(),
            swept: Cell::default(),
            stranger_logged: Cell::default(),
            queued: Cell::default(),
            held_back: Cell::default(),
            cancelled: Cell::default(),
            tasks: RefCell::default(),
        })
    }

    /// Take up a worker that an earlier manager started: its sockets are bound again at the same paths, unless the notify
    /// socket itself was kept.
    ///
    /// # Errors
    /// What making one of them says, as a sentence.
    pub fn take_up(
        record: &Record,
        files: Files,
        owner: Option<(u32, u32)>,
        notify: Option<OwnedFd>,
        process: Option<Rc<Process>>,
        fence: Rc<dyn Fence>,
    ) -> Result<Self, String> {
        let failed = |path: &Path, error: io::Error| format!("taking up {}: {error}", path.display());
        let Files { notify: notify_path, pressure, output } = files;
        // Nobody listens there any more: we hold the app's lock.
        let _ = std::fs::remove_file(&pressure);
        let notify = if let Some(socket) = notify {
            NotifySocket::keep(socket, notify_path.clone())
        } else {
            let _ = std::fs::remove_file(&notify_path);
            NotifySocket::bind(notify_path.clone(), owner)
        };
        let reopened = if output.symlink_metadata().is_ok() {
            Output::open(output.clone())
        } else {
            Output::create(output.clone(), owner)
        };
        Ok(Self::continued(
            record.clone(),
            notify.map_err(|error| failed(&notify_path, error))?,
            PressureSocket::bind(pressure.clone(), owner).map_err(|error| failed(&pressure, error))?,
            reopened.map_err(|error| failed(&output, error))?,
            None,
            process,
            fence,
        ))
    }

    /// Go on with a worker that an earlier image of this process had, with its sockets and its output as they were.
    pub fn continued(
        record: Record,
        notify: NotifySocket,
        pressure: PressureSocket,
        output: Output,
        journal: Option<InJournal>,
        process: Option<Rc<Process>>,
        fence: Rc<dyn Fence>,
    ) -> Self {
        Self {
            start: record.start,
            begun: record.begun,
            unique: record.unique,
            notify,
            pressure,
            output,
            journal: RefCell::new(journal),
            process: RefCell::new(process),
            fence: RefCell::new(Some(fence)),
            started: Cell::new(true),
            swept: Cell::default(),
            stranger_logged: Cell::default(),
            queued: Cell::default(),
            held_back: Cell::default(),
            cancelled: Cell::default(),
            tasks: RefCell::default(),
        }
    }

    /// What the next manager must know of it.
    pub fn record(&self) -> RecordView<'_> {
        let pid = self.process.borrow().as_ref().filter(|_| self.started.get()).map(|process| process.id());
        RecordView { start: &self.start, begun: self.begun, unique: Cow::Borrowed(&self.unique), pid }
    }

    /// Send a signal to the first process; a worker that is not yet exec'd is given up instead.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        if !self.started.get() {
            return self.give_up();
        }
        let process = self.process.borrow().clone();
        process.map_or(Ok(()), |process| process.signal(signal))
    }

    /// SIGKILL to everything, in whatever state it is.
    ///
    /// # Errors
    /// What the fence says.
    pub fn kill(&self) -> Result<(), FenceError> {
        if !self.started.get() {
            let _ = self.give_up();
        }
        let fence = self.fence.borrow().clone();
        fence.map_or(Ok(()), |fence| fence.kill())
    }

    /// Whether it was given up before its command was exec'd.
    pub fn is_given_up(&self) -> bool {
        self.cancelled.get()
    }

    /// End the gate; whoever is making the worker notices.
    fn give_up(&self) -> io::Result<()> {
        self.cancelled.set(true);
        let process = self.process.borrow().clone();
        process.map_or(Ok(()), |process| process.signal(Signal(nix::libc::SIGKILL)))
    }

    /// Keep a task that ends with the worker.
    pub fn owns(&self, task: AbortHandle) {
        self.tasks.borrow_mut().push(task);
    }

    /// End its tasks.
    pub fn release_tasks(&self) {
        for task in self.tasks.borrow_mut().drain(..) {
            task.abort();
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.release_tasks();
    }
}
