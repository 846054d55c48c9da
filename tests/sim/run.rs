//! One simulated life of an app, and its trace.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use paddock::config::model::Signal;
use paddock::supervisor::Supervisor;
use paddock::supervisor::action::Action;
use paddock::supervisor::event::{Event, Request};
use paddock::supervisor::id::{ConfigId, RequestId, SlotId, WorkerId};
use paddock::supervisor::policy::Policy;
use paddock::supervisor::time::Time;
use serde::{Deserialize, Serialize};

use crate::dice::Dice;
use crate::judge::{Judge, Law};
use crate::law;
use crate::policies;
use crate::world::{Left, World};

/// The first line of a trace.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Header {
    pub(crate) seed: u64,
    pub(crate) policy: Policy,
    pub(crate) begin: Time,
}

/// Every further line.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Line {
    pub(crate) now: Time,
    pub(crate) input: Input,
}

/// What the core was given.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Input {
    Event(Event),
    /// The manager died; what it knew is what it had written down.
    Crash,
    /// Another process took it over; nobody heard these workers meanwhile.
    Resume(BTreeSet<WorkerId>),
}

/// The core under judgement.
#[derive(Debug)]
pub(crate) struct Case {
    pub(crate) core: Supervisor,
    pub(crate) judge: Judge,
    pub(crate) now: Time,
    pub(crate) header: Header,
    pub(crate) trace: Vec<Line>,
    /// The last sentences of the core, for a failure's report.
    pub(crate) said: Vec<String>,
}

impl Case {
    pub(crate) fn new(header: Header) -> (Self, Vec<Action>, Law) {
        let mut core = Supervisor::new(header.policy.clone(), ConfigId(1), header.seed);
        let mut judge = Judge::new(ConfigId(1), header.policy.clone());
        let mut actions = Vec::new();
        core.start(header.begin, &mut actions);
        let law = judge.judge(None, header.begin, &actions, &core);
        let case = Self { core, judge, now: header.begin, header, trace: Vec::new(), said: Vec::new() };
        (case, actions, law)
    }

    /// One step, judged.
    pub(crate) fn step(&mut self, input: &Input, actions: &mut Vec<Action>) -> Law {
        self.trace.push(Line { now: self.now, input: input.clone() });
        actions.clear();
        match input {
            Input::Event(event) => self.core.step(event.clone(), self.now, actions),
            Input::Crash => self.write_and_read()?,
            Input::Resume(unheard) => {
                self.write_and_read()?;
                self.core.resume(unheard, self.now, actions);
            }
        }
        for action in actions.iter() {
            match action {
                Action::Note(note) => self.said.push(format!("{} {}", self.now, note.message)),
                Action::Reply { request, response } => {
                    self.said.push(format!("{} reply {request}: {response:?}", self.now));
                }
                _ => {}
            }
        }
        match input {
            Input::Event(event) => self.judge.judge(Some(event), self.now, actions, &self.core),
            Input::Crash => {
                self.judge.crashed(self.now);
                Ok(())
            }
            Input::Resume(unheard) => self.judge.judge_resume(unheard, self.now, actions, &self.core),
        }
    }

    fn write_and_read(&mut self) -> Law {
        let text = serde_json::to_string(&self.core).map_err(|error| error.to_string())?;
        self.core = serde_json::from_str(&text).map_err(|error| error.to_string())?;
        Ok(())
    }

    /// Writes the trace down; says where.
    pub(crate) fn save(&self) -> PathBuf {
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("sim-{}.jsonl", self.header.seed));
        let mut text = serde_json::to_string(&self.header).unwrap() + "\n";
        for line in &self.trace {
            writeln!(text, "{}", serde_json::to_string(line).unwrap()).unwrap();
        }
        std::fs::write(&path, text).unwrap();
        path
    }

    /// A failure's report.
    pub(crate) fn report(&self, why: &str) -> String {
        let tail = self.said.len().saturating_sub(40);
        let last = self.trace.last();
        format!(
            "{why}\nseed {}, at {}, after {last:?}\n{}\nPADDOCK_SIM_REPLAY={}",
            self.header.seed,
            self.now,
            self.said[tail..].join("\n"),
            self.save().display()
        )
    }
}

/// How much was simulated.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) runs: u64,
    pub(crate) steps: u64,
    pub(crate) deaths: u64,
}

