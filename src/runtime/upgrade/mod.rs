//! USR2: another image of the program in this very process, workers untouched.
//!
//! Three steps. The file where this program came from is **asked** whether it can take over: it runs as a child and gets
//! what it would get. Then the loop comes to **rest**: no start and no death is half done, and starts that are decided
//! meanwhile are held back. At last everything is **handed over** in memory and by descriptor, and the file is executed.
//! Until that very call, and if it fails also after it, this image is in charge and goes on.

pub mod ask;
pub mod handover;
pub mod image;
pub mod take;

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;
use std::rc::Rc;
use std::time::Duration;

use nix::fcntl::AtFlags;
use nix::sys::signal::{SigSet, Signal};
use rustix::process::Pid;

use crate::supervisor::action::{Action, Start};
use crate::supervisor::event::Event;
use crate::supervisor::id::WorkerId;
use crate::supervisor::note::Level;
use crate::supervisor::time::Time;
use crate::sys;
use crate::worker::open_files::OpenFiles;

use self::ask::Question;
use self::handover::{HandedFence, HandedListeners, HandedWorker, Handover, VARIABLE};
use super::manager::Manager;
use super::signals::Signals;
use super::worker::Worker;

/// How long the loop may take to come to rest.
const REST: Duration = Duration::from_secs(20);

/// All signals that mean something to the manager, and would kill it while nobody handles them.
const HEARD: [Signal; 9] = [
    Signal::SIGHUP,
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTTIN,
    Signal::SIGTTOU,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGCHLD,
];

/// How far a replacement is.
#[derive(Debug, Default)]
pub enum Upgrade {
    /// Nobody has asked for one.
    #[default]
    None,
    /// The image is being asked.
    Asking {
        /// The child.
        child: Pid,
    },
    /// It agreed, and the loop comes to rest.
    Resting {
        /// The image.
        file: OwnedFd,
        /// When that has taken too long.
        until: Time,
        /// Starts that were decided meanwhile.
        held: Vec<Start>,
    },
}

/// What an image answered.
#[derive(Debug)]
pub struct Answer {
    file: OwnedFd,
    answer: Result<(), String>,
}

/// Signals that are kept from being delivered, as long as this lives; across exec, too.
pub struct Quiet(SigSet);

impl Quiet {
    /// Keep them. Only this thread can be hit by them: all others block every signal from their start.
    ///
    /// # Errors
    /// What `pthread_sigmask(3)` says.
    pub fn begin() -> io::Result<Self> {
        let set: SigSet = HEARD.into_iter().collect();
        set.thread_block()?;
        Ok(Self(set))
    }

    /// Deliver what has come, and what comes.
    pub fn end() {
        // Fails only for a set that the kernel cannot read.
        let _ = HEARD.into_iter().collect::<SigSet>().thread_unblock();
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        let _ = self.0.thread_unblock();
    }
}

/// Block every signal in a thread that is not the loop's, so that none is handled there while the loop's thread keeps
/// them for the next image.
pub fn keep_signals_away() {
    // Fails only for a set that the kernel cannot read.
    let _ = SigSet::all().thread_block();
}

impl Manager {
    /// USR2: ask the file that is there now.
    pub(super) fn upgrade(&mut self) {
        let Some(image) = self.image.clone() else {
            self.log.say(Level::Error, "USR2: not replaced: where this program was started from is not known");
            return;
        };
        if !matches!(self.upgrade, Upgrade::None) {
            self.log.say(Level::Warning, "USR2: a replacement is already under way");
            return;
        }
        let path = image.path().display().to_string();
        let asked = image.open().and_then(|file| {
            let (text, password) = self.handover().map_err(|error| format!("writing the state: {error}"))?;
            let question = Question::put(file.as_fd(), &text, password).map_err(|error| error.to_string())?;
            Ok((file, question))
        });
        match asked {
            Ok((file, question)) => {
                self.log.say(Level::Info, &format!("USR2: asking {path} whether it can take over"));
                self.upgrade = Upgrade::Asking { child: question.process().pid() };
                let answers = self.answers.clone();
                tokio::task::spawn_local(async move {
                    let answer = question.answered().await;
                    let _ = answers.send(Answer { file, answer });
                });
            }
            Err(reason) => self.not_replaced(&format!("{path} cannot be started: {reason}")),
        }
    }

    /// The image has answered.
    pub(super) fn answered(&mut self, Answer { file, answer }: Answer, now: Time) {
        match answer {
            Ok(()) => self.upgrade = Upgrade::Resting { file, until: now.after(REST), held: Vec::new() },
            Err(reason) => {
                self.upgrade = Upgrade::None;
                let path = self.image.as_ref().map(|image| image.path().display().to_string()).unwrap_or_default();
                self.not_replaced(&format!("{path} cannot take over: {reason}"));
            }
        }
    }

