//! The core: bytes become a policy and a history, with events that no world would bring, and the laws of the simulation
//! are asked after each.

use std::collections::BTreeSet;
use std::time::Duration;

use super::Source;
use crate::config::model::{Ready, Signal};
use crate::supervisor::Supervisor;
use crate::supervisor::action::Action;
use crate::supervisor::event::{Death, Ended, Event, Message, Request};
use crate::supervisor::id::{ConfigId, RequestId, SlotId, WorkerId};
use crate::supervisor::policy::Policy;
use crate::supervisor::time::Time;
use sim::judge::Judge;
use sim::model::Phase;

/// The laws, which are the simulation's own.
#[expect(
    dead_code,
    clippy::match_same_arms,
    clippy::option_option,
    clippy::similar_names,
    clippy::unused_self,
    clippy::wildcard_enum_match_arm,
    reason = "laws read best one by one, in the words of the rule"
)]
#[path = "../../tests/sim"]
mod sim {
    mod deeds;
    pub(super) mod judge;
    pub(super) mod model;
    mod rolls;
    mod standstill;
    mod steps;
}

/// A history ends after so many events, so that an input is done in a moment.
const EVENTS: u32 = 300;

/// A history, and then an end that must come.
pub(super) fn steps(bytes: &[u8]) {
    let mut source = Source(bytes);
    let mut case = Case::new(&mut source);
    for _ in 0..EVENTS {
        if source.is_empty() || case.core.is_over() {
            break;
        }
        case.one(&mut source);
    }
    case.end();
}

/// What the first process of a worker that was killed ends as.
pub(super) fn exited(worker: WorkerId) -> Event {
    let ended = Ended::Signal(Signal(9));
    Event::Exited { worker, death: Death { ended, oom_killed: Some(false), peak: None, last_words: Vec::new() } }
}

struct Case {
    core: Supervisor,
    judge: Judge,
    now: Time,
    policy: Policy,
    actions: Vec<Action>,
    requests: u64,
    configs: u64,
}

impl Case {
    fn new(source: &mut Source<'_>) -> Self {
        let policy = policy(source);
        let now = Time::from_boot(Duration::from_secs(1000));
        let mut case = Self {
            core: Supervisor::new(policy.clone(), ConfigId(1), u64::from(source.byte())),
            judge: Judge::new(ConfigId(1), policy.clone()),
            now,
            policy,
            actions: Vec::new(),
            requests: 1,
            configs: 1,
        };
        case.core.start(now, &mut case.actions);
        let law = case.judge.judge(None, now, &case.actions, &case.core);
        case.keep(law);
        case
    }

    /// One event, or time that passes.
    fn one(&mut self, source: &mut Source<'_>) {
        let byte = source.byte();
        match byte % 16 {
            0 | 1 if byte >= 240 => self.stand_still(source),
            0 | 1 => self.pass(source),
            2 => self.step(&Event::Tick),
            3 => self.resume(source),
            4 | 5 => {
                let request = self.request(source);
                let id = source.flag().then_some(RequestId(self.requests));
                self.requests += 1;
                self.step(&Event::Request { id, request });
            }
            kind => {
                let worker = self.worker(source);
                self.step(&event(kind, worker, source));
            }
        }
    }

    /// Mostly one that lives; now and then one that is gone, or never was.
    fn worker(&self, source: &mut Source<'_>) -> WorkerId {
        let ids: Vec<WorkerId> = self.judge.lives.keys().copied().collect();
        let pick = usize::from(source.byte());
        match pick {
            250 => WorkerId(0),
            251 => WorkerId(u64::MAX),
            252..=255 => WorkerId(u64::from(source.byte())),
            _ if ids.is_empty() => WorkerId(1),
            _ => ids[pick % ids.len()],
        }
    }

