//! Unit tests of the core, written as sentences; the simulation in `tests/sim` covers what nobody thought of.

use std::time::Duration;

use super::action::{Action, Response, ServiceState};
use super::event::{Death, Ended, Event, Message, Request};
use super::fixture::{Bench, policy};
use super::id::{Generation, SlotId};
use super::note::NoteKind;
use super::policy::Policy;
use super::worker::Phase;
use crate::config::model::{Ready, Signal, WORKERS_MAX};

const SECOND: Duration = Duration::from_secs(1);
const KILLED: Ended = Ended::Signal(Signal(9));

#[test]
fn ready_is_said_once_every_slot_had_its_outcome_and_one_is_ready() {
    let mut bench = Bench::new(policy());
    let (first, second) = (bench.starts[0].worker, bench.starts[1].worker);
    bench.up(first);
    assert!(!bench.told(&ServiceState::Ready));
    bench.started(second);
    bench.ends(second, Ended::Exit(1));
    assert!(bench.told(&ServiceState::Ready));
}

#[test]
fn if_every_first_start_fails_it_leaves_with_1_and_the_last_words() {
    let mut bench = Bench::new(policy());
    for index in 0..2 {
        let id = bench.starts[index].worker;
        bench.started(id);
        bench.ends(id, Ended::Exit(3));
    }
    let third = bench.starts[2].worker;
    bench.step(Event::StartFailed { worker: third, error: "given up".to_owned() });
    assert_eq!(bench.exit(), Some(1));
    assert!(!bench.told(&ServiceState::Ready));
    assert!(bench.notes(NoteKind::Notice).iter().any(|note| note.message.contains("last line")));
}

#[test]
fn a_death_is_replaced_at_once_and_named() {
    let mut bench = Bench::ready(policy());
    let id = bench.current(0);
    bench.dies(id, KILLED);
    assert_eq!(bench.newest().slot, SlotId(0));
    assert_eq!(bench.starts.len(), 3);
    let died = bench.notes(NoteKind::WorkerDied);
    assert_eq!(died.len(), 1);
    assert_eq!(died[0].message, "slot 0 pid 1001: signal 9; replaced at once; last words: last line");
}

#[test]
fn a_worker_that_always_exits_is_started_at_most_six_times_in_ten_seconds() {
    let mut bench = Bench::ready(policy());
    let id = bench.current(0);
    bench.ends(id, Ended::Exit(1));
    let begin = bench.now;
    let mut starts = 0;
    while bench.now - begin < Duration::from_secs(10) {
        if bench.starts.len() > 2 + starts {
            starts = bench.starts.len() - 2;
            let id = bench.newest().worker;
            bench.started(id);
            bench.ends(id, Ended::Exit(1));
        }
        bench.pass_ms(1);
    }
    assert_eq!(starts, 5, "with the first start that makes six");
}

#[test]
fn an_oom_kill_says_limit_and_peak() {
    let mut policy = policy();
    (policy.memory_max, policy.recycle_at) = (Some(512 << 20), Some(400 << 20));
    let mut bench = Bench::ready(policy);
    let id = bench.current(1);
    let death = Death { ended: KILLED, oom_killed: Some(true), peak: None, last_words: Vec::new() };
    bench.step(Event::Exited { worker: id, death });
    let died = bench.notes(NoteKind::WorkerDied);
    assert_eq!(died[0].message, "slot 1 pid 1002: oom-kill at limit 512.0M (peak 512.0M); replaced at once");
    assert_eq!(died[0].reason.as_deref(), Some("oom-kill"));
}

#[test]
fn a_quota_is_replaced_start_before_stop_and_one_at_a_time() {
    let mut policy = policy();
    (policy.workers, policy.max_requests, policy.spread) = (4, 50, false);
    let mut bench = Bench::ready(policy);
    for slot in 0..4 {
        let id = bench.current(slot);
        bench.say(id, Message::Requests(50));
    }
    for slot in 0..4 {
        let old = bench.current(slot);
        assert_eq!(bench.starts.len(), 5 + slot as usize, "one replacement at a time");
        assert!(bench.signals().is_empty(), "nobody drains before the replacement is ready");
        let new = bench.newest().worker;
        bench.up(new);
        assert_eq!(bench.signals(), [(old, 15)]);
        assert_eq!(bench.core.counts.serving, 4);
        bench.take();
        bench.ends(old, Ended::Signal(Signal(15)));
        bench.take();
    }
    assert_eq!(bench.starts.len(), 8);
}

