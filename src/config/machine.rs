//! What of the machine a configuration's meaning depends on: usable CPUs, and the memory that percentages are of.

use std::fs;
use std::num::NonZero;
use std::path::{Component, Path, PathBuf};

/// Facts about the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// The CPUs that we may use: by affinity (sched_setaffinity(2)) and by quota (`cpu.max`, `cpu.cfs_quota_us`), at
    /// least 1.
    pub cpus: u32,
    /// `MemTotal` of proc_meminfo(5), bytes; none: it could not be read.
    pub mem_total: Option<u64>,
    /// The smallest memory limit of the cgroups above the workers, bytes; none: there is none.
    pub memory_limit: Option<u64>,
}

/// What percentages of memory are of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Whole {
    /// How much.
    pub bytes: u64,
    /// What it is, for people.
    pub what: &'static str,
}

impl Machine {
    /// Look at this machine. `above`: the cgroup that the workers' groups will be in, as /proc/PID/cgroup writes it
    /// (`/system.slice/shop.service`); it need not exist yet. None: the manager's own.
    pub fn read(above: Option<&str>) -> Self {
        // std reads the affinity mask and the quotas of both cgroup versions, up to the hierarchy's root.
        let cpus = std::thread::available_parallelism().map_or(1, NonZero::get);
        Self {
            cpus: u32::try_from(cpus).unwrap_or(u32::MAX),
            mem_total: read(Path::new("/proc/meminfo")).and_then(|text| mem_total(&text)),
            memory_limit: memory_limit(Path::new("/"), above),
        }
    }

    /// What percentages of memory are of; none if nothing could be read.
    pub fn memory(&self) -> Option<Whole> {
        let total = self.mem_total.map(|bytes| Whole { bytes, what: "the machine's memory" });
        let limit = self.memory_limit.map(|bytes| Whole { bytes, what: "the memory limit above the workers" });
        // Of two equals the machine's own memory is the plainer truth.
        [total, limit].into_iter().flatten().min_by_key(|whole| whole.bytes)
    }
}

fn read(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok()
}

/// The smallest limit that holds for processes in `above`; `root` stands for `/`.
fn memory_limit(root: &Path, above: Option<&str>) -> Option<u64> {
    let own = read(&root.join("proc/self/cgroup"))?;
    let mounts = read(&root.join("proc/self/mountinfo"))?;
    let unified = own_group(&own, None).and_then(|own| {
        let mount = mounts.lines().find_map(|line| Mount::parse(line).filter(|m| m.kind == "cgroup2"))?;
        mount.smallest(root, above.unwrap_or(own), "memory.max")
    });
    let legacy = own_group(&own, Some("memory")).and_then(|own| {
        let mount = mounts.lines().find_map(|line| Mount::parse(line).filter(Mount::is_legacy_memory))?;
        mount.smallest(root, above.unwrap_or(own), "memory.limit_in_bytes")
    });
    unified.into_iter().chain(legacy).min()
}

/// The line of /proc/PID/cgroup (cgroups(7)) for a v1 controller, or for v2.
pub(crate) fn own_group<'a>(text: &'a str, controller: Option<&str>) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        let wanted = match controller {
            None => controllers.is_empty(),
            Some(controller) => controllers.split(',').any(|name| name == controller),
        };
        wanted.then_some(path)
    })
}

/// A line of /proc/PID/mountinfo, proc_pid_mountinfo(5).
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Mount {
    /// Which directory of the file system is mounted.
    top: PathBuf,
    /// Where.
    point: PathBuf,
    kind: String,
    super_options: String,
}

impl Mount {
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let (before, after) = line.split_once(" - ")?;
        let mut fields = before.split(' ').skip(3);
        let (top, point) = (fields.next()?, fields.next()?);
        let mut fields = after.split(' ');
        let kind = fields.next()?;
        let super_options = fields.nth(1)?;
        Some(Self {
            top: unescape(top),
            point: unescape(point),
            kind: kind.to_owned(),
            super_options: super_options.to_owned(),
        })
    }

    fn is_legacy_memory(&self) -> bool {
        self.kind == "cgroup" && self.super_options.split(',').any(|option| option == "memory")
    }

    /// The smallest limit from a group up to the top of what is mounted.
    pub(crate) fn smallest(&self, root: &Path, group: &str, file: &str) -> Option<u64> {
        let group = Path::new(group);
        let below = group.strip_prefix(&self.top).unwrap_or(Path::new(""));
        // A group outside of our cgroup namespace shows as `/../…`, and is nowhere in what is mounted.
        let inside = below.components().all(|part| matches!(part, Component::Normal(_)));
        let below = if inside { below } else { Path::new("") };
        let mount = root.join(self.point.strip_prefix("/").unwrap_or(&self.point));
        below.ancestors().filter_map(|part| read(&mount.join(part).join(file))).filter_map(|text| limit(&text)).min()
    }
}

