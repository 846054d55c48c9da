//! One worker as the runtime holds it: its process, its fence, its sockets and its output.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;

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

/// A worker from the moment its start was asked for until nothing is left of it.
pub struct Worker {
    /// What it was started as.
    pub start: Start,
    /// When that was asked for.
    pub begun: Time,
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
    cancelled: Cell<bool>,
    tasks: RefCell<Vec<AbortHandle>>,
}

/// A worker whose stdout and stderr are a stream into the journal.
#[derive(Debug, Clone)]
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
    pub fn prepare(start: Start, begun: Time, files: Files, owner: Option<(u32, u32)>) -> Result<Self, String> {
        let failed = |what: &str, path: &std::path::Path, error: io::Error| {
            let hint = if error.kind() == io::ErrorKind::InvalidInput {
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
            process: RefCell::default(),
            fence: RefCell::default(),
            started: Cell::default(),
            swept: Cell::default(),
            stranger_logged: Cell::default(),
            cancelled: Cell::default(),
            tasks: RefCell::default(),
        })
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
