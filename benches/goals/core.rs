//! How fast the core decides: steps a second, and what 1,000 workers cost against 10.

use std::hint::black_box;
use std::time::{Duration, Instant};

use paddock::config::model::{Ready, Signal};
use paddock::supervisor::Supervisor;
use paddock::supervisor::action::Action;
use paddock::supervisor::event::{Death, Ended, Event, Message};
use paddock::supervisor::id::{ConfigId, SlotId, WorkerId};
use paddock::supervisor::policy::Policy;
use paddock::supervisor::time::Time;

use crate::figure::{Figure, median};

/// Rounds of the interleaved comparison; the median counts.
const ROUNDS: usize = 601;
/// Steps of a round: fewer than fit into a time slice, so that a busy machine spoils few of them.
const STEPS: u64 = 1000;

/// All of it.
pub(crate) fn measure() -> Vec<Figure> {
    let mut small = App::new(10);
    let mut large = App::new(1000);
    let mut four = App::new(4);
    let speed = median((0..ROUNDS).map(|_| 1e9 / four.measure(App::mixed, STEPS)));
    let mut figures =
        vec![Figure::at_least("core: million steps a second, 4 workers, all kinds mixed", speed / 1e6, 1.0)];
    for (name, what) in [("a message", App::message as fn(&mut App)), ("a death and its restart", App::death)] {
        let mut pairs = Vec::new();
        for _ in 0..ROUNDS {
            pairs.push((small.measure(what, STEPS), large.measure(what, STEPS)));
        }
        let ratio = median(pairs.iter().map(|(small, large)| large / small));
        let cost = median(pairs.iter().map(|(small, _)| *small));
        figures.push(Figure::plain(format!("core: {name}, 10 workers, ns a step"), cost));
        figures.push(Figure::at_most(format!("core: {name}, 1,000 workers against 10, ratio"), ratio, 2.0));
    }
    figures
}

/// An app whose workers are all ready.
struct App {
    core: Supervisor,
    now: Time,
    actions: Vec<Action>,
    /// The worker in each slot.
    current: Vec<WorkerId>,
    turn: usize,
    steps: u64,
}

impl App {
    fn new(workers: u32) -> Self {
        let now = Time::from_boot(Duration::from_secs(1000));
        let mut app = Self {
            core: Supervisor::new(policy(workers), ConfigId(1), 1),
            now,
            actions: Vec::new(),
            current: Vec::new(),
            turn: 0,
            steps: 0,
        };
        app.current.resize(workers as usize, WorkerId(0));
        app.core.start(now, &mut app.actions);
        app.follow();
        app
    }

    /// Nanoseconds for each step, over at least so many of them.
    fn measure(&mut self, what: fn(&mut Self), steps: u64) -> f64 {
        let (before, begin) = (self.steps, Instant::now());
        while self.steps < before + steps {
            what(self);
        }
        begin.elapsed().as_nanos() as f64 / (self.steps - before) as f64
    }

    fn step(&mut self, event: Event) {
        self.steps += 1;
        // Far slower than its watchdogs, so that nobody is due.
        self.now = self.now.after(Duration::from_micros(1));
        self.core.step(event, self.now, &mut self.actions);
        black_box(self.core.next_deadline());
    }

    /// Whatever was asked to start gets ready.
    fn follow(&mut self) {
        while !self.actions.is_empty() {
            for action in std::mem::take(&mut self.actions) {
                if let Action::Start(start) = action {
                    if let Some(place) = self.current.get_mut(slot(start.slot)) {
                        *place = start.worker;
                    }
                    self.step(Event::Started { worker: start.worker, pid: 1 });
                    self.step(Event::Message { worker: start.worker, message: Message::Ready });
                }
            }
        }
    }

    fn next_worker(&mut self) -> WorkerId {
        // A stride that visits all slots, far from each other.
        self.turn = (self.turn + 617) % self.current.len();
        self.current.get(self.turn).copied().unwrap_or(WorkerId(0))
    }

    fn message(&mut self) {
        let worker = self.next_worker();
        self.step(Event::Message { worker, message: Message::Watchdog });
        let worker = self.next_worker();
        self.step(Event::Message { worker, message: Message::Requests(self.steps) });
        self.actions.clear();
    }

    fn death(&mut self) {
        let worker = self.next_worker();
        let death = Death { ended: Ended::Exit(1), oom_killed: Some(false), peak: Some(1), last_words: Vec::new() };
        // It was fine for long, so that its restart is at once.
        self.now = self.now.after(Duration::from_secs(11));
        self.step(Event::Exited { worker, death });
        self.step(Event::Gone { worker });
        self.follow();
    }

    fn mixed(&mut self) {
        for _ in 0..24 {
            self.message();
        }
        self.death();
    }
}

fn slot(slot: SlotId) -> usize {
    slot.0 as usize
}

fn policy(workers: u32) -> Policy {
    Policy {
        workers,
        ready: Ready::Notify,
        drain_signal: Signal(15),
        memory_max: Some(512 << 20),
        memory_budget: None,
        recycle_at: Some(400 << 20),
        max_requests: u64::MAX / 2,
        max_requests_jitter: 100,
        spread: true,
        max_lifetime: Some(Duration::from_hours(100_000)),
        surge: 1,
        start: Duration::from_mins(1),
        settle: Duration::from_secs(1),
        watchdog: Some(Duration::from_hours(100_000)),
        graceful: Duration::from_secs(30),
        abort: Duration::from_secs(2),
        backoff: Duration::from_millis(100),
        backoff_max: Duration::from_secs(30),
        hold: Duration::from_secs(1),
        parallel_starts: 8,
    }
}