/// One app's life: trouble, then a calm world in which everything must come right, then a stop.
pub(crate) fn simulate(seed: u64, tally: &mut Tally) -> Result<(), String> {
    let mut dice = Dice::new(seed);
    let policy = policies::any(&mut dice);
    let begin = Time::from_boot(Duration::from_secs(1000));
    let hostile = dice.percent(50);
    let mut run = Run {
        world: World::new(Dice::new(dice.between(0, u64::MAX - 1)), ConfigId(1), policy.clone(), hostile),
        policy: policy.clone(),
        next_request: 1,
        next_config: 2,
        actions: Vec::new(),
        dice,
    };
    let (mut case, actions, law) = Case::new(Header { seed, policy, begin });
    run.carry_out(&actions, begin);
    let result = law.and_then(|()| run.live(&mut case));
    tally.runs += 1;
    tally.steps += case.trace.len() as u64;
    tally.deaths += case.judge.verdicts.values().sum::<u64>();
    result.map_err(|why| case.report(&why))
}

struct Run {
    world: World,
    dice: Dice,
    policy: Policy,
    next_request: u64,
    next_config: u64,
    actions: Vec<Action>,
}

impl Run {
    fn live(&mut self, case: &mut Case) -> Law {
        let trouble = self.dice.between(5, 90);
        let end = case.now.after(Duration::from_secs(trouble));
        while case.now < end && !case.core.is_over() {
            let ask = case.now.after(self.dice.millis(50, 12_000)).min(end);
            self.until(ask, case)?;
            if case.now < end && !case.core.is_over() {
                self.ask(case)?;
            }
        }
        self.world.calm(case.now);
        self.come_right(case)?;
        self.stop(case)
    }

    /// Lets the world run until a point in time.
    fn until(&mut self, end: Time, case: &mut Case) -> Law {
        loop {
            let happens = self.world.next();
            let deadline = case.core.next_deadline().map(|(at, _)| at);
            let Some(next) = [happens, deadline].into_iter().flatten().min().filter(|at| *at <= end) else {
                // A crash, or a standstill, may have taken longer.
                case.now = case.now.max(end);
                return Ok(());
            };
            case.now = case.now.max(next).after(self.standstill());
            // What has happened is heard before deadlines are judged.
            while let Some(event) = self.world.pop(case.now) {
                self.step(&event, case)?;
            }
            if case.core.next_deadline().is_some_and(|(at, _)| at <= case.now) {
                self.step(&Event::Tick, case)?;
            }
            if case.core.is_over() {
                return Ok(());
            }
        }
    }

    /// How late the manager is, which stands still now and then: alone, or with everybody else.
    fn standstill(&mut self) -> Duration {
        if self.world.is_calm() || self.dice.between(0, 199) > 0 {
            return Duration::ZERO;
        }
        let span = self.dice.millis(100, 12_000);
        if self.dice.percent(50) {
            self.world.stand_still(span);
        }
        span
    }

    fn step(&mut self, event: &Event, case: &mut Case) -> Law {
        self.give(&Input::Event(event.clone()), case)?;
        if self.dice.between(0, 499) == 0 && !case.core.is_over() {
            let unheard = case.judge.lives.keys().copied().filter(|_| self.dice.percent(30)).collect();
            self.give(&Input::Resume(unheard), case)?;
        }
        Ok(())
    }

    fn give(&mut self, input: &Input, case: &mut Case) -> Law {
        let mut actions = std::mem::take(&mut self.actions);
        let law = case.step(input, &mut actions);
        let crashes = law.is_ok() && !case.core.is_over() && self.dice.between(0, 299) == 0;
        let law = if crashes {
            self.crash(&mut actions, case)
        } else {
            self.carry_out(&actions, case.now);
            law
        };
        self.actions = actions;
        law
    }

    /// The manager dies while it does what it had written down, and another one goes on after a while.
    fn crash(&mut self, actions: &mut Vec<Action>, case: &mut Case) -> Law {
        let mut pending = std::mem::take(actions);
        let done = usize::try_from(self.dice.between(0, pending.len() as u64)).unwrap();
        self.carry_out(&pending[..done], case.now);
        if done == pending.len() && self.dice.percent(50) {
            // It had just marked all of it as done.
            pending.clear();
        }
        case.step(&Input::Crash, actions)?;
        let kept = self.dice.percent(50);
        case.now = case.now.after(self.dice.millis(0, 5000));
        let said = self.world.crash(kept, case.now);
        let (mut events, mut unheard) = (Vec::new(), BTreeSet::new());
        for (id, asked) in case.core.worker_ids().collect::<Vec<_>>() {
            match self.world.find(id) {
                Left::Living { pid } => {
                    events.extend(asked.then_some(Event::Started { worker: id, pid }));
                    if !kept {
                        unheard.insert(id);
                    }
                }
                Left::Nothing { .. } if asked => self.world.perform(&case.judge.start_of(id), case.now),
                Left::Nothing { death, fence } => {
                    events.push(Event::Exited { worker: id, death });
                    if !fence {
                        events.push(Event::Gone { worker: id });
                    }
                }
            }
        }
        pending.retain(|action| !matches!(action, Action::Start(_)));
        self.carry_out(&pending, case.now);
        for event in said.into_iter().chain(events) {
            self.calmly(&Input::Event(event), case)?;
        }
        self.calmly(&Input::Resume(unheard), case)
    }

