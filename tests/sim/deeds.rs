//! Laws about single deeds: starts, signals, kills, verdicts.

use std::time::Duration;

use paddock::config::model::Ready;
use paddock::supervisor::action::{Action, Start};
use paddock::supervisor::event::{Ended, Event, Message, Request};
use paddock::supervisor::id::{SlotId, WorkerId};
use paddock::supervisor::note::{Note, NoteKind};
use paddock::supervisor::policy::Policy;
use paddock::supervisor::recycle::Cause;
use paddock::supervisor::snapshot::{RollStage, Snapshot};
use paddock::supervisor::verdict::Verdict;

use super::judge::{Judge, Law, RollModel, Step};
use super::model::{Edge, Life, Phase};
use crate::law;

impl Judge {
    /// The policies that a snapshot's rules may come from: the active one, or both of a roll.
    pub(crate) fn policies_of(&self, snapshot: &Snapshot) -> Vec<&Policy> {
        let generations = match &snapshot.roll {
            Some(roll) => vec![roll.from, roll.to],
            None => vec![snapshot.generation],
        };
        generations
            .into_iter()
            .filter_map(|generation| self.generations.get(&generation))
            .map(|config| &*self.policies[config])
            .collect()
    }

    /// How many replacements may overlap, at most and at least, during a step.
    pub(crate) fn surge(&self, step: &Step<'_>) -> (u32, u32) {
        let least = |snapshot| self.policies_of(snapshot).iter().map(|policy| policy.surge).min().unwrap_or(0);
        let (before, after) = (least(step.before), least(step.after));
        (before.min(after), before.max(after))
    }

    pub(crate) fn alive(&self) -> u32 {
        u32::try_from(self.lives.values().filter(|life| life.phase.alive()).count()).unwrap()
    }

    pub(crate) fn start(&mut self, start: &Start, step: &Step<'_>) -> Law {
        let id = start.worker;
        law!(!step.after.stopping, "{start:?} although it stops");
        law!(self.system_stops.is_none(), "{start:?} although the system stops");
        law!(id.0 > self.last_worker, "{id} was used before");
        self.last_worker = id.0;
        let view = step.after.slots.iter().find(|view| view.slot == start.slot);
        law!(view.is_some_and(|view| view.wanted), "{start:?} in a slot that is not wanted");
        self.start_generation(start, step)?;
        let Some(policy) = self.policies.get(&start.config).cloned() else {
            return Err(format!("{start:?} from an unknown configuration"));
        };
        law!(!self.forgotten.contains(&start.config), "{start:?} from a forgotten configuration");

        // Counts.
        let wanted = step.before.wanted.max(step.after.wanted);
        let (_, surge) = self.surge(step);
        law!(self.alive() < wanted + surge, "{start:?} makes more than {wanted} + {surge}");
        let starting = self.lives.values().filter(|life| life.phase.starting()).count();
        let parallel = [step.before, step.after]
            .into_iter()
            .flat_map(|snapshot| self.policies_of(snapshot))
            .map(|policy| policy.parallel_starts)
            .max();
        law!(starting < parallel.unwrap_or(1) as usize, "{start:?} beside {starting} other starts");

        // The slot.
        let here: Vec<(&WorkerId, &Life)> = self.lives.iter().filter(|(_, life)| life.slot == start.slot).collect();
        if surge == 0 {
            law!(here.is_empty(), "{start:?} although {here:?} is not gone and surge is 0");
        }
        law!(!here.iter().any(|(_, life)| life.phase.starting()), "{start:?} beside another start of its slot");
        let first_of_roll = self.roll.as_ref().is_some_and(|roll| roll.canary.is_none() && !roll.held);
        for (other, life) in &here {
            let due = step.before.workers.iter().any(|view| view.worker == **other && view.due.is_some())
                || step.said(NoteKind::RecycleDue, **other);
            let may = match life.phase {
                Phase::Ready => (due || first_of_roll) && !(self.trying(step) && self.is_canary(**other)),
                Phase::Draining | Phase::Leftover => true,
                Phase::Asked | Phase::Starting | Phase::Aborting | Phase::Killing => {
                    step.after.slots.iter().all(|view| view.worker != Some(**other))
                }
            };
            law!(may, "{start:?} beside {other} in {:?}", life.phase);
        }

        // The budget.
        if let (Some(budget), Some(max)) = (policy.memory_budget, policy.memory_max) {
            let held: u64 = self.lives.values().map(Life::weight).sum();
            law!(held + max <= budget, "{start:?}: {held} held and {max} more break the budget of {budget}");
        }
        self.start_quota(start, &policy, step)?;
        self.start_wait(start, step)?;

        let mut life = Life::new(start.slot, start.generation, start.config, policy, step.now);
        life.quota = start.quota;
        life.lifetime = self.expected_lifetime(start, step);
        self.lives.insert(id, life);
        if let Some(roll) = self.roll.as_mut()
            && !roll.held
            && roll.canary.is_none()
            && start.generation == roll.generation
        {
            roll.canary = Some(id);
        }
        Ok(())
    }

