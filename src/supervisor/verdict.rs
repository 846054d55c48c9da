//! What a death was. Never guessed: each verdict rests on something that was read or done.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::event::{Death, Ended};

/// Why a worker died.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Our drain signal was out.
    Drained,
    /// It ended by itself.
    Exit,
    /// A signal ended it, and it was not ours.
    Signal,
    /// An OOM killer took one of its processes.
    OomKill,
    /// It was silent for too long, or said that it hangs.
    Watchdog,
    /// It did not get ready in time.
    StartTimeout,
    /// It did not end in time.
    DrainDeadline,
    /// The app was stopped at once.
    FastStop,
    /// Nothing could be read.
    Unknown,
}

impl Verdict {
    /// The vocabulary's word.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Drained => "drained",
            Self::Exit => "exit",
            Self::Signal => "signal",
            Self::OomKill => "oom-kill",
            Self::Watchdog => "watchdog",
            Self::StartTimeout => "start-timeout",
            Self::DrainDeadline => "drain-deadline",
            Self::FastStop => "fast-stop",
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The verdict on a death: the OOM killer's count beats our own deeds, which beat how the process ended.
///
/// `kill` is what our SIGABRT or SIGKILL was for, `signalled` whether our drain signal was out.
pub(super) fn judge(death: &Death, kill: Option<Verdict>, signalled: bool) -> Verdict {
    if death.oom_killed == Some(true) {
        return Verdict::OomKill;
    }
    if let Some(reason) = kill {
        return reason;
    }
    if signalled {
        return Verdict::Drained;
    }
    match death.ended {
        Ended::Exit(_) => Verdict::Exit,
        Ended::Signal(_) => Verdict::Signal,
        Ended::Unknown => Verdict::Unknown,
    }
}

/// The verdict with the number that belongs to it: `exit 3`, `signal 9`.
pub(super) fn describe(verdict: Verdict, ended: Ended) -> String {
    match (verdict, ended) {
        (Verdict::Exit, Ended::Exit(status)) => format!("exit {status}"),
        (Verdict::Signal, Ended::Signal(signal)) => format!("signal {}", signal.0),
        (verdict, _) => verdict.name().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::model::Signal;

    fn death(ended: Ended, oom_killed: Option<bool>) -> Death {
        Death { ended, oom_killed, peak: None, last_words: Vec::new() }
    }

    #[test]
    fn an_oom_kill_is_one_whoever_signalled() {
        let death = death(Ended::Signal(Signal(9)), Some(true));
        assert_eq!(judge(&death, Some(Verdict::Watchdog), true), Verdict::OomKill);
        assert_eq!(judge(&death, None, true), Verdict::OomKill);
        assert_eq!(judge(&death, None, false), Verdict::OomKill);
    }

    #[test]
    fn our_kill_beats_our_drain_signal() {
        let death = death(Ended::Exit(0), Some(false));
        assert_eq!(judge(&death, Some(Verdict::DrainDeadline), true), Verdict::DrainDeadline);
    }

    #[test]
    fn any_status_after_the_drain_signal_is_drained() {
        for ended in [Ended::Exit(3), Ended::Signal(Signal(15)), Ended::Unknown] {
            assert_eq!(judge(&death(ended, None), None, true), Verdict::Drained);
        }
    }

    #[test]
    fn a_foreign_kill_is_a_signal_and_a_silent_death_is_unknown() {
        let kill = death(Ended::Signal(Signal(9)), None);
        assert_eq!(judge(&kill, None, false), Verdict::Signal);
        assert_eq!(describe(Verdict::Signal, kill.ended), "signal 9");
        assert_eq!(judge(&death(Ended::Unknown, None), None, false), Verdict::Unknown);
        assert_eq!(judge(&death(Ended::Exit(3), None), None, false), Verdict::Exit);
    }
}
