//! The manager of one app: everything that its loop holds, and the loop.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::mpsc;

use crate::control::directory::Lock;
use crate::control::server::{Call, Reply, Server};
use crate::isolation::{Isolation, Leftover};
use crate::observe::log::Log;
use crate::supervisor::Supervisor;
use crate::supervisor::action::Action;
use crate::supervisor::event::{Event, Message};
use crate::supervisor::id::{ConfigId, RequestId, WorkerId};
use crate::supervisor::note::{Level, Note};
use crate::supervisor::time::Time;
use crate::sys;
use crate::systemd::notify::ServiceNotifier;
use crate::worker::birth::Nursery;
use crate::worker::open_files::OpenFiles;

use super::adopt::Found;
use super::calm::Calm;
use super::changes::News;
use super::clock::{self, Timer};
use super::deeds::{Deed, Deeds};
use super::generation::{Prepared, Source};
use super::listeners::Listeners;
use super::origin;
use super::reap;
use super::request::Reread;
use super::signals::{Asked, Signals};
use super::state::{Books, RecordView, State, StateFile};
use super::upgrade::image::Image;
use super::upgrade::take::Taken;
use super::upgrade::{Answer, Quiet, Upgrade};
use super::worker::Worker;

/// How many events of one kind are taken in one turn, so that none can keep the others waiting.
const BATCH: usize = 256;

/// How long what workers said may be known to this process only, if nothing is done about it.
const UNSAVED_MOST: Duration = Duration::from_secs(1);

/// How long those that are over may stay zombies while there is always something else to do.
const ORPHANS_MOST: Duration = Duration::from_secs(1);

/// What the loop is made of before it turns.
pub struct Parts {
    /// The log.
    pub log: Log,
    /// The app's runtime directory, locked.
    pub directory: PathBuf,
    /// How workers are fenced.
    pub isolation: Rc<dyn Isolation>,
    /// The app's sockets.
    pub listeners: Listeners,
    /// The way up to systemd.
    pub notifier: Option<ServiceNotifier>,
    /// How often to ping systemd.
    pub ping_interval: Option<Duration>,
    /// The control socket and the requests that come in through it; none: nobody can ask.
    pub control: Option<(Server, mpsc::Receiver<Call>)>,
    /// The first generation.
    pub prepared: Prepared,
    /// Where its configuration came from, to be read again.
    pub source: Source,
    /// For the supervisor's draws.
    pub seed: u64,
    /// Who else hears each note, and may answer it with an event.
    pub listener: Option<NoteListener>,
    /// Where the next manager finds how things stand; none: there will be none.
    pub state_file: Option<StateFile>,
    /// How things stood when the last manager ended, and what was found of it.
    pub inherited: Option<(State, Found)>,
    /// What lives and nobody knows.
    pub strays: Vec<Leftover>,
    /// How many files a worker may have open, unless the configuration says it.
    pub open_files: OpenFiles,
    /// Where workers come from.
    pub nursery: Nursery,
    /// Development: files have changed, so roll; none: not asked for.
    pub changes: Option<mpsc::UnboundedReceiver<News>>,
    /// What an earlier image of this process handed over.
    pub taken: Option<Taken>,
    /// The app's lock, for the next image.
    pub lock: Option<Lock>,
    /// Where the next image comes from; none: there will be none.
    pub image: Option<Image>,
}

/// Hears each note; what it returns happens next.
pub type NoteListener = Box<dyn Fn(&Note) -> Option<Event>>;

