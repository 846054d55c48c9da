//! What one manager leaves for the next, and what a gate is told.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use crate::runtime::state;
use crate::supervisor::action::Action;
use crate::supervisor::event::{Event, Message, Request};
use crate::supervisor::time::Time;
use crate::worker::order::Order;

/// So many steps at most, whatever a damaged state asks for.
const STEPS: u32 = 200;

/// A state file: whatever is accepted can be gone on with.
pub(super) fn state(bytes: &[u8]) {
    let Ok(mut state) = state::parse(bytes, Path::new("state")) else { return };
    let text = serde_json::to_vec(&state).expect("what was read can be written");
    state::parse(&text, Path::new("state")).expect("what was written can be read");
    let core = &mut state.supervisor;
    let unheard: BTreeSet<_> = core.worker_ids().map(|(id, _)| id).collect();
    let mut now = Time::from_boot(Duration::from_secs(1000));
    let mut actions = Vec::new();
    core.resume(&unheard, now, &mut actions);
    for id in unheard {
        core.step(Event::Message { worker: id, message: Message::Requests(u64::MAX) }, now, &mut actions);
    }
    core.step(Event::Request { id: None, request: Request::ScaleBy { by: 1 } }, now, &mut actions);
    for _ in 0..STEPS {
        let Some((at, _)) = core.next_deadline() else { break };
        now = now.max(at);
        core.step(Event::Tick, now, &mut actions);
        let _ = core.snapshot();
    }
    core.step(Event::Request { id: None, request: Request::Stop { fast: true } }, now, &mut actions);
    for _ in 0..STEPS {
        let ids: Vec<_> = core.worker_ids().collect();
        let Some((id, asked)) = ids.first().copied() else { break };
        let event = if asked {
            Event::StartFailed { worker: id, error: "given up".to_owned() }
        } else {
            core.step(super::core::exited(id), now, &mut actions);
            Event::Gone { worker: id }
        };
        core.step(event, now, &mut actions);
    }
    assert!(core.worker_ids().next().is_some() || core.is_over(), "nobody is left and it does not end");
    assert!(actions.iter().filter(|action| matches!(action, Action::Exit { .. })).count() <= 1);
}

/// The order that turns a gate into a worker.
pub(super) fn order(bytes: &[u8]) {
    let Ok(order) = serde_json::from_slice::<Order>(bytes) else { return };
    let text = serde_json::to_vec(&order).expect("an order can be written");
    assert_eq!(serde_json::from_slice::<Order>(&text).expect("an order can be read"), order);
}
