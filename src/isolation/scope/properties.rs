//! What a worker's scope is asked to be: `systemd.scope(5)`, `systemd.resource-control(5)`.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::time::Duration;

use zbus::{Fd, Variant};

use super::super::{Drain, FenceLimits};
use crate::systemd::dbus::Property;

/// systemd's `infinity` for sizes and counts.
const INFINITY: u64 = u64::MAX;
/// A scope gets this much longer than paddock's own drain before systemd kills it on a stop from outside.
const AFTER_GRACEFUL: Duration = Duration::from_secs(10);

/// The process for a new scope.
pub(super) enum Member {
    /// By pidfd (systemd 255).
    Pidfd(OwnedFd),
    /// By number.
    Pid(u32),
}

/// What is the same for all scopes of an app.
#[derive(Debug, Clone)]
pub(super) struct Common {
    pub(super) app: String,
    pub(super) slice: String,
}

/// Properties that an older systemd may refuse, and without which a worker is still fenced.
const OPTIONAL: [&str; 1] = ["OOMPolicy"];

/// Which optional property a refusal speaks of.
pub(super) fn refused(text: &str) -> Option<&'static str> {
    OPTIONAL.into_iter().find(|name| text.contains(name))
}

/// All properties of a new scope but those in `without`.
pub(super) fn all<'a>(
    common: &'a Common,
    slot: u32,
    member: Member,
    (limits, drain): (&FenceLimits, Drain),
    without: &BTreeSet<&'static str>,
) -> Vec<Property<'a>> {
    let stop = drain.graceful.saturating_add(AFTER_GRACEFUL);
    let stop = u64::try_from(stop.as_micros()).unwrap_or(INFINITY);
    let mut properties: Vec<Property<'a>> = vec![
        ("Description", format!("worker of {} in slot {slot}", common.app).into()),
        ("Slice", common.slice.as_str().into()),
        match member {
            Member::Pidfd(fd) => ("PIDFDs", vec![Fd::from(fd)].into()),
            Member::Pid(pid) => ("PIDs", vec![pid].into()),
        },
        // A failed scope stays loaded until its Result has been read.
        ("CollectMode", "inactive".into()),
        // PID 1 watches memory.events only where memory is accounted.
        ("MemoryAccounting", true.into()),
        ("TasksAccounting", true.into()),
        // The whole worker or nothing of it.
        ("OOMPolicy", "kill".into()),
        // When somebody else stops the scope, at shutdown above all: we are asked and drain it, in this time; without us
        // the drain signal to all.
        ("KillMode", "control-group".into()),
        ("KillSignal", drain.signal.0.into()),
        ("SendSIGKILL", true.into()),
        ("TimeoutStopUSec", stop.into()),
    ];
    properties.extend(chosen(limits));
    properties.retain(|(name, _)| !without.contains(name));
    properties
}

/// The limits that are set; what is unset stays the system's.
fn chosen<'a>(limits: &FenceLimits) -> Vec<Property<'a>> {
    [
        ("MemoryMax", limits.memory_max),
        ("MemorySwapMax", limits.swap_max),
        ("TasksMax", limits.tasks_max),
        ("CPUWeight", limits.cpu_weight),
    ]
    .into_iter()
    .filter_map(|(name, value)| Some((name, value?.into())))
    .collect()
}

/// The limits of a living scope: what is unset now may have been set before.
pub(super) fn changed(before: &FenceLimits, now: &FenceLimits) -> Vec<Property<'static>> {
    // The values of a unit that says nothing about them; TasksMax would be a share of the machine's.
    const CPU_WEIGHT_UNSET: u64 = u64::MAX;
    [
        ("MemoryMax", before.memory_max, now.memory_max, INFINITY),
        ("MemorySwapMax", before.swap_max, now.swap_max, INFINITY),
        ("TasksMax", before.tasks_max, now.tasks_max, INFINITY),
        ("CPUWeight", before.cpu_weight, now.cpu_weight, CPU_WEIGHT_UNSET),
    ]
    .into_iter()
    .filter(|(_, before, now, _)| before != now)
    .map(|(name, _, now, unset)| (name, now.unwrap_or(unset).into()))
    .collect()
}

/// The soft edge; none lifts it.
pub(super) fn memory_high(edge: Option<u64>) -> [Property<'static>; 1] {
    [("MemoryHigh", Variant::U64(edge.unwrap_or(INFINITY)))]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::model::Signal;

    const LIMITS: FenceLimits =
        FenceLimits { memory_max: Some(64 << 20), swap_max: Some(0), tasks_max: None, cpu_weight: None };

    const DRAIN: Drain = Drain { signal: Signal(3), graceful: Duration::from_secs(30) };

    fn common() -> Common {
        Common { app: "shop".into(), slice: "paddock-shop.slice".into() }
    }

    #[test]
    fn a_scope_is_asked_for_with_types_that_systemd_takes() {
        let common = common();
        let all = all(&common, 3, Member::Pid(42), (&LIMITS, DRAIN), &BTreeSet::new());
        let text: Vec<_> =
            all.iter().map(|(name, value)| format!("{name} {} {value}", value.value_signature())).collect();
        assert_eq!(
            text,
            [
                "Description s \"worker of shop in slot 3\"",
                "Slice s \"paddock-shop.slice\"",
                "PIDs au [uint32 42]",
                "CollectMode s \"inactive\"",
                "MemoryAccounting b true",
                "TasksAccounting b true",
                "OOMPolicy s \"kill\"",
                "KillMode s \"control-group\"",
                "KillSignal i 3",
                "SendSIGKILL b true",
                "TimeoutStopUSec t uint64 40000000",
                "MemoryMax t uint64 67108864",
                "MemorySwapMax t uint64 0",
            ]
        );
        let fd = std::fs::File::open("/dev/null").unwrap().into();
        let with_fd = super::all(&common, 3, Member::Pidfd(fd), (&LIMITS, DRAIN), &BTreeSet::from(["OOMPolicy"]));
        assert_eq!(with_fd[2].0, "PIDFDs");
        assert_eq!(with_fd[2].1.value_signature().to_string(), "ah");
        assert!(with_fd.iter().all(|(name, _)| *name != "OOMPolicy"));
    }

    #[test]
    fn a_drain_without_end_has_a_stop_without_end() {
        let drain = Drain { graceful: Duration::MAX, ..DRAIN };
        let common = common();
        let all = all(&common, 0, Member::Pid(42), (&LIMITS, drain), &BTreeSet::new());
        assert!(all.contains(&("TimeoutStopUSec", Variant::U64(u64::MAX))));
    }

    #[test]
    fn only_changed_limits_are_sent_and_unset_ones_lifted() {
        let now = FenceLimits { memory_max: None, swap_max: Some(0), tasks_max: Some(9), cpu_weight: None };
        assert_eq!(changed(&LIMITS, &now), [("MemoryMax", Variant::U64(u64::MAX)), ("TasksMax", Variant::U64(9))]);
        assert_eq!(changed(&now, &now), []);
    }

    #[test]
    fn a_refusal_names_what_can_be_done_without() {
        assert_eq!(refused("Cannot set property OOMPolicy, or unknown property."), Some("OOMPolicy"));
        assert_eq!(refused("Cannot set property MemoryMax, or unknown property."), None);
    }
}
