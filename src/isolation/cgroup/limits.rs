//! Turning a worker's limits into control files: which ones, in which order, and what cannot be had.
//!
//! The controllers' files are written by cgroups-rs, which knows their names on both versions; what it wrote is read
//! back here.

use std::path::PathBuf;

use cgroups_rs::MaxValue;
use cgroups_rs::cpu::CpuController;
use cgroups_rs::memory::MemController;
use cgroups_rs::pid::PidController;

use super::super::{FenceError, FenceLimits};
use super::files::{self, failed};

/// The largest number that `pids.max` takes: `PID_MAX_LIMIT` (`include/linux/threads.h`).
const MOST_TASKS: u64 = 4 << 20;

/// `cpu.weight` of a group that nobody gave one (cgroup-v2.rst).
const DEFAULT_WEIGHT: u64 = 100;

/// Which files a version has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    /// One hierarchy for each controller.
    V1,
    /// One hierarchy.
    V2,
}

/// Where a worker's controllers are.
#[derive(Debug)]
pub(super) struct Places {
    pub(super) version: Version,
    /// The group's directory in the hierarchy that limits memory.
    pub(super) memory: PathBuf,
    /// The same for tasks, if that is to be had.
    pub(super) pids: Option<PathBuf>,
    /// The same for processor time, if that is to be had.
    pub(super) cpu: Option<PathBuf>,
}

/// One value for one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Setting {
    /// `memory.max`, `memory.limit_in_bytes`.
    Memory(u64),
    /// `memory.swap.max`.
    Swap(u64),
    /// `memory.memsw.limit_in_bytes`: memory and swap together.
    MemoryAndSwap(u64),
    /// `memory.swappiness`; at 0, reclaim because of a limit never swaps (cgroup-v1/memory.rst, 5.3).
    Swappiness(u64),
    /// `pids.max`.
    Tasks(u64),
    /// `cpu.weight`, `cpu.shares`.
    Cpu(u64),
}

/// What a machine offers.
#[derive(Debug, Clone, Copy)]
struct Offer {
    version: Version,
    /// `memory.swap.max`, or on v1 `memory.memsw.limit_in_bytes`.
    swap_file: bool,
    /// Swap space is in use.
    swap_space: bool,
    pids: bool,
    cpu: bool,
}

impl Places {
    /// Give a new group its limits and see that they are in force.
    pub(super) fn apply_new(&self, limits: &FenceLimits) -> Result<(), FenceError> {
        let (settings, refused) = plan(limits, self.offer(), false);
        if !refused.is_empty() {
            return Err(failed("setting the limits", refused.join("; ")));
        }
        settings.into_iter().try_for_each(|setting| self.set(setting))
    }

    /// Give a living worker other limits; returns what was not applied and why. `held` is what it cannot give back.
    pub(super) fn apply_living(&self, limits: &FenceLimits, held: u64) -> Vec<String> {
        let (settings, mut refused) = plan(limits, self.offer(), true);
        for setting in settings {
            // The kernel answers a limit below what is in use by killing.
            if let Setting::Memory(max) = setting
                && max < held.saturating_add(held / 16)
            {
                refused.push(format!(
                    "memory.max {max} was not applied: the worker holds {held} bytes that cannot be reclaimed"
                ));
            } else if let Err(error) = self.set(setting) {
                refused.push(error.to_string());
            }
        }
        refused
    }

    fn offer(&self) -> Offer {
        let swap_file = match self.version {
            Version::V1 => "memory.memsw.limit_in_bytes",
            Version::V2 => "memory.swap.max",
        };
        Offer {
            version: self.version,
            swap_file: self.memory.join(swap_file).exists(),
            swap_space: files::machine_swaps(),
            pids: self.pids.is_some(),
            cpu: self.cpu.is_some(),
        }
    }