    fn request(&mut self, source: &mut Source<'_>) -> Request {
        let slot = SlotId(u32::from(source.below(8)));
        match source.below(9) {
            0 | 1 => {
                self.configs += 1;
                self.policy = policy(source);
                Request::Reload { config: ConfigId(self.configs), policy: Box::new(self.policy.clone()) }
            }
            2 => Request::Recycle { slot: if source.flag() { SlotId(u32::MAX) } else { slot } },
            3 => Request::Scale { workers: u32::from(source.below(9)) },
            4 => Request::ScaleBy { by: i32::from(source.below(5)) - 2 },
            5 => Request::Signal { signal: Signal(i32::from(source.below(64)) + 1), slot: None },
            6 => Request::Signal { signal: Signal(i32::from(source.below(64)) + 1), slot: Some(slot) },
            7 => Request::Stop { fast: source.flag() },
            _ => Request::Terminate,
        }
    }

    /// Deadlines on the way are told when they come, as the runtime does.
    fn pass(&mut self, source: &mut Source<'_>) {
        let millis = source.of(&[0, 1, 50, 500, 1000, 5000, 30_000, 600_000]);
        let end = self.now.after(Duration::from_millis(millis));
        for _ in 0..100 {
            let Some((at, _)) = self.core.next_deadline().filter(|(at, _)| *at <= end) else {
                self.now = end;
                return;
            };
            self.now = self.now.max(at);
            self.step(&Event::Tick);
        }
    }

    /// Nobody looks after deadlines for a while.
    fn stand_still(&mut self, source: &mut Source<'_>) {
        let millis = source.of(&[500, 999, 1000, 3000, 14_000]);
        self.now = self.now.after(Duration::from_millis(millis));
        if self.core.next_deadline().is_some_and(|(at, _)| at <= self.now) {
            self.step(&Event::Tick);
        }
    }

    /// Another process goes on, with what this one wrote down.
    fn resume(&mut self, source: &mut Source<'_>) {
        let heard = source.byte();
        let unheard: BTreeSet<WorkerId> =
            self.judge.lives.keys().filter(|id| heard >> (id.0 % 8) & 1 == 1).copied().collect();
        let text = serde_json::to_string(&self.core).expect("the core can be written");
        self.core = serde_json::from_str(&text).expect("the core can be read");
        self.actions.clear();
        self.core.resume(&unheard, self.now, &mut self.actions);
        let law = self.judge.judge_resume(&unheard, self.now, &self.actions, &self.core);
        self.keep(law);
    }

    fn step(&mut self, event: &Event) {
        self.actions.clear();
        self.core.step(event.clone(), self.now, &mut self.actions);
        let law = self.judge.judge(Some(event), self.now, &self.actions, &self.core);
        self.keep(law);
        let worst = self.actions.len();
        assert!(worst < 500, "{worst} deeds follow from {event:?}");
    }

    fn keep(&self, law: Result<(), String>) {
        if let Err(why) = law {
            panic!("{why}\n{:?}\n{:?}", self.actions, self.core.snapshot());
        }
    }

    /// Whoever is asked to end does, and then nothing is left: no worker, no client without an answer, no deadline.
    fn end(&mut self) {
        if !self.core.is_over() {
            let id = Some(RequestId(self.requests));
            self.step(&Event::Request { id, request: Request::Stop { fast: true } });
        }
        for _ in 0..100 {
            let Some((id, life)) = self.judge.lives.iter().next() else { break };
            let (id, phase) = (*id, life.phase);
            let event = if phase == Phase::Asked {
                Event::StartFailed { worker: id, error: "given up".to_owned() }
            } else if phase == Phase::Leftover {
                Event::Gone { worker: id }
            } else {
                exited(id)
            };
            self.step(&event);
        }
        assert!(self.core.is_over(), "everybody is gone and it goes on: {:?}", self.core.snapshot());
        assert!(self.judge.open.is_empty(), "{:?} were never answered", self.judge.open);
        assert!(self.core.next_deadline().is_none(), "it is over and waits for something");
    }
}