#[test]
fn with_surge_0_the_old_worker_is_gone_before_the_new_one_starts() {
    let mut policy = policy();
    (policy.surge, policy.max_requests, policy.spread) = (0, 50, false);
    let mut bench = Bench::ready(policy);
    let id = bench.current(0);
    bench.say(id, Message::Requests(50));
    assert_eq!(bench.signals(), [(id, 15)]);
    bench.dies(id, Ended::Exit(0));
    assert_eq!(bench.starts.len(), 2);
    bench.step(Event::Gone { worker: id });
    assert_eq!(bench.starts.len(), 3);
}

#[test]
fn a_replacement_that_fails_is_tried_again_while_the_old_one_serves() {
    let mut policy = policy();
    (policy.max_requests, policy.spread) = (50, false);
    let mut bench = Bench::ready(policy);
    let id = bench.current(0);
    bench.say(id, Message::Requests(50));
    for _ in 0..3 {
        let new = bench.newest().worker;
        bench.step(Event::StartFailed { worker: new, error: "no".to_owned() });
        bench.pass(SECOND);
    }
    assert_eq!(bench.current(0), id);
    assert!(bench.signals().is_empty());
    assert!(bench.starts.len() >= 5);
    let new = bench.newest().worker;
    bench.up(new);
    assert_eq!(bench.signals(), [(id, 15)]);
}

#[test]
fn the_old_one_dies_meanwhile_and_the_replacement_takes_over() {
    let mut bench = Bench::ready(policy());
    let id = bench.current(0);
    bench.say(id, Message::Recycle);
    let new = bench.newest().worker;
    bench.ends(id, KILLED);
    assert_eq!(bench.starts.len(), 3, "no second start");
    bench.up(new);
    assert_eq!(bench.current(0), new);
    assert!(bench.signals().is_empty());
}

fn memory_policy() -> Policy {
    Policy { memory_max: Some(1000), recycle_at: Some(800), ..policy() }
}

#[test]
fn the_first_edge_pulses_and_replaces_the_second_drains_first() {
    let mut bench = Bench::ready(memory_policy());
    let id = bench.current(0);
    bench.pass(Duration::from_secs(5));
    bench.step(Event::Memory { worker: id, unreclaimable: 700 });
    assert!(bench.actions.is_empty(), "cache does not count");
    bench.pass(SECOND);
    assert_eq!(bench.take(), [Action::ArmMemory { worker: id, edge: Some(800) }]);
    bench.step(Event::Memory { worker: id, unreclaimable: 810 });
    assert!(bench.actions.contains(&Action::Pulse { worker: id }));
    assert!(bench.actions.contains(&Action::ArmMemory { worker: id, edge: Some(900) }));
    assert_eq!(bench.starts.len(), 3);
    assert!(bench.signals().is_empty());
    bench.step(Event::Memory { worker: id, unreclaimable: 905 });
    assert_eq!(bench.signals(), [(id, 15)]);
    assert!(bench.actions.contains(&Action::ArmMemory { worker: id, edge: None }));
    assert_eq!(bench.notes(NoteKind::DrainFirst).len(), 1);
    let new = bench.newest().worker;
    bench.up(new);
    assert_eq!(bench.current(0), new);
    assert_eq!(bench.starts.len(), 3);
}

/// Four lives of slot 0, each over its soft limit after `after`, having counted so many requests: what is said of them.
fn lives_that_end_at_the_first_edge(after: Duration, requests: Option<u64>) -> Vec<String> {
    let mut bench = Bench::ready(memory_policy());
    let mut said = Vec::new();
    for _ in 0..5 {
        let id = bench.current(0);
        bench.pass(after);
        if let Some(count) = requests {
            bench.say(id, Message::Requests(count));
        }
        bench.step(Event::Memory { worker: id, unreclaimable: 810 });
        said.extend(bench.notes(NoteKind::Notice).into_iter().map(|note| note.message));
        let new = bench.newest().worker;
        if new == id {
            break;
        }
        bench.up(new);
        bench.ends(id, Ended::Exit(0));
    }
    said
}

