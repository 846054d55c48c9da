//! The laws. The judge sees what the core sees and does, nothing else, so a recorded trace can be judged again.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use paddock::config::model::Ready;
use paddock::supervisor::Supervisor;
use paddock::supervisor::action::{Action, Response, ServiceState, Start};
use paddock::supervisor::event::{Event, Message, Request};
use paddock::supervisor::id::{ConfigId, Generation, RequestId, SlotId, WorkerId};
use paddock::supervisor::note::{Note, NoteKind};
use paddock::supervisor::policy::Policy;
use paddock::supervisor::snapshot::Snapshot;
use paddock::supervisor::time::Time;
use paddock::supervisor::verdict::Verdict;

use super::model::{Life, Phase, Place, finite};
use super::standstill::Tick;

/// What a law says when it is broken.
pub(crate) type Law = Result<(), String>;

/// Breaks off with a sentence unless the condition holds.
#[macro_export]
macro_rules! law {
    ($condition:expr, $($text:tt)+) => {
        if !$condition {
            return Err(format!($($text)+));
        }
    };
}

/// One step as the judge sees it.
#[derive(Debug)]
pub(crate) struct Step<'a> {
    /// None: the start, or a take-over.
    pub(crate) event: Option<&'a Event>,
    pub(crate) now: Time,
    pub(crate) actions: &'a [Action],
    pub(crate) before: &'a Snapshot,
    pub(crate) after: &'a Snapshot,
    /// What a tick means.
    pub(crate) tick: Tick,
}

impl Step<'_> {
    pub(crate) fn notes(&self, kind: NoteKind) -> impl Iterator<Item = &Note> {
        self.actions.iter().filter_map(move |action| match action {
            Action::Note(note) if note.kind == kind => Some(note),
            _ => None,
        })
    }

    /// Whether a note of this kind was said about this worker.
    pub(crate) fn said(&self, kind: NoteKind, worker: WorkerId) -> bool {
        self.notes(kind).any(|note| note.worker == Some(worker))
    }

    /// Whether the worker got a signal from the core's own will.
    pub(crate) fn drained(&self, worker: WorkerId) -> bool {
        self.notes(NoteKind::DrainStarted).any(|note| note.worker == Some(worker))
    }

    pub(crate) fn request(&self) -> Option<&Request> {
        match self.event {
            Some(Event::Request { request, .. }) => Some(request),
            _ => None,
        }
    }

    pub(crate) fn worker(&self) -> Option<WorkerId> {
        match self.event? {
            Event::Started { worker, .. }
            | Event::StartFailed { worker, .. }
            | Event::Exited { worker, .. }
            | Event::Gone { worker }
            | Event::Message { worker, .. }
            | Event::Memory { worker, .. }
            | Event::StopRequested { worker } => Some(*worker),
            Event::Tick | Event::SystemStopping | Event::Request { .. } => None,
        }
    }

    /// Whether deadlines are judged.
    pub(crate) fn is_tick(&self) -> bool {
        self.tick == Tick::Judges
    }
}

/// The model of everything, and the laws.
#[derive(Debug)]
pub(crate) struct Judge {
    pub(crate) lives: BTreeMap<WorkerId, Life>,
    pub(crate) places: BTreeMap<SlotId, Place>,
    pub(crate) policies: BTreeMap<ConfigId, Rc<Policy>>,
    pub(crate) generations: BTreeMap<Generation, ConfigId>,
    pub(crate) forgotten: BTreeSet<ConfigId>,
    pub(crate) last_worker: u64,
    /// Requests with an answer to come.
    pub(crate) open: BTreeSet<RequestId>,
    pub(crate) answered: BTreeSet<RequestId>,
    /// Recycles that were asked for: where, and whom the client wants to be rid of.
    pub(crate) recycles: BTreeMap<RequestId, (SlotId, Option<WorkerId>)>,
    pub(crate) next_rolls: BTreeSet<RequestId>,
    pub(crate) roll: Option<RollModel>,
    pub(crate) next_generation: u64,
    /// A stop was asked for; fast or not.
    pub(crate) stop: Option<bool>,
    /// The system stops, and nothing is started until then.
    pub(crate) system_stops: Option<Time>,
    /// It stops because every first start failed.
    pub(crate) failed: bool,
    pub(crate) over: bool,
    pub(crate) told_ready: bool,
    pub(crate) patience: Option<Time>,
    /// Since when this process looks after deadlines.
    pub(crate) watched_since: Option<Time>,
    /// After a standstill: until when nothing is judged.
    pub(crate) held_until: Option<Time>,
    pub(crate) no_count: bool,
    pub(crate) had_ready: bool,
    /// In this step the first start of a slot failed.
    pub(crate) first_failed: bool,
    /// Deaths by verdict, for the record.
    pub(crate) verdicts: BTreeMap<Verdict, u64>,
    before: Option<Snapshot>,
}

