//! The decision core: **pure**. No clock, no randomness of its own, no files, no processes.
//!
//! `step(event, now, actions)` takes what happened and says what to do; `next_deadline()` says when it wants to be
//! woken for nothing else than the passing of time; `snapshot()` says how things stand.
//!
//! A worker's way, with the deadline of each state:
//!
//! ```text
//!   asked ──Started──▶ starting ──READY──▶ ready ──drain signal──▶ draining ──Exited──▶ leftover ──Gone──▶ ·
//!     │ fence             │ start            │ watchdog               │ graceful            ▲ sweep
//!     │                   └────────┐         └─▶ aborting ─abort─┐    ▼                     │
//!     └── StartFailed ──▶ ·        └──────────────────────────▶ killing (kill, repeated) ───┘
//! ```
//!
//! `life` and `death` have these steps, `slot` what a worker's place keeps, `plan` who may start when, `recycle`, `memory` and
//! `watchdog` what makes a worker due or dead, `restart` the backoff, `rollout` a reload, `service` start-up and stop,
//! `patience` how long systemd waits for those, `standstill` when nobody is judged, `outside` what systemd stops, `request`
//! what operators ask, `verdict` what a death was.
//!
//! Two rules for the runtime. Deadlines are judged at [`Event::Tick`] only, so that everything that had arrived by then
//! is taken into account first; after a `Tick` the next deadline lies ahead. And events of workers that the core no
//! longer knows are dropped, so late news does no harm.

pub mod action;
mod death;
pub mod event;
pub mod id;
mod life;
mod memory;
pub mod note;
mod outside;
mod patience;
mod plan;
pub mod policy;
pub mod recycle;
mod request;
mod restart;
mod resume;
mod rollout;
mod say;
mod service;
pub mod shelf;
mod slot;
pub mod snapshot;
mod standstill;
pub mod time;
mod timers;
pub mod verdict;
mod watchdog;
mod worker;

#[cfg(test)]
pub(crate) mod fixture;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::SeedableRng;
use serde::{Deserialize, Serialize};

use action::{Action, Response};
use event::{Event, Message};
use id::{ConfigId, Generation, RequestId, SlotId, WorkerId};
use policy::Policy;
use recycle::Cause;
use rollout::{NextRoll, Roll};
use service::Stop;
use slot::Slot;
use time::Time;
use timers::{Clock, Timer, Timers};
use verdict::Verdict;
use worker::{Release, Worker};

/// How long the gate and the fence may take until the program is exec'd.
const FENCE: Duration = Duration::from_mins(1);

/// Decides everything about one app's workers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Supervisor {
    rng: Xoshiro256PlusPlus,
    /// Boxed, so that a search for one of many walks over little memory.
    #[serde(with = "shelf")]
    workers: BTreeMap<WorkerId, Box<Worker>>,
    slots: BTreeMap<SlotId, Slot>,
    /// How many workers are wanted: as many slots are.
    wanted: u32,
    /// What a start is made from, apart from a canary's.
    active: Arc<Release>,
    in_use: BTreeMap<Generation, Users>,
    roll: Option<Roll>,
    next_roll: Option<NextRoll>,
    stop: Option<Stop>,
    /// The system stops, as far as is known: nothing is started before this.
    #[serde(default)]
    system_stops: Option<Time>,
    counts: Counts,
    timers: Timers,
    /// The first of them when it was last put right, and whether it has moved since.
    first: Option<(Time, Timer)>,
    first_moved: bool,
    /// Wanted slots that are empty and wait for nothing, those with the fewest restarts in a row first.
    vacant: BTreeSet<(u32, SlotId)>,
    /// Slots whose worker stopped accepting and has no replacement yet.
    uncovered: BTreeSet<SlotId>,
    /// Workers to be replaced, in their order.
    queue: BTreeSet<(Cause, u64, WorkerId)>,
    next_worker: u64,
    next_place: u64,
    next_generation: u64,
    /// Slots whose first worker is still on its way.
    outcomes_missing: u32,
    /// Whether the first worker of any slot got ready.
    had_ready: bool,
    told_ready: bool,
    /// Whether an app that does not start waits for a reload, instead of ending.
    #[serde(default)]
    patient: bool,
    /// It does wait: only what was never tried, and a canary, may start.
    #[serde(default)]
    parked: bool,
    told_no_count: bool,
    told_extend: Option<Time>,
    /// When systemd has to be asked for patience again.
    #[serde(default)]
    ask_again: Option<Time>,
    told_status: Option<(u32, u32, Option<Generation>, Generation, bool)>,
    /// Since when a process looks after deadlines.
    #[serde(default)]
    watched_since: Option<Time>,
    /// After a standstill: no deadline is judged before this.
    #[serde(default)]
    held_until: Option<Time>,
    /// Everything is over.
    over: bool,
    /// Something changed that others may have waited for.
    changed: bool,
    verdicts: BTreeMap<Verdict, u64>,
    recycles: BTreeMap<Cause, u64>,
}