/// One app's manager.
pub struct Manager {
    pub(super) supervisor: Supervisor,
    pub(super) log: Log,
    pub(super) directory: PathBuf,
    pub(super) isolation: Rc<dyn Isolation>,
    pub(super) listeners: Rc<Listeners>,
    pub(super) notifier: Option<ServiceNotifier>,
    pub(super) workers: BTreeMap<WorkerId, Rc<Worker>>,
    pub(super) configs: BTreeMap<ConfigId, Rc<Prepared>>,
    pub(super) last_config: ConfigId,
    pub(super) source: Source,
    pub(super) replies: BTreeMap<RequestId, Reply>,
    pub(super) last_request: RequestId,
    pub(super) started: Time,
    pub(super) events: mpsc::UnboundedSender<Event>,
    pub(super) readable: mpsc::UnboundedSender<WorkerId>,
    pub(super) reread: mpsc::UnboundedSender<Reread>,
    pub(super) server: Option<Server>,
    pub(super) listener: Option<NoteListener>,
    pub(super) state_file: Option<StateFile>,
    /// When something changed that is not written down yet.
    pub(super) unsaved: Option<Time>,
    pub(super) strays: Vec<Leftover>,
    pub(super) open_files: OpenFiles,
    pub(super) nursery: Rc<Nursery>,
    /// Whether it goes on where an earlier manager ended.
    pub(super) resumed: bool,
    pub(super) lock: Option<Lock>,
    pub(super) image: Option<Image>,
    pub(super) upgrade: Upgrade,
    pub(super) answers: mpsc::UnboundedSender<Answer>,
    pub(super) deeds: Deeds,
    calm: Calm,
    /// Since when children may be over that nobody waits for.
    orphans: Option<Time>,
    pub(super) rereads: Vec<Deed>,
    pub(super) exit: Option<u8>,
}

/// What the loop waits for.
struct Inputs {
    signals: Signals,
    events: mpsc::UnboundedReceiver<Event>,
    readable: mpsc::UnboundedReceiver<WorkerId>,
    reread: mpsc::UnboundedReceiver<Reread>,
    calls: mpsc::Receiver<Call>,
    changes: mpsc::UnboundedReceiver<News>,
    answers: mpsc::UnboundedReceiver<Answer>,
    timer: Timer,
    ping: Option<Ping>,
}

impl Inputs {
    /// Whatever somebody asked for already.
    fn next_asked(&mut self) -> Option<Woken> {
        let reread = self.reread.try_recv().map(Woken::Reread);
        let mut call = || self.calls.try_recv().map(Woken::Call);
        let mut news = || self.changes.try_recv().map(Woken::News);
        let mut answer = || self.answers.try_recv().map(Woken::Answer);
        reread.or_else(|_| call().or_else(|_| news().or_else(|_| answer()))).ok()
    }
}

/// When what an event has changed is written down, if it brings nothing to do; before that is done, if it does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Written {
    AtOnce,
    /// Within [`UNSAVED_MOST`].
    Soon,
    IfActedUpon,
}

/// When systemd is to hear from us.
struct Ping {
    every: Duration,
    next: Time,
}

/// One thing that ended the wait.
enum Woken {
    Signal(Asked),
    Event(Event),
    Reread(Reread),
    Call(Call),
    News(News),
    Readable(WorkerId),
    Answer(Answer),
    Rest,
    Room,
    Timer,
    Orphans,
}

