//! The simulated outside: it carries out actions and answers with events, late, twice and in the wrong order if it is
//! hostile.

use std::collections::BTreeMap;
use std::time::Duration;

use paddock::config::model::Signal;
use paddock::supervisor::action::{Action, Start};
use paddock::supervisor::event::{Death, Ended, Event, Message};
use paddock::supervisor::id::{ConfigId, WorkerId};
use paddock::supervisor::policy::Policy;
use paddock::supervisor::time::Time;

use crate::dice::Dice;
use crate::program::{Health, Program};

/// Everything around the core.
#[derive(Debug)]
pub(crate) struct World {
    dice: Dice,
    /// From now on nothing new goes wrong.
    good: bool,
    /// News is late, doubled and out of order.
    hostile: bool,
    /// There is no fence: memory is sampled, OOM kills cannot be read.
    sampled: bool,
    queue: BTreeMap<(Time, u64), Happening>,
    sequence: u64,
    processes: BTreeMap<WorkerId, Process>,
    configs: BTreeMap<ConfigId, (Health, Policy)>,
}

#[derive(Debug, Clone)]
enum Happening {
    Event(Event),
    Inside(WorkerId, Inside),
}

/// What happens inside a worker.
#[derive(Debug, Clone)]
enum Inside {
    Exec,
    Ready,
    Die(Ended, bool),
    Say(Message),
    Ping,
    Count,
    Grown(u64),
    Sample,
}

/// What the next manager finds of a worker.
#[derive(Debug)]
pub(crate) enum Left {
    Living {
        pid: u32,
    },
    Nothing {
        death: Death,
        /// Something of it is there to be removed.
        fence: bool,
    },
}

#[derive(Debug)]
struct Process {
    config: ConfigId,
    program: Program,
    execd: bool,
    alive: bool,
    /// Whether an OOM killer ended it.
    oom: bool,
    ready_at: Option<Time>,
    draining: bool,
    requests: u64,
    held: u64,
    edge: Option<u64>,
    /// Which arming of the edge is the last one.
    arming: u64,
}

impl World {
    pub(crate) fn new(mut dice: Dice, config: ConfigId, policy: Policy, hostile: bool) -> Self {
        let sampled = dice.percent(20);
        let health = Health::any(&mut dice);
        Self {
            dice,
            good: false,
            hostile,
            sampled,
            queue: BTreeMap::new(),
            sequence: 0,
            processes: BTreeMap::new(),
            configs: BTreeMap::from([(config, (health, policy))]),
        }
    }

    /// A new release appears.
    pub(crate) fn release(&mut self, config: ConfigId, policy: Policy) {
        let health = if self.good { Health::Good } else { Health::any(&mut self.dice) };
        self.configs.insert(config, (health, policy));
    }

    /// Nothing new goes wrong from now on.
    pub(crate) fn calm(&mut self, now: Time) {
        self.good = true;
        self.hostile = false;
        for (health, _) in self.configs.values_mut() {
            *health = Health::Good;
        }
        let ids: Vec<WorkerId> = self.processes.keys().copied().collect();
        for id in ids {
            let held = self.held(id, now);
            let Some(process) = self.processes.get_mut(&id) else { continue };
            process.held = held;
            process.program.memory = (held, 0);
            process.program.drains = Some(Duration::from_millis(100));
            process.program.heeds_abort = true;
            process.program.dies_of_kill = Duration::from_millis(2);
            process.program.leftovers = Duration::from_millis(5);
        }
    }

    /// Whether nothing new goes wrong any more.
    pub(crate) fn is_calm(&self) -> bool {
        self.good
    }

    /// Everybody stands still for so long: what would happen happens later.
    pub(crate) fn stand_still(&mut self, span: Duration) {
        let queue = std::mem::take(&mut self.queue);
        self.queue = queue.into_iter().map(|((at, order), happening)| ((at.after(span), order), happening)).collect();
    }

    /// When something happens next.
    pub(crate) fn next(&self) -> Option<Time> {
        self.queue.keys().next().map(|(at, _)| *at)
    }