/// Who uses a generation's configuration.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Users {
    config: Option<ConfigId>,
    /// Workers whose first process may be alive.
    alive: u32,
    /// Workers of which something may be left.
    members: u32,
}

/// Sums over all workers and slots, kept up to date so that no step has to walk over them.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Counts {
    /// Workers whose first process may be alive.
    alive: u32,
    /// Starts under way.
    starting: u32,
    /// Workers on their way out, up to the point where nothing is left of them.
    leaving: u32,
    /// Wanted slots with a worker.
    occupied: u32,
    /// Wanted slots with a ready worker.
    serving: u32,
    /// What all workers may hold together, in bytes.
    committed: u128,
    /// What those on their way out may hold of that.
    leaving_memory: u128,
}

/// One step: its time, and where its deeds go.
struct Cx<'a> {
    now: Time,
    out: &'a mut Vec<Action>,
}

impl Cx<'_> {
    fn act(&mut self, action: Action) {
        self.out.push(action);
    }

    fn answer(&mut self, request: Option<RequestId>, response: Response) {
        if let Some(request) = request {
            self.act(Action::Reply { request, response });
        }
    }

    fn answer_all(&mut self, requests: impl IntoIterator<Item = RequestId>, response: &Response) {
        for request in requests {
            self.answer(Some(request), response.clone());
        }
    }
}

impl Supervisor {
    /// An app under its first configuration. `seed` makes jitter and backoff repeatable.
    pub fn new(policy: Policy, config: ConfigId, seed: u64) -> Self {
        let first = Generation(1);
        let active = Arc::new(Release { generation: first, config, policy });
        Self {
            rng: Xoshiro256PlusPlus::seed_from_u64(seed),
            workers: BTreeMap::new(),
            slots: BTreeMap::new(),
            wanted: 0,
            active,
            in_use: BTreeMap::from([(first, Users { config: Some(config), ..Users::default() })]),
            roll: None,
            next_roll: None,
            stop: None,
            system_stops: None,
            counts: Counts::default(),
            timers: Timers::new(),
            first: None,
            first_moved: false,
            vacant: BTreeSet::new(),
            uncovered: BTreeSet::new(),
            queue: BTreeSet::new(),
            next_worker: 1,
            next_place: 0,
            next_generation: 2,
            outcomes_missing: 0,
            had_ready: false,
            told_ready: false,
            patient: false,
            parked: false,
            told_no_count: false,
            told_extend: None,
            ask_again: None,
            told_status: None,
            watched_since: None,
            held_until: None,
            over: false,
            changed: false,
            verdicts: BTreeMap::new(),
            recycles: BTreeMap::new(),
        }
    }

    /// Starts the first workers. To be called once.
    pub fn start(&mut self, now: Time, actions: &mut Vec<Action>) {
        let mut cx = Cx { now, out: actions };
        self.begin_watch(now);
        self.set_wanted(self.active.policy.workers.max(1), &mut cx);
        self.settle(&mut cx);
        self.sort_timers();
    }

