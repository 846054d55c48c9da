//! The control files of cgroups: one value, or lines of a key and a value.
//!
//! Sources: the kernel's `admin-guide/cgroup-v2.rst` and `admin-guide/cgroup-v1/memory.rst`.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use super::super::FenceError;
use super::super::proc::read_bounded;

/// Limits are kept in whole pages; none is larger than this on Linux.
const LARGEST_PAGE: u64 = 64 << 10;

/// An error that says what was tried.
pub(super) fn failed(
    what: impl Into<String>,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> FenceError {
    FenceError { what: what.into(), source: source.into() }
}

/// Read a control file.
pub(super) fn read(dir: &Path, file: &str) -> io::Result<String> {
    read_bounded(&dir.join(file)).map(|text| String::from_utf8_lossy(&text).into_owned())
}

/// Read a control file that holds one number; `max` and v1's -1 are `u64::MAX`.
pub(super) fn number(dir: &Path, file: &str) -> io::Result<u64> {
    parse_number(&read(dir, file)?).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

pub(crate) fn parse_number(text: &str) -> Option<u64> {
    match text.trim() {
        "max" | "-1" => Some(u64::MAX),
        number => number.parse().ok(),
    }
}

/// A key's value in a file of `key value` lines.
pub(crate) fn value_of(text: &str, key: &str) -> Option<u64> {
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(name, _)| *name == key)
        .and_then(|(_, value)| value.trim().parse().ok())
}

/// Write a control file with one write.
///
/// Without blocking: since Linux 6.16 a lowered memory limit is then enforced by those who allocate, not by the writer,
/// which would stall everybody else's worker; older kernels ignore it.
pub(super) fn write(dir: &Path, file: &str, value: &str) -> io::Result<()> {
    let fd = writable(dir, file)?;
    // Shorter writes do not occur: cgroup files take a write whole or refuse it.
    rustix::io::write(&fd, value.as_bytes())?;
    Ok(())
}

/// Open a control file for writing.
pub(super) fn writable(dir: &Path, file: &str) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(dir.join(file), OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty())?)
}

/// Open a group's directory.
pub(super) fn directory(dir: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(dir, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Whether what a limit file says is what was written: memory limits are rounded down to whole pages.
pub(super) fn is_in_force(written: u64, found: u64, rounded: bool) -> bool {
    // v1 says infinity as the largest number of pages that fits.
    let infinite = |value: u64| value >= i64::MAX.unsigned_abs() - LARGEST_PAGE;
    written == found
        || (infinite(written) && infinite(found))
        || (rounded && found < written && written - found < LARGEST_PAGE)
}

/// Read a limit back.
pub(super) fn verify(dir: &Path, file: &str, written: u64, rounded: bool) -> Result<(), FenceError> {
    let what = || format!("reading back {}", dir.join(file).display());
    let found = number(dir, file).map_err(|error| failed(what(), error))?;
    if is_in_force(written, found, rounded) {
        Ok(())
    } else {
        Err(failed(what(), format!("{found} is in force, not {written}")))
    }
}

/// A number as v2 files take it.
pub(crate) fn or_max(value: u64) -> String {
    if value == u64::MAX { "max".to_owned() } else { value.to_string() }
}

/// Whether this machine has swap at all: `proc_swaps(5)`. Unreadable: it may have.
pub(super) fn machine_swaps() -> bool {
    read_bounded(Path::new("/proc/swaps"))
        .map_or(true, |text| String::from_utf8_lossy(&text).lines().skip(1).any(|line| !line.trim().is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_the_kernel_writes_them() {
        assert_eq!(parse_number("4096\n"), Some(4096));
        assert_eq!(parse_number("max\n"), Some(u64::MAX));
        assert_eq!(parse_number("-1\n"), Some(u64::MAX));
        for wrong in ["", "\n", "-2", "1 2", "0x10", "99999999999999999999"] {
            assert_eq!(parse_number(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn a_key_is_not_taken_for_another_that_begins_alike() {
        let text = "oom_kill 2\noom 3\noom_group_kill x\nlow\n";
        assert_eq!(value_of(text, "oom"), Some(3));
        assert_eq!(value_of(text, "oom_kill"), Some(2));
        assert_eq!(value_of(text, "oom_group_kill"), None);
        assert_eq!(value_of(text, "low"), None);
        assert_eq!(value_of("", "oom"), None);
    }

    #[test]
    fn limits_are_in_force_when_only_rounded_to_pages() {
        assert!(is_in_force(100 << 20, 100 << 20, true));
        assert!(is_in_force((100 << 20) + 5, 100 << 20, true));
        assert!(!is_in_force((100 << 20) + 5, 100 << 20, false));
        assert!(!is_in_force(100 << 20, 99 << 20, true));
        assert!(!is_in_force(100 << 20, u64::MAX, true));
        assert!(is_in_force(u64::MAX, 9_223_372_036_854_771_712, true));
    }
}
