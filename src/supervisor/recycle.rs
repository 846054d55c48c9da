//! Planned replacements: why, when, and after how many requests.

use std::fmt;
use std::time::Duration;

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::Rng;
use serde::{Deserialize, Serialize};

use super::id::{SlotId, WorkerId};
use super::note::{Level, NoteKind};
use super::policy::Policy;
use super::timers::{Clock, deadline};
use super::worker::{Edge, Phase};
use super::{Cx, Supervisor, say};

/// Why a worker is replaced as planned. The order is the order in which replacements wait for their turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cause {
    /// It passed its soft limit.
    Memory,
    /// An operator, or the worker itself, asked for it.
    Operator,
    /// A new generation.
    Reload,
    /// It is too old.
    Lifetime,
    /// It served its quota.
    Quota,
    /// Its slot is given up.
    Scale,
}

impl Cause {
    /// The vocabulary's word.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Operator => "operator",
            Self::Reload => "reload",
            Self::Lifetime => "lifetime",
            Self::Quota => "quota",
            Self::Scale => "scale",
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How long a worker may take to count its first request before somebody is told.
const COUNT_PATIENCE: Duration = Duration::from_mins(10);

/// A uniform draw from 0 to `most`, both included; the same on every machine and in every version.
pub(super) fn draw(rng: &mut Xoshiro256PlusPlus, most: u64) -> u64 {
    let Some(range) = most.checked_add(1) else {
        return rng.next_u64();
    };
    // The topmost values that would favour small remainders are drawn again.
    let fair = u64::MAX - u64::MAX % range;
    loop {
        let value = rng.next_u64();
        if value < fair {
            return value % range;
        }
    }
}

/// The share of `whole` that falls to the first life in the slot of this rank: `ceil(whole * rank / workers)`.
fn stagger(whole: u128, rank: u32, workers: u32) -> u128 {
    whole.saturating_mul(u128::from(rank)).div_ceil(u128::from(workers.max(1)))
}

/// A life's quota of requests; none: no quota.
pub(super) fn quota(policy: &Policy, first_life: Option<(u32, u32)>, rng: &mut Xoshiro256PlusPlus) -> Option<u64> {
    if policy.max_requests == 0 {
        return None;
    }
    let base = match first_life {
        Some((rank, workers)) => {
            u64::try_from(stagger(u128::from(policy.max_requests), rank, workers)).unwrap_or(u64::MAX)
        }
        None => policy.max_requests,
    };
    Some(base.saturating_add(draw(rng, policy.max_requests_jitter)))
}

/// A life's greatest age; none: no bound.
pub(super) fn lifetime(policy: &Policy, first_life: Option<(u32, u32)>) -> Option<Duration> {
    let whole = policy.max_lifetime?;
    Some(match first_life {
        Some((rank, workers)) if whole < Duration::MAX => {
            let nanos = stagger(whole.as_nanos(), rank, workers);
            Duration::from_nanos_u128(nanos.min(Duration::MAX.as_nanos()))
        }
        _ => whole,
    })
}

impl Supervisor {
    /// The slot's rank and their number, if the next life there is its first of the generation.
    pub(super) fn first_life(
        &self,
        slot: SlotId,
        policy: &Policy,
        generation: super::id::Generation,
    ) -> Option<(u32, u32)> {
        if !policy.spread || self.slots.get(&slot)?.spread >= Some(generation) {
            return None;
        }
        // Without holes a slot's number is its rank; only with holes is it worth counting.
        let dense = self.slots.keys().next_back().is_some_and(|last| last.0 < self.wanted);
        let rank = if dense {
            slot.0.saturating_add(1)
        } else {
            let below = self.slots.range(..=slot).filter(|(_, slot)| slot.wanted).count();
            u32::try_from(below).unwrap_or(u32::MAX)
        };
        Some((rank.clamp(1, self.wanted.max(1)), self.wanted))
    }

    /// Enters a worker into the line of those to be replaced; a more pressing cause moves it forward.
    pub(super) fn mark_due(&mut self, id: WorkerId, cause: Cause, text: &str, cx: &mut Cx<'_>) {
        let place = self.next_place;
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        if worker.phase != Phase::Ready || worker.due.is_some_and(|(old, _)| old <= cause) {
            return;
        }
        // A roll goes through the slots from the lowest up.
        let place = if cause == Cause::Reload { u64::from(worker.slot.0) } else { place };
        worker.due = Some((cause, place));
        self.next_place += 1;
        let slot = worker.slot;
        self.refresh(slot);
        let level = if cause == Cause::Reload { Level::Debug } else { Level::Info };
        self.say(id, level, NoteKind::RecycleDue, Some(cause.name()), &format!("recycle due, {cause}{text}"), cx);
    }

    /// Takes a worker out of the line, if it stands there for this cause.
    pub(super) fn clear_due(&mut self, id: WorkerId, cause: Cause, cx: &mut Cx<'_>) {
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        if worker.due.is_some_and(|(old, _)| old == cause) {
            worker.due = None;
            let slot = worker.slot;
            self.refresh(slot);
            self.reconsider(id, cx);
        }
    }

