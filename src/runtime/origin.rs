//! Whose fences they are: names carry a mark of the runtime directory, so that managers of the same app with different
//! directories (a test beside a service, two containers that share a host's cgroups) leave each other's workers alone.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::isolation::Leftover;
use crate::supervisor::id::WorkerId;
use crate::supervisor::time::Time;

/// The mark of a runtime directory: the same for every manager and version of paddock (FNV-1a, 32 bits).
pub fn mark(directory: &Path) -> String {
    let path = directory.canonicalize().unwrap_or_else(|_| directory.to_owned());
    let hash = path
        .as_os_str()
        .as_bytes()
        .iter()
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    format!("{hash:08x}")
}

/// What makes a fence's name unlike every other of this boot.
pub fn unique(directory: &Path, manager_began: Time, worker: WorkerId) -> String {
    format!("{}_{:x}_{worker}", mark(directory), manager_began.since_boot().as_micros())
}

/// Whether a fence was made by a manager with this runtime directory.
pub fn is_of(directory: &Path, leftover: &Leftover) -> bool {
    leftover.name.unique.split('_').next() == Some(mark(directory).as_str())
}

/// The unique part as it was asked for: a scope that had to be asked for again has a number behind a dot.
pub fn asked_for(unique: &str) -> &str {
    unique.split('.').next().unwrap_or(unique)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn directories_are_told_apart_and_versions_agree() {
        assert_eq!(mark(Path::new("/nowhere/at/all")), "6bbe3f4c");
        assert_ne!(mark(Path::new("/nowhere/at/all")), mark(Path::new("/nowhere/else")));
        let name = unique(Path::new("/nowhere/at/all"), Time::from_boot(Duration::from_micros(0x1f)), WorkerId(3));
        assert_eq!(name, "6bbe3f4c_1f_3");
        assert_eq!(asked_for(&format!("{name}.2")), name);
    }
}
