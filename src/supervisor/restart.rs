//! Unplanned replacements: at once, then with growing delays.

use std::time::Duration;

use super::action::Action;
use super::id::SlotId;
use super::note::{Level, NoteKind};
use super::recycle::draw;
use super::timers::deadline;
use super::{Cx, Supervisor, say};

/// Being ready for this long, or for the last delay if that was longer, makes the next restart the first again.
const PROBATION: Duration = Duration::from_secs(10);

impl Supervisor {
    /// One more restart of a slot: the first is at once, each further one waits three times longer than the one
    /// before, give or take a tenth. Says how long.
    pub(super) fn strike(&mut self, id: SlotId, ready_for: Option<Duration>, cx: &mut Cx<'_>) -> Duration {
        let policy = &self.policy_for(id).policy;
        let (backoff, most) = (policy.backoff, policy.backoff_max);
        let Some(slot) = self.slots.get_mut(&id) else {
            return Duration::ZERO;
        };
        if ready_for.is_some_and(|span| span >= PROBATION.max(slot.last_delay)) {
            slot.strikes = 0;
            slot.last_delay = Duration::ZERO;
        }
        let delay = match slot.strikes.checked_sub(1) {
            None => Duration::ZERO,
            Some(exponent) => {
                let base = 3_u32.checked_pow(exponent).map_or(most, |factor| backoff.saturating_mul(factor)).min(most);
                // 900 to 1100 thousandths.
                let thousandths = 900 + u128::from(draw(&mut self.rng, 200));
                let nanos = (base.as_nanos() * thousandths / 1000).min(most.as_nanos());
                Duration::from_nanos_u128(nanos)
            }
        };
        slot.strikes = slot.strikes.saturating_add(1);
        slot.last_delay = delay;
        let strikes = slot.strikes;
        if delay.is_zero() {
            self.set_wait(id, None);
        } else {
            // A delay that reaches the end of time would leave the slot without a deadline.
            let at = deadline(cx.now, delay.min(Duration::from_hours(24)));
            self.set_wait(id, at);
            cx.act(Action::Note(say::place(
                Level::Info,
                NoteKind::Backoff,
                id,
                &format!("backoff, next start in {} (restart {strikes} in a row)", say::span(delay)),
            )));
        }
        delay
    }

    /// Forgets a slot's bad past: what comes next has nothing to do with it.
    pub(super) fn pardon(&mut self, id: SlotId) {
        self.set_wait(id, None);
        if let Some(slot) = self.slots.get_mut(&id) {
            slot.strikes = 0;
            slot.last_delay = Duration::ZERO;
        }
    }
}