/// A roll, as the notes tell it.
#[derive(Debug, Clone)]
pub(crate) struct RollModel {
    pub(crate) generation: Generation,
    pub(crate) requests: BTreeSet<RequestId>,
    pub(crate) canary: Option<WorkerId>,
    pub(crate) held: bool,
    pub(crate) undoing: bool,
}

impl Judge {
    pub(crate) fn new(config: ConfigId, policy: Policy) -> Self {
        Self {
            lives: BTreeMap::new(),
            places: BTreeMap::new(),
            policies: BTreeMap::from([(config, Rc::new(policy))]),
            generations: BTreeMap::from([(Generation(1), config)]),
            forgotten: BTreeSet::new(),
            last_worker: 0,
            open: BTreeSet::new(),
            answered: BTreeSet::new(),
            recycles: BTreeMap::new(),
            next_rolls: BTreeSet::new(),
            roll: None,
            next_generation: 2,
            stop: None,
            system_stops: None,
            failed: false,
            over: false,
            told_ready: false,
            patience: None,
            watched_since: None,
            held_until: None,
            no_count: false,
            had_ready: false,
            first_failed: false,
            verdicts: BTreeMap::new(),
            before: None,
        }
    }

    /// Judges one step of the core. `event` is none for the start.
    pub(crate) fn judge(&mut self, event: Option<&Event>, now: Time, actions: &[Action], core: &Supervisor) -> Law {
        let after = core.snapshot();
        let before = self.before.take().unwrap_or_else(|| after.clone());
        let tick = self.what_tick(event, now, &before);
        let step = Step { event, now, actions, before: &before, after: &after, tick };
        if self.over {
            self.after_the_end(&step)?;
        } else {
            self.one(&step, core)?;
        }
        self.before = Some(after);
        Ok(())
    }

    /// How a worker was asked for.
    pub(crate) fn start_of(&self, id: WorkerId) -> Action {
        let life = &self.lives[&id];
        Action::Start(Start {
            worker: id,
            slot: life.slot,
            generation: life.generation,
            config: life.config,
            quota: life.quota,
        })
    }

    /// The manager died: whatever systemd waited for, it waits for its restart now.
    pub(crate) fn crashed(&mut self, now: Time) {
        self.patience = finite(now, Duration::from_hours(24));
    }

    /// Judges what the core does when another process has taken it over. Pings were lost, edges may have been.
    pub(crate) fn judge_resume(
        &mut self,
        unheard: &BTreeSet<WorkerId>,
        now: Time,
        actions: &[Action],
        core: &Supervisor,
    ) -> Law {
        for life in self.lives.values_mut().filter(|life| life.phase == Phase::Ready) {
            life.watchdog = life.policy.watchdog.and_then(|span| finite(now, span));
            life.mask = None;
        }
        self.patience = None;
        for life in self.lives.values_mut().filter(|life| life.phase == Phase::Asked) {
            life.deadline = finite(now, Duration::from_mins(1));
        }
        for id in unheard {
            if let Some(life) = self.lives.get_mut(id) {
                life.unheard |= life.phase == Phase::Starting && life.policy.ready == Ready::Notify;
            }
        }
        self.judge(None, now, actions, core)?;
        for id in unheard {
            let lost = self.lives.get(id).filter(|life| life.phase == Phase::Starting && !self.over);
            law!(lost.is_none_or(|life| life.policy.ready == Ready::Settle), "{id} may be ready and waits in vain");
        }
        for (id, _) in self.lives.iter().filter(|(_, life)| life.phase == Phase::Leftover && !self.over) {
            law!(actions.contains(&Action::Sweep { worker: *id }), "what {id} left stays");
        }
        for (id, life) in self.lives.iter().filter(|(_, life)| life.phase == Phase::Ready) {
            let edge = Action::ArmMemory { worker: *id, edge: life.edge_bytes() };
            law!(life.recycle_at.is_none() || actions.contains(&edge), "nobody watches the memory of {id} any more");
        }
        Ok(())
    }

