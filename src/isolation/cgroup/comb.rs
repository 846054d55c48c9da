//! Thresholds on a v1 group's `memory.usage_in_bytes`, which counts page cache too: where the kernel lets us know that it
//! is time to look whether what cannot be reclaimed has reached an edge (cgroup-v1/memory.rst, 9.).
//!
//! It cannot before the usage has. From there to the limit a comb of lines bounds what a cache that shrinks while the
//! heap grows can hide. Reclaim in the group announces itself as well (11., `memory.pressure_level`).

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::super::MemoryReading;
use super::eventfd::{self, Eventfd};
use crate::aside::begin_aside;

/// Lines between the edge and the limit.
const LINES: u64 = 16;

/// The lines for an edge, and for every higher one below the same limit.
pub(super) struct Comb {
    watch: Eventfd,
    from: u64,
    limit: Option<u64>,
    failed: Arc<AtomicBool>,
    dropped: Arc<AtomicBool>,
}

impl Comb {
    /// Begin to draw the lines. Each takes the kernel a grace period (`synchronize_rcu`, 8 to 20 ms), so that is done
    /// elsewhere; when the last one is there, the watch fires once. Call inside a tokio runtime.
    pub(super) fn begin(dir: &Path, edge: u64, now: &MemoryReading) -> io::Result<Self> {
        let watch = Eventfd::new()?;
        // Quick. A kernel without it leaves the lines.
        let _ = watch.register(dir, "memory.pressure_level", "low");
        let failed = Arc::new(AtomicBool::new(false));
        let dropped = Arc::new(AtomicBool::new(false));
        let drawing = Drawing {
            dir: dir.to_owned(),
            target: File::from(watch.duplicate()?),
            lines: lines(edge, now),
            failed: Arc::clone(&failed),
            dropped: Arc::clone(&dropped),
        };
        begin_aside(move || drawing.run());
        Ok(Self { watch, from: edge, limit: now.limit, failed, dropped })
    }

    /// Whether this edge needs no other lines.
    pub(super) fn serves(&self, edge: u64, limit: Option<u64>) -> bool {
        edge >= self.from && self.limit == limit && limit.is_some_and(|limit| edge < limit)
    }

    /// Whether lines are missing, for good.
    pub(super) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    /// What fires.
    pub(super) fn watch(&self) -> &Eventfd {
        &self.watch
    }
}

impl Drop for Comb {
    fn drop(&mut self) {
        self.dropped.store(true, Ordering::Relaxed);
    }
}

struct Drawing {
    dir: PathBuf,
    target: File,
    lines: Vec<u64>,
    failed: Arc<AtomicBool>,
    dropped: Arc<AtomicBool>,
}

impl Drawing {
    fn run(mut self) {
        for line in &self.lines {
            if self.dropped.load(Ordering::Relaxed) {
                return;
            }
            if eventfd::register(&self.target, &self.dir, "memory.usage_in_bytes", &line.to_string()).is_err() {
                self.failed.store(true, Ordering::Relaxed);
                break;
            }
        }
        // What was crossed before its line was drawn did not fire. Only a full counter can refuse, and that fires too.
        let _ = self.target.write(&1_u64.to_ne_bytes());
    }
}

/// The lines, those first that the usage will meet next: the edge, the edge plus the cache of now, where the edge will
/// be if the cache stays, and equal steps up to the limit.
fn lines(edge: u64, now: &MemoryReading) -> Vec<u64> {
    let limit = now.limit.unwrap_or(u64::MAX);
    // Up to the limit, for the same lines serve the second edge, which lies halfway: exactly on one of them.
    let end = now.limit.unwrap_or_else(|| edge.saturating_mul(2));
    let step = (end.saturating_sub(edge) / LINES).max(1);
    let exact = now.current.saturating_add(edge.saturating_sub(now.unreclaimable));
    let mut found: Vec<u64> = (0..LINES)
        .map(|number| edge.saturating_add(number * step))
        .chain([exact])
        // The usage never gets over the limit.
        .filter(|&line| line < limit)
        .collect();
    found.sort_unstable_by_key(|&line| (line < now.current, line));
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holding(current: u64, unreclaimable: u64, limit: Option<u64>) -> MemoryReading {
        MemoryReading { current, unreclaimable, peak: None, limit }
    }

    #[test]
    fn the_exact_line_is_the_edge_plus_the_cache() {
        let found = lines(800, &holding(500, 450, Some(1000)));
        assert!(found.contains(&850), "{found:?}");
        assert_eq!(found.first(), Some(&800));
        assert!(found.iter().all(|&line| line < 1000));
    }

    #[test]
    fn the_lines_reach_to_the_limit_and_one_is_the_second_edge() {
        let found = lines(80 << 20, &holding(0, 0, Some(240 << 20)));
        assert!(found.contains(&(160 << 20)), "{found:?}");
        assert!(found.last().is_some_and(|last| *last > 220 << 20), "{found:?}");
    }

    #[test]
    fn a_cache_that_fills_the_limit_leaves_the_comb() {
        let found = lines(80 << 20, &holding(99 << 20, 10 << 20, Some(100 << 20)));
        assert_eq!(found.len(), 16);
        assert!(found.iter().all(|&line| line < 100 << 20));
    }

    #[test]
    fn lines_above_the_usage_come_first() {
        let found = lines(1600, &holding(2500, 10, Some(3200)));
        assert_eq!(found.first(), Some(&2500));
        assert_eq!(found.last(), Some(&2400));
    }

    #[test]
    fn an_edge_without_a_limit_has_a_comb_too() {
        assert_eq!(lines(1 << 20, &holding(0, 0, None)).len(), 16);
        assert!(lines(1 << 20, &holding(5 << 20, 0, None)).contains(&(6 << 20)));
        assert!(lines(u64::MAX, &holding(0, 0, None)).is_empty());
    }
}