#[test]
fn a_base_above_the_soft_limit_is_told_from_a_fast_leak() {
    let at_once = lives_that_end_at_the_first_edge(Duration::from_millis(50), None);
    assert!(at_once.concat().contains("over recycle_at as soon as they are ready"), "{at_once:?}");
    let soon = lives_that_end_at_the_first_edge(Duration::from_millis(500), Some(0));
    assert!(soon.concat().contains("over recycle_at within a second of being ready"), "{soon:?}");
    let busy = lives_that_end_at_the_first_edge(Duration::from_millis(500), Some(3));
    assert_eq!(busy, [""; 0], "requests filled it");
}

#[test]
fn at_the_first_edge_with_surge_taken_it_drains_first() {
    let mut bench = Bench::ready(memory_policy());
    let (first, second) = (bench.current(0), bench.current(1));
    bench.pass(Duration::from_secs(5));
    bench.say(first, Message::Recycle);
    bench.step(Event::Memory { worker: second, unreclaimable: 810 });
    assert_eq!(bench.signals(), [(second, 15)]);
    assert_eq!(bench.starts.len(), 3);
    bench.ends(second, Ended::Exit(0));
    assert_eq!(bench.starts.len(), 4, "an empty slot does not wait for surge");
}

#[test]
fn without_room_in_the_budget_it_stops_first_and_says_so() {
    let mut policy = memory_policy();
    policy.memory_budget = Some(2500);
    let mut bench = Bench::ready(policy);
    let (first, second) = (bench.current(0), bench.current(1));
    bench.say(first, Message::Recycle);
    bench.say(second, Message::Recycle);
    assert_eq!(bench.notes(NoteKind::StopFirst).len(), 1);
    assert_eq!(bench.signals(), [(first, 15)]);
    bench.dies(first, Ended::Exit(0));
    assert_eq!(bench.starts.len(), 2, "what is left of it may still hold memory");
    bench.step(Event::Gone { worker: first });
    assert_eq!(bench.starts.len(), 3);
    let new = bench.newest().worker;
    bench.up(new);
    assert_eq!(bench.signals(), [(first, 15), (second, 15)]);
}

#[test]
fn a_silent_worker_gets_sigabrt_then_sigkill() {
    let mut policy = policy();
    policy.watchdog = Some(Duration::from_secs(30));
    let mut bench = Bench::ready(policy);
    let (first, second) = (bench.current(0), bench.current(1));
    bench.pass(Duration::from_secs(29));
    bench.say(first, Message::Watchdog);
    bench.pass(Duration::from_secs(2));
    assert_eq!(bench.signals(), [(second, 6)]);
    bench.pass(Duration::from_secs(2));
    assert_eq!(bench.kills(), [second]);
    bench.dies(second, Ended::Signal(Signal(6)));
    assert_eq!(bench.notes(NoteKind::WorkerDied)[0].reason.as_deref(), Some("watchdog"));
}

#[test]
fn a_start_that_takes_too_long_is_killed_unless_it_asks_for_time() {
    let mut bench = Bench::new(policy());
    let (first, second) = (bench.starts[0].worker, bench.starts[1].worker);
    bench.started(first);
    bench.started(second);
    bench.pass(Duration::from_secs(59));
    bench.say(second, Message::ExtendTimeout(Duration::from_hours(1)));
    bench.pass(SECOND);
    assert_eq!(bench.kills(), [first]);
    bench.pass(Duration::from_secs(539));
    assert!(!bench.kills().contains(&second));
    bench.pass(SECOND);
    assert!(bench.kills().contains(&second), "ten times the configured value at most");
}

#[test]
fn settling_makes_ready_and_ready_messages_do_not() {
    let mut policy = policy();
    policy.ready = Ready::Settle;
    let mut bench = Bench::new(policy);
    let id = bench.starts[0].worker;
    bench.up(id);
    assert_eq!(bench.core.workers[&id].phase, Phase::Starting);
    bench.pass(SECOND);
    assert_eq!(bench.core.workers[&id].phase, Phase::Ready);
}

