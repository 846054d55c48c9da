//! What the kernel writes: `/proc`, mountinfo, control files of cgroups. Most of it holds names that processes choose.

use std::path::Path;

use super::Source;
use crate::config::machine;
use crate::isolation::cgroup::{files, hierarchy};
use crate::isolation::scope::unit as unit_name;
use crate::isolation::{FenceName, name as group_name, none, proc};

/// The first byte says which file it is.
pub(super) fn files(bytes: &[u8]) {
    let mut source = Source(bytes);
    let kind = source.below(6);
    let text = String::from_utf8_lossy(source.0);
    match kind {
        0 => stat(&text),
        1 => control_files(&text),
        2 => groups(source.0),
        3 => names(&text),
        4 => environment(source.0),
        _ => machine_files(&text),
    }
}

/// A name in parentheses in front changes nothing, whatever it holds.
fn stat(text: &str) {
    let found = proc::parse_stat(text);
    if let Some((_, rest)) = text.rsplit_once(')') {
        for name in ["", ") Z 1 1 1 (", "\n", "a b"] {
            assert_eq!(proc::parse_stat(&format!("1 ({name}){rest}")), found);
        }
    }
}

fn control_files(text: &str) {
    if let Some(number) = files::parse_number(text)
        && number < i64::MAX.unsigned_abs()
    {
        assert_eq!(files::parse_number(&files::or_max(number)), Some(number));
    }
    for key in ["oom_kill", "oom", "anon", "shmem", "kernel", "populated", "under_oom"] {
        if let Some(value) = files::value_of(text, key) {
            assert!(text.contains(&value.to_string()) || text.contains('+') || text.contains('0'));
        }
    }
    for file in ["status", "smaps_rollup"] {
        let _ = proc::memory_in(text, file);
    }
    let _ = machine::limit(text);
    let _ = machine::mem_total(text);
}

/// A `/proc/PID/cgroup`, a zero byte, a mountinfo. Nothing leads out of a mount.
fn groups(bytes: &[u8]) {
    let mut parts = bytes.splitn(2, |byte| *byte == 0);
    let cgroup = String::from_utf8_lossy(parts.next().unwrap_or_default());
    let memberships = proc::parse_memberships(&cgroup);
    assert!(memberships.len() <= cgroup.lines().count());
    let mounts = hierarchy::parse_mountinfo(parts.next().unwrap_or_default());
    let homes = hierarchy::combine(&memberships, &mounts);
    for home in [homes.unified, homes.memory, homes.pids, homes.cpu].into_iter().flatten() {
        let inside = mounts.iter().any(|mount| home.dir.starts_with(&mount.point));
        assert!(inside, "{home:?} is not below {mounts:?}");
        assert!(!home.path.split('/').any(|part| part == ".."));
        assert!(!home.path.ends_with('/'));
    }
}

/// Names that are read back are names that we make, and no two names look alike.
fn names(text: &str) {
    if let Some(name) = group_name::parse(text) {
        assert_eq!(group_name::of(&name), text);
    }
    if let Some(name) = unit_name::parse(text) {
        assert_eq!(unit_name::scope(&name, 0), text);
    }
    if let Some(name) = none::parse_marker(text) {
        let _ = none::marker(&name);
    }
    let (app, unique) = text.split_once('\n').unwrap_or((text, ""));
    let name = FenceName { app: app.to_owned(), slot: 7, unique: unique.to_owned() };
    let group = group_name::of(&name);
    assert!(!group.contains(['/', '\n', '\0']), "{group:?}");
    assert_eq!(group_name::parse(&group), Some(name.clone()));
    assert_eq!(unit_name::parse(&unit_name::scope(&name, 0)), Some(name));
    assert!(unit_name::scope(&FenceName { app: app.into(), slot: 1, unique: "1".into() }, 0).is_ascii());
    if let Some(worker) = crate::worker::files::worker_of(text) {
        let files = crate::worker::files::Files::new(Path::new("/r"), worker);
        assert!(files.notify.parent() == Some(Path::new("/r")));
    }
}

fn environment(bytes: &[u8]) {
    let found = proc::has_variable(bytes, "PADDOCK_WORKER", "shop-1-x");
    let whole = bytes.split(|byte| *byte == 0).any(|variable| variable == b"PADDOCK_WORKER=shop-1-x");
    assert_eq!(found, whole);
}

fn machine_files(text: &str) {
    for line in text.lines() {
        if let Some(mount) = machine::Mount::parse(line) {
            // Nothing is there: the path alone is at stake.
            let _ = mount.smallest(Path::new("/nowhere/at/all"), "/a/../b", "memory.max");
        }
    }
    for controller in [None, Some("memory")] {
        if let Some(group) = machine::own_group(text, controller) {
            assert!(text.contains(group));
        }
    }
}