    /// As [`Self::give`], without another crash.
    fn calmly(&mut self, input: &Input, case: &mut Case) -> Law {
        if case.core.is_over() {
            return Ok(());
        }
        let mut actions = Vec::new();
        let law = case.step(input, &mut actions);
        self.carry_out(&actions, case.now);
        law
    }

    fn carry_out(&mut self, actions: &[Action], now: Time) {
        for action in actions {
            self.world.perform(action, now);
        }
    }

    /// An operator, by control socket or by signal.
    fn ask(&mut self, case: &mut Case) -> Law {
        if self.dice.percent(8) {
            return self.trouble_from_systemd(case);
        }
        let slot = SlotId(self.dice.small(0, 5));
        let request = match self.dice.between(0, 99) {
            0..=39 => {
                let policy = policies::edited(&self.policy, &mut self.dice);
                self.policy = policy.clone();
                let config = ConfigId(self.next_config);
                self.next_config += 1;
                self.world.release(config, policy.clone());
                Request::Reload { config, policy: Box::new(policy) }
            }
            40..=59 => Request::Recycle { slot },
            60..=71 => Request::Scale { workers: self.dice.small(0, 7) },
            72..=79 => Request::ScaleBy { by: if self.dice.percent(50) { 1 } else { -1 } },
            80..=93 => {
                let signal = Signal(if self.dice.percent(30) {
                    9
                } else if self.dice.percent(50) {
                    15
                } else {
                    10
                });
                Request::Signal { signal, slot: self.dice.maybe(70, |_| slot) }
            }
            94..=96 => Request::Stop { fast: self.dice.percent(30) },
            _ => Request::Terminate,
        };
        let id = self.dice.maybe(75, |_| RequestId(self.next_request));
        self.next_request += 1;
        self.step(&Event::Request { id, request }, case)
    }

    /// Somebody stops one scope, or everything.
    fn trouble_from_systemd(&mut self, case: &mut Case) -> Law {
        let ids: Vec<WorkerId> = case.judge.lives.keys().copied().collect();
        let stops = self.dice.percent(40);
        if stops {
            self.step(&Event::SystemStopping, case)?;
        }
        for worker in ids {
            if !case.core.is_over() && self.dice.percent(if stops { 80 } else { 30 }) {
                self.step(&Event::StopRequested { worker }, case)?;
            }
        }
        Ok(())
    }

    /// In a calm world everybody gets ready again, every roll ends and every client is answered.
    fn come_right(&mut self, case: &mut Case) -> Law {
        let end = case.now.after(Duration::from_mins(25));
        let mut calm = case.now;
        while case.now < end && !case.core.is_over() {
            calm = calm.after(Duration::from_millis(37)).max(case.now);
            self.until(calm, case)?;
            let snapshot = case.core.snapshot();
            // Where replacements are stop-first and never end, one worker is always missing.
            let active = case.judge.policies_of(&snapshot)[0];
            let busy = u32::from(active.max_lifetime.is_some() || active.max_requests > 0);
            let whole = snapshot.ready + busy >= snapshot.wanted && snapshot.roll.is_none() && !snapshot.roll_queued;
            if whole && case.judge.open.is_empty() && !snapshot.stopping {
                return Ok(());
            }
        }
        law!(case.core.is_over(), "it does not come right: open {:?}, {:?}", case.judge.open, case.core.snapshot());
        Ok(())
    }

    /// A stop in a calm world ends within the time for drains, and leaves nothing behind.
    fn stop(&mut self, case: &mut Case) -> Law {
        if !case.core.is_over() {
            let id = RequestId(self.next_request);
            self.step(&Event::Request { id: Some(id), request: Request::Stop { fast: false } }, case)?;
            // Everybody who is told drains in 100 ms; whoever was on its way out before has 10 times its time at most.
            let end = case.now.after(Duration::from_secs(90));
            self.until(end, case)?;
        }
        law!(case.core.is_over(), "it does not stop: {:?}", case.core.snapshot());
        law!(case.judge.open.is_empty(), "{:?} were never answered", case.judge.open);
        law!(case.core.next_deadline().is_none(), "it is over and waits for something");
        Ok(())
    }
}