    fn not_replaced(&self, why: &str) {
        self.log.say(Level::Error, &format!("USR2: not replaced, this manager (paddock {VERSION}) goes on: {why}"));
    }

    /// The child that is being asked: its end is awaited by nobody else.
    pub(super) fn asked_child(&self) -> Option<i32> {
        match &self.upgrade {
            Upgrade::Asking { child } => Some(child.as_raw_nonzero().get()),
            Upgrade::None | Upgrade::Resting { .. } => None,
        }
    }

    /// When the loop must have come to rest.
    pub(super) fn rest_until(&self) -> Option<Time> {
        match &self.upgrade {
            Upgrade::Resting { until, .. } => Some(*until),
            Upgrade::None | Upgrade::Asking { .. } => None,
        }
    }

    /// Keep a start for the next image; some: it cannot wait.
    pub(super) fn hold_back(&mut self, start: Start) -> Option<Start> {
        if let Upgrade::Resting { held, .. } = &mut self.upgrade {
            held.push(start);
            return None;
        }
        Some(start)
    }

    /// Give up a start that was held back; whether it was.
    pub(super) fn give_up_held(&mut self, worker: WorkerId) -> bool {
        let Upgrade::Resting { held, .. } = &mut self.upgrade else { return false };
        let before = held.len();
        held.retain(|start| start.worker != worker);
        if held.len() == before {
            return false;
        }
        let error = "given up before its command was executed".to_owned();
        let _ = self.events.send(Event::StartFailed { worker, error });
        true
    }