    fn start_generation(&mut self, start: &Start, step: &Step<'_>) -> Law {
        law!(self.generations.get(&start.generation) == Some(&start.config), "{start:?}: whose configuration?");
        let expected = match &self.roll {
            None => vec![step.before.generation, step.after.generation],
            Some(RollModel { held: false, canary: None, generation, .. }) => vec![step.before.generation, *generation],
            Some(RollModel { held: false, .. }) => vec![step.after.generation],
            Some(_) => vec![step.after.generation],
        };
        law!(expected.contains(&start.generation), "{start:?}: expected one of {expected:?}");
        if let Some(roll) = &self.roll
            && roll.canary.is_none()
            && start.generation == roll.generation
        {
            // Nothing is lost where nothing serves: an empty slot before an occupied one.
            let occupied = step.after.slots.iter().any(|view| view.replacement == Some(start.worker));
            let empty = step.after.slots.iter().find(|view| view.wanted && view.worker.is_none());
            law!(!occupied || empty.is_none(), "the canary is beside a worker although {empty:?} is empty");
        }
        Ok(())
    }

    /// The slot's rank and their number, if this is its first life in the generation.
    fn first_life(&self, start: &Start, policy: &Policy, step: &Step<'_>) -> Option<(u64, u64)> {
        let spread = self.places.get(&start.slot).and_then(|place| place.spread);
        if !policy.spread || spread >= Some(start.generation) {
            return None;
        }
        let wanted: Vec<SlotId> = step.after.slots.iter().filter(|view| view.wanted).map(|view| view.slot).collect();
        let rank = wanted.iter().filter(|slot| **slot <= start.slot).count();
        Some((rank as u64, wanted.len() as u64))
    }

    fn start_quota(&self, start: &Start, policy: &Policy, step: &Step<'_>) -> Law {
        let quota = policy.max_requests;
        if quota == 0 {
            law!(start.quota.is_none(), "{start:?} although there is no quota");
            return Ok(());
        }
        // A change of the number of workers in the same step makes the rank ambiguous.
        if step.before.wanted != step.after.wanted {
            return Ok(());
        }
        let base =
            self.first_life(start, policy, step).map_or(quota, |(rank, workers)| (quota * rank).div_ceil(workers));
        let range = base..=base + policy.max_requests_jitter;
        law!(start.quota.is_some_and(|quota| range.contains(&quota)), "{start:?}: quota not in {range:?}");
        Ok(())
    }

    fn expected_lifetime(&self, start: &Start, step: &Step<'_>) -> Option<Duration> {
        let policy = self.policies[&start.config].clone();
        let whole = policy.max_lifetime?;
        if step.before.wanted != step.after.wanted {
            return step.after.workers.iter().find(|view| view.worker == start.worker)?.lifetime;
        }
        let (rank, workers) = self.first_life(start, &policy, step).unwrap_or((1, 1));
        Some(Duration::from_nanos_u128((whole.as_nanos() * u128::from(rank)).div_ceil(u128::from(workers))))
    }

    /// A slot that waits is left in peace, unless an operator or a roll has reason to disturb it.
    fn start_wait(&self, start: &Start, step: &Step<'_>) -> Law {
        let until = step.before.slots.iter().find(|view| view.slot == start.slot).and_then(|view| view.backoff_until);
        let disturbed = step.before.roll.is_some() || step.after.roll.is_some() || step.request().is_some();
        let fine = match step.event {
            Some(Event::Exited { .. } | Event::Message { .. } | Event::StopRequested { .. }) => true,
            // No world says so, but a fuzzer: that the start of a worker failed that had been ready.
            Some(Event::StartFailed { worker, .. }) => {
                step.before.workers.iter().any(|view| view.worker == *worker && view.ready_at.is_some())
            }
            _ => false,
        };
        if let Some(until) = until {
            law!(until <= step.now || disturbed || fine, "{start:?} although the slot waits until {until}");
        }
        Ok(())
    }

