//! What the unit tests of the core share: a policy with the defaults, and a driver.

#![expect(clippy::wildcard_enum_match_arm, reason = "a filter wants one kind of action and no other")]

use std::time::Duration;

use super::Supervisor;
use super::action::{Action, Response, ServiceState, Start};
use super::event::{Death, Ended, Event, Message, Request};
use super::id::{ConfigId, RequestId, SlotId, WorkerId};
use super::note::{Note, NoteKind};
use super::policy::Policy;
use super::time::Time;
use crate::config::model::{Ready, Signal};

/// The defaults, with two workers and `ready = "notify"`.
pub(crate) fn policy() -> Policy {
    Policy {
        workers: 2,
        ready: Ready::Notify,
        drain_signal: Signal(15),
        memory_max: None,
        memory_budget: None,
        recycle_at: None,
        max_requests: 0,
        max_requests_jitter: 0,
        spread: true,
        max_lifetime: None,
        surge: 1,
        start: Duration::from_mins(1),
        settle: Duration::from_secs(1),
        watchdog: None,
        graceful: Duration::from_secs(30),
        abort: Duration::from_secs(2),
        backoff: Duration::from_millis(100),
        backoff_max: Duration::from_secs(30),
        hold: Duration::from_secs(1),
        parallel_starts: 4,
    }
}

/// A supervisor, its clock and all that it has asked for.
pub(super) struct Bench {
    pub(super) core: Supervisor,
    pub(super) now: Time,
    /// Everything asked for since the last call of `take`.
    pub(super) actions: Vec<Action>,
    /// All starts so far.
    pub(super) starts: Vec<Start>,
}

impl Bench {
    /// An app that has been started, at 100 s after boot.
    pub(super) fn new(policy: Policy) -> Self {
        Self::start(Supervisor::new(policy, ConfigId(1), 42))
    }

    /// The same, of one that waits for changes.
    pub(super) fn new_patient(policy: Policy) -> Self {
        let mut core = Supervisor::new(policy, ConfigId(1), 42);
        core.be_patient(true);
        Self::start(core)
    }

    fn start(core: Supervisor) -> Self {
        let now = Time::from_boot(Duration::from_secs(100));
        let mut bench = Self { core, now, actions: Vec::new(), starts: Vec::new() };
        let mut actions = Vec::new();
        bench.core.start(now, &mut actions);
        bench.note_starts(actions);
        bench
    }

    /// An app whose first workers are all ready.
    pub(super) fn ready(policy: Policy) -> Self {
        let mut bench = Self::new(policy);
        let count = bench.core.wanted as usize;
        for index in 0..count {
            let id = bench.starts[index].worker;
            bench.up(id);
        }
        bench.take();
        bench
    }

    fn note_starts(&mut self, actions: Vec<Action>) {
        for action in &actions {
            if let Action::Start(start) = action {
                self.starts.push(start.clone());
            }
        }
        self.actions.extend(actions);
    }

    pub(super) fn step(&mut self, event: Event) {
        let mut actions = Vec::new();
        self.core.step(event, self.now, &mut actions);
        self.note_starts(actions);
    }

    /// Lets this much time pass, with a tick at every deadline on the way.
    pub(super) fn pass(&mut self, span: Duration) {
        let end = self.now.after(span);
        while let Some((at, _)) = self.core.next_deadline()
            && at <= end
        {
            self.now = self.now.max(at);
            self.step(Event::Tick);
            assert!(self.core.next_deadline().is_none_or(|(next, _)| next > self.now));
        }
        self.now = end;
    }

    pub(super) fn pass_ms(&mut self, millis: u64) {
        self.pass(Duration::from_millis(millis));
    }

    pub(super) fn say(&mut self, worker: WorkerId, message: Message) {
        self.step(Event::Message { worker, message });
    }

    /// Exec'd and ready.
    pub(super) fn up(&mut self, worker: WorkerId) {
        self.started(worker);
        self.say(worker, Message::Ready);
    }

    pub(super) fn started(&mut self, worker: WorkerId) {
        self.step(Event::Started { worker, pid: 1000 + u32::try_from(worker.0).unwrap() });
    }

    pub(super) fn dies(&mut self, worker: WorkerId, ended: Ended) {
        let death = Death { ended, oom_killed: Some(false), peak: None, last_words: vec!["last line".to_owned()] };
        self.step(Event::Exited { worker, death });
    }

    /// Dies and is gone.
    pub(super) fn ends(&mut self, worker: WorkerId, ended: Ended) {
        self.dies(worker, ended);
        self.step(Event::Gone { worker });
    }

    pub(super) fn ask(&mut self, id: u64, request: Request) {
        self.step(Event::Request { id: Some(RequestId(id)), request });
    }

    pub(super) fn reload(&mut self, id: u64, policy: Policy) {
        self.ask(id, Request::Reload { config: ConfigId(id), policy: Box::new(policy) });
    }

    pub(super) fn take(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    /// The newest start.
    pub(super) fn newest(&self) -> Start {
        self.starts.last().unwrap().clone()
    }

    /// The slot's current worker.
    pub(super) fn current(&self, slot: u32) -> WorkerId {
        self.core.slots[&SlotId(slot)].current.unwrap()
    }

    pub(super) fn notes(&self, kind: NoteKind) -> Vec<Note> {
        self.actions
            .iter()
            .filter_map(|action| match action {
                Action::Note(note) if note.kind == kind => Some(note.clone()),
                _ => None,
            })
            .collect()
    }

    /// Signals asked for: to whom and which.
    pub(super) fn signals(&self) -> Vec<(WorkerId, i32)> {
        self.actions
            .iter()
            .filter_map(|action| match action {
                Action::Signal { worker, signal } => Some((*worker, signal.0)),
                _ => None,
            })
            .collect()
    }

    pub(super) fn kills(&self) -> Vec<WorkerId> {
        self.actions
            .iter()
            .filter_map(|action| match action {
                Action::Kill { worker } => Some(*worker),
                _ => None,
            })
            .collect()
    }

    pub(super) fn replies(&self) -> Vec<(u64, Response)> {
        self.actions
            .iter()
            .filter_map(|action| match action {
                Action::Reply { request, response } => Some((request.0, response.clone())),
                _ => None,
            })
            .collect()
    }

    pub(super) fn told(&self, state: &ServiceState) -> bool {
        self.actions.iter().any(|action| matches!(action, Action::Tell(told) if told == state))
    }

    pub(super) fn exit(&self) -> Option<u8> {
        self.actions.iter().find_map(|action| match action {
            Action::Exit { code } => Some(*code),
            _ => None,
        })
    }
}