    /// A cause that fell away may have hidden a lesser one.
    fn reconsider(&mut self, id: WorkerId, cx: &mut Cx<'_>) {
        let Some(worker) = self.workers.get(&id) else {
            return;
        };
        let over = |limit: Option<u64>| limit.is_some_and(|limit| worker.requests >= Some(limit));
        let cause = if worker.edge != Edge::First {
            Cause::Memory
        } else if worker.asked {
            Cause::Operator
        } else if worker.lifetime.is_some_and(|span| worker.ready_for(cx.now) >= Some(span)) {
            Cause::Lifetime
        } else if over(worker.quota) {
            Cause::Quota
        } else {
            return;
        };
        self.mark_due(id, cause, " (still)", cx);
    }

    /// A worker reports its running total.
    pub(super) fn count(&mut self, id: WorkerId, total: u64, cx: &mut Cx<'_>) {
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        if worker.ready_at.is_none() || !worker.phase.is_alive() {
            return;
        }
        let first = worker.requests.is_none();
        let total = worker.requests.unwrap_or(0).max(total);
        worker.requests = Some(total);
        let reached = worker.quota.filter(|quota| total >= *quota && worker.due.is_none());
        if first {
            self.set_clock(id, Clock::Count, None);
        }
        if let Some(quota) = reached {
            self.mark_due(id, Cause::Quota, &format!(" ({total} of {quota} requests)"), cx);
        }
    }

    /// A worker asks for its replacement.
    pub(super) fn asks_recycle(&mut self, id: WorkerId, cx: &mut Cx<'_>) {
        if let Some(worker) = self.workers.get_mut(&id)
            && worker.phase == Phase::Ready
            && !worker.asked
        {
            worker.asked = true;
            self.mark_due(id, Cause::Operator, " (it asked for it)", cx);
        }
    }

    /// A worker is too old.
    pub(super) fn lifetime_over(&mut self, id: WorkerId, cx: &mut Cx<'_>) {
        let age = self.workers.get(&id).and_then(|worker| worker.lifetime).unwrap_or_default();
        self.mark_due(id, Cause::Lifetime, &format!(" ({} old)", say::span(age)), cx);
    }

    /// Starts what measures a life that has just become ready.
    pub(super) fn begin_life(&mut self, id: WorkerId, cx: &Cx<'_>) {
        let Some(worker) = self.workers.get(&id) else {
            return;
        };
        let lifetime = worker.lifetime.and_then(|span| deadline(cx.now, span));
        let patience =
            (worker.quota.is_some() && !self.told_no_count).then(|| deadline(cx.now, COUNT_PATIENCE)).flatten();
        self.set_clock(id, Clock::Lifetime, lifetime);
        self.set_clock(id, Clock::Count, patience);
    }

    /// A life without a count: one warning for each manager.
    pub(super) fn count_missing(&mut self, id: WorkerId, cx: &mut Cx<'_>) {
        if std::mem::replace(&mut self.told_no_count, true) {
            return;
        }
        self.say(
            id,
            Level::Warning,
            NoteKind::NoRequestCount,
            None,
            "max_requests is set, but nothing was counted in 10 minutes of its life; the worker must send X_PADDOCK_REQUESTS=",
            cx,
        );
    }
}

#[cfg(test)]
mod tests {
    use rand_xoshiro::rand_core::SeedableRng;

    use super::*;
    use crate::supervisor::fixture;

    #[test]
    fn jitter_stays_in_its_range_and_fills_it() {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(7);
        let mut policy = fixture::policy();
        (policy.max_requests, policy.max_requests_jitter) = (1000, 200);
        let draws: Vec<u64> = (0..1000).filter_map(|_| quota(&policy, None, &mut rng)).collect();
        assert_eq!(draws.len(), 1000);
        assert!(draws.iter().all(|draw| (1000..=1200).contains(draw)));
        for (tenth, start) in (1000..1200).step_by(20).enumerate() {
            let hits = draws.iter().filter(|draw| (start..start + 20).contains(*draw)).count();
            assert!((60..=140).contains(&hits), "tenth {tenth} was drawn {hits} times of 1000");
        }
    }

    #[test]
    fn draws_are_the_same_on_every_machine() {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
        let draws: Vec<u64> = (0..6).map(|_| draw(&mut rng, 99)).collect();
        assert_eq!(draws, [87, 65, 44, 70, 80, 85]);
    }

    #[test]
    fn first_lives_end_one_after_the_other() {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(7);
        let mut policy = fixture::policy();
        (policy.max_requests, policy.max_requests_jitter) = (10, 0);
        policy.max_lifetime = Some(Duration::from_secs(8));
        let quotas: Vec<_> = (1..=4).map(|rank| quota(&policy, Some((rank, 4)), &mut rng)).collect();
        assert_eq!(quotas, [Some(3), Some(5), Some(8), Some(10)]);
        let ages: Vec<_> = (1..=4).map(|rank| lifetime(&policy, Some((rank, 4)))).collect();
        assert_eq!(ages, [2, 4, 6, 8].map(|age| Some(Duration::from_secs(age))));
    }
}