    pub(crate) fn signal(&mut self, id: WorkerId, signal: i32, step: &Step<'_>) -> Law {
        let Some(life) = self.lives.get(&id) else {
            return Err(format!("signal {signal} to the unknown worker {id}"));
        };
        law!(life.phase.alive(), "signal {signal} to the dead worker {id}");
        if let Some(Request::Signal { signal: asked, .. }) = step.request() {
            law!(asked.0 == signal, "signal {signal} was not asked for");
            law!(life.phase != Phase::Asked, "signal {signal} to {id} before its exec");
            return Ok(());
        }
        if signal == 6 {
            return self.abort(id, step);
        }
        law!(signal == life.policy.drain_signal.0, "{id} gets signal {signal} as its drain signal");
        law!(!life.signalled, "{id} gets its drain signal twice");
        law!(life.phase <= Phase::Draining, "{id} is drained while {:?}", life.phase);
        let note = step.notes(NoteKind::DrainStarted).find(|note| note.worker == Some(id));
        let Some(reason) = note.and_then(|note| note.reason.clone()) else {
            return Err(format!("{id} is drained without a word"));
        };
        self.drain_reason(id, &reason, step)?;
        let Some(life) = self.lives.get_mut(&id) else { return Ok(()) };
        if life.phase == Phase::Ready && life.recycle_at.is_some() && life.edge != Edge::Lifted {
            let lifted = step.actions.contains(&Action::ArmMemory { worker: id, edge: None });
            law!(lifted, "{id} drains and its edge still throttles it");
        }
        life.signalled = true;
        life.edge = Edge::Lifted;
        if life.phase < Phase::Draining {
            life.enter(Phase::Draining, step.now);
        }
        Ok(())
    }

    /// A drain must have its reason, and its place must be taken unless that is impossible.
    fn drain_reason(&self, id: WorkerId, reason: &str, step: &Step<'_>) -> Law {
        let life = &self.lives[&id];
        match reason {
            "stop" => {
                law!(step.after.stopping, "{id} is drained for a stop that nobody asked for");
                return Ok(());
            }
            "undone" | "scale" => return Ok(()),
            "from outside" => {
                law!(life.outside, "nobody stops the fence of {id}");
                return Ok(());
            }
            "unheard" => {
                law!(life.unheard, "{id} was heard");
                return Ok(());
            }
            "quota" => law!(life.requests >= life.quota, "{id} has served {:?} of {:?}", life.requests, life.quota),
            "lifetime" => {
                let age = life.ready_at.map(|at| step.now - at);
                law!(age >= life.lifetime && life.lifetime.is_some(), "{id} is {age:?} of {:?} old", life.lifetime);
            }
            "memory" => law!(life.edge != Edge::First || step.worker() == Some(id), "{id} did not pass its soft limit"),
            "reload" => {
                let outdated = life.generation != step.after.generation;
                law!(self.roll.is_some() || step.before.roll.is_some() || outdated, "{id} is drained for no reload");
            }
            "operator" => {}
            other => return Err(format!("{id} is drained because of {other}")),
        }
        if life.phase != Phase::Ready {
            return Ok(());
        }
        let successor = self
            .lives
            .iter()
            .any(|(other, there)| *other > id && there.slot == life.slot && there.phase == Phase::Ready);
        if successor || step.said(NoteKind::DrainFirst, id) {
            return Ok(());
        }
        self.check_turn_of(id, reason, step)?;
        self.stop_first(id, step)
    }

    /// Nobody is stopped first while a worker with a more pressing cause waits for its turn.
    fn check_turn_of(&self, id: WorkerId, reason: &str, step: &Step<'_>) -> Law {
        if self.roll.is_some() || step.before.roll.is_some() {
            return Ok(());
        }
        for view in step.after.slots.iter().filter(|view| view.wanted && view.replacement.is_none()) {
            let waits = view.backoff_until.is_none();
            let worker = step.before.workers.iter().find(|worker| Some(worker.worker) == view.worker);
            let Some(cause) = worker.filter(|worker| waits && worker.worker != id).and_then(|worker| worker.due) else {
                continue;
            };
            let still = self.lives.get(&view.worker.unwrap_or(id)).is_some_and(|life| life.phase == Phase::Ready);
            law!(!still || rank(cause) >= rank_of(reason), "{id} for {reason} goes before {view:?} for {cause}");
        }
        Ok(())
    }