    fn one(&mut self, step: &Step<'_>, core: &Supervisor) -> Law {
        self.first_failed = false;
        let lost = self.absorb(step)?;
        self.failed |= step.after.stopping && !step.before.stopping && self.stop.is_none();
        for action in step.actions {
            self.act(action, step)?;
        }
        self.follow_loss(lost.as_ref(), step)?;
        self.check_workers(step)?;
        self.check_memory(step)?;
        self.check_scale(step)?;
        self.check_service(step)?;
        self.check_roll(step)?;
        self.check_progress(step)?;
        self.check_standstill(step)?;
        if matches!(step.event, Some(Event::Tick)) {
            let next = core.next_deadline();
            law!(next.is_none_or(|(at, _)| at > step.now), "after a tick the deadline {next:?} is not ahead");
        }
        Ok(())
    }

    fn after_the_end(&mut self, step: &Step<'_>) -> Law {
        for action in step.actions {
            match action {
                Action::Reply { request, response } => self.reply(*request, response, step, true)?,
                Action::Forget { .. } => {}
                other => return Err(format!("after the end: {other:?}")),
            }
        }
        Ok(())
    }

    /// What the event itself changes. Says which worker was lost, as it was.
    fn absorb(&mut self, step: &Step<'_>) -> Result<Option<(WorkerId, Life)>, String> {
        let now = step.now;
        if let Some(Event::Request { id, request }) = step.event {
            self.requested(*id, request, step);
            return Ok(None);
        }
        let Some(id) = step.worker() else {
            if matches!(step.event, Some(Event::SystemStopping)) && !step.before.stopping {
                self.system_stops = finite(now, Duration::from_mins(1));
            }
            self.system_stops = self.system_stops.filter(|at| !step.is_tick() || *at > now);
            self.settle(now, step);
            return Ok(None);
        };
        let Some(life) = self.lives.get_mut(&id) else {
            law!(step.actions.is_empty(), "news of the unknown worker {id} led to {:?}", step.actions);
            return Ok(None);
        };
        match step.event {
            Some(Event::Started { .. }) if life.phase == Phase::Asked => {
                life.enter(Phase::Starting, now);
                if life.early_ready && life.policy.ready == Ready::Notify {
                    life.enter(Phase::Ready, now);
                }
            }
            Some(Event::Message { message, .. }) => absorb_message(life, message, now),
            Some(Event::StopRequested { .. }) => life.outside |= life.phase <= Phase::Draining && !life.signalled,
            Some(Event::StartFailed { .. }) if life.phase.alive() => {
                let lost = life.clone();
                self.lives.remove(&id);
                self.was_lost(&lost);
                return Ok(Some((id, lost)));
            }
            Some(Event::Exited { .. }) if life.phase.alive() => {
                let lost = life.clone();
                life.enter(Phase::Leftover, now);
                if life.early_gone {
                    self.lives.remove(&id);
                }
                self.was_lost(&lost);
                return Ok(Some((id, lost)));
            }
            Some(Event::Gone { .. }) => {
                if life.phase == Phase::Leftover {
                    self.lives.remove(&id);
                } else {
                    life.early_gone = true;
                }
            }
            _ => {}
        }
        if self.lives.get(&id).is_some_and(|life| life.ready_at == Some(now) && life.phase == Phase::Ready) {
            self.was_ready(id);
        }
        Ok(None)
    }