#[test]
fn stop_drains_then_kills_and_answers_at_the_end() {
    let mut policy = policy();
    policy.graceful = Duration::from_secs(3);
    let mut bench = Bench::ready(policy);
    let (first, second) = (bench.current(0), bench.current(1));
    bench.ask(9, Request::Stop { fast: false });
    assert!(bench.told(&ServiceState::Stopping));
    assert_eq!(bench.signals(), [(first, 15), (second, 15)]);
    bench.ends(first, Ended::Exit(0));
    bench.pass(Duration::from_secs(3));
    assert_eq!(bench.kills(), [second]);
    assert!(bench.replies().is_empty());
    bench.ends(second, KILLED);
    assert_eq!(bench.replies().len(), 1);
    assert_eq!(bench.exit(), Some(0));
    let verdicts: Vec<_> = bench.notes(NoteKind::WorkerDied).into_iter().filter_map(|note| note.reason).collect();
    assert_eq!(verdicts, ["drained", "drain-deadline"]);
}

#[test]
fn a_second_terminate_kills_at_once() {
    let mut bench = Bench::ready(policy());
    bench.step(Event::Request { id: None, request: Request::Terminate });
    assert!(bench.kills().is_empty());
    bench.step(Event::Request { id: None, request: Request::Terminate });
    assert_eq!(bench.kills().len(), 2);
}

#[test]
fn a_roll_tries_a_canary_holds_it_and_takes_the_rest_with_it() {
    let mut bench = Bench::ready(policy());
    let (first, second) = (bench.current(0), bench.current(1));
    bench.reload(2, policy());
    assert!(bench.told(&ServiceState::Reloading));
    let canary = bench.newest();
    assert_eq!((canary.slot, canary.generation), (SlotId(0), Generation(2)));
    bench.up(canary.worker);
    bench.pass_ms(999);
    assert!(bench.signals().is_empty());
    bench.pass_ms(1);
    assert_eq!(bench.signals(), [(first, 15)]);
    bench.ends(first, Ended::Exit(0));
    let rest = bench.newest();
    assert_eq!((rest.slot, rest.generation), (SlotId(1), Generation(2)));
    bench.up(rest.worker);
    assert!(bench.replies().is_empty());
    bench.dies(second, Ended::Exit(0));
    assert!(matches!(&bench.replies()[..], [(2, Response::Done { .. })]));
    bench.step(Event::Gone { worker: second });
    assert!(bench.actions.contains(&Action::Forget { config: super::id::ConfigId(1) }));
}

#[test]
fn a_canary_that_fails_undoes_the_roll_and_the_old_ones_serve_on() {
    let mut bench = Bench::ready(policy());
    bench.reload(2, policy());
    let canary = bench.newest().worker;
    bench.started(canary);
    bench.ends(canary, Ended::Exit(1));
    let [(2, Response::Failed { reason, last_words })] = &bench.replies()[..] else {
        panic!("{:?}", bench.replies());
    };
    assert!(reason.contains("exit 1"), "{reason}");
    assert_eq!(last_words, &["last line"]);
    assert!(bench.signals().is_empty());
    assert_eq!(bench.core.counts.serving, 2);
    bench.reload(3, policy());
    assert_eq!(bench.newest().generation, Generation(3));
}

#[test]
fn during_the_canary_other_slots_restart_under_the_old_generation() {
    let mut bench = Bench::ready(policy());
    let second = bench.current(1);
    bench.reload(2, policy());
    bench.dies(second, KILLED);
    let restart = bench.newest();
    assert_eq!((restart.slot, restart.generation), (SlotId(1), Generation(1)));
}

#[test]
fn reloads_during_a_roll_make_one_further_roll() {
    let mut policy = policy();
    policy.workers = 1;
    policy.hold = Duration::ZERO;
    let mut bench = Bench::ready(policy.clone());
    for id in 2..5 {
        bench.reload(id, policy.clone());
    }
    for generation in [2, 3] {
        assert_eq!(bench.newest().generation, Generation(generation));
        let (old, new) = (bench.current(0), bench.newest().worker);
        bench.up(new);
        bench.ends(old, Ended::Exit(0));
    }
    assert_eq!(bench.starts.len(), 3);
    let replies: Vec<u64> = bench.replies().into_iter().map(|(id, _)| id).collect();
    assert_eq!(replies, [2, 3, 4]);
    assert!(bench.actions.contains(&Action::Forget { config: super::id::ConfigId(3) }));
}