/// Run the app until it is stopped; the exit code. Call inside a `LocalSet`.
///
/// # Errors
/// The loop could not be set up; nothing was started.
pub async fn run(parts: Parts) -> std::io::Result<u8> {
    let (events, events_in) = mpsc::unbounded_channel();
    let (readable, readable_in) = mpsc::unbounded_channel();
    let (reread, reread_in) = mpsc::unbounded_channel();
    let (answers, answers_in) = mpsc::unbounded_channel();
    let now = clock::now();
    let (server, calls) =
        parts.control.map_or_else(|| (None, mpsc::channel(1).1), |(server, calls)| (Some(server), calls));
    let patient = parts.changes.is_some();
    let mut inputs = Inputs {
        signals: Signals::new()?,
        events: events_in,
        readable: readable_in,
        reread: reread_in,
        calls,
        changes: parts.changes.unwrap_or_else(|| mpsc::unbounded_channel().1),
        answers: answers_in,
        timer: Timer::new()?,
        ping: parts.ping_interval.map(|every| Ping { every, next: now }),
    };
    let config = ConfigId(1);
    let prepared = Rc::new(parts.prepared);
    let mut manager = Manager {
        supervisor: Supervisor::new(prepared.policy.clone(), config, parts.seed),
        log: parts.log,
        directory: parts.directory,
        isolation: parts.isolation,
        listeners: Rc::new(parts.listeners),
        notifier: parts.notifier,
        workers: BTreeMap::new(),
        configs: BTreeMap::from([(config, prepared)]),
        last_config: config,
        source: parts.source,
        replies: BTreeMap::new(),
        last_request: RequestId(0),
        started: now,
        events,
        readable,
        reread,
        server,
        listener: parts.listener,
        state_file: parts.state_file,
        unsaved: None,
        strays: parts.strays,
        open_files: parts.open_files,
        nursery: Rc::new(parts.nursery),
        resumed: parts.inherited.is_some(),
        lock: parts.lock,
        image: parts.image,
        upgrade: Upgrade::default(),
        answers,
        deeds: Deeds::default(),
        calm: Calm::default(),
        orphans: None,
        rereads: Vec::new(),
        exit: None,
    };
    // An earlier image of this process may have kept signals for us.
    Quiet::end();
    let mut actions = Vec::new();
    if parts.taken.is_none() {
        manager.keep_own_listeners_safe();
    }
    if let Some(taken) = parts.taken {
        manager.take_over(taken, patient, now, &mut actions);
    } else if let Some((state, found)) = parts.inherited {
        manager.resume(state, found, patient, now, &mut actions);
    } else {
        manager.supervisor.be_patient(patient);
        manager.supervisor.start(now, &mut actions);
        manager.carry_out(&mut actions);
    }
    let code = loop {
        manager.log.flush();
        if let Some(code) = manager.exit {
            break code;
        }
        let woken = manager.wait(&mut inputs).await;
        manager.turn(woken, &mut inputs, &mut actions);
        // A worker that never stops talking must not keep the other tasks waiting.
        tokio::task::yield_now().await;
        let Inputs { signals, events, reread, calls, .. } = &mut inputs;
        let is_drained = || events.is_empty() && reread.is_empty() && calls.is_empty();
        manager.replace(signals, is_drained, clock::now()).await;
    };
    manager.farewell().await;
    Ok(code)
}

impl Manager {
    /// Phase 1: wait. Nothing is decided here.
    async fn wait(&mut self, inputs: &mut Inputs) -> Woken {
        let deadline = self.supervisor.next_deadline().map(|(at, _)| at);
        let ping = inputs.ping.as_ref().map(|ping| ping.next);
        let save = self.unsaved.map(|since| since.after(UNSAVED_MOST));
        let wake_at = [deadline, ping, save, self.calm.at(), self.rest_until()].into_iter().flatten().min();
        if let Err(error) = inputs.timer.set(wake_at) {
            // Without a timer every deadline would be missed: look again in a moment instead.
            self.log.say(Level::Error, &format!("setting the timer: {error}"));
        }
        let notifier = self.notifier.as_ref().filter(|notifier| notifier.wants_write());
        let resting = self.rest_until().is_some();
        tokio::select! {
            biased;
            asked = inputs.signals.next() => Woken::Signal(asked),
            Some(event) = inputs.events.recv() => Woken::Event(event),
            Some(reread) = inputs.reread.recv() => Woken::Reread(reread),
            Some(call) = inputs.calls.recv() => Woken::Call(call),
            Some(news) = inputs.changes.recv() => Woken::News(news),
            Some(worker) = inputs.readable.recv() => Woken::Readable(worker),
            Some(answer) = inputs.answers.recv() => Woken::Answer(answer),
            () = self.deeds.end(), if resting => Woken::Rest,
            () = room(notifier) => Woken::Room,
            // The log is flushed at the beginning of each turn.
            () = self.log.room() => Woken::Rest,
            () = inputs.timer.expired() => Woken::Timer,
            () = std::future::ready(()), if self.orphans.is_some() => Woken::Orphans,
        }
    }