    /// The next event that has happened by `now`.
    pub(crate) fn pop(&mut self, now: Time) -> Option<Event> {
        while let Some(key) = self.queue.keys().next().copied()
            && key.0 <= now
        {
            match self.queue.remove(&key)? {
                Happening::Event(event) => return Some(event),
                Happening::Inside(id, inside) => self.inside(id, inside, key.0),
            }
        }
        None
    }

    /// There is no manager until `end`. News on their way to it are lost, and what workers say unless that is `kept`;
    /// whoever waits at a gate leaves.
    pub(crate) fn crash(&mut self, kept: bool, end: Time) -> Vec<Event> {
        let mut said = Vec::new();
        let gates: Vec<WorkerId> =
            self.processes.iter().filter(|(_, process)| !process.execd).map(|(id, _)| *id).collect();
        for id in &gates {
            self.processes.remove(id);
        }
        self.queue.retain(|_, happening| match happening {
            Happening::Event(Event::Message { .. }) => true,
            Happening::Event(_) => false,
            Happening::Inside(id, _) => !gates.contains(id),
        });
        while let Some(event) = self.pop(end) {
            if kept && matches!(event, Event::Message { .. }) {
                said.push(event);
            }
        }
        self.queue.retain(|_, happening| match happening {
            Happening::Event(Event::Message { .. }) => kept,
            Happening::Event(_) => false,
            Happening::Inside(..) => true,
        });
        said
    }

    /// What is left of a worker.
    pub(crate) fn find(&mut self, id: WorkerId) -> Left {
        let Some(process) = self.processes.get(&id) else {
            let death = Death { ended: Ended::Unknown, oom_killed: None, peak: None, last_words: Vec::new() };
            return Left::Nothing { death, fence: false };
        };
        if process.alive {
            return Left::Living { pid: 1000 + u32::try_from(id.0).unwrap() };
        }
        let oom_killed = (!self.sampled).then_some(process.oom);
        let death = Death { ended: Ended::Unknown, oom_killed, peak: None, last_words: Vec::new() };
        Left::Nothing { death, fence: self.dice.percent(50) }
    }

    /// Carries an action out.
    pub(crate) fn perform(&mut self, action: &Action, now: Time) {
        match action {
            Action::Start(start) => self.start(start, now),
            Action::Signal { worker, signal } => self.signal(*worker, *signal, now),
            Action::Kill { worker } => self.kill(*worker, now),
            Action::Sweep { worker } => {
                if let Some(process) = self.processes.get(worker) {
                    let after = process.program.leftovers;
                    self.emit(Event::Gone { worker: *worker }, now.after(after));
                }
            }
            Action::ArmMemory { worker, edge } => self.arm(*worker, *edge, now),
            Action::Pulse { .. }
            | Action::SetLimits { .. }
            | Action::Forget { .. }
            | Action::Reply { .. }
            | Action::Tell(_)
            | Action::Note(_)
            | Action::Exit { .. } => {}
        }
    }

    fn start(&mut self, start: &Start, now: Time) {
        let health = self.configs[&start.config].0;
        let program = Program::any(if self.good { Health::Good } else { health }, &mut self.dice);
        self.later(start.worker, Inside::Exec, now.after(program.gate));
        self.processes.insert(
            start.worker,
            Process {
                config: start.config,
                held: program.memory.0,
                program,
                execd: false,
                alive: true,
                oom: false,
                ready_at: None,
                draining: false,
                requests: 0,
                edge: None,
                arming: 0,
            },
        );
    }

    fn inside(&mut self, id: WorkerId, inside: Inside, now: Time) {
        let Some(process) = self.processes.get_mut(&id).filter(|process| process.alive) else {
            return;
        };
        match inside {
            Inside::Exec if process.program.start_fails => self.fail_start(id, "the program is not there", now),
            Inside::Exec => self.exec(id, now),
            Inside::Ready => self.ready(id, now),
            Inside::Die(ended, oom) => self.die(id, ended, oom, now),
            Inside::Say(message) => {
                if message == Message::Stopping {
                    let after = self.dice.millis(0, 4000);
                    self.later(id, Inside::Die(Ended::Exit(0), false), now.after(after));
                }
                self.emit(Event::Message { worker: id, message }, now);
            }
            Inside::Ping => self.ping(id, now),
            Inside::Count => self.count(id, now),
            Inside::Grown(arming) => {
                if process.arming == arming {
                    let unreclaimable = self.held(id, now);
                    self.emit(Event::Memory { worker: id, unreclaimable }, now);
                }
            }
            Inside::Sample => {
                let unreclaimable = self.held(id, now);
                self.emit(Event::Memory { worker: id, unreclaimable }, now);
                self.later(id, Inside::Sample, now.after(Duration::from_secs(1)));
            }
        }
    }