#[test]
fn a_later_worker_that_fails_three_starts_brings_the_old_configuration_back() {
    let mut policy = policy();
    policy.hold = Duration::ZERO;
    let mut bench = Bench::ready(policy.clone());
    let (first, second) = (bench.current(0), bench.current(1));
    bench.reload(2, policy);
    let canary = bench.newest().worker;
    bench.up(canary);
    bench.ends(first, Ended::Exit(0));
    for _ in 0..3 {
        let start = bench.newest();
        assert_eq!((start.slot, start.generation), (SlotId(1), Generation(2)));
        bench.step(Event::StartFailed { worker: start.worker, error: "broken".to_owned() });
        bench.pass(SECOND);
    }
    let back = bench.newest();
    assert_eq!((back.slot, back.generation), (SlotId(0), Generation(1)));
    assert_eq!(bench.current(1), second, "old workers are left untouched");
    assert!(bench.replies().is_empty());
    bench.up(back.worker);
    bench.ends(canary, Ended::Exit(0));
    assert!(matches!(&bench.replies()[..], [(2, Response::Failed { .. })]));
    assert!(!bench.core.snapshot().mixed);
}

#[test]
fn if_the_old_configuration_does_not_start_either_the_new_worker_is_kept() {
    let mut policy = policy();
    policy.hold = Duration::ZERO;
    let mut bench = Bench::ready(policy.clone());
    let first = bench.current(0);
    bench.reload(2, policy);
    let canary = bench.newest().worker;
    bench.up(canary);
    bench.ends(first, Ended::Exit(0));
    for _ in 0..6 {
        let worker = bench.newest().worker;
        bench.step(Event::StartFailed { worker, error: "broken".to_owned() });
        bench.pass(SECOND);
    }
    assert!(matches!(&bench.replies()[..], [(2, Response::Failed { .. })]));
    assert_eq!(bench.current(0), canary);
    assert!(bench.core.snapshot().mixed);
    let starts = bench.starts.len();
    bench.pass(Duration::from_mins(1));
    assert_eq!(bench.starts.len(), starts, "it is kept for good");
}

#[test]
fn scaling_down_drains_the_oldest_and_up_fills_the_lowest_hole() {
    let mut bench = Bench::ready(policy());
    let first = bench.current(0);
    bench.ask(5, Request::Scale { workers: 1 });
    assert_eq!(bench.signals(), [(first, 15)]);
    bench.ends(first, Ended::Exit(0));
    assert_eq!(bench.starts.len(), 2);
    bench.ask(6, Request::Scale { workers: 3 });
    let slots: Vec<SlotId> = bench.starts[2..].iter().map(|start| start.slot).collect();
    assert_eq!(slots, [SlotId(0), SlotId(2)]);
    bench.ask(7, Request::Scale { workers: 0 });
    bench.ask(8, Request::Scale { workers: WORKERS_MAX + 1 });
    assert!(matches!(
        bench.replies()[..],
        [
            (5, Response::Done { .. }),
            (6, Response::Done { .. }),
            (7, Response::Invalid { .. }),
            (8, Response::Invalid { .. })
        ]
    ));
}

#[test]
fn an_asked_recycle_is_answered_when_the_old_worker_is_gone() {
    let mut bench = Bench::ready(policy());
    let id = bench.current(1);
    bench.ask(5, Request::Recycle { slot: SlotId(1) });
    bench.ask(6, Request::Recycle { slot: SlotId(7) });
    assert!(matches!(&bench.replies()[..], [(6, Response::Failed { .. })]));
    let new = bench.newest().worker;
    bench.up(new);
    assert_eq!(bench.replies().len(), 1);
    bench.dies(id, Ended::Exit(0));
    assert!(matches!(&bench.replies()[1..], [(5, Response::Done { .. })]));
}

#[test]
fn a_worker_that_stops_by_itself_is_covered_at_once() {
    let mut bench = Bench::ready(policy());
    let id = bench.current(0);
    bench.pass(Duration::from_secs(20));
    bench.say(id, Message::Stopping);
    assert_eq!(bench.newest().slot, SlotId(0));
    assert_eq!(bench.starts.len(), 3);
    bench.ends(id, Ended::Exit(0));
    let new = bench.newest().worker;
    bench.up(new);
    assert_eq!((bench.current(0), bench.starts.len()), (new, 3));
}