fn event(kind: u8, worker: WorkerId, source: &mut Source<'_>) -> Event {
    match kind {
        6 | 7 => Event::Started { worker, pid: u32::from(source.byte()) },
        8 => Event::StartFailed { worker, error: String::from_utf8_lossy(source.bytes(4)).into_owned() },
        9 => Event::Exited { worker, death: death(source) },
        10 => Event::Gone { worker },
        11 => Event::Memory { worker, unreclaimable: amount(source) },
        12 | 13 => Event::Message { worker, message: Message::Ready },
        15 => match source.below(8) {
            0 => Event::SystemStopping,
            1 => Event::StopRequested { worker },
            _ => Event::Message { worker, message: message(source) },
        },
        _ => Event::Message { worker, message: message(source) },
    }
}

fn message(source: &mut Source<'_>) -> Message {
    match source.below(8) {
        0 => Message::Ready,
        1 => Message::Stopping,
        2 => Message::Status(String::from_utf8_lossy(source.bytes(4)).into_owned()),
        3 => Message::Watchdog,
        4 => Message::WatchdogTrigger,
        5 => Message::ExtendTimeout(Duration::from_micros(amount(source))),
        6 => Message::Requests(amount(source)),
        _ => Message::Recycle,
    }
}

fn death(source: &mut Source<'_>) -> Death {
    let ended = match source.below(3) {
        0 => Ended::Exit(i32::from(source.byte())),
        1 => Ended::Signal(Signal(i32::from(source.below(64)) + 1)),
        _ => Ended::Unknown,
    };
    Death {
        ended,
        oom_killed: source.of(&[None, Some(false), Some(true)]),
        peak: source.of(&[None, Some(0), Some(u64::MAX)]),
        last_words: Vec::new(),
    }
}

fn amount(source: &mut Source<'_>) -> u64 {
    match source.below(8) {
        0 => u64::MAX,
        1 => source.number(),
        2 => 0,
        3 => 60_000_000,
        _ => u64::from(source.byte()) * 10,
    }
}

/// A policy that a configuration could have produced, the edges of each range included.
fn policy(source: &mut Source<'_>) -> Policy {
    let millis = |source: &mut Source<'_>, choices: &[u64]| Duration::from_millis(source.of(choices));
    let workers = u32::from(source.below(6)) + 1;
    let surge = u32::from(source.below(4));
    let ready = source.of(&[Ready::Notify, Ready::Notify, Ready::Settle]);
    let max = source.of(&[None, Some(1000_u64), Some(1001), Some(u64::from(u32::MAX))]);
    let budget = max.filter(|_| source.flag()).map(|max| u64::from(workers) * max + source.of(&[0, 1, max, 3 * max]));
    let start = millis(source, &[1, 1000, 60_000, 1 << 40]);
    let settle = millis(source, &[0, 1, 1000]);
    let watchdog = source.of(&[None, Some(1), Some(2000)]).map(Duration::from_millis);
    Policy {
        workers,
        ready,
        drain_signal: Signal(source.of(&[15, 1, 3])),
        memory_max: max,
        memory_budget: budget,
        recycle_at: max.and_then(|max| source.of(&[None, Some(max / 2), Some(max - 1), Some(max)])),
        max_requests: source.of(&[0, 1, 7, 1000, u64::from(u32::MAX)]),
        max_requests_jitter: source.of(&[0, 1, 7, 1000]),
        spread: source.flag(),
        max_lifetime: source.of(&[None, Some(1), Some(10_000)]).map(Duration::from_millis),
        surge,
        start,
        settle,
        watchdog: watchdog.filter(|_| ready == Ready::Notify),
        graceful: millis(source, &[0, 1000, 30_000, 1 << 40]),
        abort: millis(source, &[0, 1, 2000]),
        backoff: millis(source, &[1, 100]),
        backoff_max: millis(source, &[100, 30_000]),
        hold: millis(source, &[0, 1000, 1 << 40]),
        parallel_starts: u32::from(source.below(5)) + 1,
    }
}
