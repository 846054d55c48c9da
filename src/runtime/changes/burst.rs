//! Changes that come together count as one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::observe::escape::single_line;
use crate::supervisor::time::Time;

/// Nothing for this long is the end of a burst: an editor's renames, a formatter, a checkout.
const QUIET: Duration = Duration::from_millis(100);

/// A burst without end is cut after this.
const LONGEST: Duration = Duration::from_secs(3);

/// How many files are remembered by name; the others are counted.
const NAMED: usize = 4096;

/// Longer names are cut.
const NAME_MAX: usize = 200;

/// What has happened since it was last quiet.
#[derive(Debug, Default)]
pub(super) struct Burst {
    began: Option<Time>,
    last: Option<Time>,
    seen: BTreeMap<PathBuf, Seen>,
    unnamed: usize,
}

#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    place: usize,
    /// It came into being within this burst; if it is gone at the end, it never mattered.
    born: bool,
    changed: bool,
}

impl Burst {
    /// Something came into being; whether that is a change shows when it has been written.
    pub(super) fn born(&mut self, path: &Path, now: Time) {
        self.note(path, now, Seen { born: true, ..Seen::default() });
    }

    /// Something was written, moved here or away, or removed.
    pub(super) fn changed(&mut self, path: &Path, now: Time) {
        self.note(path, now, Seen { changed: true, ..Seen::default() });
    }

    fn note(&mut self, path: &Path, now: Time, what: Seen) {
        self.began.get_or_insert(now);
        self.last = Some(now);
        let place = self.seen.len();
        if let Some(seen) = self.seen.get_mut(path) {
            // Only who is first seen at its birth is born here: what is created after a removal was there before.
            seen.changed |= what.changed;
        } else if place < NAMED {
            self.seen.insert(path.to_owned(), Seen { place, ..what });
        } else {
            self.unnamed += usize::from(what.changed);
        }
    }

    /// How long until it may be over; none: nothing has happened.
    pub(super) fn remaining(&self, now: Time) -> Option<Duration> {
        let (began, last) = (self.began?, self.last?);
        let end = last.after(QUIET).min(began.after(LONGEST));
        Some(if end > now { end - now } else { Duration::ZERO })
    }

    /// Whether it is over.
    pub(super) fn is_over(&self, now: Time) -> bool {
        self.remaining(now).is_some_and(|left| left.is_zero())
    }

    /// Which files have changed, in words; none: in the end nothing has.
    pub(super) fn describe(&self) -> Option<String> {
        let mut changes: Vec<(bool, usize, &Path)> = self
            .seen
            .iter()
            .filter(|(_, seen)| seen.changed)
            .map(|(path, seen)| (path.symlink_metadata().is_err(), seen, path))
            .filter(|(gone, seen, _)| !(seen.born && *gone))
            .map(|(gone, seen, path)| (gone, seen.place, path.as_path()))
            .collect();
        // What is there says more than what was moved away; else the first.
        changes.sort();
        let Some((gone, _, first)) = changes.first() else {
            return (self.unnamed > 0).then(|| format!("{} files have changed", self.unnamed));
        };
        let name = shown(first);
        let what = if *gone { "is gone" } else { "has changed" };
        Some(match changes.len() - 1 + self.unnamed {
            0 => format!("{name} {what}"),
            1 => format!("{name} {what}, and 1 other file"),
            others => format!("{name} {what}, and {others} other files"),
        })
    }
}

/// A path as a person would write it here.
fn shown(path: &Path) -> String {
    let here = std::env::current_dir().ok();
    let short = here.and_then(|here| path.strip_prefix(here).ok()).unwrap_or(path);
    single_line(&short.to_string_lossy(), NAME_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::files::test_directory;

    fn at(millis: u64) -> Time {
        Time::from_boot(Duration::from_millis(millis))
    }

    #[test]
    fn it_ends_when_it_is_quiet_and_at_the_latest_after_its_longest_time() {
        let mut burst = Burst::default();
        assert_eq!(burst.remaining(at(5)), None);
        let mut now = 1000;
        burst.changed(Path::new("/a"), at(now));
        assert_eq!(burst.remaining(at(now + 40)), Some(Duration::from_millis(60)));
        assert!(burst.is_over(at(now + 100)));
        while now < 4000 {
            assert!(!burst.is_over(at(now)), "{now}");
            now += 90;
            burst.changed(Path::new("/a"), at(now));
        }
        assert!(burst.is_over(at(now)));
    }

    #[test]
    fn what_came_and_went_never_mattered_and_what_is_there_is_named_first() {
        let directory = test_directory("burst");
        let (kept, temporary) = (directory.join("kept.py"), directory.join("a-temporary"));
        std::fs::write(&kept, "").unwrap();
        let mut burst = Burst::default();
        burst.born(&temporary, at(1));
        burst.changed(&temporary, at(2));
        assert_eq!(burst.describe(), None);
        burst.changed(&directory.join("removed.py"), at(3));
        assert!(burst.describe().unwrap().ends_with("removed.py is gone"));
        burst.changed(&kept, at(4));
        assert!(burst.describe().unwrap().ends_with("kept.py has changed, and 1 other file"));
        std::fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn an_empty_new_file_is_no_change_until_it_is_written() {
        let mut burst = Burst::default();
        burst.born(Path::new("/etc/passwd"), at(1));
        assert_eq!(burst.describe(), None);
        burst.changed(Path::new("/etc/passwd"), at(2));
        assert_eq!(burst.describe().unwrap(), "/etc/passwd has changed");
    }
}
