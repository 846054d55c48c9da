//! Worlds with one question each, where the answer can be computed.

use std::collections::BTreeMap;
use std::time::Duration;

use paddock::config::model::Signal;
use paddock::supervisor::Supervisor;
use paddock::supervisor::action::{Action, Start};
use paddock::supervisor::event::{Death, Ended, Event, Message};
use paddock::supervisor::id::{ConfigId, SlotId, WorkerId};
use paddock::supervisor::note::NoteKind;
use paddock::supervisor::policy::Policy;
use paddock::supervisor::time::Time;

use crate::judge::Judge;
use crate::policies::plain;

/// A world without delays: what is asked for has happened.
struct Instant {
    core: Supervisor,
    now: Time,
    starts: Vec<Start>,
    current: BTreeMap<SlotId, WorkerId>,
    notes: Vec<NoteKind>,
    /// Whether a start gets ready; otherwise it exits at once.
    healthy: bool,
}

impl Instant {
    fn new(policy: Policy, seed: u64, healthy: bool) -> Self {
        let now = Time::from_boot(Duration::from_secs(10));
        let mut world = Self {
            core: Supervisor::new(policy, ConfigId(1), seed),
            now,
            starts: Vec::new(),
            current: BTreeMap::new(),
            notes: Vec::new(),
            healthy,
        };
        let mut actions = Vec::new();
        world.core.start(now, &mut actions);
        world.carry_out(actions);
        world
    }

    fn step(&mut self, event: Event) {
        let mut actions = Vec::new();
        self.core.step(event, self.now, &mut actions);
        self.carry_out(actions);
    }

    fn carry_out(&mut self, actions: Vec<Action>) {
        let mut events = Vec::new();
        for action in actions {
            match action {
                Action::Start(start) => {
                    let worker = start.worker;
                    events.push(Event::Started { worker, pid: 1 });
                    if self.healthy {
                        events.push(Event::Message { worker, message: Message::Ready });
                        self.current.insert(start.slot, worker);
                    } else {
                        events.extend(end(worker, Ended::Exit(1)));
                    }
                    self.starts.push(start);
                }
                Action::Signal { worker, signal } => events.extend(end(worker, Ended::Signal(signal))),
                Action::Note(note) => self.notes.push(note.kind),
                _ => {}
            }
        }
        for event in events {
            self.step(event);
        }
    }

    fn pass(&mut self, span: Duration) {
        let end = self.now.after(span);
        while let Some((at, _)) = self.core.next_deadline()
            && at <= end
        {
            self.now = self.now.max(at);
            self.step(Event::Tick);
        }
        self.now = end;
    }
}

fn end(worker: WorkerId, ended: Ended) -> [Event; 2] {
    let death = Death { ended, oom_killed: Some(false), peak: None, last_words: Vec::new() };
    [Event::Exited { worker, death }, Event::Gone { worker }]
}

/// The most that all workers hold together, if each request leaves one unit behind and they are dealt out in turn.
fn peak(workers: u32, quota: u64, spread: bool) -> u64 {
    let policy = Policy { workers, max_requests: quota, spread, parallel_starts: workers, ..plain() };
    let mut world = Instant::new(policy, 1, true);
    let mut held: BTreeMap<WorkerId, u64> = BTreeMap::new();
    let mut peak = 0;
    for request in 0..quota * u64::from(workers) * 4 {
        let slot = SlotId(u32::try_from(request % u64::from(workers)).unwrap());
        let worker = world.current[&slot];
        let count = held.entry(worker).or_default();
        *count += 1;
        let total = *count;
        peak = peak.max(world.current.values().filter_map(|worker| held.get(worker)).sum());
        world.step(Event::Message { worker, message: Message::Requests(total) });
    }
    peak
}

/// B37: spread quotas hold (W + 1) / 2W of what unspread ones hold, plus one request of each worker.
#[test]
fn spread_quotas_bound_the_peak_of_all_workers_together() {
    for workers in 1..=8 {
        for quota in [1, 2, 5, 17, 50, 64] {
            let (spread, together) = (peak(workers, quota, true), peak(workers, quota, false));
            // Dealt in turn, the first is replaced while each of the others lacks one request.
            let full = quota * u64::from(workers) - u64::from(workers - 1);
            assert_eq!(together, full, "without spread all {workers} fill up together");
            let bound = quota * (u64::from(workers) + 1) / 2 + u64::from(workers);
            assert!(spread <= bound, "{workers} workers, quota {quota}: {spread} held, at most {bound} allowed");
        }
    }
    let (spread, together) = (peak(4, 50, true), peak(4, 50, false));
    assert!(spread * 10 < together * 7, "{spread} of {together}");
}

