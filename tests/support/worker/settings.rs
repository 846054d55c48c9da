//! What a life is told before it starts.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

/// `W_…` variables, overridden by the `key=value` lines of the file that `W_SWITCH` names.
pub(super) struct Settings(BTreeMap<String, String>);

impl Settings {
    /// Reads both; a missing switch file is no error.
    pub(super) fn read() -> Self {
        let mut settings: BTreeMap<String, String> =
            std::env::vars().filter_map(|(key, value)| Some((key.strip_prefix("W_")?.to_lowercase(), value))).collect();
        let switches = settings.get("switch").and_then(|path| std::fs::read_to_string(path).ok());
        for line in switches.unwrap_or_default().lines() {
            if let Some((key, value)) = line.split_once('=') {
                settings.insert(key.trim().to_owned(), value.trim().to_owned());
            }
        }
        Self(settings)
    }

    /// A setting's text.
    pub(super) fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// A setting that is a number.
    pub(super) fn number(&self, key: &str) -> Option<u64> {
        self.get(key)?.parse().ok()
    }

    /// A setting in milliseconds.
    pub(super) fn millis(&self, key: &str) -> Option<Duration> {
        self.number(key).map(Duration::from_millis)
    }

    /// Whether a setting is `1`.
    pub(super) fn flag(&self, key: &str) -> bool {
        self.get(key) == Some("1")
    }

    /// Whether a setting, a comma-separated list of slots, names this worker's.
    pub(super) fn concerns_slot(&self, key: &str) -> bool {
        let slot = std::env::var("PADDOCK_SLOT").unwrap_or_default();
        self.get(key).is_some_and(|slots| slots.split(',').any(|each| each.trim() == slot))
    }

    /// Appends to a file in `W_DIR`, in one write; returns how long it is then.
    pub(super) fn append(&self, name: &str, text: &str) -> u64 {
        let path = PathBuf::from(self.get("dir").unwrap_or(".")).join(name);
        let file = OpenOptions::new().create(true).append(true).open(path);
        let length = file.and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            Ok(file.metadata()?.len())
        });
        length.unwrap_or(0)
    }
}
