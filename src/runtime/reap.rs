//! Orphans: processes that workers left behind and the kernel gave to us, as their nearest subreaper or as process 1 of
//! a container (`PR_SET_CHILD_SUBREAPER`, `prctl(2)`). Their ends interest nobody, but zombies must not pile up.

use std::collections::BTreeSet;

use rustix::process::{Pid, WaitId, WaitIdOptions};

/// Reap every child that is over, but for `ours`, whose ends are awaited elsewhere.
///
/// Looks at the list of children in `/proc/self/task/TID/children` (`proc_pid_task(5)`); where the kernel was built
/// without it, nothing is reaped.
pub fn orphans(ours: &BTreeSet<i32>) {
    let Ok(tasks) = std::fs::read_dir("/proc/self/task") else { return };
    for task in tasks.flatten() {
        let Ok(children) = std::fs::read_to_string(task.path().join("children")) else { continue };
        let children = children.split_ascii_whitespace().filter_map(|pid| pid.parse().ok());
        for child in children.filter(|child| !ours.contains(child)).filter_map(Pid::from_raw) {
            // A child of ours cannot be another process until we reap it. Not yet over, or already gone: either is fine.
            let _ = rustix::process::waitid(WaitId::Pid(child), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    #[expect(clippy::zombie_processes, reason = "the zombies are what is tested")]
    fn a_dead_child_is_reaped_and_one_of_ours_is_left() {
        let pid_of = |child: &std::process::Child| Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
        let orphan = Command::new("true").spawn().unwrap();
        let ours = Command::new("true").spawn().unwrap();
        for child in [&orphan, &ours] {
            rustix::process::waitid(WaitId::Pid(pid_of(child)), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT).unwrap();
        }
        orphans(&BTreeSet::from([pid_of(&ours).as_raw_nonzero().get()]));
        let after = |child| rustix::process::waitid(WaitId::Pid(pid_of(child)), WaitIdOptions::EXITED);
        assert_eq!(after(&orphan).unwrap_err(), rustix::io::Errno::CHILD);
        assert!(after(&ours).is_ok());
    }
}