/// B28: six starts in the first ten seconds at most, whatever the dice say.
#[test]
fn a_worker_that_always_exits_is_started_six_times_in_ten_seconds_at_most() {
    for seed in 0..200 {
        // One slot gets ready, so that the app goes on.
        let mut world = Instant::new(Policy { workers: 2, ..plain() }, seed, true);
        world.pass(Duration::from_mins(1));
        world.healthy = false;
        let before = world.starts.len();
        let worker = world.current[&SlotId(0)];
        for event in end(worker, Ended::Exit(1)) {
            world.step(event);
        }
        world.pass(Duration::from_secs(10));
        let starts = world.starts.len() - before;
        assert!((4..=5).contains(&starts), "seed {seed}: the first start and {starts} more");
    }
}

/// B9: a jitter of a fifth, a thousand lives: all in range, spread evenly, none alike in a row.
#[test]
fn jitter_is_rolled_once_for_each_life() {
    let policy = Policy { workers: 1, max_requests: 1000, max_requests_jitter: 200, spread: false, ..plain() };
    let mut world = Instant::new(policy, 7, true);
    for _ in 0..999 {
        let worker = world.current[&SlotId(0)];
        world.step(Event::Message { worker, message: Message::Requests(1200) });
    }
    let quotas: Vec<u64> = world.starts.iter().filter_map(|start| start.quota).collect();
    assert_eq!(quotas.len(), 1000);
    assert!(quotas.iter().all(|quota| (1000..=1200).contains(quota)), "{quotas:?}");
    let mean = quotas.iter().sum::<u64>() / 1000;
    assert!((1095..=1105).contains(&mean), "mean {mean}");
    let distinct: std::collections::BTreeSet<&u64> = quotas.iter().collect();
    assert!(distinct.len() > 190, "{} different quotas", distinct.len());
}

#[test]
fn a_quota_without_a_count_is_told_once_after_ten_minutes() {
    let mut world = Instant::new(Policy { max_requests: 10, ..plain() }, 1, true);
    let told = |world: &Instant| world.notes.iter().filter(|kind| **kind == NoteKind::NoRequestCount).count();
    world.pass(Duration::from_secs(599));
    assert_eq!(told(&world), 0);
    world.pass(Duration::from_secs(1));
    assert_eq!(told(&world), 1);
    world.pass(Duration::from_hours(2));
    assert_eq!(told(&world), 1);
}

#[test]
fn an_idle_app_waits_for_nothing() {
    let mut world = Instant::new(plain(), 1, true);
    world.pass(Duration::from_mins(1));
    assert_eq!(world.core.next_deadline(), None);
}

/// Workers that are over their soft limit as soon as they are ready are not replaced in a storm.
#[test]
fn a_base_above_the_soft_limit_makes_no_storm() {
    let policy = Policy { workers: 1, memory_max: Some(1000), recycle_at: Some(500), ..plain() };
    let mut world = Instant::new(policy, 1, true);
    for _ in 0..600 {
        let worker = world.current[&SlotId(0)];
        world.step(Event::Memory { worker, unreclaimable: 600 });
        world.pass(Duration::from_millis(100));
    }
    assert!(world.starts.len() < 15, "{} starts in a minute", world.starts.len());
}

/// An operator's signal reaches those that run a program already, and nobody else.
#[test]
fn a_signal_number_is_forwarded_as_it_is() {
    use paddock::supervisor::event::Request;
    use paddock::supervisor::id::RequestId;
    let mut core = Supervisor::new(plain(), ConfigId(1), 1);
    let now = Time::from_boot(Duration::from_secs(10));
    let mut actions = Vec::new();
    core.start(now, &mut actions);
    actions.clear();
    let signal = Signal(10);
    core.step(Event::Started { worker: WorkerId(2), pid: 7 }, now, &mut actions);
    core.step(
        Event::Request { id: Some(RequestId(1)), request: Request::Signal { signal, slot: None } },
        now,
        &mut actions,
    );
    let signals: Vec<&Action> = actions.iter().filter(|action| matches!(action, Action::Signal { .. })).collect();
    assert_eq!(signals, [&Action::Signal { worker: WorkerId(2), signal }], "only the one that is exec'd hears it");
}

/// A wait of days, which is more than systemd is asked for at a time, is judged at each deadline on its way.
#[test]
fn systemd_is_asked_again_and_again_for_a_start_that_may_take_for_days() {
    const DAY: Duration = Duration::from_hours(24);
    let policy = Policy { workers: 1, start: 10 * DAY, ..plain() };
    let mut core = Supervisor::new(policy.clone(), ConfigId(1), 1);
    let mut judge = Judge::new(ConfigId(1), policy);
    let mut now = Time::from_boot(Duration::from_secs(10));
    let end = now.after(9 * DAY);
    let mut actions = Vec::new();
    core.start(now, &mut actions);
    judge.judge(None, now, &actions, &core).unwrap();
    let mut event = Event::Started { worker: WorkerId(1), pid: 7 };
    loop {
        actions.clear();
        core.step(event.clone(), now, &mut actions);
        judge.judge(Some(&event), now, &actions, &core).unwrap();
        if now == end {
            return;
        }
        event = Event::Tick;
        now = core.next_deadline().unwrap().0.min(end);
    }
}