    /// Stop-first: only where nothing may overlap or nothing more fits, and only while nearly all slots serve.
    fn stop_first(&self, id: WorkerId, step: &Step<'_>) -> Law {
        let (surge, most) = self.surge(step);
        let said = step.said(NoteKind::StopFirst, id);
        law!(surge == 0 || said, "{id} is drained before its replacement is ready, without a word");
        let serving = step
            .after
            .slots
            .iter()
            .filter(|view| {
                view.wanted && self.lives.values().any(|life| life.slot == view.slot && life.phase == Phase::Ready)
            })
            .count();
        let wanted = step.after.wanted as usize;
        // A worker of the other generation may be asked to leave when nothing else makes room for a roll's next.
        let room = self.roll.is_some() || step.before.roll.is_some();
        law!(
            wanted.saturating_sub(serving) < most.max(1) as usize || room && said,
            "{id} is stopped first while {serving} of {wanted} serve"
        );
        if said {
            let held: u64 = self.lives.values().map(Life::weight).sum();
            let empty = step.after.slots.iter().filter(|view| view.wanted && view.worker.is_none()).count() as u64;
            let full = [step.before, step.after].into_iter().flat_map(|view| self.policies_of(view)).any(|policy| {
                let (max, budget) = (policy.memory_max.unwrap_or(0), policy.memory_budget.unwrap_or(u64::MAX));
                held + max * (empty + 1) > budget
            });
            law!(full, "{id} is stopped first although there is room ({held} held)");
        }
        Ok(())
    }

    fn abort(&mut self, id: WorkerId, step: &Step<'_>) -> Law {
        let Some(life) = self.lives.get_mut(&id) else { return Ok(()) };
        let asked =
            matches!(step.event, Some(Event::Message { worker, message: Message::WatchdogTrigger }) if *worker == id);
        let silent = step.is_tick() && life.phase == Phase::Ready && life.watchdog.is_some_and(|at| at <= step.now);
        law!(asked && life.phase <= Phase::Ready || silent, "{id} is aborted, its watchdog is {:?}", life.watchdog);
        life.kill = Some(Verdict::Watchdog);
        life.enter(Phase::Aborting, step.now);
        Ok(())
    }

    pub(crate) fn kill(&mut self, id: WorkerId, step: &Step<'_>) -> Law {
        let fast = self.stop == Some(true) && step.after.stopping;
        let now = step.now;
        let Some(life) = self.lives.get_mut(&id) else {
            return Err(format!("the unknown worker {id} is killed"));
        };
        let due = life.deadline.is_some_and(|at| at <= now) && step.is_tick();
        let hangs = life.policy.abort.is_zero() && life.phase <= Phase::Ready && {
            let trigger = matches!(step.event, Some(Event::Message { message: Message::WatchdogTrigger, .. }));
            trigger && step.worker() == Some(id) || life.watchdog.is_some_and(|at| at <= now) && step.is_tick()
        };
        let verdict = match life.phase {
            Phase::Killing | Phase::Leftover => {
                law!(due, "{id} is killed again before its time");
                life.repeats += 1;
                life.deadline = Some(now.after(Duration::from_secs((5 << life.repeats.min(6)).min(60))));
                return Ok(());
            }
            _ if hangs => Verdict::Watchdog,
            _ if fast && step.request().is_some() => Verdict::FastStop,
            Phase::Asked => Verdict::StartTimeout,
            Phase::Starting => {
                law!(life.policy.ready == Ready::Notify, "{id} is killed while it settles");
                Verdict::StartTimeout
            }
            Phase::Draining => Verdict::DrainDeadline,
            Phase::Aborting => Verdict::Watchdog,
            Phase::Ready => return Err(format!("{id} is killed while it is ready")),
        };
        law!(
            due || hangs || verdict == Verdict::FastStop,
            "{id} is killed at {now}, its deadline is {:?}",
            life.deadline
        );
        life.kill.get_or_insert(verdict);
        life.enter(Phase::Killing, now);
        Ok(())
    }