#[test]
fn news_in_the_wrong_order_does_no_harm() {
    let mut bench = Bench::new(policy());
    let (first, second) = (bench.starts[0].worker, bench.starts[1].worker);
    bench.say(first, Message::Ready);
    bench.started(first);
    assert_eq!(bench.core.workers[&first].phase, Phase::Ready);
    bench.dies(second, Ended::Exit(1));
    bench.started(second);
    bench.dies(second, Ended::Exit(1));
    bench.step(Event::Gone { worker: second });
    bench.step(Event::Gone { worker: second });
    assert_eq!(bench.notes(NoteKind::WorkerDied).len(), 1);
    assert_eq!(bench.starts.len(), 3);
}

#[test]
fn the_state_survives_being_written_down() {
    let mut bench = Bench::ready(memory_policy());
    let id = bench.current(0);
    bench.reload(2, memory_policy());
    bench.say(id, Message::Recycle);
    let text = serde_json::to_string(&bench.core).unwrap();
    let copy: super::Supervisor = serde_json::from_str(&text).unwrap();
    assert_eq!(format!("{copy:?}"), format!("{:?}", bench.core));
}

/// An app that waits for changes, all of whose first starts have failed.
fn parked() -> Bench {
    let mut bench = Bench::new_patient(policy());
    for index in 0..2 {
        let id = bench.starts[index].worker;
        bench.started(id);
        bench.ends(id, Ended::Exit(3));
    }
    bench
}

#[test]
fn a_patient_app_that_does_not_start_waits_and_starts_nothing_by_itself() {
    let mut bench = parked();
    bench.pass(Duration::from_hours(1));
    assert_eq!((bench.exit(), bench.starts.len()), (None, 2));
    assert_eq!(bench.core.next_deadline(), None);
    let said = bench.notes(NoteKind::Notice);
    assert!(said.iter().any(|note| note.message.ends_with("last line; waiting for a change")), "{said:?}");
    bench.step(Event::Request { id: None, request: Request::Terminate });
    assert_eq!(bench.exit(), Some(0));
}

#[test]
fn each_reload_of_a_waiting_app_tries_one_worker_and_the_others_follow_the_one_that_holds() {
    let mut bench = parked();
    bench.reload(7, policy());
    assert_eq!(bench.starts.len(), 3, "one canary");
    let canary = bench.newest().worker;
    bench.started(canary);
    bench.ends(canary, Ended::Exit(3));
    let undone = bench.notes(NoteKind::ReloadUndone);
    assert!(undone[0].message.contains("nobody serves, waiting for a change"), "{undone:?}");
    bench.pass(Duration::from_hours(1));
    assert_eq!((bench.exit(), bench.starts.len()), (None, 3));

    bench.reload(8, policy());
    let canary = bench.newest().worker;
    bench.up(canary);
    assert!(bench.told(&ServiceState::Ready));
    assert_eq!(bench.starts.len(), 4, "the others wait until the canary has held");
    bench.pass(SECOND);
    assert_eq!(bench.starts.len(), 5);
    assert_eq!(bench.newest().generation, Generation(3));
    let other = bench.newest().worker;
    bench.up(other);
    assert!(bench.replies().iter().any(|(id, reply)| *id == 8 && matches!(reply, Response::Done { .. })));
    // From here on it is an app like any other.
    bench.ends(other, Ended::Exit(3));
    assert_eq!(bench.starts.len(), 6);
}

#[test]
fn a_waiting_app_of_which_one_worker_gets_ready_after_all_fills_its_other_slots() {
    let mut bench = Bench::new_patient(policy());
    let (first, second) = (bench.starts[0].worker, bench.starts[1].worker);
    bench.started(first);
    bench.ends(first, Ended::Exit(3));
    assert_eq!(bench.starts.len(), 2);
    bench.up(second);
    assert_eq!(bench.starts.len(), 3);
    assert_eq!(bench.newest().slot, SlotId(0));
}

#[test]
fn a_manager_that_takes_over_a_waiting_app_and_is_not_patient_starts_it() {
    let mut bench = parked();
    bench.core.be_patient(false);
    let (mut actions, now) = (Vec::new(), bench.now);
    bench.core.resume(&std::collections::BTreeSet::new(), now, &mut actions);
    let starts = actions.iter().filter(|action| matches!(action, Action::Start(_))).count();
    assert_eq!(starts, 2);
}