    /// Takes one event and adds what is to be done about it to `actions`, in the order in which it is to be done.
    pub fn step(&mut self, event: Event, now: Time, actions: &mut Vec<Action>) {
        let mut cx = Cx { now, out: actions };
        if self.over {
            if let Event::Request { id, request } = event {
                Self::request_after_end(&request, id, &mut cx);
            }
            return;
        }
        match event {
            Event::Tick if self.may_judge(&mut cx) => self.tick(&mut cx),
            Event::Tick => {}
            Event::Started { worker, pid } => self.started(worker, pid, &mut cx),
            Event::StartFailed { worker, error } => self.start_failed(worker, &error, &mut cx),
            Event::Exited { worker, death } => self.exited(worker, death, &mut cx),
            Event::Gone { worker } => self.gone(worker, &mut cx),
            Event::Message { worker, message } => self.message(worker, message, &mut cx),
            Event::Memory { worker, unreclaimable } => self.memory(worker, unreclaimable, &mut cx),
            Event::StopRequested { worker } => self.stop_requested(worker, &mut cx),
            Event::SystemStopping => self.system_stopping(&mut cx),
            Event::Request { id, request } => self.request(id, request, &mut cx),
        }
        self.settle(&mut cx);
        self.sort_timers();
    }

    /// When to send [`Event::Tick`] at the latest, and what that deadline is called. None: nothing is waited for.
    pub fn next_deadline(&self) -> Option<(Time, &'static str)> {
        self.timers.first().map(|(at, timer)| (self.judged_at(*at), self.timer_name(*timer)))
    }

    /// Whether everything is over: [`Action::Exit`] has been given.
    pub fn is_over(&self) -> bool {
        self.over
    }

    fn tick(&mut self, cx: &mut Cx<'_>) {
        while let Some(timer) = self.take_due(cx.now) {
            self.ring(timer, cx);
            self.sort_timers();
            if self.timers.first().is_none_or(|(at, _)| *at > cx.now) {
                self.settle(cx);
            }
        }
    }

    fn ring(&mut self, timer: Timer, cx: &mut Cx<'_>) {
        match timer {
            Timer::Worker(id, Clock::State) => self.overdue(id, cx),
            Timer::Worker(id, Clock::Watchdog) => self.silent(id, cx),
            Timer::Worker(id, Clock::Lifetime) => self.lifetime_over(id, cx),
            Timer::Worker(id, Clock::Mask) => self.arm(id, cx),
            Timer::Worker(id, Clock::Count) => self.count_missing(id, cx),
            Timer::Slot(id) => self.refresh(id),
            Timer::Hold => self.held(cx),
            Timer::Patience => self.begin_patience(),
            // Whether it still does is seen by whether a start is refused.
            Timer::System => self.changed = true,
        }
    }

    fn message(&mut self, id: WorkerId, message: Message, cx: &mut Cx<'_>) {
        match message {
            Message::Ready => self.says_ready(id, cx),
            Message::Stopping => self.says_stopping(id, cx),
            Message::Status(text) => {
                if let Some(worker) = self.workers.get_mut(&id) {
                    worker.status = text;
                }
            }
            Message::Watchdog => self.ping(id, cx),
            Message::WatchdogTrigger => self.hangs(id, "it said WATCHDOG=trigger", cx),
            Message::ExtendTimeout(span) => self.extend(id, span, cx),
            Message::Requests(total) => self.count(id, total, cx),
            Message::Recycle => self.asks_recycle(id, cx),
        }
    }

    /// Follows up on what has changed until nothing more follows.
    fn settle(&mut self, cx: &mut Cx<'_>) {
        if !self.changed {
            return;
        }
        // What is complete is noticed before the next replacement begins: with stop-first it may be incomplete again
        // at once.
        while std::mem::take(&mut self.changed) {
            self.check_ready(cx);
            self.check_roll(cx);
            self.begin_next(cx);
            self.plan(cx);
        }
        self.tell_status(cx);
        self.ask_patience(cx);
        self.check_over(cx);
    }
}