    fn exec(&mut self, id: WorkerId, now: Time) {
        let pid = 1000 + u32::try_from(id.0).unwrap();
        self.emit(Event::Started { worker: id, pid }, now);
        let Some(process) = self.processes.get_mut(&id) else { return };
        process.execd = true;
        let program = process.program.clone();
        let policy = &self.configs[&process.config].1;
        let sampled = self.sampled && policy.memory_max.is_some();
        let settles = policy.ready == paddock::config::model::Ready::Settle;
        let ready = if settles { Some(policy.settle) } else { program.ready };
        if let Some(after) = ready {
            self.later(id, Inside::Ready, now.after(after));
        }
        if let Some((after, ended)) = program.dies_starting {
            self.later(id, Inside::Die(ended, false), now.after(after));
        }
        if let Some((after, span)) = program.extends {
            self.later(id, Inside::Say(Message::ExtendTimeout(span)), now.after(after));
        }
        if sampled {
            self.later(id, Inside::Sample, now.after(Duration::from_secs(1)));
        }
    }

    fn ready(&mut self, id: WorkerId, now: Time) {
        self.emit(Event::Message { worker: id, message: Message::Ready }, now);
        let Some(process) = self.processes.get_mut(&id) else { return };
        process.ready_at = Some(now);
        let program = process.program.clone();
        let policy = self.configs[&process.config].1.clone();
        let oom = |after: Duration| now.after(after);
        if let Some((after, ended)) = program.dies {
            self.later(id, Inside::Die(ended, false), oom(after));
        }
        for (after, message) in [
            (program.stops, Message::Stopping),
            (program.asks, Message::Recycle),
            (program.triggers, Message::WatchdogTrigger),
        ] {
            if let Some(after) = after {
                self.later(id, Inside::Say(message), now.after(after));
            }
        }
        if policy.watchdog.is_some() {
            self.later(id, Inside::Ping, now);
        }
        if policy.max_requests > 0 && program.counts && program.rate > 0 {
            self.later(id, Inside::Count, now);
        }
        if let Some(max) = policy.memory_max
            && !self.sampled
            && program.memory.1 > 0
        {
            let after = Duration::from_millis(max.saturating_sub(program.memory.0) * 1000 / program.memory.1);
            self.later(id, Inside::Die(Ended::Signal(Signal(9)), true), now.after(after));
        }
    }

    fn ping(&mut self, id: WorkerId, now: Time) {
        let process = &self.processes[&id];
        let hung = process.program.hangs.zip(process.ready_at).is_some_and(|(after, ready)| now >= ready.after(after));
        if hung {
            return;
        }
        let pause = self.configs[&process.config].1.watchdog.unwrap_or(Duration::from_secs(1)) / 2;
        self.emit(Event::Message { worker: id, message: Message::Watchdog }, now);
        self.later(id, Inside::Ping, now.after(pause));
    }

    fn count(&mut self, id: WorkerId, now: Time) {
        let Some(process) = self.processes.get_mut(&id) else { return };
        if process.draining {
            return;
        }
        process.requests += process.program.rate.div_ceil(2);
        let total = process.requests;
        self.emit(Event::Message { worker: id, message: Message::Requests(total) }, now);
        self.later(id, Inside::Count, now.after(Duration::from_millis(500)));
    }

