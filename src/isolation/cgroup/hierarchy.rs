//! Where this process's own groups are: `/proc/self/cgroup` and `/proc/self/mountinfo` put together.
//!
//! Sources: `cgroups(7)`, `cgroup_namespaces(7)`, `proc_pid_mountinfo(5)`.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use super::super::proc::{self, Membership};

/// A group of ours: where its directory is, and what `/proc/PID/cgroup` calls it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Home {
    /// Its directory.
    pub(crate) dir: PathBuf,
    /// Its path in the hierarchy, without a slash at the end; empty for the root.
    pub(crate) path: String,
}

/// The manager's own groups, as far as their hierarchies are mounted where it can see them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Homes {
    /// cgroup v2, with or without controllers.
    pub(crate) unified: Option<Home>,
    /// v1 memory.
    pub(crate) memory: Option<Home>,
    /// v1 pids.
    pub(crate) pids: Option<Home>,
    /// v1 cpu.
    pub(crate) cpu: Option<Home>,
}

/// Find this process's own groups.
///
/// # Errors
/// What reading the two files says.
pub(super) fn own() -> io::Result<Homes> {
    let memberships = proc::memberships(rustix::process::getpid())?;
    let mounts = parse_mountinfo(&proc::read_bounded(Path::new("/proc/self/mountinfo"))?);
    Ok(combine(&memberships, &mounts))
}

/// A mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    /// The group that is visible at the mount point.
    root: String,
    pub(crate) point: PathBuf,
    /// v1 controllers; none for cgroup v2.
    controllers: Option<Vec<String>>,
}

pub(crate) fn parse_mountinfo(text: &[u8]) -> Vec<Mount> {
    text.split(|&byte| byte == b'\n').filter_map(parse_mount).collect()
}

fn parse_mount(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|&byte| byte == b' ');
    let root = unescape(fields.nth(3)?);
    let point = unescape(fields.next()?);
    // Optional fields end at a lone hyphen.
    fields.by_ref().find(|field| *field == b"-")?;
    let kind = fields.next()?;
    let options = String::from_utf8_lossy(fields.nth(1)?).into_owned();
    let controllers = match kind {
        b"cgroup2" => None,
        b"cgroup" => Some(options.split(',').map(ToOwned::to_owned).collect()),
        _ => return None,
    };
    Some(Mount { root: String::from_utf8(root).ok()?, point: PathBuf::from(OsString::from_vec(point)), controllers })
}

/// Blanks and backslashes are written as three octal digits in mountinfo.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, after)) = rest.split_first() {
        let octal = (first == b'\\')
            .then(|| after.get(..3))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        if let Some(byte) = octal {
            plain.push(byte);
            rest = after.get(3..).unwrap_or_default();
        } else {
            plain.push(first);
            rest = after;
        }
    }
    plain
}

pub(crate) fn combine(memberships: &[Membership], mounts: &[Mount]) -> Homes {
    let v1 = |controller: &str| {
        let member = memberships.iter().find(|member| member.controllers.iter().any(|name| name == controller))?;
        mounts
            .iter()
            .filter(|mount| mount.controllers.as_ref().is_some_and(|names| names.iter().any(|name| name == controller)))
            .find_map(|mount| locate(mount, &member.path))
    };
    let unified = || {
        let member = memberships.iter().find(|member| member.controllers.is_empty())?;
        mounts.iter().filter(|mount| mount.controllers.is_none()).find_map(|mount| locate(mount, &member.path))
    };
    Homes { unified: unified(), memory: v1("memory"), pids: v1("pids"), cpu: v1("cpu") }
}

/// The directory of a group below a mount point, if that mount shows it.
fn locate(mount: &Mount, path: &str) -> Option<Home> {
    let path = path.trim_end_matches('/');
    // A group outside our cgroup namespace is shown as /../sibling.
    if path.split('/').any(|part| part == "..") {
        return None;
    }
    let root = mount.root.trim_end_matches('/');
    let below = path.strip_prefix(root)?;
    if !below.is_empty() && !below.starts_with('/') {
        return None;
    }
    Some(Home {
        dir: if below.is_empty() { mount.point.clone() } else { mount.point.join(below.trim_start_matches('/')) },
        path: path.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn homes(cgroup: &str, mountinfo: &str) -> Homes {
        combine(&proc::parse_memberships(cgroup), &parse_mountinfo(mountinfo.as_bytes()))
    }

    fn home(dir: &str, path: &str) -> Home {
        Home { dir: PathBuf::from(dir), path: path.to_owned() }
    }

    #[test]
    fn a_hybrid_machine_has_both_worlds() {
        let found = homes(
            "4:memory:/jobs/a\n3:cpu,cpuacct:/\n0::/\n",
            "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
             32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:4 - cgroup cgroup rw,cpu,cpuacct\n\
             41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw,nsdelegate\n",
        );
        assert_eq!(found.memory, Some(home("/sys/fs/cgroup/memory/jobs/a", "/jobs/a")));
        assert_eq!(found.cpu, Some(home("/sys/fs/cgroup/cpu,cpuacct", "")));
        assert_eq!(found.unified, Some(home("/sys/fs/cgroup/unified", "")));
        assert_eq!(found.pids, None);
    }

    #[test]
    fn a_container_sees_only_its_own_part() {
        let found = homes("0::/docker/abc/inner\n", "9 8 0:1 /docker/abc /sys/fs/cgroup ro - cgroup2 cgroup rw\n");
        assert_eq!(found.unified, Some(home("/sys/fs/cgroup/inner", "/docker/abc/inner")));
        let other = homes("0::/docker/abcd\n", "9 8 0:1 /docker/abc /sys/fs/cgroup ro - cgroup2 cgroup rw\n");
        assert_eq!(other.unified, None);
        let outside = homes("0::/../sibling\n", "9 8 0:1 / /sys/fs/cgroup rw - cgroup2 cgroup rw\n");
        assert_eq!(outside.unified, None);
    }

    #[test]
    fn odd_mount_points_and_broken_lines_are_survived() {
        let found =
            homes("0::/x\n", "broken\n1 2 0:3 / /mnt/a\\040b\\134c rw - cgroup2 none rw\n5 6 0:7 / /y rw shared:1\n");
        assert_eq!(found.unified, Some(home("/mnt/a b\\c/x", "/x")));
        assert_eq!(unescape(b"\\9zz\\04"), b"\\9zz\\04");
    }
}