    fn set(&self, setting: Setting) -> Result<(), FenceError> {
        let v2 = self.version == Version::V2;
        let memory = || MemController::new(self.memory.clone(), v2);
        let (dir, file, value, written) = match setting {
            // Not through the library: lowering the limit must not wait for reclaim.
            Setting::Memory(max) if v2 => (
                &self.memory,
                "memory.max",
                max,
                files::write(&self.memory, "memory.max", &files::or_max(max)).map_err(Into::into),
            ),
            Setting::Memory(max) => {
                (&self.memory, "memory.limit_in_bytes", max, memory().set_limit(signed(max)).map_err(Into::into))
            }
            Setting::Swap(max) => {
                (&self.memory, "memory.swap.max", max, memory().set_memswap_limit(signed(max)).map_err(Into::into))
            }
            Setting::MemoryAndSwap(max) => (
                &self.memory,
                "memory.memsw.limit_in_bytes",
                max,
                memory().set_memswap_limit(signed(max)).map_err(Into::into),
            ),
            Setting::Swappiness(value) => {
                (&self.memory, "memory.swappiness", value, memory().set_swappiness(value).map_err(Into::into))
            }
            Setting::Tasks(max) => {
                let dir = self.pids.as_ref().unwrap_or(&self.memory);
                let limit = i64::try_from(max).map_or(MaxValue::Max, MaxValue::Value);
                let written = PidController::new(dir.clone(), v2).set_pid_max(limit);
                (dir, "pids.max", max, written.map_err(Into::into))
            }
            Setting::Cpu(share) => {
                let dir = self.cpu.as_ref().unwrap_or(&self.memory);
                let file = if v2 { "cpu.weight" } else { "cpu.shares" };
                let written = CpuController::new(dir.clone(), v2).set_shares(share);
                (dir, file, share, written.map_err(Into::into))
            }
        };
        let written: Result<(), Box<dyn std::error::Error + Send + Sync>> = written;
        written.map_err(|error| failed(format!("writing {value} to {}", dir.join(file).display()), error))?;
        let rounded = !matches!(setting, Setting::Tasks(_) | Setting::Cpu(_) | Setting::Swappiness(_));
        files::verify(dir, file, value, rounded)
    }
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(-1)
}

/// The settings in the order in which the kernel takes them, and what cannot be had. A new group has no limits, so
/// only what is wanted is set; a living one may have to lose some.
fn plan(limits: &FenceLimits, offer: Offer, living: bool) -> (Vec<Setting>, Vec<String>) {
    let mut settings = Vec::new();
    let mut refused = Vec::new();
    let or_none = |limit: Option<u64>| limit.or(living.then_some(u64::MAX));
    match offer.version {
        Version::V2 => {
            settings.extend(or_none(limits.memory_max).map(Setting::Memory));
            match or_none(limits.swap_max) {
                Some(max) if offer.swap_file => settings.push(Setting::Swap(max)),
                Some(max) if max != u64::MAX && offer.swap_space => {
                    refused.push(format!("swap_max {max} cannot be enforced: the kernel does not account swap"));
                }
                _ => {}
            }
        }
        Version::V1 => {
            if living && offer.swap_file {
                // Memory and swap together may never be below memory alone.
                settings.push(Setting::MemoryAndSwap(u64::MAX));
            }
            settings.extend(or_none(limits.memory_max).map(Setting::Memory));
            match (limits.swap_max, limits.memory_max) {
                (Some(swap), Some(max)) if offer.swap_file => {
                    settings.push(Setting::MemoryAndSwap(max.saturating_add(swap)));
                }
                (Some(0), _) => settings.push(Setting::Swappiness(0)),
                (Some(swap), _) if swap != u64::MAX && offer.swap_space => refused.push(format!(
                    "swap_max {swap} cannot be enforced: cgroup v1 needs memory.max and swap accounting for it"
                )),
                _ => {}
            }
        }
    }
    match or_none(limits.tasks_max) {
        Some(max) if offer.pids => settings.push(Setting::Tasks(if max > MOST_TASKS { u64::MAX } else { max })),
        Some(max) if max != u64::MAX => {
            refused.push(format!("tasks_max {max} cannot be enforced: there is no pids controller to use"));
        }
        _ => {}
    }
    match limits.cpu_weight.or(living.then_some(DEFAULT_WEIGHT)) {
        Some(weight) if offer.cpu => settings.push(Setting::Cpu(match offer.version {
            Version::V2 => weight,
            Version::V1 => shares(weight),
        })),
        Some(weight) if limits.cpu_weight.is_some() => {
            refused.push(format!("cpu_weight {weight} cannot be enforced: there is no cpu controller to use"));
        }
        _ => {}
    }
    (settings, refused)
}