    /// What keeps this image from being replaced now, if anything does.
    fn unrest(&self) -> Option<&'static str> {
        if !self.deeds.are_done() {
            return Some("workers are still being started, or their deaths looked into");
        }
        if !self.strays.is_empty() {
            return Some("workers of an earlier manager have not been drained yet");
        }
        if self.notifier.as_ref().is_some_and(crate::systemd::notify::ServiceNotifier::wants_write) {
            return Some("systemd does not take our messages");
        }
        None
    }

    /// Go on with this image: what was held back is done now.
    fn go_on(&mut self) {
        if let Upgrade::Resting { held, .. } = std::mem::take(&mut self.upgrade) {
            for start in held {
                self.start(start);
            }
        }
    }

    /// Replace this image if it is to be replaced and everything rests. Returns only if it is not replaced.
    pub(super) async fn replace(&mut self, signals: &mut Signals, is_drained: impl Fn() -> bool, now: Time) {
        let Some(until) = self.rest_until() else { return };
        if self.exit.is_some() {
            return;
        }
        if let Some(why) = self.unrest() {
            if until <= now {
                self.go_on();
                self.not_replaced(&format!("{why}, {} seconds after it agreed", REST.as_secs()));
            }
            return;
        }
        let Ok(quiet) = Quiet::begin() else { return };
        // The loop looks at its descriptors in between: a signal that was handled just before is in the queue now, an
        // answer that was just given is on its way.
        for _ in 0..ROUNDS {
            tokio::task::yield_now().await;
            if !self.server.as_ref().is_some_and(|server| server.is_answering(self.replies.len())) {
                break;
            }
        }
        tokio::task::yield_now().await;
        keep_pending(signals).await;
        if self.unrest().is_some() || !is_drained() {
            return;
        }
        self.log.flush();
        let Err(error) = self.execute();
        drop(quiet);
        self.go_on();
        let path = self.image.as_ref().map(|image| image.path().display().to_string()).unwrap_or_default();
        self.not_replaced(&format!("executing {path}: {error}"));
    }

    fn execute(&mut self) -> io::Result<Infallible> {
        let Upgrade::Resting { file, .. } = &self.upgrade else { return Err(io::Error::other("nobody was asked")) };
        let file = file.try_clone()?;
        let (text, _) = self.handover()?;
        let (page, _) = Handover::parse(&text).map_err(io::Error::other)?;
        let arguments = c_strings(page.arguments.iter().cloned())?;
        let memory = ask::in_memory(&text)?;
        let variable = format!("{VARIABLE}={}:{}", std::process::id(), memory.as_raw_fd());
        let environment = std::env::vars_os().filter(|(name, _)| name != VARIABLE).map(|(mut name, value)| {
            name.push("=");
            name.push(value);
            name
        });
        let environment = c_strings(environment.chain([OsString::from(variable)]))?;
        let across: BTreeSet<RawFd> = page.descriptors().into_iter().chain([memory.as_raw_fd()]).collect();
        // Whatever else is open, and by whomever it was opened, ends here.
        sys::close_on_exec_from(3);
        // The next image asks how many open files the workers may have, which is what we began with.
        let kept = self.open_files.set_own();
        let kept = kept.and_then(|()| across.iter().try_for_each(|number| sys::set_close_on_exec(*number, false)));
        let result = kept.and_then(|()| {
            nix::unistd::execveat(&file, c"", &arguments, &environment, AtFlags::AT_EMPTY_PATH).map_err(io::Error::from)
        });
        for number in across {
            // Open a moment ago, and nobody has closed anything since.
            let _ = sys::set_close_on_exec(number, true);
        }
        OpenFiles::raise_own()?;
        result
    }

    /// Everything for the next image, and what it says if it has understood it. Nothing is changed by writing it.
    fn handover(&mut self) -> io::Result<(Vec<u8>, String)> {
        let mut pending: Vec<Action> = match &self.upgrade {
            Upgrade::Resting { held, .. } => held.iter().cloned().map(Action::Start).collect(),
            Upgrade::None | Upgrade::Asking { .. } => Vec::new(),
        };
        let swept = self.workers.iter().filter(|(_, worker)| worker.swept.get());
        pending.extend(swept.map(|(id, _)| Action::Sweep { worker: *id }));
        let missing = |what: &str| io::Error::other(format!("this manager has no {what}"));
        let state = self.state_text(&pending).ok_or_else(|| missing("state file"))??;
        let lock = self.lock.as_ref().ok_or_else(|| missing("lock"))?.as_fd().as_raw_fd();
        let server = self.server.as_ref().ok_or_else(|| missing("control socket"))?;
        let mut bytes = [0_u8; 16];
        rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty())?;
        let password = format!("{:032x}", u128::from_ne_bytes(bytes));
        let sockets = self.listeners.names().into_iter().zip(self.listeners.descriptors());
        let page = Handover {
            form: handover::FORM,
            password: password.clone(),
            arguments: std::env::args_os().collect(),
            image: self.image.as_ref().map(|image| image.path().to_owned()),
            directory: self.directory.clone(),
            started: self.started,
            state: String::from_utf8(state).map_err(io::Error::other)?,
            lock,
            control: server.descriptor().as_raw_fd(),
            listeners: HandedListeners {
                sockets: sockets.map(|(name, fd)| (name, fd.as_raw_fd())).collect(),
                passed_in: self.listeners.passed_in(),
                own_paths: self.listeners.own_paths(),
            },
            clients: self.replies.iter().filter_map(|(request, reply)| server.handed(*request, reply)).collect(),
            workers: self.workers.iter().filter_map(|(id, worker)| self.handed_worker(*id, worker)).collect(),
        };
        Ok((serde_json::to_vec(&page).map_err(io::Error::other)?, password))
    }

    /// None: it is not yet in its fence, and its start ends or is held back before anything is handed over.
    fn handed_worker(&self, id: WorkerId, worker: &Rc<Worker>) -> Option<HandedWorker> {
        let process = worker.process.borrow().clone().filter(|_| !self.supervisor.has_ended(id));
        let process = process.map(|process| (process.pid().as_raw_nonzero().get(), process.descriptor().as_raw_fd()));
        let fence = worker.fence.borrow().clone()?;
        let handed = fence.hand_over();
        Some(HandedWorker {
            worker: id,
            process,
            notify: worker.notify.descriptor().as_raw_fd(),
            pressure: worker.pressure.descriptor().as_raw_fd(),
            connections: worker.pressure.connections(),
            output: worker.output.descriptor().as_raw_fd(),
            heard: worker.output.heard(),
            journal: worker.journal.borrow().clone(),
            swept: worker.swept.get(),
            stranger_logged: worker.stranger_logged.get(),
            fence: HandedFence { data: handed.data, fd: handed.fd.map(|fd| fd.as_raw_fd()) },
        })
    }
}

/// This version, for people.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// How often others get their turn before the end.
const ROUNDS: u32 = 16;

/// Signals that were handled but not acted upon come again, to be delivered to the next image.
async fn keep_pending(signals: &mut Signals) {
    loop {
        let signal = tokio::select! {
            biased;
            signal = signals.next_number() => signal,
            () = std::future::ready(()) => return,
        };
        // They are blocked: this only marks them as pending. Children are looked for at every start.
        if signal != nix::libc::SIGCHLD {
            let _ = Signal::try_from(signal).map(|signal| nix::sys::signal::kill(nix::unistd::getpid(), signal));
        }
    }
}

fn c_strings(texts: impl Iterator<Item = OsString>) -> io::Result<Vec<CString>> {
    texts.map(|text| CString::new(text.into_vec()).map_err(io::Error::other)).collect()
}
