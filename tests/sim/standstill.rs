//! The laws about a manager that stood still: it was stopped, or the whole machine was.

use std::time::Duration;

use paddock::supervisor::action::{Action, ServiceState};
use paddock::supervisor::event::Event;
use paddock::supervisor::note::NoteKind;
use paddock::supervisor::snapshot::Snapshot;
use paddock::supervisor::time::Time;

use super::judge::{Judge, Law, Step};
use crate::law;

/// What a tick means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tick {
    /// It is another event, or nothing is due.
    None,
    /// What is due is judged.
    Judges,
    /// It comes too late: what is due has to wait.
    Stalled,
}

impl Judge {
    /// A tick judges nothing if it comes a second late or more for a deadline that has not been held back already. Then
    /// all deadlines wait for as long again, five seconds at most.
    pub(crate) fn what_tick(&mut self, event: Option<&Event>, now: Time, before: &Snapshot) -> Tick {
        if event.is_none() {
            // Another process; what was due before is no standstill of its own.
            (self.watched_since, self.held_until) = (Some(now), None);
        }
        let due = before.next_deadline.as_ref().map(|(at, _)| *at).filter(|at| *at <= now);
        let Some(due) = due.filter(|_| event == Some(&Event::Tick)) else {
            return Tick::None;
        };
        let held = self.held_until.take();
        let late = now - due.max(self.watched_since.unwrap_or(due));
        if held.is_some_and(|until| due <= until) || late < Duration::from_secs(1) {
            return Tick::Judges;
        }
        self.held_until = Some(now.after(late.min(Duration::from_secs(5))));
        Tick::Stalled
    }

    /// After a standstill nobody is judged, it is said, and systemd hears of us at once.
    pub(crate) fn check_standstill(&self, step: &Step<'_>) -> Law {
        if step.tick != Tick::Stalled {
            return Ok(());
        }
        for action in step.actions {
            let harmless = match action {
                Action::Tell(ServiceState::ExtendTimeout(_)) => true,
                Action::Note(note) => note.kind == NoteKind::Notice && note.message.starts_with("stalled"),
                _ => false,
            };
            law!(harmless, "{action:?} right after a standstill");
        }
        law!(step.notes(NoteKind::Notice).next().is_some(), "it stood still and does not say so");
        let next = step.after.next_deadline.as_ref().map(|(at, _)| *at);
        law!(next >= self.held_until, "the next deadline {next:?} is judged before {:?}", self.held_until);
        Ok(())
    }
}