/// v1 counts 1024 where v2 counts 100; its bounds are those of `kernel/sched/sched.h`.
fn shares(weight: u64) -> u64 {
    (weight.saturating_mul(1024) / DEFAULT_WEIGHT).clamp(2, 262_144)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: FenceLimits =
        FenceLimits { memory_max: Some(100), swap_max: Some(20), tasks_max: Some(7), cpu_weight: Some(50) };

    fn offer(version: Version, has: bool) -> Offer {
        Offer { version, swap_file: has, swap_space: true, pids: has, cpu: has }
    }

    #[test]
    fn v2_takes_everything_as_it_is() {
        let (settings, refused) = plan(&ALL, offer(Version::V2, true), false);
        assert_eq!(settings, [Setting::Memory(100), Setting::Swap(20), Setting::Tasks(7), Setting::Cpu(50)]);
        assert!(refused.is_empty());
    }

    #[test]
    fn v1_limits_swap_as_a_sum_and_weight_as_shares() {
        let (settings, refused) = plan(&ALL, offer(Version::V1, true), false);
        assert_eq!(settings, [Setting::Memory(100), Setting::MemoryAndSwap(120), Setting::Tasks(7), Setting::Cpu(512)]);
        assert!(refused.is_empty());
    }

    #[test]
    fn what_cannot_be_had_is_refused_and_named() {
        for version in [Version::V1, Version::V2] {
            let (settings, refused) = plan(&ALL, offer(version, false), false);
            assert_eq!(settings, [Setting::Memory(100)]);
            let text = refused.join("\n");
            for key in ["swap_max 20", "tasks_max 7", "cpu_weight 50"] {
                assert!(text.contains(key), "{version:?}: {text}");
            }
        }
    }

    #[test]
    fn no_swap_needs_no_memory_limit_and_no_accounting() {
        let none = FenceLimits { swap_max: Some(0), ..FenceLimits::default() };
        assert_eq!(plan(&none, offer(Version::V1, true), false), (vec![Setting::Swappiness(0)], vec![]));
        let dry = Offer { swap_space: false, ..offer(Version::V2, false) };
        assert_eq!(plan(&none, dry, false), (vec![], vec![]));
    }

    #[test]
    fn a_living_worker_loses_what_is_no_longer_configured() {
        let nothing = FenceLimits::default();
        let (settings, refused) = plan(&nothing, offer(Version::V1, true), true);
        assert_eq!(
            settings,
            [Setting::MemoryAndSwap(u64::MAX), Setting::Memory(u64::MAX), Setting::Tasks(u64::MAX), Setting::Cpu(1024)]
        );
        assert!(refused.is_empty());
        assert!(plan(&nothing, offer(Version::V2, false), true).1.is_empty());
        assert!(plan(&nothing, offer(Version::V1, true), false).0.is_empty());
    }

    #[test]
    fn a_limit_below_what_a_living_worker_holds_is_not_applied() {
        let places = Places { version: Version::V1, memory: PathBuf::from("/nowhere"), pids: None, cpu: None };
        let limits = FenceLimits { memory_max: Some(100), ..FenceLimits::default() };
        let refused = places.apply_living(&limits, 100);
        assert!(refused.iter().any(|text| text.contains("holds 100 bytes")), "{refused:?}");
    }

    #[test]
    fn shares_stay_in_the_kernels_bounds() {
        assert_eq!(shares(100), 1024);
        assert_eq!(shares(1), 10);
        assert_eq!(shares(10_000), 102_400);
        assert_eq!(shares(0), 2);
    }
}
