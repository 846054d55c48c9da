//! The core stays pure by a check, not by goodwill.

use std::path::Path;

/// What a decision must not depend on: clocks, files, processes, chance from outside, orders that differ from run to run.
const BANNED: &[&str] = &[
    "Instant",
    "SystemTime",
    "std::fs",
    "std::io",
    "std::net",
    "std::os",
    "std::path",
    "std::process",
    "std::thread",
    "std::sync::Mutex",
    "std::env",
    "env!",
    "tokio",
    "nix::",
    "rustix",
    "libc",
    "zbus",
    "tracing",
    "unsafe",
    "HashMap",
    "HashSet",
    "rand::rng",
    "from_os_rng",
    "println!",
    "async ",
    "static mut",
];

#[test]
fn the_core_touches_nothing_outside() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/supervisor");
    let mut files = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        files += 1;
        for (number, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            for word in BANNED {
                assert!(!code.contains(word), "{}:{}: {word} in the core", path.display(), number + 1);
            }
            if let Some((_, used)) = code.split_once("crate::") {
                let inside = used.starts_with("supervisor::") || used.starts_with("config::model::");
                assert!(inside, "{}:{}: the core uses crate::{used}", path.display(), number + 1);
            }
        }
    }
    assert!(files > 15, "only {files} files were looked at");
}