    /// Whoever was alive for long enough is ready, where that is what makes ready.
    fn settle(&mut self, now: Time, step: &Step<'_>) {
        let due = |life: &Life| {
            life.phase == Phase::Starting
                && life.policy.ready == Ready::Settle
                && life.deadline.is_some_and(|at| at <= now)
        };
        // One that was told to end in the same tick may not have come to it.
        let came = |id: &WorkerId| step.after.workers.iter().any(|view| view.worker == *id && view.ready_at.is_some());
        let ready: Vec<WorkerId> =
            self.lives.iter().filter(|(id, life)| step.is_tick() && due(life) && came(id)).map(|(id, _)| *id).collect();
        for id in ready {
            if let Some(life) = self.lives.get_mut(&id) {
                life.enter(Phase::Ready, now);
            }
            self.was_ready(id);
        }
    }

    fn was_lost(&mut self, life: &Life) {
        if life.ready_at.is_none() && !life.unheard {
            let had = &mut self.places.entry(life.slot).or_default().had_outcome;
            self.first_failed = !std::mem::replace(had, true);
        }
    }

    /// A worker has just got ready.
    pub(crate) fn was_ready(&mut self, id: WorkerId) {
        let life = &self.lives[&id];
        let place = self.places.entry(life.slot).or_default();
        place.spread = place.spread.max(Some(life.generation));
        place.failures = 0;
        if !place.had_outcome {
            self.had_ready = true;
        }
        place.had_outcome = true;
    }

    fn requested(&mut self, id: Option<RequestId>, request: &Request, step: &Step<'_>) {
        self.open.extend(id);
        match request {
            Request::Reload { .. } if self.system_stops.is_some() => {}
            Request::Reload { config, policy } => {
                self.policies.insert(*config, Rc::new((**policy).clone()));
                if !step.before.stopping {
                    self.next_rolls.extend(id);
                }
            }
            Request::Recycle { slot } => {
                let view = step.before.slots.iter().find(|view| view.slot == *slot);
                let current = view.and_then(|view| view.worker);
                let old = current.filter(|old| self.lives.get(old).is_some_and(|life| !life.phase.starting()));
                self.recycles.extend(id.map(|id| (id, (*slot, old))));
            }
            Request::Stop { fast } => self.stop = Some(self.stop.unwrap_or(false) || *fast),
            Request::Terminate => self.stop = Some(step.before.stopping),
            _ => {}
        }
    }

    fn act(&mut self, action: &Action, step: &Step<'_>) -> Law {
        match action {
            Action::Start(start) => self.start(start, step),
            Action::Signal { worker, signal } => self.signal(*worker, signal.0, step),
            Action::Kill { worker } => self.kill(*worker, step),
            Action::Sweep { worker } => {
                let exited = matches!(step.event, Some(Event::Exited { .. })) && step.worker() == Some(*worker);
                // Whoever takes over does not know how far that had come.
                let again = step.event.is_none() && self.lives[worker].phase == Phase::Leftover;
                law!(exited || again, "{worker} is swept although it did not exit just now");
                Ok(())
            }
            Action::ArmMemory { worker, .. } | Action::Pulse { worker } => {
                law!(self.lives.contains_key(worker), "{action:?} for an unknown worker");
                Ok(())
            }
            Action::SetLimits { worker, config } => self.limits(*worker, *config),
            Action::Forget { config } => self.forget(*config, step),
            Action::Reply { request, response } => self.reply(*request, response, step, false),
            Action::Tell(state) => self.tell(state, step),
            Action::Note(note) => self.note(note, step),
            Action::Exit { code } => self.exit(*code, step),
        }
    }

    fn limits(&mut self, worker: WorkerId, config: ConfigId) -> Law {
        let policy = &self.policies[&config];
        let Some(life) = self.lives.get_mut(&worker) else {
            return Err(format!("limits for the unknown worker {worker}"));
        };
        life.memory_max = life.policy.memory_max.max(policy.memory_max);
        if life.phase <= Phase::Ready && life.edge == super::model::Edge::First {
            life.recycle_at = policy.recycle_at;
            life.mask = None;
        }
        Ok(())
    }

    fn forget(&mut self, config: ConfigId, step: &Step<'_>) -> Law {
        law!(self.forgotten.insert(config), "{config} is forgotten twice");
        let used = self.lives.iter().find(|(_, life)| life.config == config);
        law!(used.is_none(), "{config} is forgotten although {used:?} uses it");
        let active = self.generations.get(&step.after.generation);
        law!(active != Some(&config), "the active {config} is forgotten");
        Ok(())
    }

