//! What a request can make the worker do.
//!
//! | path | what happens |
//! |---|---|
//! | `/` | the short report: pid, slot, generation, counters |
//! | `/facts` | the full report: environment, descriptors, cgroup |
//! | `/leak?mb=N` | keep N MiB more |
//! | `/grow?mb=N&step=M&pause=T` | in one request: keep N MiB more in steps of M, pausing T ms between steps |
//! | `/sleep?ms=N` | answer after N ms |
//! | `/hang` | answer, then neither accept nor ping any more |
//! | `/mute` | stop the watchdog's pings, serve on |
//! | `/exit?code=N`, `/signal?n=N` | die in the middle of the request |
//! | `/daemon` | leave a detached grandchild, return its pid |
//! | `/notify?text=T&by=child&times=N` | send T on the notify socket, from a child that leaves at once, N times |
//! | `/print?text=T&times=N` | write T to standard error, N times |

use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::notify::Notify;
use super::serve::Request;
use super::state::State;
use super::{daemon, state};

/// Does what the request says and returns the body of the answer.
pub(super) fn perform(state: &Arc<State>, request: &Request) -> String {
    let mut report = state.short_report();
    match request.path.as_str() {
        "/facts" => report = state.report(),
        "/leak" => report["held"] = json!(state.leak(request.number("mb").unwrap_or(1))),
        "/grow" => grow(state, request, &mut report),
        "/sleep" => std::thread::sleep(millis(request, "ms")),
        "/hang" => state.make_hang(),
        "/mute" => state.mute(),
        "/exit" => state.exit_now(u8::try_from(request.number("code").unwrap_or(1)).unwrap_or(1)),
        "/signal" => die_by(request.number("n").unwrap_or(9)),
        "/daemon" => report["daemon"] = json!(daemon::spawn().unwrap_or(0)),
        "/notify" => notify(state, request),
        "/print" => {
            for _ in 0..request.number("times").unwrap_or(1) {
                let _ = writeln!(std::io::stderr(), "{}", request.get("text").unwrap_or_default());
            }
        }
        _ => {}
    }
    report["draining"] = json!(state.is_draining());
    report.to_string()
}

fn millis(request: &Request, key: &str) -> Duration {
    Duration::from_millis(request.number(key).unwrap_or(0))
}

/// Reports, step by step, how long each step took, so that a throttled worker is seen.
fn grow(state: &State, request: &Request, report: &mut Value) {
    let step = request.number("step").unwrap_or(1).max(1);
    let mut steps = Vec::new();
    for _ in 0..request.number("mb").unwrap_or(1) / step {
        let began = Instant::now();
        report["held"] = json!(state.leak(step));
        steps.push(u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX));
        std::thread::sleep(millis(request, "pause"));
    }
    std::thread::sleep(millis(request, "then"));
    report["step_micros"] = json!(steps);
}

fn die_by(number: u64) -> ! {
    let signal = i32::try_from(number).ok().and_then(|number| Signal::try_from(number).ok());
    let _ = nix::sys::signal::raise(signal.unwrap_or(Signal::SIGKILL));
    state::hang()
}

fn notify(state: &State, request: &Request) {
    let text = request.get("text").unwrap_or_default();
    for _ in 0..request.number("times").unwrap_or(1) {
        if request.get("by") == Some("child") {
            Notify::send_by_a_child_that_leaves(text);
        } else {
            state.notify.send(text);
        }
    }
}