    /// Phases 2 and 3, for what ended the wait and a bounded batch of what else is there already.
    fn turn(&mut self, woken: Woken, inputs: &mut Inputs, actions: &mut Vec<Action>) {
        let now = clock::now();
        self.take_up(woken, now, actions);
        for _ in 0..BATCH {
            let Ok(event) = inputs.events.try_recv() else { break };
            self.step(event, now, actions);
        }
        // Workers that die as fast as they are started keep events coming for ever; people are heard in between.
        for _ in 0..BATCH {
            let Some(asked) = inputs.next_asked() else { break };
            self.take_up(asked, now, actions);
        }
        // Who has more to say stands at the end of the queue again, for the next turn.
        for _ in 0..inputs.readable.len().min(BATCH) {
            let Ok(worker) = inputs.readable.try_recv() else { break };
            self.hear_in_turn(worker, now, actions);
        }
        if self.is_due(now) {
            // After a standstill nobody is shot for a ping that had arrived: hear everyone first.
            for worker in self.workers.keys().copied().collect::<Vec<_>>() {
                self.hear(worker, now, actions);
            }
            self.step(Event::Tick, now, actions);
        }
        if self.unsaved.is_some_and(|since| since.after(UNSAVED_MOST) <= now) {
            self.save(&[]);
        }
        if self.resumed && !self.strays.is_empty() {
            self.dismiss_strays();
        }
        if self.orphans.is_some_and(|since| since.after(ORPHANS_MOST) <= now) {
            self.reap_orphans();
        }
        if self.calm.comes(now) {
            sys::give_back();
        }
        if let Some(ping) = inputs.ping.as_mut().filter(|ping| ping.next <= now) {
            ping.next = now.after(ping.every);
            if let Some(Err(error)) = self.notifier.as_mut().map(ServiceNotifier::ping) {
                self.log.say(Level::Warning, &format!("pinging systemd's watchdog: {error}"));
            }
        }
    }

    /// One thing that came in.
    fn take_up(&mut self, woken: Woken, now: Time, actions: &mut Vec<Action>) {
        match woken {
            Woken::Signal(asked) => self.signalled(asked, now, actions),
            Woken::Event(event) => self.step(event, now, actions),
            Woken::Reread(reread) => self.reread(reread, now, actions),
            Woken::Call(call) => {
                self.calm.stir(now);
                self.called(call, now, actions);
            }
            Woken::News(News::Changed(what)) => {
                self.log.say(Level::Info, &format!("{what}: reload"));
                self.read_again(None);
            }
            Woken::News(News::Trouble(why)) => self.log.say(Level::Error, &why),
            Woken::Readable(worker) => self.hear_in_turn(worker, now, actions),
            Woken::Room => {
                if let Some(Err(error)) = self.notifier.as_mut().map(ServiceNotifier::flush) {
                    self.log.say(Level::Warning, &format!("telling systemd: {error}"));
                }
            }
            Woken::Answer(answer) => self.answered(answer, now),
            Woken::Orphans => self.reap_orphans(),
            Woken::Timer | Woken::Rest => {}
        }
    }

    /// The app's name; no reload changes it.
    pub(super) fn name(&self) -> String {
        self.source.running.name.clone()
    }

    fn is_due(&self, now: Time) -> bool {
        self.supervisor.next_deadline().is_some_and(|(at, _)| at <= now)
    }

    /// Let the supervisor decide about one event, and do what it says.
    pub(super) fn step(&mut self, event: Event, now: Time, actions: &mut Vec<Action>) {
        let (over, written) = match &event {
            Event::StartFailed { worker, .. } => (Some(*worker), Written::AtOnce),
            // The next manager would sweep what is swept, and its replacement waits for this processor.
            Event::Gone { worker } => (Some(*worker), Written::Soon),
            // A ping is forgotten with the manager: the silence begins anew with the next one.
            Event::Message { message: Message::Watchdog, .. } | Event::Memory { .. } | Event::Tick => {
                (None, Written::IfActedUpon)
            }
            Event::Message { .. } => (None, Written::Soon),
            Event::Started { .. }
            | Event::Exited { .. }
            | Event::StopRequested { .. }
            | Event::SystemStopping
            | Event::Request { .. } => (None, Written::AtOnce),
        };
        self.supervisor.step(event, now, actions);
        if written == Written::AtOnce || !actions.is_empty() {
            self.carry_out(actions);
        } else if written == Written::Soon && self.state_file.is_some() {
            self.unsaved.get_or_insert(now);
        }
        if let Some(worker) = over.and_then(|worker| self.workers.remove(&worker)) {
            worker.release_tasks();
            if let Some(notifier) = &mut self.notifier {
                // At worst it stays there until the service stops.
                let _ = notifier.forget(&format!("notify.{}", worker.start.worker));
            }
        }
    }