    /// An answer: to a request that was asked, once, and true.
    fn reply(&mut self, request: RequestId, response: &Response, step: &Step<'_>, over: bool) -> Law {
        if over && let Some(Event::Request { id, .. }) = step.event {
            self.open.extend(*id);
        }
        law!(self.open.remove(&request), "{request} is answered although it is not open");
        law!(self.answered.insert(request), "{request} is answered twice");
        if let (Some((slot, old)), Response::Done { .. }) = (self.recycles.get(&request), response) {
            let mut here = self.lives.iter().filter(|(_, life)| life.slot == *slot);
            let new = here.any(|(id, life)| Some(*id) > *old && life.ready_at.is_some() && life.phase.alive());
            let gone = old.is_none_or(|old| self.lives.get(&old).is_none_or(|life| !life.phase.alive()));
            law!(new && gone, "the recycle of {old:?} in slot {slot} is done: replaced {new}, gone {gone}");
        }
        if let (Some(Request::Scale { workers }), Response::Done { .. }) = (step.request(), response) {
            law!(step.after.wanted == *workers, "{workers} were promised, {} are wanted", step.after.wanted);
        }
        if let Some(Request::Scale { workers: 0 }) = step.request() {
            law!(matches!(response, Response::Invalid { .. } | Response::Failed { .. }), "scale 0: {response:?}");
        }
        Ok(())
    }

    fn tell(&mut self, state: &ServiceState, step: &Step<'_>) -> Law {
        if matches!(state, ServiceState::Ready | ServiceState::Reloading | ServiceState::Stopping) {
            // With each of them systemd waits anew, and forgets what it was asked for before.
            self.patience = None;
        }
        match state {
            ServiceState::Ready if !self.told_ready => {
                self.told_ready = true;
                let ready = self.lives.values().any(|life| life.phase == Phase::Ready);
                law!(ready, "READY although no worker is ready");
                let missing = self.missing(step.after);
                law!(missing.is_empty(), "READY although {missing:?} had no outcome yet");
            }
            ServiceState::ExtendTimeout(span) => self.patience = Some(step.now.after(*span)).max(self.patience),
            ServiceState::Reloading => {
                law!(step.notes(NoteKind::ReloadStarted).next().is_some(), "RELOADING without a roll");
            }
            ServiceState::Stopping => law!(step.after.stopping, "STOPPING without a stop"),
            ServiceState::Ready | ServiceState::Status(_) => {}
        }
        Ok(())
    }

    /// Wanted slots whose first worker had no outcome.
    pub(crate) fn missing(&self, snapshot: &Snapshot) -> Vec<SlotId> {
        let had = |slot: &SlotId| self.places.get(slot).is_some_and(|place| place.had_outcome);
        snapshot.slots.iter().filter(|view| view.wanted && !had(&view.slot)).map(|view| view.slot).collect()
    }

    fn exit(&mut self, code: u8, step: &Step<'_>) -> Law {
        law!(self.lives.is_empty(), "it leaves although {:?} are there", self.lives.keys());
        law!(step.after.stopping, "it leaves without a stop");
        law!(u8::from(self.failed) == code, "exit code {code}");
        law!(self.open.is_empty(), "it leaves without an answer to {:?}", self.open);
        self.over = true;
        Ok(())
    }
}

fn absorb_message(life: &mut Life, message: &Message, now: Time) {
    match message {
        Message::Ready if life.policy.ready == Ready::Notify => match life.phase {
            Phase::Asked => life.early_ready = true,
            Phase::Starting => life.enter(Phase::Ready, now),
            _ => {}
        },
        Message::Stopping if matches!(life.phase, Phase::Starting | Phase::Ready) => {
            life.stopping = true;
            life.enter(Phase::Draining, now);
        }
        Message::Watchdog => life.ping(now),
        Message::ExtendTimeout(span) => life.extend(*span, now),
        Message::Requests(total) if life.ready_at.is_some() && life.phase.alive() => {
            life.requests = life.requests.max(Some(*total));
        }
        Message::Recycle if life.phase == Phase::Ready => life.asked = true,
        Message::Ready
        | Message::Stopping
        | Message::Status(_)
        | Message::WatchdogTrigger
        | Message::Requests(_)
        | Message::Recycle => {}
    }
}