/// What v1 shows for "no limit": `PAGE_COUNTER_MAX` pages, a little below 2^63.
const LEGACY_INFINITY: u64 = 1 << 62;

/// The limit that a file of either version holds.
pub(crate) fn limit(text: &str) -> Option<u64> {
    let bytes: u64 = text.trim().parse().ok()?;
    (0 < bytes && bytes < LEGACY_INFINITY).then_some(bytes)
}

/// `MemTotal` in bytes; the file's kB are 1024 bytes.
pub(crate) fn mem_total(text: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = rest.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024).filter(|bytes| *bytes > 0)
}

/// The file writes space, tab, newline and backslash in octal.
fn unescape(field: &str) -> PathBuf {
    let mut plain = field.to_owned();
    for (escaped, character) in [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")] {
        plain = plain.replace(escaped, character);
    }
    PathBuf::from(plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const UNIFIED: &str = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";

    /// A tree of files below a temporary directory of its own.
    struct Tree(PathBuf);

    impl Tree {
        fn new(name: &str, files: &[(&str, &str)]) -> Self {
            let top = std::env::temp_dir().join(format!("paddock-machine-{name}-{}", std::process::id()));
            for (path, text) in files {
                let path = top.join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            }
            Self(top)
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn the_smallest_limit_above_counts_on_v2() {
        let tree = Tree::new(
            "unified",
            &[
                ("proc/self/cgroup", "0::/system.slice/shop.service\n"),
                ("proc/self/mountinfo", UNIFIED),
                ("sys/fs/cgroup/system.slice/memory.max", "1073741824\n"),
                ("sys/fs/cgroup/system.slice/shop.service/memory.max", "max\n"),
                ("sys/fs/cgroup/small.slice/memory.max", "4194304\n"),
            ],
        );
        assert_eq!(memory_limit(&tree.0, None), Some(1 << 30));
        assert_eq!(memory_limit(&tree.0, Some("/small.slice/new.slice")), Some(4 << 20));
        assert_eq!(memory_limit(&tree.0, Some("/other.slice")), None);
    }

    #[test]
    fn the_smallest_limit_above_counts_on_v1_inside_a_container() {
        let tree = Tree::new(
            "legacy",
            &[
                ("proc/self/cgroup", "5:cpu,cpuacct:/x\n4:memory:/docker/abc/app\n0::/\n"),
                ("proc/self/mountinfo", "31 23 0:27 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n"),
                ("sys/fs/cgroup/memory/memory.limit_in_bytes", "2147483648\n"),
                ("sys/fs/cgroup/memory/app/memory.limit_in_bytes", "9223372036854771712\n"),
            ],
        );
        assert_eq!(memory_limit(&tree.0, None), Some(2 << 30));
    }

    #[test]
    fn a_group_outside_of_the_namespace_leads_nowhere() {
        let tree = Tree::new(
            "outside",
            &[
                ("proc/self/cgroup", "0::/../../secret\n"),
                ("proc/self/mountinfo", UNIFIED),
                ("sys/secret/memory.max", "5000000\n"),
                ("sys/fs/cgroup/memory.max", "8388608\n"),
            ],
        );
        assert_eq!(memory_limit(&tree.0, None), Some(8 << 20));
    }

    #[test]
    fn memory_is_the_smaller_of_machine_and_limit() {
        let machine = |mem_total, memory_limit| Machine { cpus: 1, mem_total, memory_limit };
        assert_eq!(machine(Some(8), Some(4)).memory().unwrap().bytes, 4);
        assert_eq!(machine(Some(8), Some(9)).memory().unwrap().bytes, 8);
        assert_eq!(machine(Some(8), None).memory().unwrap().what, "the machine's memory");
        assert_eq!(machine(None, Some(4)).memory().unwrap().bytes, 4);
        assert_eq!(machine(None, None).memory(), None);
    }

    #[test]
    fn this_machine_has_cpus_and_memory() {
        let machine = Machine::read(None);
        assert!(machine.cpus >= 1);
        assert!(machine.memory().unwrap().bytes > 1 << 20);
        assert!(machine.mem_total.is_some());
    }

    #[test]
    fn total_memory_is_in_bytes() {
        assert_eq!(mem_total("MemFree: 1 kB\nMemTotal:    2048 kB\n"), Some(2 << 20));
        for text in
            ["", "MemTotal:", "MemTotal: x kB", "MemTotal: 5", "MemTotal: 0 kB", "MemTotal: 18446744073709551615 kB"]
        {
            assert_eq!(mem_total(text), None, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "[-0-9:/. ,a-z\\n\\\\\\PC]{0,80}") {
            let _ = mem_total(&text);
            let _ = own_group(&text, Some("memory"));
            let _ = own_group(&text, None);
            let _ = limit(&text);
            if let Some(mount) = Mount::parse(&text) {
                let _ = mount.is_legacy_memory();
            }
        }
    }
}