    /// Write down what is about to be done, do it, and write down that it is done.
    pub(super) fn carry_out(&mut self, actions: &mut Vec<Action>) {
        self.calm.stir(clock::now());
        self.save(actions);
        self.perform(actions);
        if let Some(file) = &self.state_file {
            file.mark_performed();
        }
    }

    fn save(&mut self, pending: &[Action]) {
        let Some(mut file) = self.state_file.take() else { return };
        self.unsaved = None;
        if let Err(error) = file.save(&self.supervisor, self.books(pending)) {
            self.log.say(
                Level::Error,
                &format!("writing the state: {error}; if this manager dies, the next one will not know its workers"),
            );
        }
        self.state_file = Some(file);
    }

    /// How things stand, as the state file would have it; none: there is none.
    pub(super) fn state_text(&mut self, pending: &[Action]) -> Option<std::io::Result<Vec<u8>>> {
        let mut file = self.state_file.take()?;
        let text = file.text(&self.supervisor, self.books(pending));
        self.state_file = Some(file);
        Some(text)
    }

    fn books<'a>(&'a self, pending: &'a [Action]) -> Books<'a> {
        // Those that are about to be started too: whatever becomes of the start, it is known by which name.
        let starting = pending.iter().filter_map(|action| {
            let Action::Start(start) = action else { return None };
            let unique = origin::unique(&self.directory, self.started, start.worker);
            let is_new = !self.workers.contains_key(&start.worker);
            is_new.then(|| RecordView { start, begun: clock::now(), unique: unique.into(), pid: None })
        });
        Books {
            isolation: self.isolation.mode(),
            pending,
            workers: self.workers.values().map(|worker| worker.record()).chain(starting).collect(),
            configs: self.configs.iter().map(|(id, prepared)| (*id, &**prepared)).collect(),
            last_config: self.last_config,
            last_request: self.last_request,
        }
    }

    pub(super) fn signalled(&mut self, asked: Asked, now: Time, actions: &mut Vec<Action>) {
        match asked {
            Asked::Request(request) => self.step(Event::Request { id: None, request }, now, actions),
            Asked::Reload => self.read_again(None),
            Asked::Status => self.log_status(now),
            Asked::Upgrade => self.upgrade(),
            // People wait for the replacement of who died, and nobody for what it left.
            Asked::Children => self.orphans = self.orphans.or(Some(now)),
        }
    }

    fn reap_orphans(&mut self) {
        self.orphans = None;
        let ours: BTreeSet<_> = self
            .workers
            .values()
            .filter_map(|worker| worker.process.borrow().as_ref().map(|process| process.pid().as_raw_nonzero().get()))
            .chain(self.asked_child())
            .collect();
        reap::orphans(&ours);
    }

    /// The end of a clean stop: last answers go out, nothing of ours stays behind.
    async fn farewell(mut self) {
        self.replies.clear();
        if let Some(file) = &self.state_file {
            file.remove();
        }
        if let Some(server) = self.server.take() {
            server.finish().await;
        }
        for worker in std::mem::take(&mut self.workers).into_values() {
            worker.release_tasks();
        }
        self.listeners.unlink_own();
        self.log.flush();
    }
}

/// Room for what waits to be said to systemd; for ever if nothing waits.
async fn room(notifier: Option<&ServiceNotifier>) {
    match notifier {
        Some(notifier) => {
            let _ = notifier.writable().await;
        }
        None => std::future::pending().await,
    }
}