    pub(crate) fn note(&mut self, note: &Note, step: &Step<'_>) -> Law {
        match note.kind {
            NoteKind::NoRequestCount => {
                law!(!std::mem::replace(&mut self.no_count, true), "the missing count is told twice");
            }
            NoteKind::ReloadStarted => return self.roll_started(note, step),
            NoteKind::ReloadDone => return self.roll_done(step),
            NoteKind::ReloadUndone => return self.roll_undone(note, step),
            NoteKind::WorkerDied => {
                let exited = matches!(step.event, Some(Event::Exited { .. }));
                law!(exited && step.worker() == note.worker, "a verdict without a death: {note:?}");
            }
            _ => {}
        }
        Ok(())
    }

    /// A death has exactly one verdict, the right one, with the right figures.
    pub(crate) fn check_verdict(&mut self, id: WorkerId, life: &Life, step: &Step<'_>) -> Law {
        let Some(Event::Exited { death, .. }) = step.event else { return Ok(()) };
        let notes: Vec<&Note> = step.notes(NoteKind::WorkerDied).filter(|note| note.worker == Some(id)).collect();
        law!(notes.len() == 1, "the death of {id} has {} verdicts", notes.len());
        let expected = life.verdict(death);
        let note = notes[0];
        law!(note.reason.as_deref() == Some(expected.name()), "{id} must be {expected}: {note:?}");
        *self.verdicts.entry(expected).or_default() += 1;
        let counted = step.after.verdicts.get(&expected).copied().unwrap_or(0);
        law!(counted == self.verdicts[&expected], "{expected} was counted {counted} times");
        let word = match (expected, death.ended) {
            (Verdict::Signal, Ended::Signal(signal)) => format!("signal {}", signal.0),
            (Verdict::Exit, Ended::Exit(status)) => format!("exit {status}"),
            _ => expected.name().to_owned(),
        };
        law!(note.message.contains(&word), "{word} is missing in {:?}", note.message);
        if expected == Verdict::OomKill {
            let peak = death.peak.or(life.memory_max);
            law!(note.memory == peak, "the peak is {peak:?}: {note:?}");
        }
        let swept = step.actions.iter().any(|action| matches!(action, Action::Sweep { worker } if *worker == id));
        law!(swept != life.early_gone, "{id} is dead and not swept, or gone and swept");
        Ok(())
    }

    /// Whether the order of the line was kept: no worker with a lesser cause goes before one with a greater.
    pub(crate) fn check_order(&self, step: &Step<'_>) -> Law {
        if step.before.roll != step.after.roll {
            return Ok(());
        }
        for started in step.actions.iter().filter_map(|action| match action {
            Action::Start(start) => Some(start),
            _ => None,
        }) {
            let slot = step.after.slots.iter().find(|view| view.slot == started.slot);
            let Some(slot) = slot.filter(|slot| slot.replacement == Some(started.worker)) else { continue };
            let cause = |id: WorkerId| step.after.workers.iter().find(|view| view.worker == id)?.due;
            let Some(mine) = slot.worker.and_then(cause) else { continue };
            let tried = self.roll.as_ref().and_then(|roll| roll.canary).filter(|_| self.trying(step));
            for other in step.after.slots.iter().filter(|other| tried.is_none() || other.worker != tried) {
                let waits = other.wanted && other.replacement.is_none() && other.backoff_until.is_none();
                let Some(theirs) = other.worker.filter(|_| waits).and_then(cause) else { continue };
                law!(rank(mine) <= rank(theirs), "{started:?} for {mine} goes before slot {} for {theirs}", other.slot);
            }
            law!(mine != Cause::Scale, "{started:?} for a slot that is given up");
        }
        Ok(())
    }

    fn is_canary(&self, id: WorkerId) -> bool {
        self.roll.as_ref().is_some_and(|roll| roll.canary == Some(id))
    }

    /// Whether this step's roll is in its canary stage.
    pub(crate) fn trying(&self, step: &Step<'_>) -> bool {
        step.after.roll.as_ref().is_some_and(|roll| roll.stage == RollStage::Canary)
    }
}

/// The same for the word that a note has for it.
fn rank_of(reason: &str) -> usize {
    let order = ["memory", "operator", "reload", "lifetime", "quota", "scale"];
    order.iter().position(|other| *other == reason).unwrap_or(order.len())
}

/// The order in which replacements wait for their turn.
pub(crate) fn rank(cause: Cause) -> usize {
    let order = [Cause::Memory, Cause::Operator, Cause::Reload, Cause::Lifetime, Cause::Quota, Cause::Scale];
    order.iter().position(|other| *other == cause).unwrap_or(order.len())
}
