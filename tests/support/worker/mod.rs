//! `W`, the worker program of the tests: an ordinary server that keeps the standard protocols (`sd_listen_fds(3)`,
//! `sd_notify(3)`) and paddock's two extensions, and that misbehaves on request.
//!
//! One thread polls the listeners and pings the watchdog: it is the serving path, so a hang of it is seen. Each
//! connection has a thread of its own. What it does is set by `W_…` variables, by the switch file that stands for "the
//! code on disk" (read once, at the start), and by the URL of a request (see [`commands`]).

mod commands;
pub(crate) mod daemon;
mod facts;
mod listeners;
pub(crate) mod notify;
mod serve;
mod settings;
mod state;

use std::io::Write as _;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};

use self::listeners::Listeners;
use self::settings::Settings;
use self::state::State;

/// Lives one worker's life.
pub(crate) fn run() -> ExitCode {
    let facts = facts::gather();
    let settings = Settings::read();
    if let Some(text) = settings.get("say") {
        let _ = writeln!(std::io::stderr(), "{text}");
    }
    if settings.flag("record") {
        settings.append("records", &format!("{facts}\n"));
    }
    let worn_out = settings.number("refuse_after").is_some_and(|starts| settings.append("starts", ".") > starts);
    let refused = worn_out.then_some(3).or_else(|| settings.number("refuse"));
    let refused = refused.or_else(|| settings.concerns_slot("refuse_slots").then_some(3));
    if let Some(code) = refused {
        let _ = writeln!(std::io::stderr(), "refusing to start: the code on disk is broken");
        return ExitCode::from(u8::try_from(code).unwrap_or(1));
    }

    let mut waited_for = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2] {
        if !(settings.flag("die_by_term") && signal == Signal::SIGTERM) {
            waited_for.add(signal);
        }
    }
    if settings.flag("ignore_abort") {
        waited_for.add(Signal::SIGABRT);
    }
    if let Err(error) = waited_for.thread_block() {
        let _ = writeln!(std::io::stderr(), "cannot block signals: {error}");
        return ExitCode::FAILURE;
    }

    let listeners = match Listeners::take(&settings) {
        Ok(listeners) => listeners,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "cannot use the listening sockets: {error}");
            return ExitCode::FAILURE;
        }
    };
    let state = match State::new(facts, settings) {
        Ok(state) => Arc::new(state),
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "cannot set up: {error}");
            return ExitCode::FAILURE;
        }
    };
    spawn(&state, move |state| wait_for_signals(&state, &waited_for));
    spawn(&state, |state| state.hear_pressure());
    spawn(&state, |state| state.report_requests());

    if !start_up(&state) {
        return ExitCode::SUCCESS;
    }
    serve_until_drained(&state, listeners);
    state.notify.send("STOPPING=1");
    state.wait_until_idle();
    if let Some(delay) = state.settings.millis("drain_delay_ms") {
        std::thread::sleep(delay);
    }
    ExitCode::from(u8::try_from(state.settings.number("drain_exit").unwrap_or(0)).unwrap_or(1))
}

fn spawn(state: &Arc<State>, work: impl FnOnce(Arc<State>) + Send + 'static) {
    let state = Arc::clone(state);
    std::thread::spawn(move || work(state));
}

fn wait_for_signals(state: &State, waited_for: &SigSet) {
    while let Ok(signal) = waited_for.wait() {
        state.note_signal(signal.as_str());
        let drains = matches!(signal, Signal::SIGTERM | Signal::SIGHUP | Signal::SIGQUIT);
        if drains && !state.settings.flag("ignore_term") {
            state.drain();
        }
    }
}

/// The slow part of a start, then READY; false if it was drained before.
fn start_up(state: &State) -> bool {
    if state.settings.concerns_slot("hang_slots") {
        state::hang();
    }
    if let Some(megabytes) = state.settings.number("start_leak_mb") {
        state.leak(megabytes);
    }
    let until = Instant::now() + state.settings.millis("ready_delay_ms").unwrap_or_default();
    let extend = state.settings.millis("extend_ms");
    while !state.is_draining() {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        if let Some(extend) = extend {
            state.notify.send(&format!("EXTEND_TIMEOUT_USEC={}", extend.as_micros()));
        }
        state.wait_for_drain(left.min(extend.map_or(left, |each| each / 2)));
    }
    if state.is_draining() {
        return false;
    }
    if !state.settings.flag("never_ready") {
        state.notify.send("READY=1");
    }
    if let Some(delay) = state.settings.millis("exit_after_ready_ms") {
        state.wait_for_drain(delay);
        let _ = writeln!(std::io::stderr(), "giving up soon after READY");
        state.exit_now(1);
    }
    true
}

fn serve_until_drained(state: &Arc<State>, listeners: Listeners) {
    let ping_every = watchdog_interval();
    let mut next_ping = Instant::now();
    let listeners = listeners.start_blocking_acceptors(state);
    while !state.is_draining() {
        if state.is_hung() {
            state::hang();
        }
        let timeout = ping_every.map(|_| next_ping.saturating_duration_since(Instant::now()));
        for connection in listeners.accept(state, timeout) {
            serve::start(state, connection);
        }
        if let Some(every) = ping_every
            && Instant::now() >= next_ping
        {
            if !state.is_mute() && !state.is_hung() {
                state.notify.send("WATCHDOG=1");
            }
            next_ping = Instant::now() + every;
        }
    }
    listeners.close(state);
}

/// Half of what `sd_watchdog_enabled(3)` says, as it recommends.
fn watchdog_interval() -> Option<Duration> {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
    let meant_for_us = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
    number("WATCHDOG_USEC").filter(|_| meant_for_us).map(|micros| Duration::from_micros(micros) / 2)
}