    fn signal(&mut self, id: WorkerId, signal: Signal, now: Time) {
        let Some(process) = self.processes.get_mut(&id).filter(|process| process.alive) else {
            return;
        };
        if !process.execd {
            self.fail_start(id, "given up", now);
        } else if signal.0 == 6 {
            if process.program.heeds_abort {
                self.later(id, Inside::Die(Ended::Signal(signal), false), now);
            }
        } else if matches!(signal.0, 3 | 15) {
            process.draining = true;
            if let Some(after) = process.program.drains {
                let ended = if process.requests % 2 == 0 { Ended::Exit(0) } else { Ended::Signal(signal) };
                self.later(id, Inside::Die(ended, false), now.after(after));
            }
        }
    }

    fn kill(&mut self, id: WorkerId, now: Time) {
        let Some(process) = self.processes.get(&id).filter(|process| process.alive) else {
            return;
        };
        if process.execd {
            let at = now.after(process.program.dies_of_kill);
            self.later(id, Inside::Die(Ended::Signal(Signal(9)), false), at);
        } else {
            self.fail_start(id, "given up", now);
        }
    }

    fn fail_start(&mut self, id: WorkerId, error: &str, now: Time) {
        let Some(process) = self.processes.get_mut(&id) else { return };
        process.alive = false;
        self.emit(Event::StartFailed { worker: id, error: error.to_owned() }, now);
    }

    fn die(&mut self, id: WorkerId, ended: Ended, oom: bool, now: Time) {
        if oom {
            let process = &self.processes[&id];
            let max = self.configs[&process.config].1.memory_max.unwrap_or(u64::MAX);
            if self.held(id, now) < max {
                return;
            }
        }
        let held = self.held(id, now);
        let oom_killed = (!self.sampled || self.dice.percent(10)).then_some(oom);
        let peak = self.dice.maybe(50, |_| held);
        let Some(process) = self.processes.get_mut(&id) else { return };
        process.alive = false;
        process.oom = oom;
        let last_words = vec![format!("the last words of {id}")];
        let death = Death { ended, oom_killed, peak, last_words };
        self.emit(Event::Exited { worker: id, death }, now);
    }

    fn held(&self, id: WorkerId, now: Time) -> u64 {
        let process = &self.processes[&id];
        let Some(ready) = process.ready_at else { return process.held };
        let millis = u64::try_from((now - ready).as_millis()).unwrap();
        process.held + process.program.memory.1 * millis / 1000
    }

    fn arm(&mut self, id: WorkerId, edge: Option<u64>, now: Time) {
        let held = if self.processes.contains_key(&id) { self.held(id, now) } else { return };
        let Some(process) = self.processes.get_mut(&id) else { return };
        process.edge = edge;
        process.arming += 1;
        let (arming, rate) = (process.arming, process.program.memory.1);
        let Some(edge) = edge.filter(|_| !self.sampled) else { return };
        if held >= edge {
            self.later(id, Inside::Grown(arming), now);
        } else if rate > 0 {
            let after = Duration::from_millis(((edge - held) * 1000).div_ceil(rate) + 1);
            self.later(id, Inside::Grown(arming), now.after(after));
        }
        if !self.good && self.dice.percent(20) {
            // Only page cache: the event comes although little is held.
            let after = self.dice.millis(0, 3000);
            self.later(id, Inside::Grown(arming), now.after(after));
        }
    }

    fn later(&mut self, id: WorkerId, inside: Inside, at: Time) {
        self.push(Happening::Inside(id, inside), at);
    }

    fn emit(&mut self, event: Event, at: Time) {
        let mut at = at;
        if self.hostile {
            // Samples and counts that are doubled say nothing new; news of life and death may come twice.
            if self.dice.percent(10) {
                let again = at.after(self.dice.millis(0, 3000));
                self.push(Happening::Event(event.clone()), again);
            }
            if self.dice.percent(3) {
                let stale = at.after(self.dice.millis(3000, 30_000));
                self.push(Happening::Event(event.clone()), stale);
            }
            if self.dice.percent(30) {
                at = at.after(self.dice.millis(0, 20));
            }
        }
        self.push(Happening::Event(event), at);
    }

    fn push(&mut self, happening: Happening, at: Time) {
        self.sequence += 1;
        self.queue.insert((at, self.sequence), happening);
    }
}
