//! What a simulated worker does with its life, drawn when it is asked for.

use std::time::Duration;

use paddock::config::model::Signal;
use paddock::supervisor::event::Ended;

use crate::dice::Dice;

/// How sick a release is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Health {
    /// Nothing goes wrong.
    Good,
    /// Everything goes wrong now and then.
    Shaky,
    /// It never starts.
    Broken,
    /// Every second start fails.
    Moody,
    /// It gets ready and dies soon.
    Brief,
}

impl Health {
    pub(crate) fn any(dice: &mut Dice) -> Self {
        match dice.between(0, 9) {
            0..=1 => Self::Good,
            2..=5 => Self::Shaky,
            6 => Self::Broken,
            7..=8 => Self::Moody,
            _ => Self::Brief,
        }
    }
}

/// One life's script. Spans count from the start's request, from exec or from READY, as said.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    /// Until exec.
    pub(crate) gate: Duration,
    /// The start fails instead of the exec.
    pub(crate) start_fails: bool,
    /// From exec to READY; none: never.
    pub(crate) ready: Option<Duration>,
    /// From exec to a death of its own.
    pub(crate) dies_starting: Option<(Duration, Ended)>,
    /// From READY to a death of its own.
    pub(crate) dies: Option<(Duration, Ended)>,
    /// From READY to `STOPPING=1` and an end soon after.
    pub(crate) stops: Option<Duration>,
    /// From READY to `X_PADDOCK_RECYCLE=1`.
    pub(crate) asks: Option<Duration>,
    /// From READY to the last ping; none: it pings for ever.
    pub(crate) hangs: Option<Duration>,
    /// From READY to `WATCHDOG=trigger`.
    pub(crate) triggers: Option<Duration>,
    /// `EXTEND_TIMEOUT_USEC=`, at this point after exec, for this long.
    pub(crate) extends: Option<(Duration, Duration)>,
    /// Requests a second.
    pub(crate) rate: u64,
    /// Whether it counts them.
    pub(crate) counts: bool,
    /// Bytes held at READY, and bytes more for each second.
    pub(crate) memory: (u64, u64),
    /// From the drain signal to its end; none: it ignores it.
    pub(crate) drains: Option<Duration>,
    /// Whether SIGABRT ends it.
    pub(crate) heeds_abort: bool,
    /// From SIGKILL to its end.
    pub(crate) dies_of_kill: Duration,
    /// From its end to nothing being left.
    pub(crate) leftovers: Duration,
}

impl Program {
    /// A life without trouble.
    pub(crate) fn good(dice: &mut Dice) -> Self {
        Self {
            gate: dice.millis(1, 20),
            start_fails: false,
            ready: Some(dice.millis(1, 200)),
            dies_starting: None,
            dies: None,
            stops: None,
            asks: None,
            hangs: None,
            triggers: None,
            extends: None,
            rate: dice.between(0, 20),
            counts: true,
            memory: (10, 0),
            drains: Some(dice.millis(0, 300)),
            heeds_abort: true,
            dies_of_kill: dice.millis(0, 5),
            leftovers: dice.millis(0, 20),
        }
    }

    /// A life of a release of this health.
    pub(crate) fn any(health: Health, dice: &mut Dice) -> Self {
        let mut program = Self::good(dice);
        match health {
            Health::Good => return program,
            Health::Broken => {
                program.fail_start(dice);
                return program;
            }
            Health::Moody => {
                if dice.percent(50) {
                    program.fail_start(dice);
                }
                return program;
            }
            Health::Brief => {
                program.dies = Some((dice.millis(10, 4000), ended(dice)));
                return program;
            }
            Health::Shaky => {}
        }
        if dice.percent(12) {
            program.fail_start(dice);
        }
        program.gate = dice.millis(1, 300);
        program.ready = dice.maybe(95, |dice| dice.millis(1, 4000));
        program.dies = dice.maybe(15, |dice| (dice.millis(10, 30_000), ended(dice)));
        program.stops = dice.maybe(8, |dice| dice.millis(10, 30_000));
        program.asks = dice.maybe(10, |dice| dice.millis(10, 30_000));
        program.hangs = dice.maybe(8, |dice| dice.millis(10, 20_000));
        program.triggers = dice.maybe(3, |dice| dice.millis(10, 20_000));
        program.extends = dice.maybe(10, |dice| (dice.millis(1, 6000), dice.millis(100, 60_000)));
        program.counts = dice.percent(90);
        program.memory = (dice.between(10, 300), if dice.percent(40) { dice.between(1, 400) } else { 0 });
        program.drains = dice.maybe(90, |dice| dice.millis(0, 6000));
        program.heeds_abort = dice.percent(60);
        if dice.percent(5) {
            program.dies_of_kill = dice.millis(1000, 15_000);
        }
        if dice.percent(10) {
            program.leftovers = dice.millis(100, 12_000);
        }
        program
    }

    fn fail_start(&mut self, dice: &mut Dice) {
        match dice.between(0, 2) {
            0 => self.start_fails = true,
            1 => self.dies_starting = Some((dice.millis(0, 500), ended(dice))),
            _ => self.ready = None,
        }
    }
}

fn ended(dice: &mut Dice) -> Ended {
    match dice.between(0, 4) {
        0 => Ended::Exit(0),
        1 => Ended::Exit(3),
        2 => Ended::Signal(Signal(9)),
        3 => Ended::Signal(Signal(11)),
        _ => Ended::Unknown,
    }
}
